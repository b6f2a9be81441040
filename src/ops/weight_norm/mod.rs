//! Rows of a weight split into direction and length.
//!
//! `w_k = g_k · v_k / ‖v_k‖`. With `v̂ = v / ‖v‖`: `dg_k = v̂_k · dw_k`, `dv_k = g_k / ‖v_k‖ · (dw_k - v̂_k (v̂_k · dw_k))`.
//! A row `v_k` of zeros has no direction: its `w_k` and both its gradients are zero.
//!
//! Source: Salimans and Kingma 2016, arXiv 1602.07868, equations 2-3.

mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases};

use crate::ops::{float, on, same, shaped, typed};
use crate::{Device, Error, Result, Tape, Tensor, Var};

const OP: &str = "weight_norm";

/// Extents checked once, used by reference and launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dims {
    rows: usize,
    cols: usize,
}

impl Dims {
    fn check(v: &Tensor, g: Option<&Tensor>) -> Result<Self> {
        float(OP, "v", v)?;
        let [rows, cols] = v.dims(OP, "v")?;
        if let Some(g) = g {
            if g.numel() != rows || g.shape().first() != Some(&rows) {
                return Err(Error::shape(OP, "g", g.shape(), format!("[{rows}] or [{rows}, 1]")));
            }
            same(OP, "g", g, v)?;
        }
        Ok(Self { rows, cols })
    }
}

/// `g · v / ‖v‖` by rows of `v: [K, D]`, with `g: [K]` or `[K, 1]`, 1 without; returns `[K, D]`.
///
/// dtypes: f32, bf16, f16 (f64 on the CPU), the same for both; the gradients of both are f32. Saves `v`, `g` and 4 bytes
/// per row. Deterministic. A constant `g` is frozen.
///
/// # Errors
/// When `g` has not a value per row or differs from `v` in dtype or device.
pub fn weight_norm(tape: &Tape, v: &Var, g: Option<&Var>) -> Result<Var> {
    let (w, norms) = forward(v.value(), g.map(Var::value))?;
    let (to_v, to_g) = (v.slot(), g.and_then(Var::slot));
    let inputs: Vec<&Var> = [Some(v), g].into_iter().flatten().collect();
    let g = g.map(|g| g.value().clone());
    Ok(tape.record(OP, w, &inputs, [v.value().clone(), norms], move |dw, [v, norms], grads| {
        let (dv, dg) = backward(&dw, &v, g.as_ref(), &norms)?;
        grads.add(to_v, dv)?;
        dg.map_or(Ok(()), |dg| grads.add(to_g, dg))
    }))
}

/// `w: [K, D]` and the norms `[K]` of the rows of `v`.
pub fn forward(v: &Tensor, g: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
    let dims = Dims::check(v, g)?;
    let mut w = Tensor::uninit_like(v)?;
    let mut norms = Tensor::uninit([dims.rows], v.dtype().accumulate(), v.device())?;
    match v.device() {
        Device::Cpu => reference::forward(v, g, dims, &mut w, &mut norms)?,
        _ => launch::forward(v, g, dims, &mut w, &mut norms)?,
    }
    Ok((w, norms))
}

/// Gradients by `v` and, if there is one, by `g`, both f32.
pub fn backward(dw: &Tensor, v: &Tensor, g: Option<&Tensor>, norms: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
    let dims = Dims::check(v, g)?;
    shaped(OP, "dw", dw, v.shape())?;
    same(OP, "dw", dw, v)?;
    let acc = v.dtype().accumulate();
    shaped(OP, "norms", norms, &[dims.rows])?;
    typed(OP, "norms", norms, acc)?;
    on(OP, "norms", norms, v)?;
    let mut dv = Tensor::uninit(v.shape().clone(), acc, v.device())?;
    let mut dg = g.map(|g| Tensor::uninit(g.shape().clone(), acc, v.device())).transpose()?;
    match v.device() {
        Device::Cpu => reference::backward(dw, v, g, norms, dims, &mut dv, dg.as_mut())?,
        _ => launch::backward(dw, v, g, norms, dims, &mut dv, dg.as_mut())?,
    }
    Ok((dv, dg))
}
