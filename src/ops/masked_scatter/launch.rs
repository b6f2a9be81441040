//! Grid and arguments of kernels/masked_scatter.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::{Dims, OP};
use crate::device::Launch;
use crate::ops::column_sum::{ColumnSum, sums_grid};
use crate::ops::indices::count32;
use crate::{DType, Result, Tensor};

/// Rows per block of the forward, one warp each; not measured yet.
const WARPS: u32 = 8;
/// Parts of the mask token's gradient at most: eight per SM of an H100; not measured yet.
pub(super) const PARTS: usize = 1056;
/// Rows per part at least: each part costs a row of the second pass; not measured yet.
const MIN_ROWS: usize = 8;

/// `struct MaskedScatterFwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct FwdArgs {
    z: u64,
    mask: u64,
    pos: u64,
    ids_restore: u64,
    y: u64,
    rows: u32,
    keep: u32,
    len: u32,
    cols: u32,
}

/// `struct MaskedScatterBwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct BwdArgs {
    dy: u64,
    ids_restore: u64,
    dz: u64,
    part: u64,
    dpos: u64,
    rows: u32,
    keep: u32,
    len: u32,
    cols: u32,
    rows_per_part: u32,
    batch: u32,
}

/// One warp per row.
pub(super) fn rows_grid(rows: u32) -> Launch {
    Launch::warp_per_row(rows, WARPS)
}

/// How the rows are split for the mask token's gradient: parts and rows per part.
pub(super) fn split(rows: usize) -> (usize, usize) {
    let per_part = rows.div_ceil(PARTS).max(MIN_ROWS);
    (rows.div_ceil(per_part).max(1), per_part)
}

pub(super) fn forward(
    z: &Tensor,
    mask_token: &Tensor,
    pos_embed: &Tensor,
    ids_restore: &Tensor,
    dims: Dims,
    y: &mut Tensor,
) -> Result<()> {
    let args = FwdArgs {
        z: z.ptr(),
        mask: mask_token.ptr(),
        pos: pos_embed.ptr(),
        ids_restore: ids_restore.ptr(),
        y: y.ptr_mut(OP)?,
        rows: count32(OP, "ids_restore", dims.batch * (dims.len + 1))?,
        keep: count32(OP, "z", dims.keep)?,
        len: count32(OP, "ids_restore", dims.len)?,
        cols: count32(OP, "z", dims.cols)?,
    };
    // SAFETY: `super::forward` checked every extent that struct MaskedScatterFwd states; the kernel takes ranks outside
    // 0..K for masked.
    unsafe { z.device().launch(OP, "masked_scatter_fwd", z.dtype(), rows_grid(args.rows), &args) }
}

pub(super) fn backward(
    dy: &Tensor,
    ids_restore: &Tensor,
    dims: Dims,
    dz: &mut Tensor,
    dmask: Option<&mut Tensor>,
    dpos: Option<&mut Tensor>,
) -> Result<()> {
    let (device, dtype) = (dy.device(), dy.dtype());
    let rows = dims.batch * (dims.len + 1);
    let (parts, rows_per_part) = split(rows);
    let mut part = dmask.is_some().then(|| Tensor::uninit([parts, dims.cols], DType::F32, device)).transpose()?;
    let mut args = BwdArgs {
        dy: dy.ptr(),
        ids_restore: ids_restore.ptr(),
        dz: dz.ptr_mut(OP)?,
        part: part.as_mut().map_or(Ok(0), |p| p.ptr_mut(OP))?,
        dpos: 0,
        rows: count32(OP, "dy", rows)?,
        keep: count32(OP, "z", dims.keep)?,
        len: count32(OP, "ids_restore", dims.len)?,
        cols: count32(OP, "dy", dims.cols)?,
        rows_per_part: rows_per_part as u32, // at most rows
        batch: count32(OP, "ids_restore", dims.batch)?,
    };
    let grid = sums_grid(parts as u32, args.cols);
    // SAFETY: `super::backward` checked that dy is [B·(L+1), D] and made dz [B·(K+1), D]; `part` is null or
    // [parts, D], as struct MaskedScatterBwd states.
    unsafe { device.launch(OP, "masked_scatter_bwd", dtype, grid, &args)? };
    if let (Some(dmask), Some(part)) = (dmask, part) {
        let reduce = ColumnSum::new(OP, &part, dmask)?;
        // SAFETY: dmask is [D] and `part` [parts, D], filled by the launch before on the same stream.
        unsafe { device.launch(OP, "masked_scatter_bwd_reduce", DType::F32, reduce.grid(), &reduce)? };
    }
    if let Some(dpos) = dpos {
        args.dpos = dpos.ptr_mut(OP)?;
        let grid = sums_grid(args.len + 1, args.cols);
        // SAFETY: dpos is [L+1, D] and the grid has L+1 sums.
        unsafe { device.launch(OP, "masked_scatter_bwd_pos", dtype, grid, &args)? };
    }
    Ok(())
}
