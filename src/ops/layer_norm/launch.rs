//! Grid and arguments of kernels/layer_norm.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::{Dims, OP};
use crate::device::Launch;
use crate::ops::column_sum;
use crate::ops::indices::count32;
use crate::{DType, Result, Tensor};

/// Rows per block of the forward, one warp each; not measured yet.
const WARPS: u32 = 4;
/// Row blocks of the weight gradients: two per SM of an H100; more make the second pass longer. Not measured yet.
const PARTS: usize = 264;
/// Rows per block at least: each block costs a row of the second pass; not measured yet.
const MIN_ROWS: usize = 16;

/// `struct LayerNormFwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct FwdArgs {
    x: u64,
    w: u64,
    b: u64,
    y: u64,
    stats: u64,
    rows: u32,
    cols: u32,
    eps: f32,
    pad: u32,
}

/// `struct LayerNormBwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(in crate::ops) struct BwdArgs {
    dy: u64,
    x: u64,
    w: u64,
    stats: u64,
    dx: u64,
    part: u64,
    rows: u32,
    cols: u32,
    rows_per_part: u32,
    pad: u32,
}

/// `struct LayerNormBwdReduce`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct ReduceArgs {
    part: u64,
    dw: u64,
    db: u64,
    parts: u32,
    cols: u32,
}

/// One warp per row.
pub(in crate::ops) fn fwd_grid(rows: u32) -> Launch {
    Launch::warp_per_row(rows, WARPS)
}

/// How the rows are split for the weight gradients: parts and rows per part.
pub(in crate::ops) fn split(rows: usize) -> (usize, usize) {
    let per_part = rows.div_ceil(PARTS).max(MIN_ROWS);
    (rows.div_ceil(per_part).max(1), per_part)
}

pub(super) fn forward(
    x: &Tensor,
    w: &Tensor,
    b: &Tensor,
    eps: f32,
    Dims { rows, cols }: Dims,
    y: &mut Tensor,
    stats: &mut Tensor,
) -> Result<()> {
    let args = FwdArgs {
        x: x.ptr(),
        w: w.ptr(),
        b: b.ptr(),
        y: y.ptr_mut(OP)?,
        stats: stats.ptr_mut(OP)?,
        rows: count32(OP, "x", rows)?,
        cols: count32(OP, "x", cols)?,
        eps,
        pad: 0,
    };
    // SAFETY: `Dims::check` fixed every length that struct LayerNormFwd states; all tensors outlive the call.
    unsafe { x.device().launch(OP, "layer_norm_fwd", x.dtype(), fwd_grid(args.rows), &args) }
}

pub(super) fn backward(
    dy: &Tensor,
    x: &Tensor,
    w: &Tensor,
    stats: &Tensor,
    dims: Dims,
    dx: &mut Tensor,
    dw: &mut Tensor,
    db: &mut Tensor,
) -> Result<()> {
    // SAFETY: `backward` in mod.rs checked that dy has the shape of x and made the outputs.
    unsafe { backward_by(OP, "layer_norm_bwd", |args| args, dy, x, w, stats, dims, dx, dw, db) }
}

/// Backward by `kernel` of `kernels/<op>.cu`, whose arguments `wrap` makes of those of LayerNorm, and the reduction of
/// what it leaves for the weights.
///
/// # Safety
/// dy, x and dx are [rows, cols], w, dw and db [cols], stats [rows, 2]; what `wrap` adds is as its struct states.
pub(in crate::ops) unsafe fn backward_by<A: Pod + std::fmt::Debug>(
    op: &'static str,
    kernel: &'static str,
    wrap: impl FnOnce(BwdArgs) -> A,
    dy: &Tensor,
    x: &Tensor,
    w: &Tensor,
    stats: &Tensor,
    Dims { rows, cols }: Dims,
    dx: &mut Tensor,
    dw: &mut Tensor,
    db: &mut Tensor,
) -> Result<()> {
    let (parts, rows_per_part) = split(rows);
    let mut part = Tensor::uninit([2, parts, cols], DType::F32, x.device())?;
    let args = BwdArgs {
        dy: dy.ptr(),
        x: x.ptr(),
        w: w.ptr(),
        stats: stats.ptr(),
        dx: dx.ptr_mut(op)?,
        part: part.ptr_mut(op)?,
        rows: count32(op, "x", rows)?,
        cols: count32(op, "x", cols)?,
        rows_per_part: rows_per_part as u32, // at most rows, or MIN_ROWS
        pad: 0,
    };
    let (parts, cols) = (parts as u32, args.cols); // at most PARTS
    let grid = Launch::linear(parts, WARPS * 32);
    // SAFETY: lengths as the caller promises; `part` is [2, parts, cols] as struct LayerNormBwd states.
    unsafe { x.device().launch(op, kernel, x.dtype(), grid, &wrap(args))? };
    let args = ReduceArgs { part: part.ptr(), dw: dw.ptr_mut(op)?, db: db.ptr_mut(op)?, parts, cols };
    let mut grid = column_sum::grid(parts, cols);
    grid.grid[1] = 2; // dw and db
    // SAFETY: dw and db are [cols]; `part` was filled by the launch before on the same stream.
    unsafe { x.device().launch(OP, "layer_norm_bwd_reduce", DType::F32, grid, &args) }
}
