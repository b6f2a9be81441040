//! Grid and arguments of kernels/masked_scatter.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::{Dims, OP};
use crate::device::Launch;
use crate::ops::column_sum::{ColumnSum, lanes_grid};
use crate::ops::indices::count32;
use crate::{DType, Result, Tensor};

/// Rows per block of the forward, one warp each; not measured yet.
const WARPS: u32 = 8;
/// `SUM_WARPS` of the kernel.
const SUM_WARPS: u32 = 8;

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
    let device = dy.device();
    count32(OP, "dy", dims.batch * (dims.len + 1))?;
    let tokens = dims.len + 1;
    let mut part = dmask.is_some().then(|| Tensor::uninit([tokens, dims.cols], DType::F32, device)).transpose()?;
    let args = BwdArgs {
        dy: dy.ptr(),
        ids_restore: ids_restore.ptr(),
        dz: dz.ptr_mut(OP)?,
        part: part.as_mut().map_or(Ok(0), |p| p.ptr_mut(OP))?,
        dpos: dpos.map_or(Ok(0), |p| p.ptr_mut(OP))?,
        batch: count32(OP, "ids_restore", dims.batch)?,
        keep: count32(OP, "z", dims.keep)?,
        len: count32(OP, "ids_restore", dims.len)?,
        cols: count32(OP, "dy", dims.cols)?,
    };
    let grid = lanes_grid(tokens as u32, args.cols, SUM_WARPS);
    // SAFETY: `super::backward` checked that dy is [B·(L+1), D] and made dz [B·(K+1), D]; `part` and `dpos` are null or
    // [L+1, D], as struct MaskedScatterBwd states.
    unsafe { device.launch(OP, "masked_scatter_bwd", dy.dtype(), grid, &args)? };
    let (Some(dmask), Some(part)) = (dmask, part) else { return Ok(()) };
    let reduce = ColumnSum::new(OP, &part, dmask)?;
    // SAFETY: dmask is [D] and `part` [L+1, D], filled by the launch before on the same stream.
    unsafe { device.launch(OP, "masked_scatter_bwd_reduce", DType::F32, reduce.grid(), &reduce) }
}
