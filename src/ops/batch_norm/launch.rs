//! Grids and arguments of kernels/batch_norm.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::{Dims, OP};
use crate::device::Launch;
use crate::ops::indices::count32;
use crate::{Result, Tensor};

/// Columns of a block, `COLS` in the kernel.
const COLS: u32 = 32;
/// Rows of a block at a time, `ROWS` in the kernel.
const ROWS: u32 = 8;
/// Threads of a block of `batch_norm_normalize`, one per column; not measured yet.
const THREADS: u32 = 128;
/// Most blocks a grid has in y.
const MAX_Y: usize = 65_535;

/// `struct BatchNormFwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct FwdArgs {
    x: u64,
    y: u64,
    mean: u64,
    var: u64,
    rows: u32,
    cols: u32,
    eps: f32,
    pad: u32,
}

/// `struct BatchNormBwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct BwdArgs {
    dy: u64,
    x: u64,
    mean: u64,
    var: u64,
    dx: u64,
    rows: u32,
    cols: u32,
    eps: f32,
    pad: u32,
}

/// `struct BatchNormNormalize`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct NormalizeArgs {
    x: u64,
    mean: u64,
    var: u64,
    y: u64,
    rows: u64,
    cols: u32,
    eps: f32,
}

/// One block per 32 columns, whole columns each.
pub(super) fn grid(cols: u32) -> Launch {
    Launch::linear(cols.div_ceil(COLS), COLS * ROWS)
}

/// Columns in x, rows in y; the kernel strides over the rows that are left.
pub(super) fn normalize_grid(rows: usize, cols: u32) -> Launch {
    Launch { grid: [cols.div_ceil(THREADS), rows.min(MAX_Y) as u32, 1], block: [THREADS, 1, 1], shared: 0 }
}

pub(super) fn forward(
    x: &Tensor,
    eps: f32,
    Dims { rows, cols }: Dims,
    y: &mut Tensor,
    mean: &mut Tensor,
    var: &mut Tensor,
) -> Result<()> {
    let args = FwdArgs {
        x: x.ptr(),
        y: y.ptr_mut(OP)?,
        mean: mean.ptr_mut(OP)?,
        var: var.ptr_mut(OP)?,
        rows: count32(OP, "x", rows)?,
        cols: count32(OP, "x", cols)?,
        eps,
        pad: 0,
    };
    // SAFETY: `forward` in mod.rs made y like x, [rows, cols], and mean and var [cols]; all outlive the call.
    unsafe { x.device().launch(OP, "batch_norm_fwd", x.dtype(), grid(args.cols), &args) }
}

pub(super) fn backward(
    dy: &Tensor,
    x: &Tensor,
    mean: &Tensor,
    var: &Tensor,
    eps: f32,
    Dims { rows, cols }: Dims,
    dx: &mut Tensor,
) -> Result<()> {
    let args = BwdArgs {
        dy: dy.ptr(),
        x: x.ptr(),
        mean: mean.ptr(),
        var: var.ptr(),
        dx: dx.ptr_mut(OP)?,
        rows: count32(OP, "x", rows)?,
        cols: count32(OP, "x", cols)?,
        eps,
        pad: 0,
    };
    // SAFETY: `backward` in mod.rs checked dy against x and mean and var to be [cols], and made dx like x.
    unsafe { x.device().launch(OP, "batch_norm_bwd", x.dtype(), grid(args.cols), &args) }
}

pub(super) fn normalize(x: &Tensor, mean: &Tensor, var: &Tensor, eps: f32, dims: Dims, y: &mut Tensor) -> Result<()> {
    let args = NormalizeArgs {
        x: x.ptr(),
        mean: mean.ptr(),
        var: var.ptr(),
        y: y.ptr_mut(OP)?,
        rows: dims.rows as u64,
        cols: count32(OP, "x", dims.cols)?,
        eps,
    };
    // SAFETY: `normalize` in mod.rs checked mean and var to be [cols] and made y like x.
    unsafe { x.device().launch(OP, "batch_norm_normalize", x.dtype(), normalize_grid(dims.rows, args.cols), &args) }
}
