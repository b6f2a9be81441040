//! Residual connection, with stochastic depth.
//!
//! `y[t] = x[t] + s[g(t)] · branch[t]`, `g(t) = t · G / T`: the rows of one sequence share a factor. `dx = dy`,
//! `dbranch[t] = s[g(t)] · dy[t]`.
//!
//! Source: He et al. 2015, arXiv 1512.03385, equation 1; Huang et al. 2016, arXiv 1603.09382, equation 2, with the
//! kept branches divided by their probability during training instead of multiplied by it afterwards.

mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases};

use crate::ops::{add, float, on, same, shaped, typed};
use crate::{Device, Error, Result, Tape, Tensor, Var};

const OP: &str = "residual";

/// Extents checked once, used by reference and launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dims {
    groups: usize,
    span: usize, // elements that share a factor
}

impl Dims {
    fn check(x: &Tensor, branch: &Tensor, scale: &Tensor) -> Result<Self> {
        let [rows, cols] = x.dims(OP, "x")?;
        shaped(OP, "branch", branch, x.shape())?;
        same(OP, "branch", branch, x)?;
        let [groups] = scale.dims(OP, "scale")?;
        typed(OP, "scale", scale, x.dtype().accumulate())?;
        on(OP, "scale", scale, x)?;
        if groups == 0 && rows == 0 {
            return Ok(Self { groups, span: 0 });
        }
        if groups == 0 || rows % groups != 0 {
            return Err(Error::shape(OP, "scale", scale.shape(), format!("one factor per sequence of {rows} rows")));
        }
        Ok(Self { groups, span: rows / groups * cols })
    }
}

/// `x + scale · branch` for `x, branch: [T, D]` and one factor per sequence, `scale: [G]` with `T` a multiple of `G`;
/// without `scale` the factor is 1. Returns `[T, D]`.
///
/// dtypes: f32, bf16, f16 (f64 on the CPU), the same for `x` and `branch`; `scale` is f32. Saves `scale`: 4 `G` bytes.
/// Deterministic.
///
/// # Errors
/// When `branch` differs from `x` in shape, dtype or device, or `scale` does not divide the rows.
pub fn residual(tape: &Tape, x: &Var, branch: &Var, scale: Option<&Tensor>) -> Result<Var> {
    let y = forward(x.value(), branch.value(), scale)?;
    let (to_x, to_branch) = (x.slot(), branch.slot());
    let inputs = [x, branch];
    Ok(match scale {
        None => tape.record(OP, y, &inputs, [], move |dy, [], grads| {
            grads.add(to_x, dy.clone())?;
            grads.add(to_branch, dy)
        }),
        Some(scale) => tape.record(OP, y, &inputs, [scale.clone()], move |dy, [scale], grads| {
            if to_branch.is_some() {
                grads.add(to_branch, backward(&dy, &scale)?)?;
            }
            grads.add(to_x, dy)
        }),
    })
}

/// `x + scale · branch`.
pub fn forward(x: &Tensor, branch: &Tensor, scale: Option<&Tensor>) -> Result<Tensor> {
    float(OP, "x", x)?;
    let Some(scale) = scale else {
        x.dims::<2>(OP, "x")?;
        shaped(OP, "branch", branch, x.shape())?;
        same(OP, "branch", branch, x)?;
        return add::forward(x, branch);
    };
    let dims = Dims::check(x, branch, scale)?;
    let mut y = Tensor::uninit_like(x)?;
    match x.device() {
        Device::Cpu => reference::forward(x, branch, scale, dims, &mut y)?,
        _ => launch::forward(x, branch, scale, dims, &mut y)?,
    }
    Ok(y)
}

/// Gradient by `branch`; that by `x` is `dy` itself.
pub fn backward(dy: &Tensor, scale: &Tensor) -> Result<Tensor> {
    let dims = Dims::check(dy, dy, scale)?;
    let mut dbranch = Tensor::uninit_like(dy)?;
    match dy.device() {
        Device::Cpu => reference::backward(dy, scale, dims, &mut dbranch)?,
        _ => launch::backward(dy, scale, dims, &mut dbranch)?,
    }
    Ok(dbranch)
}
