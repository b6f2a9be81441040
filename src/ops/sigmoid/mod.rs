//! The logistic function, scaled and shifted.
//!
//! `y = scale · σ(x) + bias`, `σ(x) = 1 / (1 + e^-x)`; `dx = dy · scale · σ(x) (1 - σ(x))`.
//!
//! Source: scale 20 and bias -10 make of mask logits what the memory encoder reads: Ravi et al. 2024, arXiv 2408.00714,
//! and `sigmoid_scale_for_mem_enc` of its code; scale 1 and bias 0 give predicted IoUs.

mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases};

use crate::ops::{float, same, shaped};
use crate::{Device, Result, Tape, Tensor, Var};

const OP: &str = "sigmoid";

/// `scale · σ(x) + bias` of each element of `x`; returns the shape of `x`.
///
/// dtypes: f32, bf16, f16 (f64 on the CPU). Saves `x`. No `x` overflows: the ends are `bias` and `scale + bias`.
/// Deterministic.
///
/// # Errors
/// When `x` is not of a float type.
pub fn sigmoid(tape: &Tape, x: &Var, scale: f32, bias: f32) -> Result<Var> {
    let y = forward(x.value(), scale, bias)?;
    let to_x = x.slot();
    let saved = [x.value().clone()];
    Ok(tape.record(OP, y, &[x], saved, move |dy, [x], grads| grads.add(to_x, backward(&dy, &x, scale)?)))
}

/// `scale · σ(x) + bias`.
pub fn forward(x: &Tensor, scale: f32, bias: f32) -> Result<Tensor> {
    float(OP, "x", x)?;
    let mut y = Tensor::uninit_like(x)?;
    match x.device() {
        Device::Cpu => reference::forward(x, scale, bias, &mut y)?,
        _ => launch::forward(x, scale, bias, &mut y)?,
    }
    Ok(y)
}

/// `dx = dy · scale · s (1 - s)` with `s = σ(-|x|)`, which is at most 1/2, so that `1 - s` keeps its digits at both
/// ends.
pub fn backward(dy: &Tensor, x: &Tensor, scale: f32) -> Result<Tensor> {
    shaped(OP, "dy", dy, x.shape())?;
    same(OP, "dy", dy, x)?;
    let mut dx = Tensor::uninit_like(x)?;
    match x.device() {
        Device::Cpu => reference::backward(dy, x, scale, &mut dx)?,
        _ => launch::backward(dy, x, scale, &mut dx)?,
    }
    Ok(dx)
}
