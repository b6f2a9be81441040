//! GELU in its exact form.
//!
//! `y = x · Φ(x)`, `Φ(x) = (1 + erf(x / √2)) / 2`.
//!
//! Source: Hendrycks and Gimpel 2016, arXiv 1606.08415, section 2; the tanh approximation given there is another
//! function and differs by up to 5e-4.

mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases};

use crate::ops::{float, same, shaped};
use crate::{Device, Result, Tape, Tensor, Var};

const OP: &str = "gelu";

/// GELU of each element of `x`; returns the shape of `x`.
///
/// dtypes: f32, bf16, f16 (f64 on the CPU). Saves `x`. Deterministic.
///
/// # Errors
/// When `x` is not of a float type.
pub fn gelu(tape: &Tape, x: &Var) -> Result<Var> {
    let y = forward(x.value())?;
    let to_x = x.slot();
    Ok(tape.record(OP, y, &[x], [x.value().clone()], move |dy, [x], grads| grads.add(to_x, backward(&dy, &x)?)))
}

/// `x · Φ(x)`.
pub fn forward(x: &Tensor) -> Result<Tensor> {
    float(OP, "x", x)?;
    let mut y = Tensor::uninit_like(x)?;
    match x.device() {
        Device::Cpu => reference::forward(x, &mut y)?,
        _ => launch::forward(x, &mut y)?,
    }
    Ok(y)
}

/// `dx = dy · (Φ(x) + x φ(x))` with the normal density `φ(x) = e^(-x²/2) / √(2π)`.
pub fn backward(dy: &Tensor, x: &Tensor) -> Result<Tensor> {
    shaped(OP, "dy", dy, x.shape())?;
    same(OP, "dy", dy, x)?;
    let mut dx = Tensor::uninit_like(x)?;
    match x.device() {
        Device::Cpu => reference::backward(dy, x, &mut dx)?,
        _ => launch::backward(dy, x, &mut dx)?,
    }
    Ok(dx)
}
