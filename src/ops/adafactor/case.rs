//! Shapes of Adafactor in the recipes.

use super::{Groups, Hyper, Item, Second, View, adafactor, scalars};
use crate::ops::multi_tensor::vit_shapes;
use crate::ops::{Case, Fill, Input};
use crate::{DType, Shape, Tensor};

/// One step (`t` = 3) over tensors of these shapes, the matrices in groups of 64 rows where they have so many.
pub fn case(id: impl Into<String>, shapes: &[Shape]) -> Case {
    let elements: usize = shapes.iter().map(Shape::numel).sum();
    let view = |shape: &Shape| match **shape {
        [rows, cols] if rows.is_multiple_of(64) => {
            Some(View { groups: rows / 64, rows: 64, cols, place: Groups::First })
        }
        _ => None,
    };
    let tensors: Vec<(Shape, Option<View>)> = shapes.iter().map(|s| (s.clone(), view(s))).collect();
    build(id, &tensors, Hyper::scaling_vit()).bytes(move |dtype: DType| (elements * (24 + dtype.size())) as u64)
}

/// The same with a view of each tensor; every other one decays, every third has no copy.
pub(super) fn build(id: impl Into<String>, tensors: &[(Shape, Option<View>)], hyper: Hyper) -> Case {
    let mut inputs = vec![Input::constant("norm", [2], Fill::Acc(vec![4.0, 0.25]))];
    for (shape, view) in tensors {
        let state = |name, shape: Shape| Input::constant(name, shape, Fill::AccUniform(1e-6, 1e-3));
        let [rows, cols] = match view {
            Some(view) => [[view.groups, view.rows].into(), [view.groups, view.cols].into()],
            None => [shape.clone(), [0].into()],
        };
        inputs.push(Input::constant("w", shape.clone(), Fill::AccNormal(0.0, 0.1)));
        inputs.push(Input::constant("m", shape.clone(), Fill::AccNormal(0.0, 0.01)));
        inputs.push(state("rows", rows));
        inputs.push(state("cols", cols));
        inputs.push(Input::constant("g", shape.clone(), Fill::AccNormal(0.0, 0.1)));
        inputs.push(Input::constant("compute", shape.clone(), Fill::Normal(0.0, 1.0)));
    }
    let views: Vec<Option<View>> = tensors.iter().map(|t| t.1).collect();
    let longest = tensors.iter().map(|(shape, _)| shape.numel()).max().unwrap_or(1);
    Case::changing("adafactor", id, inputs, 1, scalars(hyper, 1e-3, 3), move |norm, held, step, work| {
        let item = |(i, tensors)| {
            let [w, m, rows, cols, g, compute]: &mut [Tensor; 6] = tensors;
            let second = match views[i] {
                Some(view) => Second::Factored { rows, cols, view },
                None => Second::Full(rows),
            };
            let (lr_scale, weight_decay) = (1.0 / (1 + i % 4) as f64, if i % 2 == 0 { 0.05 } else { 0.0 });
            Item { w, m, second, g, compute: (i % 3 != 2).then_some(compute), lr_scale, weight_decay }
        };
        let mut items: Vec<Item> = held.as_chunks_mut().0.iter_mut().enumerate().map(item).collect();
        adafactor(&mut items, hyper, step, norm.first(), work)
    })
    .terms(longest)
}

/// ViT-B.
pub fn cases() -> Vec<Case> {
    vec![case("vit_b", &vit_shapes(768, 12))]
}
