//! Grid and arguments of kernels/layer_scale.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::{Dims, Drop, OP};
use crate::device::Launch;
use crate::ops::column_sum::{ColumnSum, lanes_grid};
use crate::ops::indices::count32;
use crate::{DType, Result, Tensor};

/// Tokens per block of the forward, one warp each; not measured yet.
const WARPS: u32 = 8;
/// Row blocks of the backward: four per SM of an H100, so that enough loads are under way; not measured yet.
const PARTS: usize = 528;
/// Rows per block at least, two for each warp: each block costs a row of the second pass; not measured yet.
const MIN_ROWS: usize = 16;
/// `BWD_WARPS` of the kernel.
const BWD_WARPS: u32 = 8;

/// `struct LayerScaleFwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct FwdArgs {
    x: u64,
    branch: u64,
    gamma: u64,
    scale: u64,
    sequence: u64,
    source: u64,
    y: u64,
    tokens: u32,
    cols: u32,
}

/// `struct LayerScaleBwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct BwdArgs {
    dy: u64,
    branch: u64,
    gamma: u64,
    scale: u64,
    sequence: u64,
    token: u64,
    dbranch: u64,
    part: u64,
    rows: u32,
    cols: u32,
    rows_per_part: u32,
    pad: u32,
}

/// One warp per token.
pub(super) fn fwd_grid(tokens: u32) -> Launch {
    Launch::warp_per_row(tokens, WARPS)
}

/// How the rows of the branch are split: parts and rows per part.
pub(super) fn split(rows: usize) -> (usize, usize) {
    let per_part = rows.div_ceil(PARTS).max(MIN_ROWS);
    (rows.div_ceil(per_part).max(1), per_part)
}

fn ptr(t: Option<&Tensor>) -> u64 {
    t.map_or(0, Tensor::ptr)
}

pub(super) fn forward(
    x: &Tensor,
    branch: &Tensor,
    gamma: Option<&Tensor>,
    drop: Option<Drop>,
    dims: Dims,
    y: &mut Tensor,
) -> Result<()> {
    let args = FwdArgs {
        x: x.ptr(),
        branch: branch.ptr(),
        gamma: ptr(gamma),
        scale: ptr(drop.map(|d| d.1)),
        sequence: ptr(drop.map(|d| d.0.sequence())),
        source: ptr(drop.and_then(|d| d.0.source())),
        y: y.ptr_mut(OP)?,
        tokens: count32(OP, "x", dims.tokens)?,
        cols: count32(OP, "x", dims.cols)?,
    };
    // SAFETY: `Dims::check` fixed every length that struct LayerScaleFwd states; the indices of a `RowMap` are in range,
    // since it made them from offsets it checked.
    unsafe { x.device().launch(OP, "layer_scale_fwd", x.dtype(), fwd_grid(args.tokens), &args) }
}

pub(super) fn backward(
    dy: &Tensor,
    branch: &Tensor,
    gamma: Option<&Tensor>,
    drop: Option<Drop>,
    dims: Dims,
    dbranch: &mut Tensor,
    dgamma: Option<&mut Tensor>,
) -> Result<()> {
    let device = dy.device();
    let (parts, rows_per_part) = split(dims.rows);
    let mut part = gamma.map(|_| Tensor::uninit([parts, dims.cols], DType::F32, device)).transpose()?;
    let args = BwdArgs {
        dy: dy.ptr(),
        branch: branch.ptr(),
        gamma: ptr(gamma),
        scale: ptr(drop.map(|d| d.1)),
        sequence: ptr(drop.map(|d| d.0.sequence())),
        token: ptr(drop.and_then(|d| d.0.ids())),
        dbranch: dbranch.ptr_mut(OP)?,
        part: part.as_mut().map_or(Ok(0), |p| p.ptr_mut(OP))?,
        rows: count32(OP, "branch", dims.rows)?,
        cols: count32(OP, "branch", dims.cols)?,
        rows_per_part: rows_per_part as u32, // at most rows, or MIN_ROWS
        pad: 0,
    };
    let grid = lanes_grid(parts as u32, args.cols, BWD_WARPS); // at most PARTS
    // SAFETY: lengths and indices as in `forward`; `part` has a row of columns for each block in x.
    unsafe { device.launch(OP, "layer_scale_bwd", dy.dtype(), grid, &args)? };
    let (Some(part), Some(dgamma)) = (part, dgamma) else { return Ok(()) };
    let sum = ColumnSum::new(OP, &part, dgamma)?;
    // SAFETY: dgamma is [cols]; `part` was filled by the launch before on the same stream.
    unsafe { device.launch(OP, "layer_scale_bwd_reduce", DType::F32, sum.grid(), &sum) }
}
