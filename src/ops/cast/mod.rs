//! Conversion to another float type.
//!
//! `y = x` rounded to nearest even; `dx = dy` rounded to the type of `x`. Loop and launch are those of
//! [`Tensor::cast`](crate::Tensor::cast).

mod case;
#[cfg(test)]
mod tests;

pub use case::{case, cases};

use crate::ops::float;
use crate::{DType, Result, Tape, Var};

const OP: &str = "cast";

/// `x` in `dtype`; `x` itself if it is of that type.
///
/// dtypes: f32, bf16, f16 (f64 on the CPU), both ways. Saves nothing. Deterministic.
///
/// # Errors
/// When `x` or `dtype` is not of a float type.
pub fn cast(tape: &Tape, x: &Var, dtype: DType) -> Result<Var> {
    float(OP, "x", x.value())?;
    let from = x.value().dtype();
    if from == dtype {
        return Ok(x.clone());
    }
    if !dtype.is_float() {
        return Err(crate::Error::value(OP, "dtype", dtype, "a float type"));
    }
    let y = x.value().cast(dtype)?;
    let to_x = x.slot();
    Ok(tape.record(OP, y, &[x], [], move |dy, [], grads| grads.add(to_x, dy.cast(from)?)))
}
