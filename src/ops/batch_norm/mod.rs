//! Batch normalisation over rows, without weight and bias.
//!
//! `y = (x - mean) · rstd` per column, `mean = Σ_n x / N`, `var = Σ_n (x - mean)² / N`, `rstd = 1 / sqrt(var + eps)`.
//!
//! Source: Ioffe and Szegedy 2015, arXiv 1502.03167, algorithm 1 with γ = 1, β = 0. The running averages are the
//! caller's: PyTorch's put the unbiased variance `var · N / (N - 1)` into them.

mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases, normalize_case};

use crate::ops::{float, on, same, shaped, typed};
use crate::{Device, Error, Result, Tape, Tensor, Var};

const OP: &str = "batch_norm";

/// Extents checked once, used by reference and launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dims {
    rows: usize,
    cols: usize,
}

impl Dims {
    fn check(x: &Tensor) -> Result<Self> {
        float(OP, "x", x)?;
        let [rows, cols] = x.dims(OP, "x")?;
        Ok(Self { rows, cols })
    }

    fn check_stats(self, x: &Tensor, mean: &Tensor, var: &Tensor) -> Result<()> {
        for (arg, t) in [("mean", mean), ("var", var)] {
            shaped(OP, arg, t, &[self.cols])?;
            typed(OP, arg, t, x.dtype().accumulate())?;
            on(OP, arg, t, x)?;
        }
        Ok(())
    }
}

/// Normalises the columns of `x: [N, D]` by their statistics over the rows; returns `y: [N, D]`, the mean `[D]` and the
/// biased variance `[D]`, both f32.
///
/// dtypes: f32, bf16, f16 (f64 on the CPU). Statistics are f32. Saves `x` and 8 bytes per column. Deterministic. `eps`
/// is added to the variance.
///
/// # Errors
/// When `x` has fewer than two rows: the result would be 0 whatever `x` is.
pub fn batch_norm(tape: &Tape, x: &Var, eps: f32) -> Result<(Var, Tensor, Tensor)> {
    let (y, mean, var) = forward(x.value(), eps)?;
    let to_x = x.slot();
    let saved = [x.value().clone(), mean.clone(), var.clone()];
    let y = tape.record(OP, y, &[x], saved, move |dy, [x, mean, var], grads| {
        grads.add(to_x, backward(&dy, &x, &mean, &var, eps)?)
    });
    Ok((y, mean, var))
}

/// `y`, the mean and the biased variance.
pub fn forward(x: &Tensor, eps: f32) -> Result<(Tensor, Tensor, Tensor)> {
    let dims = Dims::check(x)?;
    if dims.rows < 2 {
        return Err(Error::shape(OP, "x", x.shape(), "at least two rows"));
    }
    let acc = x.dtype().accumulate();
    let mut y = Tensor::uninit_like(x)?;
    let mut mean = Tensor::uninit([dims.cols], acc, x.device())?;
    let mut var = Tensor::uninit([dims.cols], acc, x.device())?;
    match x.device() {
        Device::Cpu => reference::forward(x, eps, dims, &mut y, &mut mean, &mut var)?,
        _ => launch::forward(x, eps, dims, &mut y, &mut mean, &mut var)?,
    }
    Ok((y, mean, var))
}

/// `dx = rstd · (dy - mean_N(dy) - x̂ · mean_N(dy · x̂))` with `x̂ = (x - mean) · rstd`.
pub fn backward(dy: &Tensor, x: &Tensor, mean: &Tensor, var: &Tensor, eps: f32) -> Result<Tensor> {
    let dims = Dims::check(x)?;
    shaped(OP, "dy", dy, x.shape())?;
    same(OP, "dy", dy, x)?;
    dims.check_stats(x, mean, var)?;
    let mut dx = Tensor::uninit_like(x)?;
    match x.device() {
        Device::Cpu => reference::backward(dy, x, mean, var, eps, dims, &mut dx)?,
        _ => launch::backward(dy, x, mean, var, eps, dims, &mut dx)?,
    }
    Ok(dx)
}

/// `(x - mean) / sqrt(var + eps)` with given statistics `mean, var: [D]` f32, for evaluation: any number of rows.
///
/// # Errors
/// When `mean` or `var` does not fit the columns of `x: [N, D]`.
pub fn normalize(x: &Tensor, mean: &Tensor, var: &Tensor, eps: f32) -> Result<Tensor> {
    let dims = Dims::check(x)?;
    dims.check_stats(x, mean, var)?;
    let mut y = Tensor::uninit_like(x)?;
    match x.device() {
        Device::Cpu => reference::normalize(x, mean, var, eps, dims, &mut y)?,
        _ => launch::normalize(x, mean, var, eps, dims, &mut y)?,
    }
    Ok(y)
}
