//! Maps at another size: a sparse linear map along the rows and one along the columns, by tables made once.
//!
//! `y[b, i, j, c] = Σ_p Σ_q R[i, p] · S[j, q] · x[b, p, q, c]`; the gradient is the transposed map,
//! `dx[b, p, q, c] = Σ_i Σ_j R[i, p] · S[j, q] · dy[b, i, j, c]`, gathered through transposed tables. `R` and `S` have a few
//! entries per row: [`Plan`] says which.
//!
//! Source: bilinear and nearest enlargement of masks and feature maps, their antialiased reduction, and the bicubic and
//! tiled position tables of SAM-2: Ravi et al. 2024, arXiv 2408.00714; the weights are those of
//! `torch.nn.functional.interpolate` with `align_corners=False`.

mod case;
mod launch;
mod plan;
mod reference;
pub mod taps;
#[cfg(test)]
mod tests;

pub use case::{case, cases};
pub use plan::Plan;
pub use taps::Filter;

use plan::Table;

use crate::ops::{float, on};
use crate::{Device, Error, Result, Tape, Tensor, Var};

const OP: &str = "resample";

/// Extents checked once, used by reference and launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dims {
    batch: usize,
    from: [usize; 2],
    to: [usize; 2],
    channels: usize,
}

/// `x: [B, H, W, C]` of the size the plan is made for, at the plan's other size; returns `[B, OH, OW, C]`.
///
/// dtypes: f32, bf16, f16 (f64 on the CPU); weights and sums are f32. Saves nothing but the plan. Deterministic. One pass,
/// along the rows first: each value read goes into a row of sums, from which the columns are read. A plan that changes
/// nothing gives `x` itself.
///
/// # Errors
/// When `x` is not of the plan's size or device, or of more columns than a block of the device has memory for (12 thousand
/// at least).
pub fn resample(tape: &Tape, x: &Var, plan: &Plan) -> Result<Var> {
    let y = forward(x.value(), plan)?;
    if plan.from() == plan.to() {
        return Ok(x.clone());
    }
    let (to_x, plan) = (x.slot(), plan.clone());
    Ok(tape.record(OP, y, &[x], [], move |dy, [], grads| grads.add(to_x, backward(&dy, &plan)?)))
}

/// `y: [B, OH, OW, C]`.
pub fn forward(x: &Tensor, plan: &Plan) -> Result<Tensor> {
    apply("x", x, plan.from(), plan.to(), plan.forward())
}

/// Gradient by `x`: the transposed map of `dy: [B, OH, OW, C]`.
pub fn backward(dy: &Tensor, plan: &Plan) -> Result<Tensor> {
    apply("dy", dy, plan.to(), plan.from(), plan.backward())
}

fn apply(arg: &'static str, x: &Tensor, from: [usize; 2], to: [usize; 2], tables: &[Table; 2]) -> Result<Tensor> {
    float(OP, arg, x)?;
    let [batch, h, w, channels] = x.dims(OP, arg)?;
    if [h, w] != from {
        return Err(Error::shape(OP, arg, x.shape(), format!("[B, {}, {}, C]", from[0], from[1])));
    }
    on(OP, "plan", tables[0].weights(), x)?;
    if from == to {
        return Ok(x.clone()); // every filter reads each position from itself
    }
    let dims = Dims { batch, from, to, channels };
    let mut y = Tensor::uninit([batch, to[0], to[1], channels], x.dtype(), x.device())?;
    match x.device() {
        Device::Cpu => reference::apply(x, tables, dims, &mut y)?,
        _ => launch::apply(arg, x, tables, dims, &mut y)?,
    }
    Ok(y)
}
