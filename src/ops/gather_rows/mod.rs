//! Chosen rows of a matrix.
//!
//! `y[m] = x[ids[m]]`; the gradient goes back to the chosen rows and is zero elsewhere. The indices are unique, so
//! every row of the gradient has one source and no addition takes place.
//!
//! Source: class rows and masked rows of arXiv 2111.06377, section 3.

mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases};

use crate::ops::indices::check_unique;
use crate::ops::{on, shaped};
use crate::{Device, Result, Tape, Tensor, Var};

const OP: &str = "gather_rows";

/// Extents checked once, used by reference and launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dims {
    /// Rows of `x`.
    rows: usize,
    /// Rows of `y`.
    picked: usize,
    cols: usize,
}

impl Dims {
    fn check(rows: usize, cols: usize, ids: &Tensor) -> Result<Self> {
        let [picked] = ids.dims(OP, "ids")?;
        check_unique(OP, "ids", ids, picked, rows)?;
        Ok(Self { rows, picked, cols })
    }
}

/// Rows `ids: [M]` (i32, unique) of `x: [N, D]`; returns `[M, D]`.
///
/// dtypes: f32, bf16, f16 (f64 on the CPU). Saves `ids`. Deterministic.
///
/// # Errors
/// When an index is out of range or occurs twice: found where host memory holds the indices. On a GPU the row of an
/// index out of range is NaN, and its gradient is dropped.
pub fn gather_rows(tape: &Tape, x: &Var, ids: &Tensor) -> Result<Var> {
    let y = forward(x.value(), ids)?;
    let [rows, _] = x.value().dims(OP, "x")?;
    let to_x = x.slot();
    Ok(tape.record(OP, y, &[x], [ids.clone()], move |dy, [ids], grads| grads.add(to_x, backward(&dy, &ids, rows)?)))
}

/// `y: [M, D]`.
pub fn forward(x: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let [rows, cols] = x.dims(OP, "x")?;
    on(OP, "ids", ids, x)?;
    let dims = Dims::check(rows, cols, ids)?;
    let mut y = Tensor::uninit([dims.picked, cols], x.dtype(), x.device())?;
    match x.device() {
        Device::Cpu => reference::forward(x, ids, dims, &mut y)?,
        _ => launch::forward(x, ids, dims, &mut y)?,
    }
    Ok(y)
}

/// Gradient by `x: [rows, D]`: `dx[ids[m]] = dy[m]`, zero elsewhere.
pub fn backward(dy: &Tensor, ids: &Tensor, rows: usize) -> Result<Tensor> {
    let [_, cols] = dy.dims(OP, "dy")?;
    on(OP, "ids", ids, dy)?;
    let dims = Dims::check(rows, cols, ids)?;
    shaped(OP, "dy", dy, &[dims.picked, cols])?;
    let mut dx = Tensor::zeros([rows, cols], dy.dtype(), dy.device())?;
    match dy.device() {
        Device::Cpu => reference::backward(dy, ids, dims, &mut dx)?,
        _ => launch::backward(dy, ids, dims, &mut dx)?,
    }
    Ok(dx)
}
