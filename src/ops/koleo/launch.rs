//! Grids and arguments of kernels/koleo.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::{Dims, OP, Panel, Saved};
use crate::device::Launch;
use crate::ops::indices::count32;
use crate::{DType, Error, Result, Tensor};

/// Threads of a block that has one row: the kernels count on four warps.
const THREADS: u32 = 128;
/// Rows per block with one warp each; not measured yet.
const WARPS: u32 = 4;
/// Columns at most: the backward keeps a row of f32 in shared memory.
pub(super) const MAX_COLS: usize = 8192;

/// `struct KoleoNormalise`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct NormaliseArgs {
    x: u64,
    y: u64,
    stats: u64,
    rows: u32,
    cols: u32,
}

/// `struct KoleoNearest`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct NearestArgs {
    scores: u64,
    all: u64,
    stats: u64,
    neighbours: u64,
    group: u32,
    cols: u32,
    first: u32,
    at: u32,
}

/// `struct KoleoMean`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct MeanArgs {
    stats: u64,
    loss: u64,
    rows: u32,
    group: u32,
}

/// `struct KoleoBwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct BwdArgs {
    dloss: u64,
    x: u64,
    stats: u64,
    neighbours: u64,
    dx: u64,
    rows: u32,
    cols: u32,
    group: u32,
    pad: u32,
}

/// A block per row, with a row of f32 in shared memory.
pub(super) fn bwd_grid(Dims { rows, cols, .. }: Dims) -> Launch {
    Launch { shared: 4 * cols as u32, ..Launch::linear(rows as u32, THREADS) } // at most 2^31 rows, MAX_COLS columns
}

fn check_cols(x: &Tensor, cols: usize) -> Result<()> {
    if cols > MAX_COLS {
        return Err(Error::shape(OP, "x", x.shape(), format!("at most {MAX_COLS} columns on this device")));
    }
    Ok(())
}

pub(super) fn normalise(
    x: &Tensor,
    first: usize,
    dims: Dims,
    y: &mut Tensor,
    stats: Option<&mut Tensor>,
) -> Result<()> {
    check_cols(x, dims.cols)?;
    let [rows, cols] = y.dims(OP, "x")?;
    let args = NormaliseArgs {
        x: x.ptr() + (first * cols * x.dtype().size()) as u64,
        y: y.ptr_mut(OP)?,
        stats: stats.map_or(Ok(0), |s| s.ptr_mut(OP).map(|p| p + 8 * first as u64))?,
        rows: count32(OP, "x", rows)?,
        cols: count32(OP, "x", cols)?,
    };
    // SAFETY: rows first.. of x and of stats, [N, 2], are there: panels end with their group; y is [rows, cols].
    unsafe { x.device().launch(OP, "koleo_normalise", x.dtype(), Launch::warp_per_row(args.rows, WARPS), &args) }
}

pub(super) fn nearest(
    scores: &Tensor,
    all: &Tensor,
    Panel { first, at, rows }: Panel,
    dims: Dims,
    stats: &mut Tensor,
    neighbours: &mut Tensor,
) -> Result<()> {
    let from = (first + at) as u64;
    let args = NearestArgs {
        scores: scores.ptr(),
        all: all.ptr(),
        stats: stats.ptr_mut(OP)? + 8 * from,
        neighbours: neighbours.ptr_mut(OP)? + 4 * from,
        group: dims.group as u32, // at most 2^31, as `Dims::check` saw to
        cols: dims.cols as u32,   // at most MAX_COLS
        first: first as u32,
        at: at as u32,
    };
    // SAFETY: scores is [rows, group] and all [group, cols] as the GEMM and `normalised` made them; stats and neighbours
    // have the panel's rows from `first + at` on.
    unsafe { all.device().launch(OP, "koleo_nearest", DType::F32, Launch::linear(rows as u32, THREADS), &args) }
}

pub(super) fn mean(stats: &Tensor, dims: Dims, loss: &mut Tensor) -> Result<()> {
    let args =
        MeanArgs { stats: stats.ptr(), loss: loss.ptr_mut(OP)?, rows: dims.rows as u32, group: dims.group as u32 };
    // SAFETY: stats is [rows, 2], loss [1], both made by `forward`.
    unsafe { stats.device().launch(OP, "koleo_mean", DType::F32, Launch::linear(1, 512), &args) }
}

pub(super) fn backward(dloss: &Tensor, x: &Tensor, saved: &Saved, dims: Dims, dx: &mut Tensor) -> Result<()> {
    check_cols(x, dims.cols)?;
    let args = BwdArgs {
        dloss: dloss.ptr(),
        x: x.ptr(),
        stats: saved.stats.ptr(),
        neighbours: saved.neighbours.ptr(),
        dx: dx.ptr_mut(OP)?,
        rows: dims.rows as u32, // at most 2^31
        cols: dims.cols as u32, // at most MAX_COLS
        group: dims.group as u32,
        pad: 0,
    };
    // SAFETY: `super::backward` checked the shapes of dloss, stats and neighbours and made dx like x; neighbours are rows of
    // x, since `nearest` wrote them.
    unsafe { x.device().launch(OP, "koleo_bwd", x.dtype(), bwd_grid(dims), &args) }
}
