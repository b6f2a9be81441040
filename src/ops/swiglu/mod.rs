//! SwiGLU: a gated hidden layer.
//!
//! `y = silu(a) ⊙ b` with `[a, b] = x`, the gate first, `silu(a) = a · σ(a)`, `σ(a) = 1 / (1 + e^-a)`. Gradients:
//! `da = dy · b · σ(a) · (1 + a · (1 - σ(a)))`, `db = dy · silu(a)`.
//!
//! Source: Shazeer 2020, arXiv 2002.05202, equation 5; halves in the order of the `w12` of DINOv2's checkpoints.

mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases};

use crate::ops::{float, same, shaped};
use crate::{Device, Error, Result, Tape, Tensor, Var};

const OP: &str = "swiglu";

/// Extents checked once, used by reference and launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dims {
    rows: usize,
    /// Columns of the output: half of those of the input.
    hidden: usize,
}

impl Dims {
    fn check(x: &Tensor) -> Result<Self> {
        float(OP, "x", x)?;
        let (rows, cols) = x.shape().rows_cols();
        if x.shape().is_empty() || cols % 2 != 0 {
            return Err(Error::shape(OP, "x", x.shape(), "an even number of columns"));
        }
        Ok(Self { rows, hidden: cols / 2 })
    }

    fn output(self, x: &Tensor) -> Vec<usize> {
        let mut shape = x.shape().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = self.hidden;
        }
        shape
    }
}

/// `silu(a) ⊙ b` of `x = [a, b]: [.., 2 H]`; returns `[.., H]`.
///
/// dtypes: f32, bf16, f16 (f64 on the CPU). Saves `x`. Deterministic.
///
/// # Errors
/// When `x` is not of a float type or has an odd number of columns.
pub fn swiglu(tape: &Tape, x: &Var) -> Result<Var> {
    let y = forward(x.value())?;
    let to_x = x.slot();
    Ok(tape.record(OP, y, &[x], [x.value().clone()], move |dy, [x], grads| grads.add(to_x, backward(&dy, &x)?)))
}

/// `y: [.., H]`.
pub fn forward(x: &Tensor) -> Result<Tensor> {
    let dims = Dims::check(x)?;
    let mut y = Tensor::uninit(dims.output(x), x.dtype(), x.device())?;
    match x.device() {
        Device::Cpu => reference::forward(x, dims, &mut y)?,
        _ => launch::forward(x, dims, &mut y)?,
    }
    Ok(y)
}

/// `dx = [da, db]: [.., 2 H]`.
pub fn backward(dy: &Tensor, x: &Tensor) -> Result<Tensor> {
    let dims = Dims::check(x)?;
    shaped(OP, "dy", dy, &dims.output(x))?;
    same(OP, "dy", dy, x)?;
    let mut dx = Tensor::uninit_like(x)?;
    match x.device() {
        Device::Cpu => reference::backward(dy, x, dims, &mut dx)?,
        _ => launch::backward(dy, x, dims, &mut dx)?,
    }
    Ok(dx)
}
