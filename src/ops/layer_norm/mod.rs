//! LayerNorm over the last axis.
//!
//! `y = (x - mean) · rstd · w + b`, `mean = Σx / C`, `rstd = 1 / sqrt(Σ(x - mean)² / C + eps)`.
//!
//! Source: Ba et al. 2016, arXiv 1607.06450, equations 3-4; biased variance as in torch's `layer_norm`. Two passes over
//! a row: the one-pass variance `E[x²] - mean²` loses all digits where the mean is large.

mod case;
pub(in crate::ops) mod launch;
pub(in crate::ops) mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases};

use crate::ops::{float, on, same, shaped, typed};
use crate::{Device, Result, Tape, Tensor, Var};

pub(in crate::ops) const OP: &str = "layer_norm";

/// Extents checked once, used by reference and launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dims {
    pub(in crate::ops) rows: usize,
    pub(in crate::ops) cols: usize,
}

impl Dims {
    /// For `op`, this one or one that contains it.
    pub(in crate::ops) fn check(op: &'static str, x: &Tensor, w: &Tensor, b: &Tensor) -> Result<Self> {
        float(op, "x", x)?;
        let (rows, cols) = x.shape().rows_cols();
        for (arg, t) in [("w", w), ("b", b)] {
            shaped(op, arg, t, &[cols])?;
            same(op, arg, t, x)?;
        }
        Ok(Self { rows, cols })
    }

    /// That `stats` is what a forward on `x` made.
    pub(in crate::ops) fn check_stats(self, op: &'static str, stats: &Tensor, x: &Tensor) -> Result<()> {
        shaped(op, "stats", stats, &[self.rows, 2])?;
        typed(op, "stats", stats, x.dtype().accumulate())?;
        on(op, "stats", stats, x)
    }
}

/// Normalises the last axis of `x: [.., C]` with weight and bias `w, b: [C]`; returns `[.., C]`.
///
/// dtypes: f32, bf16, f16 (f64 on the CPU), the same for all three. Statistics are f32. Saves `x`, `w` and 8 bytes per
/// row. The backward is deterministic. `eps` is added to the variance.
///
/// # Errors
/// When `w` or `b` is not `[C]` or differs from `x` in dtype or device.
pub fn layer_norm(tape: &Tape, x: &Var, w: &Var, b: &Var, eps: f32) -> Result<Var> {
    let (y, stats) = forward(x.value(), w.value(), b.value(), eps)?;
    let (to_x, to_w, to_b) = (x.slot(), w.slot(), b.slot());
    let saved = [x.value().clone(), w.value().clone(), stats]; // y is not needed
    Ok(tape.record(OP, y, &[x, w, b], saved, move |dy, [x, w, stats], grads| {
        let (dx, dw, db) = backward(&dy, &x, &w, &stats)?;
        grads.add(to_x, dx)?;
        grads.add(to_w, dw)?;
        grads.add(to_b, db)
    }))
}

/// `y` and the statistics `[rows, 2]`: mean and rstd.
pub fn forward(x: &Tensor, w: &Tensor, b: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
    let dims = Dims::check(OP, x, w, b)?;
    let mut y = Tensor::uninit_like(x)?;
    let mut stats = Tensor::uninit([dims.rows, 2], x.dtype().accumulate(), x.device())?;
    match x.device() {
        Device::Cpu => reference::forward(x, w, b, eps, dims, &mut y, &mut stats)?,
        _ => launch::forward(x, w, b, eps, dims, &mut y, &mut stats)?,
    }
    Ok((y, stats))
}

/// Gradients by `x` (dtype of `x`), `w` and `b` (f32).
///
/// With `x̂ = (x - mean) · rstd` and `g = dy · w`: `dx = rstd · (g - mean_C(g) - x̂ · mean_C(g · x̂))`,
/// `dw = Σ_rows dy · x̂`, `db = Σ_rows dy`.
pub fn backward(dy: &Tensor, x: &Tensor, w: &Tensor, stats: &Tensor) -> Result<(Tensor, Tensor, Tensor)> {
    let dims = Dims::check(OP, x, w, w)?;
    shaped(OP, "dy", dy, x.shape())?;
    same(OP, "dy", dy, x)?;
    dims.check_stats(OP, stats, x)?;
    let acc = x.dtype().accumulate();
    let mut dx = Tensor::uninit_like(x)?;
    let mut dw = Tensor::uninit([dims.cols], acc, x.device())?;
    let mut db = Tensor::uninit([dims.cols], acc, x.device())?;
    match x.device() {
        Device::Cpu => reference::backward(dy, x, w, stats, None, dims, &mut dx, &mut dw, &mut db)?,
        _ => launch::backward(dy, x, w, stats, dims, &mut dx, &mut dw, &mut db)?,
    }
    Ok((dx, dw, db))
}
