//! Softmax over the last axis.
//!
//! `y = exp(x - max) / Σ exp(x - max)`: subtracting the maximum of the row changes nothing but the range, so no finite
//! input overflows. A row that is -inf throughout gives NaN.

mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases};
pub(crate) use reference::{LANES, exponentials};

use crate::ops::{float, same, shaped};
use crate::{Device, Result, Tape, Tensor, Var};

const OP: &str = "softmax";

/// Softmax of each row of `x: [.., C]`; returns the shape of `x`.
///
/// dtypes: f32, bf16, f16 (f64 on the CPU); arithmetic is f32. Saves the result. Deterministic.
///
/// # Errors
/// When `x` is not of a float type.
pub fn softmax(tape: &Tape, x: &Var) -> Result<Var> {
    let y = forward(x.value())?;
    let to_x = x.slot();
    Ok(tape.record(OP, y.clone(), &[x], [y], move |dy, [y], grads| grads.add(to_x, backward(&dy, &y)?)))
}

/// Each row sums to 1.
///
/// # Errors
/// When `x` is not of a float type.
pub fn forward(x: &Tensor) -> Result<Tensor> {
    float(OP, "x", x)?;
    let mut y = Tensor::uninit_like(x)?;
    match x.device() {
        _ if x.numel() == 0 => {}
        Device::Cpu => reference::forward(x, &mut y)?,
        _ => launch::forward(x, &mut y)?,
    }
    Ok(y)
}

/// `dx = y · (dy - Σ_C dy · y)`.
///
/// # Errors
/// When `dy` differs from `y` in shape, dtype or device.
pub fn backward(dy: &Tensor, y: &Tensor) -> Result<Tensor> {
    shaped(OP, "dy", dy, y.shape())?;
    same(OP, "dy", dy, y)?;
    let mut dx = Tensor::uninit_like(y)?;
    match y.device() {
        _ if y.numel() == 0 => {}
        Device::Cpu => reference::backward(dy, y, &mut dx)?,
        _ => launch::backward(dy, y, &mut dx)?,
    }
    Ok(dx)
}
