//! Grid and arguments of kernels/gather_rows.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::{Dims, OP};
use crate::device::Launch;
use crate::ops::indices::count32;
use crate::{Result, Tensor};

/// Rows per block, one warp each; not measured yet.
const WARPS: u32 = 8;

/// `struct GatherRows`: both directions, `from` is x or dy, `to` is y or dx.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Args {
    from: u64,
    ids: u64,
    to: u64,
    rows: u32,
    picked: u32,
    cols: u32,
    pad: u32,
}

/// One warp per chosen row.
pub(super) fn grid(picked: u32) -> Launch {
    Launch::warp_per_row(picked, WARPS)
}

fn args(from: &Tensor, ids: &Tensor, dims: Dims, to: &mut Tensor) -> Result<Args> {
    Ok(Args {
        from: from.ptr(),
        ids: ids.ptr(),
        to: to.ptr_mut(OP)?,
        rows: count32(OP, "x", dims.rows)?,
        picked: count32(OP, "ids", dims.picked)?,
        cols: count32(OP, "x", dims.cols)?,
        pad: 0,
    })
}

pub(super) fn forward(x: &Tensor, ids: &Tensor, dims: Dims, y: &mut Tensor) -> Result<()> {
    let args = args(x, ids, dims, y)?;
    // SAFETY: x is [rows, cols], ids [picked], y [picked, cols], as struct GatherRows states of the forward; the kernel
    // reads no row whose index is out of range.
    unsafe { x.device().launch(OP, "gather_rows_fwd", x.dtype(), grid(args.picked), &args) }
}

pub(super) fn backward(dy: &Tensor, ids: &Tensor, dims: Dims, dx: &mut Tensor) -> Result<()> {
    let args = args(dy, ids, dims, dx)?;
    // SAFETY: dy is [picked, cols], ids [picked], dx [rows, cols], as struct GatherRows states of the backward; the
    // kernel writes no row whose index is out of range.
    unsafe { dy.device().launch(OP, "gather_rows_bwd", dy.dtype(), grid(args.picked), &args) }
}
