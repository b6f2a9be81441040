//! The positive part of each element.
//!
//! `y = max(x, 0)`; `dx = dy` where `x > 0`, else 0. NaN stays NaN, and its gradient passes.
//!
//! Source: Nair and Hinton 2010, "Rectified linear units improve restricted Boltzmann machines", section 2.

mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases};

use crate::ops::{float, same, shaped};
use crate::{Device, Result, Tape, Tensor, Var};

const OP: &str = "relu";

/// `max(x, 0)` of each element of `x`; returns the shape of `x`.
///
/// dtypes: f32, bf16, f16 (f64 on the CPU). Saves `y`, as does a linear layer that follows.
/// Deterministic.
///
/// # Errors
/// When `x` is not of a float type.
pub fn relu(tape: &Tape, x: &Var) -> Result<Var> {
    let y = forward(x.value())?;
    let to_x = x.slot();
    let saved = [y.clone()];
    Ok(tape.record(OP, y, &[x], saved, move |dy, [y], grads| grads.add(to_x, backward(&dy, &y)?)))
}

/// `max(x, 0)`.
pub fn forward(x: &Tensor) -> Result<Tensor> {
    float(OP, "x", x)?;
    let mut y = Tensor::uninit_like(x)?;
    match x.device() {
        Device::Cpu => reference::forward(x, &mut y)?,
        _ => launch::forward(x, &mut y)?,
    }
    Ok(y)
}

/// `dx` from the result `y`: 0 where `y <= 0`, which is where `x <= 0`.
pub fn backward(dy: &Tensor, y: &Tensor) -> Result<Tensor> {
    shaped(OP, "dy", dy, y.shape())?;
    same(OP, "dy", dy, y)?;
    let mut dx = Tensor::uninit_like(y)?;
    match y.device() {
        Device::Cpu => reference::backward(dy, y, &mut dx)?,
        _ => launch::backward(dy, y, &mut dx)?,
    }
    Ok(dx)
}
