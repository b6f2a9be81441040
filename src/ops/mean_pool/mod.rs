//! Mean over the tokens of each sequence.
//!
//! `y[b] = Σ_{skip <= r < n} x[b·n + r] / (n - skip)`; `dx[b·n + r] = dy[b] / (n - skip)` for those rows, zero for the
//! skipped ones.
//!
//! Source: global pooling of arXiv 2111.06377, appendix A.1: the class row is skipped.

mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases};

use crate::ops::shaped;
use crate::{Device, Error, Result, Tape, Tensor, Var};

const OP: &str = "mean_pool";

/// Extents checked once, used by reference and launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dims {
    batch: usize,
    /// Rows per sequence.
    rows: usize,
    skip: usize,
    cols: usize,
}

impl Dims {
    fn check(x: &Tensor, rows: usize, skip: usize) -> Result<Self> {
        let [total, cols] = x.dims(OP, "x")?;
        if skip >= rows {
            return Err(Error::value(OP, "skip", skip, format!("less than the {rows} rows of a sequence")));
        }
        if total % rows != 0 {
            return Err(Error::shape(OP, "x", x.shape(), format!("a multiple of {rows} rows")));
        }
        Ok(Self { batch: total / rows, rows, skip, cols })
    }
}

/// Mean of rows `skip..rows` of each sequence of `x: [B·rows, D]`; returns `[B, D]`.
///
/// dtypes: f32, bf16, f16 (f64 on the CPU); sums are f32. Saves nothing. Deterministic.
///
/// # Errors
/// When `skip` leaves no row or `x` does not hold whole sequences.
pub fn mean_pool(tape: &Tape, x: &Var, rows: usize, skip: usize) -> Result<Var> {
    let y = forward(x.value(), rows, skip)?;
    let to_x = x.slot();
    Ok(tape.record(OP, y, &[x], [], move |dy, [], grads| grads.add(to_x, backward(&dy, rows, skip)?)))
}

/// `y: [B, D]`.
pub fn forward(x: &Tensor, rows: usize, skip: usize) -> Result<Tensor> {
    let dims = Dims::check(x, rows, skip)?;
    let mut y = Tensor::uninit([dims.batch, dims.cols], x.dtype(), x.device())?;
    match x.device() {
        Device::Cpu => reference::forward(x, dims, &mut y)?,
        _ => launch::forward(x, dims, &mut y)?,
    }
    Ok(y)
}

/// Gradient by `x`: `[B·rows, D]`.
pub fn backward(dy: &Tensor, rows: usize, skip: usize) -> Result<Tensor> {
    let [batch, cols] = dy.dims(OP, "dy")?;
    let mut dx = Tensor::uninit([batch * rows, cols], dy.dtype(), dy.device())?;
    let dims = Dims::check(&dx, rows, skip)?;
    shaped(OP, "dy", dy, &[dims.batch, cols])?;
    match dy.device() {
        Device::Cpu => reference::backward(dy, dims, &mut dx)?,
        _ => launch::backward(dy, dims, &mut dx)?,
    }
    Ok(dx)
}
