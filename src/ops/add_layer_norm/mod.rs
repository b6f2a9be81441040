//! Residual sum and its LayerNorm in one pass.
//!
//! `sum = x + r`, `y = LN(sum)` over the last axis with weight, bias and epsilon of
//! [`layer_norm`](crate::ops::layer_norm). With the gradient `dsum` that reached the sum from elsewhere,
//! `dx = dr = dsum + LN'(dy)`.
//!
//! Source: as `layer_norm`. Fused, 4 elements are moved per element of `x` forward and backward (`x, r, sum, y`;
//! `dsum, dy, sum, dx`) where the composition moves 5 and 6.

mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases, joint_case};

use crate::ops::layer_norm::Dims;
use crate::ops::{same, shaped};
use crate::{Device, Grads, Result, Tape, Tensor, Var};

const OP: &str = "add_layer_norm";

/// `x + r` and the LayerNorm of it over the last axis, for `x, r: [.., C]` and `w, b: [C]`; both are `[.., C]`.
///
/// dtypes: f32, bf16, f16 (f64 on the CPU), the same for all four. Statistics are f32 and those of the sum as stored.
/// Saves the sum, `w` and 8 bytes per row. The backward is deterministic. `eps` is added to the variance.
///
/// # Errors
/// When `r`, `w` or `b` does not fit `x` in shape, dtype or device.
pub fn add_layer_norm(tape: &Tape, x: &Var, r: &Var, w: &Var, b: &Var, eps: f32) -> Result<(Var, Var)> {
    let (sum, y, stats) = forward(x.value(), r.value(), w.value(), b.value(), eps)?;
    let (to_x, to_r, to_w, to_b) = (x.slot(), r.slot(), w.slot(), b.slot());
    let saved = [sum.clone(), w.value().clone(), stats];
    let backward = move |[dsum, dy]: [Option<Tensor>; 2], [sum, w, stats]: [Tensor; 3], grads: &mut Grads| {
        let dx = match (dsum, dy) {
            (dsum, Some(dy)) => {
                let (dx, dw, db) = backward(dsum.as_ref(), &dy, &sum, &w, &stats)?;
                grads.add(to_w, dw)?;
                grads.add(to_b, db)?;
                dx
            }
            (Some(dsum), None) => dsum,
            (None, None) => return Ok(()),
        };
        grads.add(to_r, dx.clone())?;
        grads.add(to_x, dx)
    };
    Ok(tape.record_several(OP, [sum, y], &[x, r, w, b], saved, backward).into())
}

/// The sum, `y` and the statistics of the sum `[rows, 2]`: mean and rstd.
pub fn forward(x: &Tensor, r: &Tensor, w: &Tensor, b: &Tensor, eps: f32) -> Result<(Tensor, Tensor, Tensor)> {
    shaped(OP, "r", r, x.shape())?;
    same(OP, "r", r, x)?;
    let dims = Dims::check(OP, x, w, b)?;
    let (mut sum, mut y) = (Tensor::uninit_like(x)?, Tensor::uninit_like(x)?);
    let mut stats = Tensor::uninit([dims.rows, 2], x.dtype().accumulate(), x.device())?;
    match x.device() {
        Device::Cpu => reference::forward(x, r, w, b, eps, dims, &mut sum, &mut y, &mut stats)?,
        _ => launch::forward(x, r, w, b, eps, dims, &mut sum, &mut y, &mut stats)?,
    }
    Ok((sum, y, stats))
}

/// Gradients by `x` and `r`, which are the same (dtype of the sum), `w` and `b` (f32).
pub fn backward(
    dsum: Option<&Tensor>,
    dy: &Tensor,
    sum: &Tensor,
    w: &Tensor,
    stats: &Tensor,
) -> Result<(Tensor, Tensor, Tensor)> {
    let dims = Dims::check(OP, sum, w, w)?;
    for (arg, d) in [("dy", Some(dy)), ("dsum", dsum)].into_iter().filter_map(|(arg, d)| Some((arg, d?))) {
        shaped(OP, arg, d, sum.shape())?;
        same(OP, arg, d, sum)?;
    }
    dims.check_stats(OP, stats, sum)?;
    let acc = sum.dtype().accumulate();
    let mut dx = Tensor::uninit_like(sum)?;
    let mut dw = Tensor::uninit([dims.cols], acc, sum.device())?;
    let mut db = Tensor::uninit([dims.cols], acc, sum.device())?;
    match sum.device() {
        Device::Cpu => reference::backward(dsum, dy, sum, w, stats, dims, &mut dx, &mut dw, &mut db)?,
        _ => launch::backward(dsum, dy, sum, w, stats, dims, &mut dx, &mut dw, &mut db)?,
    }
    Ok((dx, dw, db))
}
