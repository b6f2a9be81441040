//! Euclidean norm of all gradients together, and the factor that clips them.
//!
//! `norm = √(Σ g²)` over every element of every tensor, `factor = min(1, max_norm / (norm + 1e-6))`.
//!
//! Source: Pascanu et al. 2013, arXiv 1211.5063, algorithm 1; the 1e-6 is that of torch's `clip_grad_norm_`. Squares are
//! summed in f64: no finite gradient overflows, and the value does not depend on how the sum is split. Two stages, one
//! sum per chunk and their sum, in a fixed order.

mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases};

use crate::ops::multi_tensor::{self, Workspace};
use crate::{Device, Error, Result, Tensor};

const OP: &str = "grad_norm";

/// Writes the norm of `grads` and the factor for `max_norm` (1 without) to `out: [2]`, both not finite if a gradient is
/// not.
///
/// dtypes: f32 (f64 on the CPU). Deterministic.
///
/// # Errors
/// When a gradient differs from `out` in dtype or device, `out` is shared or not `[2]`, or `max_norm` is not positive.
pub fn grad_norm(grads: &[&Tensor], max_norm: Option<f64>, out: &mut Tensor, work: &mut Workspace) -> Result<()> {
    multi_tensor::check_vector(OP, "out", out, 2, out.dtype(), out.device())?;
    run(grads, &vec![0; grads.len()], max_norm, out, work)
}

/// As [`grad_norm`], a norm and a factor for each group of gradients, `groups` being the number of each one's:
/// `out: [groups, 2]`, in the same two launches. Sub-networks are clipped each on its own.
///
/// # Errors
/// As [`grad_norm`], and when a gradient has no group or one that `out` has no row for.
pub fn grad_norms(
    grads: &[&Tensor],
    groups: &[usize],
    max_norm: Option<f64>,
    out: &mut Tensor,
    work: &mut Workspace,
) -> Result<()> {
    let [rows, _] = out.dims(OP, "out")?;
    crate::ops::shaped(OP, "out", out, &[rows, 2])?;
    if groups.len() != grads.len() {
        return Err(Error::argument(OP, "groups", "length", groups.len().to_string(), grads.len().to_string()));
    }
    if let Some((i, group)) = groups.iter().enumerate().find(|(_, group)| **group >= rows) {
        return Err(Error::value(OP, format!("groups[{i}]"), group, format!("a group below {rows}")));
    }
    run(grads, groups, max_norm, out, work)
}

fn run(
    grads: &[&Tensor],
    groups: &[usize],
    max_norm: Option<f64>,
    out: &mut Tensor,
    work: &mut Workspace,
) -> Result<()> {
    let (dtype, device) = (out.dtype(), out.device().clone());
    if dtype != dtype.accumulate() || !dtype.is_float() {
        return Err(Error::argument(OP, "out", "dtype", dtype.name(), "f32, or f64 on the cpu"));
    }
    for (i, g) in grads.iter().enumerate() {
        multi_tensor::check(OP, "grads", i, g, g.numel(), dtype, &device)?;
    }
    if let Some(max) = max_norm.filter(|max| max.is_nan() || *max <= 0.0) {
        return Err(Error::value(OP, "max_norm", max, "a positive number"));
    }
    match device {
        Device::Cpu => reference::grad_norm(grads, groups, max_norm, out),
        _ => launch::grad_norm(grads, groups, max_norm, out, work),
    }
}
