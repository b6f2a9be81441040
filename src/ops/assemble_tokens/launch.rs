//! Grid and arguments of kernels/assemble_tokens.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::{Dims, OP};
use crate::device::Launch;
use crate::ops::column_sum::lanes_grid;
use crate::ops::indices::count32;
use crate::{Result, Tensor};

/// Rows per block of the forward, one warp each; not measured yet.
const WARPS: u32 = 8;
/// `SUM_WARPS` of the kernel.
const SUM_WARPS: u32 = 8;

/// `struct AssembleTokensFwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct FwdArgs {
    patches: u64,
    cls: u64,
    pos: u64,
    ids_keep: u64,
    y: u64,
    rows: u32,
    keep: u32,
    len: u32,
    cols: u32,
}

/// `struct AssembleTokensBwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct BwdArgs {
    dy: u64,
    ids_restore: u64,
    dpatches: u64,
    dcls: u64,
    dpos: u64,
    batch: u32,
    keep: u32,
    len: u32,
    cols: u32,
}

/// One warp per row.
pub(super) fn rows_grid(rows: u32) -> Launch {
    Launch::warp_per_row(rows, WARPS)
}

pub(super) fn forward(
    patches: &Tensor,
    cls_token: &Tensor,
    pos_embed: &Tensor,
    ids_keep: &Tensor,
    dims: Dims,
    y: &mut Tensor,
) -> Result<()> {
    let args = FwdArgs {
        patches: patches.ptr(),
        cls: cls_token.ptr(),
        pos: pos_embed.ptr(),
        ids_keep: ids_keep.ptr(),
        y: y.ptr_mut(OP)?,
        rows: count32(OP, "patches", dims.batch * (dims.keep + 1))?,
        keep: count32(OP, "ids_keep", dims.keep)?,
        len: count32(OP, "ids_restore", dims.len)?,
        cols: count32(OP, "patches", dims.cols)?,
    };
    // SAFETY: `super::forward` checked every extent that struct AssembleTokensFwd states; the kernel reads no position
    // whose index is out of range.
    unsafe { patches.device().launch(OP, "assemble_tokens_fwd", patches.dtype(), rows_grid(args.rows), &args) }
}

pub(super) fn backward(
    dy: &Tensor,
    ids_restore: &Tensor,
    dims: Dims,
    (dpatches, dcls, dpos): (Option<&mut Tensor>, Option<&mut Tensor>, Option<&mut Tensor>),
) -> Result<()> {
    if dpatches.is_none() && dcls.is_none() && dpos.is_none() {
        return Ok(());
    }
    let address = |t: Option<&mut Tensor>| t.map_or(Ok(0), |t| t.ptr_mut(OP));
    // Without the others, the first row of the table alone is looked at.
    let rows = if dpatches.is_none() && dpos.is_none() { 1 } else { count32(OP, "ids_restore", dims.len + 1)? };
    let args = BwdArgs {
        dy: dy.ptr(),
        ids_restore: ids_restore.ptr(),
        dpatches: address(dpatches)?,
        dcls: address(dcls)?,
        dpos: address(dpos)?,
        batch: count32(OP, "ids_keep", dims.batch)?,
        keep: count32(OP, "ids_keep", dims.keep)?,
        len: count32(OP, "ids_restore", dims.len)?,
        cols: count32(OP, "dy", dims.cols)?,
    };
    // SAFETY: dy is [B·(K+1), D], ids_restore [B, L], and the gradients null or [B·K, D], [D] and [L+1, D], as struct
    // AssembleTokensBwd states; the kernel reads no row whose rank is out of range.
    unsafe { dy.device().launch(OP, "assemble_tokens_bwd", dy.dtype(), lanes_grid(rows, args.cols, SUM_WARPS), &args) }
}
