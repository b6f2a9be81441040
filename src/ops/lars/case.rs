//! Shapes of LARS in the recipes.

use super::{Hyper, Item, lars};
use crate::ops::{Case, Fill, Input};
use crate::{DType, Shape, Tensor};

/// One step over tensors of these shapes with a trust coefficient, with the factor of a clipped gradient; every other
/// tensor decays.
pub fn case(id: impl Into<String>, shapes: &[Shape]) -> Case {
    let elements: usize = shapes.iter().map(Shape::numel).sum();
    let bytes = move |dtype: DType| (elements * (28 + dtype.size())) as u64; // w and g are read twice
    build(id, shapes, Some(0.001), |_| true).bytes(bytes)
}

/// The same with copies in the compute type for the tensors that `copied` accepts by number.
pub(super) fn build(id: impl Into<String>, shapes: &[Shape], trust: Option<f64>, copied: fn(usize) -> bool) -> Case {
    let mut inputs = vec![Input::constant("norm", [2], Fill::Acc(vec![4.0, 0.25]))];
    for shape in shapes {
        inputs.push(Input::constant("w", shape.clone(), Fill::AccNormal(0.0, 0.1)));
        inputs.push(Input::constant("mu", shape.clone(), Fill::AccNormal(0.0, 0.01)));
        inputs.push(Input::constant("g", shape.clone(), Fill::AccNormal(0.0, 0.1)));
        inputs.push(Input::constant("compute", shape.clone(), Fill::Normal(0.0, 1.0)));
    }
    let elements = shapes.iter().map(Shape::numel).sum();
    Case::changing("lars", id, inputs, 1, [6.4], move |norm, held, lr, work| {
        let item = |(i, tensors)| {
            let [w, mu, g, compute]: &mut [Tensor; 4] = tensors;
            let (lr_scale, weight_decay) = (1.0 / (1 + i % 4) as f64, if i % 2 == 0 { 0.05 } else { 0.0 });
            Item { w, mu, g, compute: copied(i).then_some(compute), lr_scale, weight_decay }
        };
        let mut items: Vec<Item> = held.as_chunks_mut().0.iter_mut().enumerate().map(item).collect();
        lars(&mut items, Hyper { momentum: 0.9, trust }, lr, norm.first(), work)
    })
    .terms(elements)
}

/// Linear probe on ViT-B and ViT-L: 1000 classes.
pub fn cases() -> Vec<Case> {
    [768, 1024].map(|d| case(format!("1000x{d}"), &[[1000, d].into(), [1000].into()])).into()
}
