//! Shapes of AdamW in the recipes.

use super::{Hyper, Item, Step, Teacher, adamw, correction, scalars};
use crate::ops::multi_tensor::vit_shapes;
use crate::ops::{Case, Fill, Input};
use crate::{DType, Shape, Tensor};

/// One step (`t` = 3) over tensors of these shapes, with the factor of a clipped gradient; every other tensor decays,
/// every third is at its first step.
pub fn case(id: impl Into<String>, shapes: &[Shape]) -> Case {
    let elements: usize = shapes.iter().map(Shape::numel).sum();
    build(id, shapes, |_| true).bytes(move |dtype: DType| (elements * (28 + dtype.size())) as u64)
}

/// The same with copies in the compute type for the tensors that `copied` accepts by number.
pub(super) fn build(id: impl Into<String>, shapes: &[Shape], copied: fn(usize) -> bool) -> Case {
    let mut inputs = vec![Input::constant("norm", [2], Fill::Acc(vec![4.0, 0.25]))];
    for shape in shapes {
        inputs.push(Input::constant("w", shape.clone(), Fill::AccNormal(0.0, 0.1)));
        inputs.push(Input::constant("m", shape.clone(), Fill::AccNormal(0.0, 0.01)));
        inputs.push(Input::constant("v", shape.clone(), Fill::AccUniform(1e-6, 1e-3)));
        inputs.push(Input::constant("g", shape.clone(), Fill::AccNormal(0.0, 0.1)));
        inputs.push(Input::constant("compute", shape.clone(), Fill::Normal(0.0, 1.0)));
    }
    let hyper = Hyper { beta1: 0.9, beta2: 0.95, eps: 1e-8 };
    Case::changing("adamw", id, inputs, 1, scalars(hyper, Step::new(1e-3, 3)), move |norm, held, step, work| {
        let item = |(i, tensors)| {
            let [w, m, v, g, compute]: &mut [Tensor; 5] = tensors;
            let (lr_scale, weight_decay) = (1.0 / (1 + i % 4) as f64, if i % 2 == 0 { 0.05 } else { 0.0 });
            let compute = copied(i).then_some(compute);
            let correction = if i % 3 == 1 { correction(hyper, 3, 1) } else { [1.0; 2] };
            Item { w, m, v, g, compute, lr_scale, weight_decay, teacher: None, group: 0, correction }
        };
        let mut items: Vec<Item> = held.as_chunks_mut().0.iter_mut().enumerate().map(item).collect();
        adamw(&mut items, hyper, step, norm.first(), work)
    })
}

/// The same with teachers and their copies for the tensors that `copied` accepts, and two groups of gradients.
pub(super) fn build_with_teachers(id: impl Into<String>, shapes: &[Shape], copied: fn(usize) -> bool) -> Case {
    let mut inputs = vec![Input::constant("norm", [2, 2], Fill::Acc(vec![4.0, 0.25, 9.0, 0.5]))];
    for shape in shapes {
        inputs.push(Input::constant("w", shape.clone(), Fill::AccNormal(0.0, 0.1)));
        inputs.push(Input::constant("m", shape.clone(), Fill::AccNormal(0.0, 0.01)));
        inputs.push(Input::constant("v", shape.clone(), Fill::AccUniform(1e-6, 1e-3)));
        inputs.push(Input::constant("g", shape.clone(), Fill::AccNormal(0.0, 0.1)));
        inputs.push(Input::constant("compute", shape.clone(), Fill::Normal(0.0, 1.0)));
        inputs.push(Input::constant("teacher", shape.clone(), Fill::AccNormal(0.0, 0.1)));
        inputs.push(Input::constant("teacher_compute", shape.clone(), Fill::Normal(0.0, 1.0)));
    }
    let hyper = Hyper { beta1: 0.9, beta2: 0.999, eps: 1e-8 };
    let now = Step { lr: 1e-3, t: 3, decay: 0.08, momentum: 0.994 };
    Case::changing("adamw", id, inputs, 1, scalars(hyper, now), move |norm, held, step, work| {
        let item = |(i, tensors)| {
            let [w, m, v, g, compute, average, copy]: &mut [Tensor; 7] = tensors;
            let teacher = Teacher { average, compute: copied(i).then_some(copy) };
            let teacher = (i % 3 != 2).then_some(teacher);
            let (lr_scale, weight_decay, correction) = (1.0, 0.5, [1.0; 2]);
            Item { w, m, v, g, compute: Some(compute), lr_scale, weight_decay, teacher, group: i % 2, correction }
        };
        let mut items: Vec<Item> = held.as_chunks_mut().0.iter_mut().enumerate().map(item).collect();
        adamw(&mut items, hyper, step, norm.first(), work)
    })
}

/// One step over tensors of these shapes with a teacher for each.
pub fn teacher_case(id: impl Into<String>, shapes: &[Shape]) -> Case {
    let elements: usize = shapes.iter().map(Shape::numel).sum();
    build_with_teachers(id, shapes, |_| true).bytes(move |dtype: DType| (elements * (36 + 2 * dtype.size())) as u64)
}

/// ViT-S and ViT-B, the former with a teacher as well.
pub fn cases() -> Vec<Case> {
    let shapes = vit_shapes(384, 12);
    vec![case("vit_s", &shapes), case("vit_b", &vit_shapes(768, 12)), teacher_case("vit_s-teacher", &shapes)]
}
