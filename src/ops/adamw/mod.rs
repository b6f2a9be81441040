//! One step of AdamW over a list of tensors, in place.
//!
//! With the gradient `g`, its decayed means `m` and `v`, and step count `t` from 1:
//!
//! `g ← factor · g`, `w ← w - lr·wd·w`, `m ← β₁ m + (1-β₁) g`, `v ← β₂ v + (1-β₂) g²`,
//! `w ← w - lr / (1-β₁ᵗ) · m / (√(v / (1-β₂ᵗ)) + eps)`.
//!
//! Source: Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2, with the decay scaled by the learning rate as in
//! torch's `AdamW`. One kernel for all tensors reads `w, m, v, g` once and writes `w, m, v` and the copy that the next
//! forward reads: 30 bytes per element with a 16-bit copy.

mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases};

use crate::ops::multi_tensor::{self, Workspace};
use crate::{DType, Device, Result, Tensor};

const OP: &str = "adamw";

/// One tensor and what belongs to it; all have the same number of elements.
pub struct Item<'a> {
    /// Weights, f32.
    pub w: &'a mut Tensor,
    /// Decayed mean of the gradient, f32.
    pub m: &'a mut Tensor,
    /// Decayed mean of its square, f32.
    pub v: &'a mut Tensor,
    /// Gradient, f32.
    pub g: &'a Tensor,
    /// Copy of the weights in a compute type, rewritten from `w`.
    pub compute: Option<&'a mut Tensor>,
    /// Factor of the learning rate.
    pub lr_scale: f64,
    /// Decay per step and learning rate; 0 for none.
    pub weight_decay: f64,
}

/// What stays the same from step to step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyper {
    /// Decay of the first mean.
    pub beta1: f64,
    /// Decay of the second mean.
    pub beta2: f64,
    /// Added to the root of the second mean.
    pub eps: f64,
}

/// What changes from step to step, in the order in which [`adamw`] reads it from device memory: `lr`,
/// `lr / (1-β₁ᵗ)` and `1 / √(1-β₂ᵗ)`, for step `t` from 1.
pub fn scalars(hyper: Hyper, lr: f64, t: u64) -> [f64; 3] {
    // -expm1(t ln β) = 1 - βᵗ without cancellation; β = 0 gives 1.
    let correction = |beta: f64| -(t as f64 * beta.ln()).exp_m1();
    [lr, lr / correction(hyper.beta1), 1.0 / correction(hyper.beta2).sqrt()]
}

/// Updates every item in place.
///
/// `scalars: [3]` are those of [`scalars`] on the device of the items. `norm: [2]`, as written by
/// [`grad_norm`](crate::ops::grad_norm::grad_norm), gives the factor of the gradients; where the norm in it is not finite,
/// nothing is changed.
///
/// dtypes: f32 (f64 on the CPU) for everything but the copies, which have one type of f32, bf16, f16 among them.
/// Deterministic, and independent of how the list is split.
///
/// # Errors
/// When operands of an item differ in length, dtype or device, or one that is written is shared. Nothing is changed then.
pub fn adamw(
    items: &mut [Item],
    hyper: Hyper,
    scalars: &Tensor,
    norm: Option<&Tensor>,
    work: &mut Workspace,
) -> Result<()> {
    let Some(first) = items.first() else { return Ok(()) };
    let device = first.w.device().clone();
    let compute = check(items, scalars, norm, &device)?;
    match device {
        Device::Cpu => reference::adamw(items, hyper, scalars, norm, compute),
        _ => launch::adamw(items, hyper, scalars, norm, compute, work),
    }
}

/// The type of the copies; that of the weights if there are none.
fn check(items: &[Item], scalars: &Tensor, norm: Option<&Tensor>, device: &Device) -> Result<DType> {
    let dtype = items[0].w.dtype();
    let compute = multi_tensor::compute_type(OP, "w[0]", dtype, items.iter().find_map(|x| x.compute.as_deref()))?;
    for (i, item) in items.iter().enumerate() {
        let numel = item.w.numel();
        for (arg, x) in [("w", &*item.w), ("m", &*item.m), ("v", &*item.v), ("g", item.g)] {
            multi_tensor::check(OP, arg, i, x, numel, dtype, device)?;
        }
        if let Some(c) = &item.compute {
            multi_tensor::check(OP, "compute", i, c, numel, compute, device)?;
        }
    }
    multi_tensor::check_vector(OP, "scalars", scalars, 3, dtype, device)?;
    norm.map_or(Ok(()), |norm| multi_tensor::check_vector(OP, "norm", norm, 2, dtype, device))?;
    Ok(compute)
}
