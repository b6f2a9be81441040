//! KoLeo regulariser: spreads features by the distance of each to its nearest neighbour.
//!
//! Per group of `M` rows, with `x̂ᵢ = xᵢ / max(‖xᵢ‖, ε)`, `n(i) = argmaxⱼ x̂ᵢ·x̂ⱼ` where the diagonal counts as -1 (the
//! first of equals), `δᵢ = x̂ᵢ - x̂ₙ₍ᵢ₎ + ε`, `dᵢ = ‖δᵢ‖`: `K = -(1/M) Σᵢ log(dᵢ + ε)`, ε = 1e-8. Groups are summed.
//!
//! Gradient: with `cᵢ = -dK / (M (dᵢ + ε) dᵢ)` (0 where `dᵢ` is), `gᵢ = cᵢ δᵢ - Σ_{j: n(j) = i} cⱼ δⱼ`, and
//! `dxᵢ = (gᵢ - x̂ᵢ (x̂ᵢ·gᵢ)) / ‖xᵢ‖`; `gᵢ / ε` where the norm is below ε.
//!
//! Source: Sablayrolles et al. 2019, arXiv 1806.03198, equation 2, as in the loss of arXiv 2304.07193 (appendix B.1).
//! Duplicates stay finite in f32: their distance is `ε √D`. A single row is its own neighbour: a constant without gradient.

mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases};

use crate::device::gemm::{GemmSpec, Layout, gemm};
use crate::ops::{float, on, shaped, typed};
use crate::{DType, Device, Error, Result, Tape, Tensor, Var};

const OP: &str = "koleo";
/// ε of the norm, the difference and the logarithm.
const EPS: f64 = 1e-8;
/// Rows whose products with all others exist at once: with 16384 others 64 MiB.
const PANEL: usize = 1024;

/// Extents checked once, used by reference and launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dims {
    rows: usize,
    cols: usize,
    /// Rows of a group.
    group: usize,
}

impl Dims {
    fn check(x: &Tensor, groups: usize) -> Result<Self> {
        float(OP, "x", x)?;
        let [rows, cols] = x.dims(OP, "x")?;
        if rows == 0 || groups == 0 || rows % groups != 0 {
            let expected = format!("at least one row for each of {groups} groups of equal length");
            return Err(Error::shape(OP, "x", x.shape(), expected));
        }
        if rows > i32::MAX as usize {
            return Err(Error::shape(OP, "x", x.shape(), "less than 2^31 rows"));
        }
        Ok(Self { rows, cols, group: rows / groups })
    }
}

/// What the backward needs besides `x`.
#[derive(Clone, Debug)]
pub struct Saved {
    /// `[N, 2]`: norm of each row, distance to its neighbour.
    pub stats: Tensor,
    /// `[N]`, i32: row of its neighbour.
    pub neighbours: Tensor,
}

/// `Σ K` over `groups` equal parts of the rows of `x: [N, D]`; returns `[1]`, f32 (f64 for f64).
///
/// dtypes: f32, bf16, f16 (f64 on the CPU); everything after `x` is f32. Saves `x` and 12 bytes per row. At most
/// 1024 x `N / groups` products exist at once. The backward gathers what several rows send to one neighbour in the order
/// of the rows: deterministic.
///
/// # Errors
/// When there is no row, or `groups` does not divide the rows.
pub fn koleo(tape: &Tape, x: &Var, groups: usize) -> Result<Var> {
    let (loss, Saved { stats, neighbours }) = forward(x.value(), groups)?;
    let to_x = x.slot();
    let saved = [x.value().clone(), stats, neighbours];
    Ok(tape.record(OP, loss, &[x], saved, move |dloss, [x, stats, neighbours], grads| {
        grads.add(to_x, backward(&dloss, &x, &Saved { stats, neighbours }, groups)?)
    }))
}

/// The loss `[1]` and what the backward needs.
pub fn forward(x: &Tensor, groups: usize) -> Result<(Tensor, Saved)> {
    let dims = Dims::check(x, groups)?;
    let (acc, device) = (x.dtype().accumulate(), x.device());
    let mut loss = Tensor::uninit([1], acc, device)?;
    let mut stats = Tensor::uninit([dims.rows, 2], acc, device)?;
    let mut neighbours = Tensor::uninit([dims.rows], DType::I32, device)?;
    for first in (0..dims.rows).step_by(dims.group) {
        let all = normalised(x, first, dims.group, dims, Some(&mut stats))?;
        for at in (0..dims.group).step_by(PANEL) {
            let rows = PANEL.min(dims.group - at);
            let own = if rows == dims.group { None } else { Some(normalised(x, first + at, rows, dims, None)?) };
            let scores = products(own.as_ref().unwrap_or(&all), &all)?;
            let panel = Panel { first, at, rows };
            match device {
                Device::Cpu => reference::nearest(&scores, &all, panel, dims, &mut stats, &mut neighbours)?,
                _ => launch::nearest(&scores, &all, panel, dims, &mut stats, &mut neighbours)?,
            }
        }
    }
    match device {
        Device::Cpu => reference::mean(&stats, dims, &mut loss)?,
        _ => launch::mean(&stats, dims, &mut loss)?,
    }
    Ok((loss, Saved { stats, neighbours }))
}

/// Rows `at..at + rows` of the group that starts at row `first`.
#[derive(Clone, Copy)]
struct Panel {
    first: usize,
    at: usize,
    rows: usize,
}

/// `x̂` of `rows` rows from `first` on, and their norms in the first column of `stats`.
fn normalised(x: &Tensor, first: usize, rows: usize, dims: Dims, stats: Option<&mut Tensor>) -> Result<Tensor> {
    let mut y = Tensor::uninit([rows, dims.cols], x.dtype().accumulate(), x.device())?;
    match x.device() {
        Device::Cpu => reference::normalise(x, first, dims, &mut y, stats)?,
        _ => launch::normalise(x, first, dims, &mut y, stats)?,
    }
    Ok(y)
}

/// `a · bᵀ`
fn products(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let ([m, k], [n, _]) = (a.dims(OP, "x")?, b.dims::<2>(OP, "x")?);
    let mut d = Tensor::uninit([m, n], a.dtype(), a.device())?;
    let layout = Layout { m, n, k, trans_a: false, trans_b: true, input: a.dtype(), output: a.dtype() };
    gemm(&GemmSpec { layout, alpha: 1.0, beta: 0.0 }, a.storage(), b.storage(), None, d.storage_mut(OP)?)?;
    Ok(d)
}

/// Gradient by `x`, in its dtype.
pub fn backward(dloss: &Tensor, x: &Tensor, saved: &Saved, groups: usize) -> Result<Tensor> {
    let dims = Dims::check(x, groups)?;
    let acc = x.dtype().accumulate();
    let operands = [("dloss", dloss, &[1][..], acc), ("stats", &saved.stats, &[dims.rows, 2], acc)];
    for (arg, t, shape, dtype) in
        operands.into_iter().chain([("neighbours", &saved.neighbours, &[dims.rows][..], DType::I32)])
    {
        shaped(OP, arg, t, shape)?;
        typed(OP, arg, t, dtype)?;
        on(OP, arg, t, x)?;
    }
    let mut dx = Tensor::uninit_like(x)?;
    match x.device() {
        Device::Cpu => reference::backward(dloss, x, saved, dims, &mut dx)?,
        _ => launch::backward(dloss, x, saved, dims, &mut dx)?,
    }
    Ok(dx)
}
