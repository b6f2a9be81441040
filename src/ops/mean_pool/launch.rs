//! Grid and arguments of kernels/mean_pool.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::{Dims, OP};
use crate::device::Launch;
use crate::ops::column_sum::lanes_grid;
use crate::ops::indices::count32;
use crate::{Result, Tensor};

/// Warps per block: forward they share the rows of a sequence, backward each writes a row. Not measured yet.
const WARPS: u32 = 8;

/// `struct MeanPool`: both directions, `from` is x or dy, `to` is y or dx.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Args {
    from: u64,
    to: u64,
    batch: u32,
    rows: u32,
    skip: u32,
    cols: u32,
    scale: f32,
    pad: u32,
}

/// One warp per row.
pub(super) fn bwd_grid(rows: u32) -> Launch {
    Launch::warp_per_row(rows, WARPS)
}

fn args(from: &Tensor, dims: Dims, to: &mut Tensor) -> Result<Args> {
    Ok(Args {
        from: from.ptr(),
        to: to.ptr_mut(OP)?,
        batch: count32(OP, "x", dims.batch)?,
        rows: count32(OP, "rows", dims.rows)?,
        skip: dims.skip as u32, // less than rows
        cols: count32(OP, "x", dims.cols)?,
        scale: 1.0 / (dims.rows - dims.skip) as f32,
        pad: 0,
    })
}

pub(super) fn forward(x: &Tensor, dims: Dims, y: &mut Tensor) -> Result<()> {
    let args = args(x, dims, y)?;
    // SAFETY: `Dims::check` made x [batch, rows, cols]; y is [batch, cols]; the grid has a block column per sequence.
    unsafe { x.device().launch(OP, "mean_pool_fwd", x.dtype(), lanes_grid(args.batch, args.cols, WARPS), &args) }
}

pub(super) fn backward(dy: &Tensor, dims: Dims, dx: &mut Tensor) -> Result<()> {
    let args = args(dy, dims, dx)?;
    let rows = count32(OP, "x", dims.batch * dims.rows)?;
    // SAFETY: dy is [batch, cols] and dx [batch, rows, cols], as struct MeanPool states of the backward.
    unsafe { dy.device().launch(OP, "mean_pool_bwd", dy.dtype(), bwd_grid(rows), &args) }
}
