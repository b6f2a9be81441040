//! Grids and arguments of kernels/batch_norm.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::{Dims, OP};
use crate::device::Launch;
use crate::ops::column_sum::lanes_grid;
use crate::ops::indices::count32;
use crate::{DType, Result, Tensor};

/// Warps of a block that reads the matrix, `WARPS` in the kernel.
const WARPS: u32 = 8;
/// Rows of such a block, `PART_ROWS` in the kernel.
const PART_ROWS: usize = 64;
/// Columns of a block that combines, and its warps: `COLS` and `TURNS` in the kernel.
const COLS: u32 = 32;
const TURNS: u32 = 32;

/// `struct BatchNormPart`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct PartArgs {
    dy: u64,
    x: u64,
    mean: u64,
    part: u64,
    rows: u32,
    cols: u32,
}

/// `struct BatchNormCombine`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct CombineArgs {
    part: u64,
    mean: u64,
    var: u64,
    mean_gx: u64,
    rows: u32,
    cols: u32,
    parts: u32,
    eps: f32,
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

/// `struct BatchNormBwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct BwdArgs {
    dy: u64,
    x: u64,
    mean: u64,
    var: u64,
    mean_g: u64,
    mean_gx: u64,
    dx: u64,
    rows: u32,
    cols: u32,
    eps: f32,
    pad: u32,
}

/// Blocks over the matrix: parts of its rows in x, columns in y.
pub(super) fn grid(rows: usize, cols: u32) -> Launch {
    lanes_grid(rows.div_ceil(PART_ROWS) as u32, cols, WARPS)
}

/// Blocks that combine the parts.
pub(super) fn combine_grid(cols: u32) -> Launch {
    Launch::linear(cols.div_ceil(COLS), COLS * TURNS)
}

/// `[2, parts, cols]`.
fn parts(dims: Dims, x: &Tensor) -> Result<Tensor> {
    Tensor::uninit([2, dims.rows.div_ceil(PART_ROWS), dims.cols], DType::F32, x.device())
}

pub(super) fn forward(
    x: &Tensor,
    eps: f32,
    dims: Dims,
    y: &mut Tensor,
    mean: &mut Tensor,
    var: &mut Tensor,
) -> Result<()> {
    let (device, mut part) = (x.device(), parts(dims, x)?);
    let (rows, cols) = (count32(OP, "x", dims.rows)?, count32(OP, "x", dims.cols)?);
    let grid = grid(dims.rows, cols);
    let args = PartArgs { dy: 0, x: x.ptr(), mean: 0, part: part.ptr_mut(OP)?, rows, cols };
    // SAFETY: x is [rows, cols], and `part` has two rows of columns for each block in x.
    unsafe { device.launch(OP, "batch_norm_fwd_part", x.dtype(), grid, &args)? };
    let (to_mean, to_var) = (mean.ptr_mut(OP)?, var.ptr_mut(OP)?);
    let args =
        CombineArgs { part: part.ptr(), mean: to_mean, var: to_var, mean_gx: 0, rows, cols, parts: grid.grid[0], eps };
    // SAFETY: mean and var are [cols]; `part` was filled by the launch before on the same stream.
    unsafe { device.launch(OP, "batch_norm_fwd_combine", DType::F32, combine_grid(cols), &args)? };
    normalize(x, mean, var, eps, dims, y)
}

pub(super) fn backward(
    dy: &Tensor,
    x: &Tensor,
    mean: &Tensor,
    var: &Tensor,
    eps: f32,
    dims: Dims,
    dx: &mut Tensor,
) -> Result<()> {
    let (device, mut part) = (x.device(), parts(dims, x)?);
    let mut means = Tensor::uninit([2, dims.cols], DType::F32, device)?;
    let (rows, cols) = (count32(OP, "x", dims.rows)?, count32(OP, "x", dims.cols)?);
    let grid = grid(dims.rows, cols);
    let args = PartArgs { dy: dy.ptr(), x: x.ptr(), mean: mean.ptr(), part: part.ptr_mut(OP)?, rows, cols };
    // SAFETY: `backward` in mod.rs checked dy against x, [rows, cols], and mean to be [cols]; `part` has two rows of columns
    // for each block in x.
    unsafe { device.launch(OP, "batch_norm_bwd_part", x.dtype(), grid, &args)? };
    let mean_g = means.ptr_mut(OP)?;
    let mean_gx = mean_g + 4 * u64::from(cols);
    let args =
        CombineArgs { part: part.ptr(), mean: mean_g, var: var.ptr(), mean_gx, rows, cols, parts: grid.grid[0], eps };
    // SAFETY: var is [cols] and read alone, `means` [2, cols]; `part` was filled by the launch before on the same stream.
    unsafe { device.launch(OP, "batch_norm_bwd_combine", DType::F32, combine_grid(cols), &args)? };
    let args = BwdArgs {
        dy: dy.ptr(),
        x: x.ptr(),
        mean: mean.ptr(),
        var: var.ptr(),
        mean_g,
        mean_gx,
        dx: dx.ptr_mut(OP)?,
        rows,
        cols,
        eps,
        pad: 0,
    };
    // SAFETY: lengths as above, and dx is like x; `means` was filled by the launch before on the same stream.
    unsafe { device.launch(OP, "batch_norm_bwd", x.dtype(), grid, &args) }
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
    unsafe { x.device().launch(OP, "batch_norm_normalize", x.dtype(), grid(dims.rows, args.cols), &args) }
}
