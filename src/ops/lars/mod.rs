//! One step of LARS, or of gradient descent with momentum, over a list of tensors, in place.
//!
//! `g ← factor · g + wd · w`, for matrices `g ← trust · |w| / |g| · g` where both norms are positive, then
//! `mu ← momentum · mu + g`, `w ← w - lr · mu`. Without `trust` this is gradient descent with momentum as in torch's `SGD`.
//!
//! Source: You et al. 2017, arXiv 1708.03888, algorithm 1, in the form of MAE's linear probe: the momentum holds scaled
//! gradients and the learning rate comes after it; tensors of one axis keep their gradient. Two kernels for all tensors:
//! sums of squares in f64, then the update.

mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases};

use crate::ops::multi_tensor::{self, Workspace};
use crate::{DType, Device, Result, Tensor};

const OP: &str = "lars";

/// One tensor and what belongs to it; all have the same number of elements.
pub struct Item<'a> {
    /// Weights, f32. With two axes or more they are scaled by the trust ratio.
    pub w: &'a mut Tensor,
    /// Momentum, f32.
    pub mu: &'a mut Tensor,
    /// Gradient, f32.
    pub g: &'a Tensor,
    /// Copy of the weights in a compute type, rewritten from `w`.
    pub compute: Option<&'a mut Tensor>,
    /// Factor of the learning rate.
    pub lr_scale: f64,
    /// Share of the weights added to the gradient; 0 for none.
    pub weight_decay: f64,
}

/// What stays the same from step to step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyper {
    /// Decay of the momentum.
    pub momentum: f64,
    /// Trust coefficient; `None` for plain momentum.
    pub trust: Option<f64>,
}

impl Hyper {
    /// The trust coefficient if it applies to this tensor.
    fn trust_of(self, w: &Tensor) -> Option<f64> {
        self.trust.filter(|_| w.shape().len() > 1)
    }
}

/// Updates every item in place.
///
/// `lr: [1]` is on the device of the items. `norm: [2]`, as written by [`grad_norm`](crate::ops::grad_norm::grad_norm),
/// gives the factor of the gradients; where the norm in it is not finite, nothing is changed.
///
/// dtypes: f32 (f64 on the CPU) for everything but the copies, which have one type of f32, bf16, f16 among them.
/// Deterministic.
///
/// # Errors
/// When operands of an item differ in length, dtype or device, or one that is written is shared. Nothing is changed then.
pub fn lars(items: &mut [Item], hyper: Hyper, lr: &Tensor, norm: Option<&Tensor>, work: &mut Workspace) -> Result<()> {
    let Some(first) = items.first() else { return Ok(()) };
    let device = first.w.device().clone();
    let compute = check(items, lr, norm, &device)?;
    match device {
        Device::Cpu => reference::lars(items, hyper, lr, norm, compute),
        _ => launch::lars(items, hyper, lr, norm, compute, work),
    }
}

/// The type of the copies; that of the weights if there are none.
fn check(items: &[Item], lr: &Tensor, norm: Option<&Tensor>, device: &Device) -> Result<DType> {
    let dtype = items[0].w.dtype();
    let compute = multi_tensor::compute_type(OP, "w[0]", dtype, items.iter().find_map(|x| x.compute.as_deref()))?;
    for (i, item) in items.iter().enumerate() {
        let numel = item.w.numel();
        for (arg, x) in [("w", &*item.w), ("mu", &*item.mu), ("g", item.g)] {
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
