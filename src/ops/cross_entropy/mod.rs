//! Softmax cross-entropy with label smoothing or soft targets.
//!
//! `loss = 1/N Σ_n -Σ_k t_nk log p_nk`, `p = softmax(x)`. For a class `c` and smoothing `s`,
//! `t_k = (1 - s) [k = c] + s / K`, so that the row is `(1 - s) · -log p_c + s · mean_k(-log p_k)`.
//!
//! Source: Szegedy et al. 2015, arXiv 1512.00567, section 7. The log-softmax is never stored: with the row's
//! `lse = log Σ_k e^(x_k)` it is `x - lse`.

mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases, soft_case};

use crate::ops::{float, on, shaped, typed};
use crate::{DType, Device, Error, Result, Tape, Tensor, Var};

const OP: &str = "cross_entropy";

/// What each row should have predicted.
#[derive(Clone, Copy, Debug)]
pub enum Targets<'a> {
    /// One class per row: `[N]` i32 in `0..K`.
    Classes(&'a Tensor),
    /// A weight per class, of mixed images say: `[N, K]` f32; rows usually sum to 1.
    Soft(&'a Tensor),
}

impl<'a> Targets<'a> {
    fn tensor(self) -> &'a Tensor {
        match self {
            Self::Classes(t) | Self::Soft(t) => t,
        }
    }
}

/// Extents checked once, used by reference and launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dims {
    rows: usize,
    cols: usize,
}

impl Dims {
    fn check(logits: &Tensor, targets: Targets<'_>, smoothing: f32) -> Result<Self> {
        float(OP, "logits", logits)?;
        let [rows, cols] = logits.dims(OP, "logits")?;
        if rows == 0 || cols == 0 {
            return Err(Error::shape(OP, "logits", logits.shape(), "at least one row and one class"));
        }
        if !(0.0..=1.0).contains(&smoothing) {
            return Err(Error::value(OP, "smoothing", smoothing, "0 to 1"));
        }
        on(OP, "targets", targets.tensor(), logits)?;
        match targets {
            Targets::Classes(t) => {
                shaped(OP, "targets", t, &[rows])?;
                typed(OP, "targets", t, DType::I32)?;
                if t.device().is_host() {
                    let wrong = t.as_slice::<i32>()?.iter().find(|&&c| usize::try_from(c).map_or(true, |c| c >= cols));
                    if let Some(class) = wrong {
                        return Err(Error::value(OP, "targets", class, format!("classes in 0..{cols}")));
                    }
                }
            }
            Targets::Soft(t) => {
                shaped(OP, "targets", t, logits.shape())?;
                typed(OP, "targets", t, logits.dtype().accumulate())?;
                if smoothing != 0.0 {
                    return Err(Error::value(OP, "smoothing", smoothing, "0 with soft targets, which are made smooth"));
                }
            }
        }
        Ok(Self { rows, cols })
    }
}

/// Mean over the rows of the cross-entropy between `targets` and the softmax of `logits: [N, K]`; returns `[1]` f32.
///
/// dtypes: f32, bf16, f16 (f64 on the CPU) for `logits`. Saves `logits`, `targets` and 4 bytes per row. Deterministic.
/// A class outside `0..K` is an error on host devices and makes the loss NaN on a GPU, which is not asked.
///
/// # Errors
/// When `targets` does not fit `logits`, a class is out of range, or `smoothing` is not in `[0, 1]`.
pub fn cross_entropy(tape: &Tape, logits: &Var, targets: Targets<'_>, smoothing: f32) -> Result<Var> {
    let (loss, lse) = forward(logits.value(), targets, smoothing)?;
    let soft = matches!(targets, Targets::Soft(_));
    let to_logits = logits.slot();
    let saved = [logits.value().clone(), lse, targets.tensor().clone()];
    Ok(tape.record(OP, loss, &[logits], saved, move |dloss, [logits, lse, t], grads| {
        let targets = if soft { Targets::Soft(&t) } else { Targets::Classes(&t) };
        grads.add(to_logits, backward(&dloss, &logits, &lse, targets, smoothing)?)
    }))
}

/// The loss `[1]` and the rows' `lse: [N]`, both f32.
pub fn forward(logits: &Tensor, targets: Targets<'_>, smoothing: f32) -> Result<(Tensor, Tensor)> {
    let dims = Dims::check(logits, targets, smoothing)?;
    let acc = logits.dtype().accumulate();
    let mut loss = Tensor::uninit([1], acc, logits.device())?;
    let mut lse = Tensor::uninit([dims.rows], acc, logits.device())?;
    match logits.device() {
        Device::Cpu => reference::forward(logits, targets, smoothing, dims, &mut loss, &mut lse)?,
        _ => launch::forward(logits, targets, smoothing, dims, &mut loss, &mut lse)?,
    }
    Ok((loss, lse))
}

/// Gradient by `logits`, in their dtype: `dx_nk = dloss / N · (p_nk Σ_j t_nj - t_nk)`.
pub fn backward(dloss: &Tensor, logits: &Tensor, lse: &Tensor, targets: Targets<'_>, smoothing: f32) -> Result<Tensor> {
    let dims = Dims::check(logits, targets, smoothing)?;
    shaped(OP, "lse", lse, &[dims.rows])?;
    shaped(OP, "dloss", dloss, &[1])?;
    for (arg, t) in [("lse", lse), ("dloss", dloss)] {
        typed(OP, arg, t, logits.dtype().accumulate())?;
        on(OP, arg, t, logits)?;
    }
    let mut dlogits = Tensor::uninit_like(logits)?;
    match logits.device() {
        Device::Cpu => reference::backward(dloss, logits, lse, targets, smoothing, dims, &mut dlogits)?,
        _ => launch::backward(dloss, logits, lse, targets, smoothing, dims, &mut dlogits)?,
    }
    Ok(dlogits)
}
