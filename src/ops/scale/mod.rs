//! Product with a number.
//!
//! `y = factor · x`, `dx = factor · dy`.

mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases};

use crate::ops::float;
use crate::{Device, Result, Tape, Tensor, Var};

const OP: &str = "scale";

/// `factor · x`; returns the shape of `x`.
///
/// dtypes: f32, bf16, f16 (f64 on the CPU). Saves nothing. Deterministic.
///
/// # Errors
/// When `x` is not of a float type.
pub fn scale(tape: &Tape, x: &Var, factor: f32) -> Result<Var> {
    let y = forward(x.value(), factor)?;
    let to_x = x.slot();
    Ok(tape.record(OP, y, &[x], [], move |dy, [], grads| grads.add(to_x, forward(&dy, factor)?)))
}

/// `factor · x`: also the backward, of `dy`.
pub fn forward(x: &Tensor, factor: f32) -> Result<Tensor> {
    float(OP, "x", x)?;
    let mut y = Tensor::uninit_like(x)?;
    match x.device() {
        Device::Cpu => reference::forward(x, factor, &mut y)?,
        _ => launch::forward(x, factor, &mut y)?,
    }
    Ok(y)
}
