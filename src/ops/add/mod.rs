//! Sum of two tensors of one shape.
//!
//! `y = a + b`; both gradients are `dy` itself.

mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases};

use crate::ops::{float, same, shaped};
use crate::{Device, Result, Tape, Tensor, Var};

const OP: &str = "add";

/// `a + b`, elementwise; returns the shape of `a`.
///
/// dtypes: f32, bf16, f16 (f64 on the CPU), the same for both. Saves nothing. Deterministic.
///
/// # Errors
/// When `b` differs from `a` in shape, dtype or device.
pub fn add(tape: &Tape, a: &Var, b: &Var) -> Result<Var> {
    let y = forward(a.value(), b.value())?;
    let (to_a, to_b) = (a.slot(), b.slot());
    Ok(tape.record(OP, y, &[a, b], [], move |dy, [], grads| {
        grads.add(to_a, dy.clone())?;
        grads.add(to_b, dy)
    }))
}

/// `a + b`.
pub fn forward(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    float(OP, "a", a)?;
    shaped(OP, "b", b, a.shape())?;
    same(OP, "b", b, a)?;
    let mut y = Tensor::uninit_like(a)?;
    match a.device() {
        Device::Cpu => reference::forward(a, b, &mut y)?,
        _ => launch::forward(a, b, &mut y)?,
    }
    Ok(y)
}
