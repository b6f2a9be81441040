//! Grid and arguments of kernels/masked_mse.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::{Dims, EPS, OP};
use crate::device::Launch;
use crate::ops::indices::count32;
use crate::ops::patchify::Grid;
use crate::ops::pixels::{rows_per_warp, variant};
use crate::{DType, Result, Tensor};

/// Warps per block at most; not measured yet.
const WARPS: usize = 4;
/// Shared memory for patches: of the 48 KiB a block has without asking for more, static memory (the sums over warps) and
/// what aligns the dynamic part to 1 KiB behind it take up to one.
const SHARED: usize = 47 << 10;

/// `struct MaskedMse`: both directions.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Args {
    pred: u64,
    images: u64,
    norm: u64,
    ids: u64,
    stats: u64,
    part: u64,
    dloss: u64,
    dpred: u64,
    rows: u32,
    scored: u32,
    channels: u32,
    height: u32,
    width: u32,
    patch: u32,
    vector: u32,
    norm_pix: u32,
    held: u32,
    staged: u32,
    rows_per_block: u32,
    eps: f32,
    scale: f32,
    pad: u32,
}

/// `struct MaskedMseReduce`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct ReduceArgs {
    part: u64,
    loss: u64,
    parts: u32,
    scale: f32,
}

/// How the rows are spread over blocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub launch: Launch,
    /// Warps hold patches in registers.
    pub held: bool,
    /// Shared memory holds the patches of a block.
    pub staged: bool,
    pub rows_per_block: u32,
}

/// Warps hold patches that `Quads` in the kernel takes, and pass them through shared memory once. Others stay there, one
/// warp each, with fewer warps to a block for large ones; those that do not fit at all are read from the image again in
/// every pass.
pub(super) fn plan(rows: u32, grid: &Grid) -> Plan {
    let tile = grid.values().next_multiple_of(4) * 4; // f32, in units of 16 bytes
    let warps = SHARED.checked_div(tile).map_or(WARPS, |fit| fit.min(WARPS));
    let staged = warps > 0;
    let warps = if staged { warps } else { WARPS } as u32;
    let shared = if staged { warps * tile as u32 } else { 0 };
    let held = grid.quads(); // at most 3 KiB: staged, with all warps
    let rows_per_block = if held { warps * rows_per_warp(rows, warps) } else { warps };
    let launch = Launch { shared, ..Launch::linear(rows.div_ceil(rows_per_block), warps * 32) };
    Plan { launch, held, staged, rows_per_block }
}

/// Arguments both directions share; the pointers of one direction are null in the other.
fn args(pred: &Tensor, images: &Tensor, norm: Option<&Tensor>, ids: &Tensor, dims: Dims) -> Result<(Args, Launch)> {
    let grid = dims.grid;
    let rows = count32(OP, "ids", grid.batch * dims.scored)?;
    count32(OP, "images", grid.values())?;
    let Plan { launch, held, staged, rows_per_block } = plan(rows, &grid);
    let args = Args {
        pred: pred.ptr(),
        images: images.ptr(),
        norm: norm.map_or(0, Tensor::ptr),
        ids: ids.ptr(),
        stats: 0,
        part: 0,
        dloss: 0,
        dpred: 0,
        rows,
        scored: dims.scored as u32,     // at most rows
        channels: grid.channels as u32, // at most the values of a patch
        height: count32(OP, "images", grid.height)?,
        width: count32(OP, "images", grid.width)?,
        patch: grid.patch as u32, // at most 65535
        vector: grid.vector(),
        norm_pix: dims.norm_pix.into(),
        held: held.into(),
        staged: staged.into(),
        rows_per_block,
        eps: EPS as f32,
        scale: (2.0 / dims.count() as f64) as f32,
        pad: 0,
    };
    Ok((args, launch))
}

pub(super) fn forward(
    pred: &Tensor,
    images: &Tensor,
    norm: Option<&Tensor>,
    ids: &Tensor,
    dims: Dims,
    loss: &mut Tensor,
    stats: &mut Tensor,
) -> Result<()> {
    let kernel = variant(
        OP,
        images.dtype(),
        ["masked_mse_fwd_from_u8", "masked_mse_fwd_from_f32", "masked_mse_fwd_from_bf16", "masked_mse_fwd_from_f16"],
    )?;
    let (device, norm) = (pred.device(), norm.map(|n| n.cast(DType::F32)).transpose()?);
    let (mut args, grid) = args(pred, images, norm.as_ref(), ids, dims)?;
    let parts = grid.grid[0];
    let mut part = Tensor::uninit([parts as usize], DType::F32, device)?;
    args.stats = stats.ptr_mut(OP)?;
    args.part = part.ptr_mut(OP)?;
    // SAFETY: `Dims` fixed the extents of pred, images, norm and ids that struct MaskedMse states, stats is [B·M, 2] and
    // `part` has an element per block; the kernel reads no patch whose index is out of range.
    unsafe { device.launch(OP, kernel, pred.dtype(), grid, &args)? };
    let reduce =
        ReduceArgs { part: part.ptr(), loss: loss.ptr_mut(OP)?, parts, scale: (1.0 / dims.count() as f64) as f32 };
    // SAFETY: loss is [1]; `part` was filled by the launch before on the same stream.
    unsafe { device.launch(OP, "masked_mse_reduce", DType::F32, Launch::linear(1, 512), &reduce) }
}

pub(super) fn backward(
    dloss: &Tensor,
    pred: &Tensor,
    images: &Tensor,
    norm: Option<&Tensor>,
    ids: &Tensor,
    stats: &Tensor,
    dims: Dims,
    dpred: &mut Tensor,
) -> Result<()> {
    let kernel = variant(
        OP,
        images.dtype(),
        ["masked_mse_bwd_from_u8", "masked_mse_bwd_from_f32", "masked_mse_bwd_from_bf16", "masked_mse_bwd_from_f16"],
    )?;
    let norm = norm.map(|n| n.cast(DType::F32)).transpose()?;
    let (mut args, grid) = args(pred, images, norm.as_ref(), ids, dims)?;
    args.stats = stats.ptr();
    args.dloss = dloss.ptr();
    args.dpred = dpred.ptr_mut(OP)?;
    // SAFETY: as in `forward`; `super::backward` checked dloss [1] and stats [B·M, 2], and dpred has the shape of pred.
    unsafe { pred.device().launch(OP, kernel, pred.dtype(), grid, &args) }
}
