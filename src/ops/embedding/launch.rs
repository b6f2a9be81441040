//! Grid and arguments of kernels/embedding.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::{Dims, Lookup, OP};
use crate::device::Launch;
use crate::ops::column_sum::lanes_grid;
use crate::ops::indices::count32;
use crate::{DType, Result, Tensor};

/// Rows per block of the forward, one warp each; not measured yet.
const WARPS: u32 = 8;
/// Sorted positions per part of the gradient: what one thread adds in turn; not measured yet.
const PART: usize = 64;
/// Warps of the second stage, which take the parts of a long run in turn; not measured yet.
const RUN_WARPS: u32 = 8;

/// `struct EmbeddingFwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct FwdArgs {
    table: u64,
    ids: u64,
    x: u64,
    y: u64,
    rows: u32,
    picked: u32,
    cols: u32,
    pad: u32,
}

/// `struct EmbeddingBwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct BwdArgs {
    dy: u64,
    ids: u64,
    order: u64,
    sums: u64,
    dtable: u64,
    rows: u32,
    picked: u32,
    cols: u32,
    part: u32,
}

/// One warp per row.
pub(super) fn rows_grid(picked: u32) -> Launch {
    Launch::warp_per_row(picked, WARPS)
}

/// Parts of `picked` sorted positions.
pub(super) fn parts(picked: usize) -> usize {
    picked.div_ceil(PART)
}

/// Second stage: a block for each part in which a run may begin that goes on, and 32 columns.
pub(super) fn runs_grid(parts: u32, cols: u32) -> Launch {
    Launch { grid: [parts, cols.div_ceil(32).min(65535), 1], block: [RUN_WARPS * 32, 1, 1], shared: 0 }
}

pub(super) fn forward(table: &Tensor, lookup: &Lookup, x: Option<&Tensor>, dims: Dims, y: &mut Tensor) -> Result<()> {
    let args = FwdArgs {
        table: table.ptr(),
        ids: lookup.ids().ptr(),
        x: x.map_or(0, Tensor::ptr),
        y: y.ptr_mut(OP)?,
        rows: count32(OP, "table", dims.rows)?,
        picked: count32(OP, "ids", dims.picked)?,
        cols: count32(OP, "table", dims.cols)?,
        pad: 0,
    };
    // SAFETY: `super::forward` checked every extent that struct EmbeddingFwd states; the kernel reads no row whose index
    // is out of range.
    unsafe { table.device().launch(OP, "embedding_fwd", table.dtype(), rows_grid(args.picked), &args) }
}

pub(super) fn backward(dy: &Tensor, lookup: &Lookup, dims: Dims, dtable: &mut Tensor) -> Result<()> {
    let (device, parts) = (dy.device(), parts(dims.picked));
    let mut sums = Tensor::uninit([2 * parts, dims.cols], DType::F32, device)?;
    let args = BwdArgs {
        dy: dy.ptr(),
        ids: lookup.ids().ptr(),
        order: lookup.order().ptr(),
        sums: sums.ptr_mut(OP)?,
        dtable: dtable.ptr_mut(OP)?,
        rows: count32(OP, "table", dims.rows)?,
        picked: count32(OP, "ids", dims.picked)?,
        cols: count32(OP, "dy", dims.cols)?,
        part: PART as u32,
    };
    let parts = count32(OP, "ids", parts)?;
    // SAFETY: dy is [M, D], ids and order [M], sums [2 parts, D] and dtable [V, D], as struct EmbeddingBwd states; the
    // kernel reads no position of `order` and writes no row of `ids` that is out of range.
    unsafe { device.launch(OP, "embedding_bwd", dy.dtype(), lanes_grid(parts, args.cols, 1), &args)? };
    // SAFETY: as above; `sums` is filled by the launch before on the same stream.
    unsafe { device.launch(OP, "embedding_bwd_runs", DType::F32, runs_grid(parts, args.cols), &args) }
}
