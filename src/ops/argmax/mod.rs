//! Where the largest value of each row is, as a row of the flattened matrix.
//!
//! `y[r] = r · M + argmax_m scores[r, m]`, the first of equal ones; NaN counts as largest. As `ids` of
//! [`gather_rows`](crate::ops::gather_rows::gather_rows) it picks from `[R·M, ..]` what belongs to the best score of each
//! row. A choice has no gradient: scores and result are tensors.
//!
//! Source: the mask of the highest predicted IoU, Ravi et al. 2024, arXiv 2408.00714, section 4.

mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases};

use crate::ops::float;
use crate::{DType, Device, Error, Result, Tensor};

const OP: &str = "argmax";

/// Extents checked once, used by reference and launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dims {
    rows: usize,
    cols: usize,
}

impl Dims {
    fn check(scores: &Tensor) -> Result<Self> {
        float(OP, "scores", scores)?;
        let [rows, cols] = scores.dims(OP, "scores")?;
        if cols == 0 {
            return Err(Error::shape(OP, "scores", scores.shape(), "at least one column"));
        }
        if i32::try_from(scores.numel()).is_err() {
            return Err(Error::shape(OP, "scores", scores.shape(), "fewer than 2^31 elements"));
        }
        Ok(Self { rows, cols })
    }
}

/// `r · M + argmax_m scores[r, m]` of `scores: [R, M]`; returns `[R]` i32.
///
/// dtypes: f32, bf16, f16 (f64 on the CPU). Deterministic. Without gradient.
///
/// # Errors
/// When `scores` is not a float matrix of at least one column.
pub fn best_row(scores: &Tensor) -> Result<Tensor> {
    let dims = Dims::check(scores)?;
    let mut y = Tensor::uninit([dims.rows], DType::I32, scores.device())?;
    match scores.device() {
        Device::Cpu => reference::best_row(scores, dims, &mut y)?,
        _ => launch::best_row(scores, dims, &mut y)?,
    }
    Ok(y)
}
