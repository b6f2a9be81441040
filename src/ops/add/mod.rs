//! Sum of two tensors, the second of which may repeat along leading axes of the first.
//!
//! `y[i, j] = a[i, j] + b[j]`; `da = dy`, `db[j] = Σ_i dy[i, j]`, where `i` runs over the leading axes that `b` lacks:
//! over one element, and both gradients are `dy` itself, if the shapes are the same.

mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases, leading_case};

use crate::ops::{float, same};
use crate::{Device, Error, Result, Tape, Tensor, Var};

const OP: &str = "add";

/// `a + b`, elementwise, for `a: [.., S]` and `b: [S]`, where `S` is any number of axes: none, all of `a`, or the last
/// few. Returns the shape of `a`. Leading axes of extent 1 of `b` do not count.
///
/// dtypes: f32, bf16, f16 (f64 on the CPU), the same for both. Saves nothing. The gradient of `b` is summed in f32 in a
/// fixed order, which depends on the shapes alone: deterministic. One pass forward; backward none where the shapes are
/// the same or `b` wants no gradient, else one and a short sum.
///
/// # Errors
/// When the shape of `b` does not end that of `a`, or its dtype or device differ.
pub fn add(tape: &Tape, a: &Var, b: &Var) -> Result<Var> {
    let y = forward(a.value(), b.value())?;
    let (to_a, to_b) = (a.slot(), b.slot());
    let whole = a.value().numel() == b.value().numel();
    let shape = b.value().shape().clone();
    Ok(tape.record(OP, y, &[a, b], [], move |dy, [], grads| {
        if whole {
            grads.add(to_a, dy.clone())?;
            return grads.add(to_b, dy.reshape(shape)?);
        }
        if to_b.is_some() {
            grads.add(to_b, leading_sum(&dy, shape.numel())?.reshape(shape)?)?;
        }
        grads.add(to_a, dy)
    }))
}

/// `a + b`.
pub fn forward(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    float(OP, "a", a)?;
    let significant = b.shape().iter().position(|&extent| extent != 1).unwrap_or(b.shape().len());
    if !a.shape().ends_with(&b.shape()[significant..]) {
        return Err(Error::shape(OP, "b", b.shape(), format!("the last axes of {:?}", a.shape())));
    }
    same(OP, "b", b, a)?;
    let mut y = Tensor::uninit_like(a)?;
    match a.device() {
        Device::Cpu => reference::forward(a, b, &mut y)?,
        _ => launch::forward(a, b, &mut y)?,
    }
    Ok(y)
}

/// `y[j] = Σ_i x[i, j]` of `x` read as `[.., len]`: `[len]`, f32 (f64 for f64).
///
/// # Errors
/// When `len` does not divide the elements of `x`, or `x` is not of a float type.
pub fn leading_sum(x: &Tensor, len: usize) -> Result<Tensor> {
    float(OP, "x", x)?;
    let rows = x.numel().checked_div(len).unwrap_or(0);
    if rows * len != x.numel() {
        return Err(Error::shape(OP, "x", x.shape(), format!("[.., {len}]")));
    }
    let mut y = Tensor::uninit([len], x.dtype().accumulate(), x.device())?;
    match x.device() {
        Device::Cpu => reference::leading_sum(x, &mut y)?,
        _ => launch::leading_sum(x, rows, len, &mut y)?,
    }
    Ok(y)
}
