//! One step of AdamW over a list of tensors, in place, and with it the moving average of the weights.
//!
//! With the gradient `g`, its decayed means `m` and `v`, and step count `t` from 1:
//!
//! `g ← factor · g`, `w ← w - lr·(wd·decay)·w`, `m ← β₁ m + (1-β₁) g`, `v ← β₂ v + (1-β₂) g²`,
//! `w ← w - lr / (1-β₁ᵗ) · m / (√(v / (1-β₂ᵗ)) + eps)`.
//!
//! Source: Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2, with the decay scaled by the learning rate as in
//! torch's `AdamW`. One kernel for all tensors reads `w, m, v, g` once and writes `w, m, v` and the copy that the next
//! forward reads: 30 bytes per element with a 16-bit copy.
//!
//! A tensor that some steps left out has a `t` of its own: the number of its steps, as in torch.
//!
//! A teacher follows in the same pass, `t ← momentum · t + (1 - momentum) · w` (Tarvainen and Valpola 2017, arXiv
//! 1703.01780, equation 2): 8 bytes per element more, 10 with its copy.

mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases, teacher_case};

use crate::ops::multi_tensor::{self, Workspace};
use crate::{DType, Device, Error, Result, Tensor};

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
    /// Decay per step and learning rate, times [`Step::decay`]; 0 for none.
    pub weight_decay: f64,
    /// What averages the weights, if anything does.
    pub teacher: Option<Teacher<'a>>,
    /// Row of `norm` with the factor of the gradient.
    pub group: usize,
    /// [`correction`] of a tensor whose steps are fewer than [`Step::t`]; else `[1, 1]`.
    pub correction: [f64; 2],
}

/// The moving average of one tensor.
pub struct Teacher<'a> {
    /// The average, f32.
    pub average: &'a mut Tensor,
    /// Copy of it in a compute type, rewritten from it.
    pub compute: Option<&'a mut Tensor>,
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

/// What changes from step to step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Learning rate.
    pub lr: f64,
    /// Number of the step, from 1.
    pub t: u64,
    /// Factor of the decay of every item.
    pub decay: f64,
    /// Momentum of the teachers.
    pub momentum: f64,
}

impl Step {
    /// Step `t` with the decay of the items as they state it, and teachers that stay as they are.
    pub fn new(lr: f64, t: u64) -> Self {
        Self { lr, t, decay: 1.0, momentum: 1.0 }
    }
}

/// A step as [`adamw`] reads it from device memory: `lr`, `lr / (1-β₁ᵗ)`, `1 / √(1-β₂ᵗ)`, the factor of the decay,
/// the momentum and 1 less it.
pub fn scalars(hyper: Hyper, Step { lr, t, decay, momentum }: Step) -> [f64; 6] {
    let (step, root) = (lr / weight(hyper.beta1, t), 1.0 / weight(hyper.beta2, t).sqrt());
    [lr, step, root, decay, momentum, 1.0 - momentum]
}

/// `1 - βᵗ`, what the weights of a mean over `t` steps add up to.
fn weight(beta: f64, t: u64) -> f64 {
    -(t as f64 * beta.ln()).exp_m1() // without cancellation; β = 0 gives 1
}

/// What makes the scalars of step `t` those of step `own ≤ t`: `(1-β₁ᵗ) / (1-β₁ᵒ)` and `√((1-β₂ᵗ) / (1-β₂ᵒ))`.
pub fn correction(hyper: Hyper, t: u64, own: u64) -> [f64; 2] {
    let ratio = |beta: f64| weight(beta, t) / weight(beta, own);
    [ratio(hyper.beta1), ratio(hyper.beta2).sqrt()]
}

/// Updates every item in place.
///
/// `scalars: [6]` are those of [`scalars`] on the device of the items. `norm: [2]` or `[groups, 2]`, as written by
/// [`grad_norm`](crate::ops::grad_norm::grad_norm) or [`grad_norms`](crate::ops::grad_norm::grad_norms), gives the factor of
/// the gradients; where a norm in it is not finite, nothing is changed. Everything that changes from step to step lies in
/// these two, so that a recorded launch is good for every step.
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
    let copy = |x| {
        let Item { compute, teacher, .. }: &Item = x;
        compute.as_deref().or(teacher.as_ref().and_then(|t| t.compute.as_deref()))
    };
    let compute = multi_tensor::compute_type(OP, "w[0]", dtype, items.iter().find_map(copy))?;
    let groups = norm.map_or(1, |norm| norm.numel() / 2);
    if let Some(norm) = norm {
        let shape: &[usize] = if norm.shape().len() == 1 { &[2] } else { &[groups, 2] };
        crate::ops::shaped(OP, "norm", norm, shape)?;
        multi_tensor::check(OP, "norm", 0, norm, 2 * groups, dtype, device)?;
    }
    for (i, item) in items.iter().enumerate() {
        let numel = item.w.numel();
        for (arg, x) in [("w", &*item.w), ("m", &*item.m), ("v", &*item.v), ("g", item.g)] {
            multi_tensor::check(OP, arg, i, x, numel, dtype, device)?;
        }
        if let Some(c) = &item.compute {
            multi_tensor::check(OP, "compute", i, c, numel, compute, device)?;
        }
        if let Some(teacher) = &item.teacher {
            multi_tensor::check(OP, "teacher", i, teacher.average, numel, dtype, device)?;
            if let Some(c) = &teacher.compute {
                multi_tensor::check(OP, "teacher.compute", i, c, numel, compute, device)?;
            }
        }
        if item.group >= groups {
            return Err(Error::value(OP, format!("group[{i}]"), item.group, format!("a group below {groups}")));
        }
    }
    multi_tensor::check_vector(OP, "scalars", scalars, 6, dtype, device)?;
    Ok(compute)
}
