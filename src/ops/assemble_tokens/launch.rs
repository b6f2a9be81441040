//! Grid and arguments of kernels/assemble_tokens.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::{Dims, OP};
use crate::device::Launch;
use crate::ops::column_sum::{ColumnSum, sums_grid};
use crate::ops::indices::count32;
use crate::{DType, Result, Tensor};

/// Rows per block of the copies, one warp each; not measured yet.
const WARPS: u32 = 8;
/// Parts of the class token's gradient at most, so that the second pass stays short; not measured yet.
const PARTS: usize = 64;
/// Images per part at least: each part costs a row of the second pass; not measured yet.
const MIN_IMAGES: usize = 16;

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
    part: u64,
    dpos: u64,
    batch: u32,
    keep: u32,
    len: u32,
    cols: u32,
    images_per_part: u32,
    pad: u32,
}

/// One warp per row.
pub(super) fn rows_grid(rows: u32) -> Launch {
    Launch::warp_per_row(rows, WARPS)
}

/// How the images are split for the class token's gradient: parts and images per part.
pub(super) fn split(batch: usize) -> (usize, usize) {
    let per_part = batch.div_ceil(PARTS).max(MIN_IMAGES);
    (batch.div_ceil(per_part).max(1), per_part)
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
    let (device, dtype) = (dy.device(), dy.dtype());
    let (parts, images_per_part) = split(dims.batch);
    let mut args = BwdArgs {
        dy: dy.ptr(),
        ids_restore: ids_restore.ptr(),
        dpatches: 0,
        part: 0,
        dpos: 0,
        batch: count32(OP, "ids_keep", dims.batch)?,
        keep: count32(OP, "ids_keep", dims.keep)?,
        len: count32(OP, "ids_restore", dims.len)?,
        cols: count32(OP, "dy", dims.cols)?,
        images_per_part: images_per_part as u32,
        pad: 0,
    };
    if let Some(dpatches) = dpatches {
        args.dpatches = dpatches.ptr_mut(OP)?;
        let rows = count32(OP, "dy", dims.batch * dims.keep)?;
        // SAFETY: dy is [B·(K+1), D] and dpatches [B·K, D], as struct AssembleTokensBwd states.
        unsafe { device.launch(OP, "assemble_tokens_bwd_patches", dtype, rows_grid(rows), &args)? };
    }
    if let Some(dcls) = dcls {
        let mut part = Tensor::uninit([parts, dims.cols], DType::F32, device)?;
        args.part = part.ptr_mut(OP)?;
        // SAFETY: `part` is [parts, D] and the grid has `parts` sums of at most images_per_part images.
        unsafe { device.launch(OP, "assemble_tokens_bwd_cls", dtype, sums_grid(parts as u32, args.cols), &args)? };
        let reduce = ColumnSum::new(OP, &part, dcls)?;
        // SAFETY: dcls is [D] and `part` [parts, D], filled by the launch before on the same stream.
        unsafe { device.launch(OP, "assemble_tokens_bwd_reduce", DType::F32, reduce.grid(), &reduce)? };
    }
    if let Some(dpos) = dpos {
        args.dpos = dpos.ptr_mut(OP)?;
        let sums = count32(OP, "ids_restore", dims.len + 1)?;
        // SAFETY: dpos is [L+1, D], ids_restore [B, L]; the kernel reads no row whose rank is out of range.
        unsafe { device.launch(OP, "assemble_tokens_bwd_pos", dtype, sums_grid(sums, args.cols), &args)? };
    }
    Ok(())
}
