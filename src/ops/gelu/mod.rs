//! GELU in its exact form and in the approximation by tanh, another function that differs by up to 5e-4.
//!
//! `y = x · Φ(x)`, `Φ(x) = (1 + erf(x / √2)) / 2` or `Φ(x) = (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2`.
//!
//! Source: Hendrycks and Gimpel 2016, arXiv 1606.08415, section 2.

mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases, form_case};

use crate::ops::{float, same, shaped};
use crate::{Device, Result, Tape, Tensor, Var};

const OP: &str = "gelu";

/// Which Φ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// The normal distribution function: MAE, DINOv2.
    Erf,
    /// Its approximation by tanh: SigLIP.
    Tanh,
}

/// GELU of each element of `x`; returns the shape of `x`.
///
/// dtypes: f32, bf16, f16 (f64 on the CPU). Saves `x`. Deterministic.
///
/// # Errors
/// When `x` is not of a float type.
pub fn gelu(tape: &Tape, x: &Var, form: Form) -> Result<Var> {
    let y = forward(x.value(), form)?;
    let to_x = x.slot();
    Ok(tape.record(OP, y, &[x], [x.value().clone()], move |dy, [x], grads| grads.add(to_x, backward(&dy, &x, form)?)))
}

/// `x · Φ(x)`.
pub fn forward(x: &Tensor, form: Form) -> Result<Tensor> {
    float(OP, "x", x)?;
    let mut y = Tensor::uninit_like(x)?;
    match x.device() {
        Device::Cpu => reference::forward(x, form, &mut y)?,
        _ => launch::forward(x, form, &mut y)?,
    }
    Ok(y)
}

/// `dx = dy · (Φ(x) + x Φ'(x))`: with the normal density `Φ'(x) = e^(-x²/2) / √(2π)` in the exact form.
pub fn backward(dy: &Tensor, x: &Tensor, form: Form) -> Result<Tensor> {
    shaped(OP, "dy", dy, x.shape())?;
    same(OP, "dy", dy, x)?;
    let mut dx = Tensor::uninit_like(x)?;
    match x.device() {
        Device::Cpu => reference::backward(dy, x, form, &mut dx)?,
        _ => launch::backward(dy, x, form, &mut dx)?,
    }
    Ok(dx)
}
