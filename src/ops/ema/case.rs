//! Shapes of the moving average in the recipes.

use super::{Item, ema, scalars};
use crate::ops::multi_tensor::vit_shapes;
use crate::ops::{Case, Fill, Input};
use crate::{DType, Shape, Tensor};

/// One update over tensors of these shapes.
pub fn case(id: impl Into<String>, shapes: &[Shape]) -> Case {
    let elements: usize = shapes.iter().map(Shape::numel).sum();
    build(id, shapes, |_| true).bytes(move |dtype: DType| (elements * (12 + dtype.size())) as u64)
}

/// The same with copies in the compute type for the tensors that `copied` accepts by number.
pub(super) fn build(id: impl Into<String>, shapes: &[Shape], copied: fn(usize) -> bool) -> Case {
    let mut inputs = Vec::new();
    for shape in shapes {
        inputs.push(Input::constant("teacher", shape.clone(), Fill::AccNormal(0.0, 0.1)));
        inputs.push(Input::constant("student", shape.clone(), Fill::AccNormal(0.0, 0.1)));
        inputs.push(Input::constant("compute", shape.clone(), Fill::Normal(0.0, 1.0)));
    }
    Case::changing("ema", id, inputs, 0, scalars(0.992), move |_, held, step, work| {
        let item = |(i, tensors)| {
            let [teacher, student, compute]: &mut [Tensor; 3] = tensors;
            Item { teacher, student, compute: copied(i).then_some(compute) }
        };
        let mut items: Vec<Item> = held.as_chunks_mut().0.iter_mut().enumerate().map(item).collect();
        ema(&mut items, step, work)
    })
}

/// ViT-S and ViT-B.
pub fn cases() -> Vec<Case> {
    vec![case("vit_s", &vit_shapes(384, 12)), case("vit_b", &vit_shapes(768, 12))]
}
