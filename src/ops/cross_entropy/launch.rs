//! Grids and arguments of kernels/cross_entropy.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::{Dims, OP, Targets};
use crate::device::Launch;
use crate::ops::indices::count32;
use crate::{DType, Result, Tensor};

/// Rows per block, one warp each: `ROWS` in the kernel.
const WARPS: u32 = 8;
/// Most columns of a row that a warp holds: `PACKS` in the kernel.
const HELD_COLS: usize = 1024;
/// Threads of the one block that adds the blocks' losses: few of them for each to wait for; not measured yet.
const MEAN_THREADS: u32 = 1024;

/// `struct CrossEntropyFwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct FwdArgs {
    logits: u64,
    classes: u64,
    soft: u64,
    lse: u64,
    part: u64,
    rows: u32,
    cols: u32,
    smoothing: f32,
    pad: u32,
}

/// `struct CrossEntropyMean`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct MeanArgs {
    part: u64,
    loss: u64,
    parts: u32,
    rows: u32,
}

/// `struct CrossEntropyBwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct BwdArgs {
    dloss: u64,
    logits: u64,
    lse: u64,
    classes: u64,
    soft: u64,
    dlogits: u64,
    rows: u32,
    cols: u32,
    smoothing: f32,
    pad: u32,
}

/// One warp per row.
pub(super) fn grid(rows: u32) -> Launch {
    Launch::warp_per_row(rows, WARPS)
}

/// Whether a warp holds a row in registers: whole vectors of 16 bytes, and not too many.
pub(super) fn held(cols: usize, dtype: DType) -> bool {
    cols <= HELD_COLS && (cols * dtype.size()).is_multiple_of(16)
}

/// Addresses of classes and of soft targets; the other is null.
fn pointers(targets: Targets<'_>) -> (u64, u64) {
    match targets {
        Targets::Classes(t) => (t.ptr(), 0),
        Targets::Soft(t) => (0, t.ptr()),
    }
}

pub(super) fn forward(
    logits: &Tensor,
    targets: Targets<'_>,
    smoothing: f32,
    Dims { rows, cols }: Dims,
    loss: &mut Tensor,
    lse: &mut Tensor,
) -> Result<()> {
    let device = logits.device();
    let n = count32(OP, "logits", rows)?;
    let (kernel, grid) =
        (["cross_entropy_fwd", "cross_entropy_fwd_held"][held(cols, logits.dtype()) as usize], grid(n));
    let parts = grid.grid[0];
    let mut part = Tensor::uninit([parts as usize], DType::F32, device)?;
    let (classes, soft) = pointers(targets);
    let args = FwdArgs {
        logits: logits.ptr(),
        classes,
        soft,
        lse: lse.ptr_mut(OP)?,
        part: part.ptr_mut(OP)?,
        rows: n,
        cols: count32(OP, "logits", cols)?,
        smoothing,
        pad: 0,
    };
    // SAFETY: `Dims::check` fixed the lengths of logits and targets that struct CrossEntropyFwd states; lse is [rows]
    // and `part` has an element per block; all outlive the call. The kernel does not follow a class outside the row.
    unsafe { device.launch(OP, kernel, logits.dtype(), grid, &args)? };
    let args = MeanArgs { part: part.ptr(), loss: loss.ptr_mut(OP)?, parts, rows: n };
    // SAFETY: `part` was filled by the launch before on the same stream; `loss` is [1].
    unsafe { device.launch(OP, "cross_entropy_mean", DType::F32, Launch::linear(1, MEAN_THREADS), &args) }
}

pub(super) fn backward(
    dloss: &Tensor,
    logits: &Tensor,
    lse: &Tensor,
    targets: Targets<'_>,
    smoothing: f32,
    Dims { rows, cols }: Dims,
    dlogits: &mut Tensor,
) -> Result<()> {
    let (classes, soft) = pointers(targets);
    let kernel = ["cross_entropy_bwd", "cross_entropy_bwd_held"][held(cols, logits.dtype()) as usize];
    let args = BwdArgs {
        dloss: dloss.ptr(),
        logits: logits.ptr(),
        lse: lse.ptr(),
        classes,
        soft,
        dlogits: dlogits.ptr_mut(OP)?,
        rows: count32(OP, "logits", rows)?,
        cols: count32(OP, "logits", cols)?,
        smoothing,
        pad: 0,
    };
    // SAFETY: `backward` checked dloss to be [1] and lse [rows], `Dims::check` the targets; dlogits is like logits.
    unsafe { logits.device().launch(OP, kernel, logits.dtype(), grid(args.rows), &args) }
}
