//! Shapes of Lion in the recipes.

use super::{Hyper, Item, lion};
use crate::ops::multi_tensor::vit_shapes;
use crate::ops::{Case, Fill, Input};
use crate::{DType, Shape, Tensor};

/// One step over tensors of these shapes, with the factor of a clipped gradient; every other tensor decays.
pub fn case(id: impl Into<String>, shapes: &[Shape]) -> Case {
    let elements: usize = shapes.iter().map(Shape::numel).sum();
    build(id, shapes, |_| true).bytes(move |dtype: DType| (elements * (20 + dtype.size())) as u64)
}

/// The same with copies in the compute type for the tensors that `copied` accepts by number.
///
/// Gradients and means have one sign in a tensor: where they cancel, the step is that of the rounding.
pub(super) fn build(id: impl Into<String>, shapes: &[Shape], copied: fn(usize) -> bool) -> Case {
    let mut inputs = vec![Input::constant("norm", [2], Fill::Acc(vec![4.0, 0.25]))];
    for (i, shape) in shapes.iter().enumerate() {
        let sign = if i % 2 == 0 { 1.0 } else { -1.0 };
        let ends = |a: f64, b: f64| Fill::AccUniform((sign * a).min(sign * b), (sign * a).max(sign * b));
        inputs.push(Input::constant("w", shape.clone(), Fill::AccNormal(0.0, 0.1)));
        inputs.push(Input::constant("m", shape.clone(), ends(0.01, 0.02)));
        inputs.push(Input::constant("g", shape.clone(), ends(0.1, 0.3)));
        inputs.push(Input::constant("compute", shape.clone(), Fill::Normal(0.0, 1.0)));
    }
    let hyper = Hyper { beta1: 0.9, beta2: 0.99 };
    Case::changing("lion", id, inputs, 1, [1e-3], move |norm, held, lr, work| {
        let item = |(i, tensors)| {
            let [w, m, g, compute]: &mut [Tensor; 4] = tensors;
            let (lr_scale, weight_decay) = (1.0 / (1 + i % 4) as f64, if i % 2 == 0 { 0.5 } else { 0.0 });
            Item { w, m, g, compute: copied(i).then_some(compute), lr_scale, weight_decay }
        };
        let mut items: Vec<Item> = held.as_chunks_mut().0.iter_mut().enumerate().map(item).collect();
        lion(&mut items, hyper, lr, norm.first(), work)
    })
}

/// ViT-B.
pub fn cases() -> Vec<Case> {
    vec![case("vit_b", &vit_shapes(768, 12))]
}
