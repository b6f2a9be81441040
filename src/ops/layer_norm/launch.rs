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
/// Warps per block of the backwards that hold rows in registers: `HELD_WARPS`.
const HELD_WARPS: u32 = 8;
/// Row blocks of the weight gradients: two per SM of an H100; more make the second pass longer. Not measured yet.
const PARTS: usize = 264;
/// Rows per block at least: each block costs a row of the second pass; not measured yet.
const MIN_ROWS: usize = 16;

const FWD: Variants =
    ["layer_norm_fwd", "layer_norm_fwd_x2", "layer_norm_fwd_x4", "layer_norm_fwd_x6", "layer_norm_fwd_x8"];
/// Also that of a sum whose own gradient is none.
pub(in crate::ops) const BWD: Variants =
    ["layer_norm_bwd", "layer_norm_bwd_x2", "layer_norm_bwd_x4", "layer_norm_bwd_x6", "layer_norm_bwd_x8"];

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

/// Kernels of one direction by vectors of 16 bytes that a lane holds: any number of them, 2, 4, 6, 8.
pub(in crate::ops) type Variants = [&'static str; 5];

/// The kernel for rows of `cols` columns, and whether it holds them in registers: the least vectors that do, up to 6 of
/// 16-bit types and 8 of f32, which is what registers have room for.
pub(in crate::ops) fn variant(kernels: Variants, cols: usize, dtype: DType) -> (&'static str, bool) {
    let lane = 16 / dtype.size(); // elements of a vector
    let most = if dtype == DType::F32 { 8 } else { 6 };
    let vectors = cols.div_ceil(32 * lane).max(1);
    if !cols.is_multiple_of(lane) || vectors > most {
        return (kernels[0], false);
    }
    (kernels[vectors.div_ceil(2)], true)
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
    unsafe { x.device().launch(OP, variant(FWD, cols, x.dtype()).0, x.dtype(), fwd_grid(args.rows), &args) }
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
    unsafe { backward_by(OP, BWD, |args| args, dy, x, w, stats, dims, dx, dw, db) }
}

/// Backward by the fitting one of `kernels` of `kernels/<op>.cu`, whose arguments `wrap` makes of those of LayerNorm, and the reduction of
/// what it leaves for the weights.
///
/// # Safety
/// dy, x and dx are [rows, cols], w, dw and db [cols], stats [rows, 2]; what `wrap` adds is as its struct states.
pub(in crate::ops) unsafe fn backward_by<A: Pod + std::fmt::Debug>(
    op: &'static str,
    kernels: Variants,
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
    let (kernel, held) = variant(kernels, cols, x.dtype());
    let (parts, cols) = (parts as u32, args.cols); // at most PARTS
    let grid = Launch::linear(parts, if held { HELD_WARPS } else { WARPS } * 32);
    // SAFETY: lengths as the caller promises; `part` is [2, parts, cols] as struct LayerNormBwd states.
    unsafe { x.device().launch(op, kernel, x.dtype(), grid, &wrap(args))? };
    let args = ReduceArgs { part: part.ptr(), dw: dw.ptr_mut(op)?, db: db.ptr_mut(op)?, parts, cols };
    let mut grid = column_sum::grid(parts, cols);
    grid.grid[1] = 2; // dw and db
    // SAFETY: dw and db are [cols]; `part` was filled by the launch before on the same stream.
    unsafe { x.device().launch(OP, "layer_norm_bwd_reduce", DType::F32, grid, &args) }
}
