//! Shapes of the gradient norm in the recipes.

use super::grad_norm;
use crate::ops::multi_tensor::{Workspace, vit_shapes};
use crate::ops::{Case, Fill, Input};
use crate::{Shape, Tensor, Var};

/// Gradients of these shapes, clipped to the norm `max_norm`.
pub fn case(id: impl Into<String>, shapes: &[Shape], max_norm: Option<f64>) -> Case {
    let anchor = Input::constant("out", [2], Fill::Acc(vec![0.0; 2])); // gives the type where there is no gradient
    let grads = shapes.iter().map(|s| Input::constant("g", s.clone(), Fill::AccNormal(0.0, 0.1)));
    let elements: usize = shapes.iter().map(Shape::numel).sum();
    Case::new("grad_norm", id, std::iter::once(anchor).chain(grads).collect(), move |_, vars| {
        let mut out = Tensor::uninit_like(vars[0].value())?;
        let grads: Vec<&Tensor> = vars[1..].iter().map(Var::value).collect();
        grad_norm(&grads, max_norm, &mut out, &mut Workspace::new())?;
        Ok(vec![Var::constant(out)])
    })
    .bytes(move |_| 4 * elements as u64)
    .flops(2 * elements as u64)
    .terms(elements)
}

/// ViT-S and ViT-B.
pub fn cases() -> Vec<Case> {
    vec![case("vit_s", &vit_shapes(384, 12), Some(3.0)), case("vit_b", &vit_shapes(768, 12), Some(3.0))]
}
