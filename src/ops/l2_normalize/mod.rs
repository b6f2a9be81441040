//! Rows divided by their Euclidean norm.
//!
//! `y = x / max(|x|, ε)` over the last axis, `ε = 1e-12`. Gradient: `dx = (dy - (dy · y) y) / |x|`, the part of `dy` across
//! `x`. A row shorter than `ε` has no direction and gets no gradient; the quotient's own, `dy / ε`, would be `1e12 dy`.
//!
//! Source: `torch.nn.functional.normalize`, as open_clip calls it on the embeddings (`src/open_clip/model.py`); SigLIP,
//! arXiv 2303.15343, algorithm 1.

mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases};

use crate::ops::{float, on, same, shaped, typed};
use crate::{Device, Result, Tape, Tensor, Var};

const OP: &str = "l2_normalize";

/// Norm below which a row is divided by this instead.
pub const EPS: f64 = 1e-12;

/// Each row of `x: [.., C]` at length 1; returns the shape of `x`.
///
/// dtypes: f32, bf16, f16 (f64 on the CPU); arithmetic is f32, in which the squares of a row are summed as they are: norms
/// from `1e-12` to `1e19` keep their digits. Saves `x` and 4 bytes per row. Deterministic.
///
/// # Errors
/// When `x` is not of a float type.
pub fn l2_normalize(tape: &Tape, x: &Var) -> Result<Var> {
    let (y, inverse) = forward(x.value())?;
    let to_x = x.slot();
    let saved = [x.value().clone(), inverse];
    Ok(tape.record(OP, y, &[x], saved, move |dy, [x, inverse], grads| grads.add(to_x, backward(&dy, &x, &inverse)?)))
}

/// `y`, and `1 / |x|` of each row, `[rows]`, f32 (f64 for f64): 0 of rows shorter than [`EPS`].
///
/// # Errors
/// When `x` is not of a float type.
pub fn forward(x: &Tensor) -> Result<(Tensor, Tensor)> {
    float(OP, "x", x)?;
    let (rows, _) = x.shape().rows_cols();
    let mut y = Tensor::uninit_like(x)?;
    let mut inverse = Tensor::uninit([rows], x.dtype().accumulate(), x.device())?;
    match x.device() {
        Device::Cpu => reference::forward(x, &mut y, &mut inverse)?,
        _ => launch::forward(x, &mut y, &mut inverse)?,
    }
    Ok((y, inverse))
}

/// Gradient by `x`, from what [`forward`] gave.
///
/// # Errors
/// When `dy` or `inverse` does not fit `x`.
pub fn backward(dy: &Tensor, x: &Tensor, inverse: &Tensor) -> Result<Tensor> {
    let (rows, _) = x.shape().rows_cols();
    shaped(OP, "dy", dy, x.shape())?;
    same(OP, "dy", dy, x)?;
    shaped(OP, "inverse", inverse, &[rows])?;
    typed(OP, "inverse", inverse, x.dtype().accumulate())?;
    on(OP, "inverse", inverse, x)?;
    let mut dx = Tensor::uninit_like(x)?;
    match x.device() {
        Device::Cpu => reference::backward(dy, x, inverse, &mut dx)?,
        _ => launch::backward(dy, x, inverse, &mut dx)?,
    }
    Ok(dx)
}
