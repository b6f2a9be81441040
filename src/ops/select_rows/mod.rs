//! Rows of one tensor or of another, by a flag each.
//!
//! `y[r] = flags[r] > 0 ? x[r] : other[r]`, where `other` may be one row for all or one number. `dx[r] = dy[r]` where `x`
//! was chosen and zero elsewhere; `dother[r]` is the reverse, summed over the rows where `other` is one row, over all
//! elements where it is one number. Flags have no gradient, which is why they are a tensor.
//!
//! Source: objects that are not in the frame, whose masks, pointers and memories are replaced: Ravi et al. 2024, arXiv
//! 2408.00714, section 4, "Occlusion prediction".

mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases, one_case, row_case};

use crate::ops::{float, on, same, shaped, typed};
use crate::{Device, Error, Result, Shape, Tape, Tensor, Var};

const OP: &str = "select_rows";

/// What stands in for a row that is not chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// A row of its own.
    Rows,
    /// The same row for all.
    Row,
    /// One number.
    One,
}

/// Extents checked once, used by reference and launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dims {
    rows: usize,
    cols: usize,
    form: Form,
}

impl Dims {
    /// Of `x`, or of its gradient, and the shape of `other`.
    fn check(arg: &'static str, x: &Tensor, flags: &Tensor, other: &Shape) -> Result<Self> {
        float(OP, arg, x)?;
        let Some((&rows, row)) = x.shape().split_first() else {
            return Err(Error::shape(OP, arg, x.shape(), "at least one axis"));
        };
        shaped(OP, "flags", flags, &[rows])?;
        typed(OP, "flags", flags, x.dtype().accumulate())?;
        on(OP, "flags", flags, x)?;
        let form = match &**other {
            shape if *shape == **x.shape() => Form::Rows,
            shape if shape == row => Form::Row,
            [1] => Form::One,
            shape => {
                let expected = format!("{}, {row:?} or [1]", x.shape());
                return Err(Error::shape(OP, "other", shape, expected));
            }
        };
        Ok(Self { rows, cols: row.iter().product(), form })
    }
}

/// Row `r` of `x: [R, ..]` where `flags[r] > 0` (`flags: [R]` f32; NaN is not), else of `other`: `[R, ..]` like `x`, one row
/// `[..]` for all, or one number `[1]`. Returns `[R, ..]`.
///
/// dtypes: f32, bf16, f16 (f64 on the CPU), the same for `x` and `other`. Saves 4 bytes per row. The gradient by one row or
/// one number is summed in f32 in a fixed order: deterministic. One pass each way.
///
/// # Errors
/// When `flags` or `other` does not fit `x`.
pub fn select_rows(tape: &Tape, flags: &Tensor, x: &Var, other: &Var) -> Result<Var> {
    let y = forward(flags, x.value(), other.value())?;
    let (to_x, to_other, shape) = (x.slot(), other.slot(), other.value().shape().clone());
    Ok(tape.record(OP, y, &[x, other], [flags.clone()], move |dy, [flags], grads| {
        if to_x.is_some() {
            grads.add(to_x, backward_x(&dy, &flags)?)?;
        }
        if to_other.is_some() {
            grads.add(to_other, backward_other(&dy, &flags, &shape)?)?;
        }
        Ok(())
    }))
}

/// `y: [R, ..]`.
pub fn forward(flags: &Tensor, x: &Tensor, other: &Tensor) -> Result<Tensor> {
    same(OP, "other", other, x)?;
    let dims = Dims::check("x", x, flags, other.shape())?;
    select(flags, Some(x), Some(other), dims, x)
}

/// Gradient by `x`: `dy` where `x` was chosen, zero elsewhere.
pub fn backward_x(dy: &Tensor, flags: &Tensor) -> Result<Tensor> {
    let dims = Dims::check("dy", dy, flags, dy.shape())?;
    select(flags, Some(dy), None, dims, dy)
}

/// Gradient by `other` of this shape: like `dy` where it has rows, else f32 (f64 for f64).
pub fn backward_other(dy: &Tensor, flags: &Tensor, other: &Shape) -> Result<Tensor> {
    let dims = Dims::check("dy", dy, flags, other)?;
    if dims.form == Form::Rows {
        return select(flags, None, Some(dy), dims, dy);
    }
    let mut sum = Tensor::uninit(other.clone(), dy.dtype().accumulate(), dy.device())?;
    match dy.device() {
        Device::Cpu => reference::sum(dy, flags, dims, &mut sum)?,
        _ => launch::sum(dy, flags, dims, &mut sum)?,
    }
    Ok(sum)
}

/// Rows of `x` or of `other`, of which one may be missing: zeros.
fn select(flags: &Tensor, x: Option<&Tensor>, other: Option<&Tensor>, dims: Dims, like: &Tensor) -> Result<Tensor> {
    let mut y = Tensor::uninit_like(like)?;
    match like.device() {
        Device::Cpu => reference::select(flags, x, other, dims, &mut y)?,
        _ => launch::select(flags, x, other, dims, &mut y)?,
    }
    Ok(y)
}
