//! Grids and arguments of kernels/add.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::OP;
use crate::device::Launch;
use crate::ops::column_sum::{ColumnSum, lanes_grid};
use crate::ops::indices::count32;
use crate::tensor::elementwise;
use crate::{DType, Result, Tensor};

/// `struct AddFwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct FwdArgs {
    a: u64,
    b: u64,
    y: u64,
    n: u64,
}

/// `struct AddFwdRepeating`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct RepeatingArgs {
    a: u64,
    b: u64,
    y: u64,
    n: u64,
    len: u64,
}

/// `struct AddBwdSum`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct SumArgs {
    x: u64,
    part: u64,
    rows: u32,
    cols: u32,
    rows_per_part: u32,
    pad: u32,
}

/// Warps of a block that sums rows at most, `SUM_WARPS` in the kernel.
const WARPS: u32 = 8;
/// Blocks that sum rows: four per SM of an H100, so that enough loads are under way; not measured yet.
const BLOCKS: usize = 528;
/// Rows of a block at least, two batches of loads for half its warps: each part costs a row of the second pass; not
/// measured yet.
const MIN_ROWS: usize = 32;

pub(super) fn forward(a: &Tensor, b: &Tensor, y: &mut Tensor) -> Result<()> {
    let (n, len, dtype) = (a.numel(), b.numel(), a.dtype());
    let (device, y) = (a.device(), y.ptr_mut(OP)?);
    if n == len {
        let args = FwdArgs { a: a.ptr(), b: b.ptr(), y, n: n as u64 };
        // SAFETY: `b` has as many elements as `a` and its dtype, and `forward` made `y` like `a`; all outlive the call.
        return unsafe { device.launch(OP, "add_fwd", dtype, elementwise(n, dtype), &args) };
    }
    let args = RepeatingArgs { a: a.ptr(), b: b.ptr(), y, n: n as u64, len: len as u64 };
    // SAFETY: `forward` checked that `b`, of `len` elements and the dtype of `a`, fills the last axes of `a`, and made
    // `y` like `a`.
    unsafe { device.launch(OP, "add_fwd_repeating", dtype, elementwise(n, dtype), &args) }
}

/// How rows are split: parts and rows per part. Blocks in a row beside each other need fewer parts.
pub(super) fn split(rows: usize, cols: u32) -> (usize, usize) {
    let beside = lanes_grid(1, cols, WARPS).grid[1].max(1) as usize;
    let per_part = rows.div_ceil(BLOCKS.div_ceil(beside)).max(MIN_ROWS);
    (rows.div_ceil(per_part).max(1), per_part)
}

/// Of the first stage: no more warps than rows.
pub(super) fn sum_grid(parts: usize, rows_per_part: usize, rows: u32, cols: u32) -> Launch {
    lanes_grid(parts as u32, cols, rows.min(rows_per_part as u32).clamp(1, WARPS)) // at most BLOCKS
}

pub(super) fn leading_sum(x: &Tensor, rows: usize, cols: usize, y: &mut Tensor) -> Result<()> {
    let (device, rows32, cols32) = (x.device(), count32(OP, "x", rows)?, count32(OP, "x", cols)?);
    let (parts, rows_per_part) = split(rows, cols32);
    let mut several = (parts > 1).then(|| Tensor::uninit([parts, cols], DType::F32, device)).transpose()?;
    let part = several.as_mut().unwrap_or(&mut *y).ptr_mut(OP)?;
    // At most `rows`, or MIN_ROWS.
    let args = SumArgs { x: x.ptr(), part, rows: rows32, cols: cols32, rows_per_part: rows_per_part as u32, pad: 0 };
    let grid = sum_grid(parts, rows_per_part, rows32, cols32);
    // SAFETY: x is [rows, cols]; `part` has a row of columns for each block in x, and is `y: [cols]` if that is one.
    unsafe { device.launch(OP, "add_bwd_sum", x.dtype(), grid, &args)? };
    let Some(part) = several else { return Ok(()) };
    let sum = ColumnSum::new(OP, &part, y)?;
    // SAFETY: y is [cols]; `part` was filled by the launch before on the same stream.
    unsafe { device.launch(OP, "add_bwd_sum_reduce", DType::F32, sum.grid(), &sum) }
}
