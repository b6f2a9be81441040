//! Copies of a tensor along a new first axis.
//!
//! `y[t, i] = x[i]`; `dx[i] = Σ_t dy[t, i]`.

mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases};

use crate::ops::add::leading_sum;
use crate::ops::float;
use crate::{Device, Result, Tape, Tensor, Var};

const OP: &str = "repeat";

/// `times` copies of `x: [..]` behind each other: `[times, ..]`.
///
/// dtypes: f32, bf16, f16 (f64 on the CPU). Saves nothing. One read of `x` and one write of the result; the gradient is
/// summed in f32 in a fixed order: deterministic.
///
/// # Errors
/// When `x` is not of a float type.
pub fn repeat(tape: &Tape, x: &Var, times: usize) -> Result<Var> {
    let y = forward(x.value(), times)?;
    let (to_x, shape) = (x.slot(), x.value().shape().clone());
    Ok(tape.record(OP, y, &[x], [], move |dy, [], grads| {
        let dx = if times == 1 { dy } else { leading_sum(&dy, shape.numel())? };
        grads.add(to_x, dx.reshape(shape)?)
    }))
}

/// The copies.
pub fn forward(x: &Tensor, times: usize) -> Result<Tensor> {
    float(OP, "x", x)?;
    let shape = [&[times], &**x.shape()].concat();
    let mut y = Tensor::uninit(shape, x.dtype(), x.device())?;
    match x.device() {
        Device::Cpu => reference::forward(x, &mut y)?,
        _ => launch::forward(x, times, &mut y)?,
    }
    Ok(y)
}
