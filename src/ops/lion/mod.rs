//! One step of Lion over a list of tensors, in place.
//!
//! `g ← factor · g`, `u = sign(β₁ m + (1-β₁) g)`, `m ← β₂ m + (1-β₂) g`, `w ← w - lr · wd · w - lr · u`; the sign of 0 is 0.
//!
//! Source: Chen et al. 2023, arXiv 2302.06675, algorithm 2, with the decay scaled by the learning rate as in torch's `AdamW`.
//! Every step is as long as any other: learning rates are three to ten times smaller than AdamW's, decays as much larger.

mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases};

use crate::ops::multi_tensor::{self, Workspace};
use crate::{DType, Device, Result, Tensor};

const OP: &str = "lion";

/// One tensor and what belongs to it; all have the same number of elements.
pub struct Item<'a> {
    /// Weights, f32.
    pub w: &'a mut Tensor,
    /// Decayed mean of the gradient, f32.
    pub m: &'a mut Tensor,
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
    /// Share of the mean in what is stepped by.
    pub beta1: f64,
    /// Decay of the mean.
    pub beta2: f64,
}

/// Updates every item in place.
///
/// `lr: [1]` is on the device of the items. `norm: [2]`, as written by [`grad_norm`](crate::ops::grad_norm::grad_norm),
/// gives the factor of the gradients; where the norm in it is not finite, nothing is changed.
///
/// dtypes: f32 (f64 on the CPU) for everything but the copies, which have one type of f32, bf16, f16 among them.
/// Deterministic, and independent of how the list is split.
///
/// # Errors
/// When operands of an item differ in length, dtype or device, or one that is written is shared. Nothing is changed then.
pub fn lion(items: &mut [Item], hyper: Hyper, lr: &Tensor, norm: Option<&Tensor>, work: &mut Workspace) -> Result<()> {
    let Some(first) = items.first() else { return Ok(()) };
    let device = first.w.device().clone();
    let compute = check(items, lr, norm, &device)?;
    match device {
        Device::Cpu => reference::lion(items, hyper, lr, norm, compute),
        _ => launch::lion(items, hyper, lr, norm, compute, work),
    }
}

/// The type of the copies; that of the weights if there are none.
fn check(items: &[Item], lr: &Tensor, norm: Option<&Tensor>, device: &Device) -> Result<DType> {
    let dtype = items[0].w.dtype();
    let compute = multi_tensor::compute_type(OP, "w[0]", dtype, items.iter().find_map(|x| x.compute.as_deref()))?;
    for (i, item) in items.iter().enumerate() {
        let numel = item.w.numel();
        for (arg, x) in [("w", &*item.w), ("m", &*item.m), ("g", item.g)] {
            multi_tensor::check(OP, arg, i, x, numel, dtype, device)?;
        }
        if let Some(c) = &item.compute {
            multi_tensor::check(OP, "compute", i, c, numel, compute, device)?;
        }
    }
    multi_tensor::check_vector(OP, "lr", lr, 1, dtype, device)?;
    norm.map_or(Ok(()), |norm| multi_tensor::check_vector(OP, "norm", norm, 2, dtype, device))?;
    Ok(compute)
}
