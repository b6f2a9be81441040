//! Grid and arguments of kernels/linear.cu: the bias gradient.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::OP;
use crate::device::Launch;
use crate::ops::column_sum::ColumnSum;
use crate::ops::indices::count32;
use crate::{DType, Result, Tensor};

/// Columns per block: a warp reads 32 neighbouring columns of a row.
const COLS: u32 = 32;
/// Rows read side by side by one block; not measured yet.
const ROWS: usize = 8;
/// Row blocks: at 32 columns a block, 128 columns give an H100 two per SM; more make the second pass longer. Not measured
/// yet.
const PARTS: usize = 64;

/// `struct LinearBwdBias`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct BiasArgs {
    dy: u64,
    part: u64,
    rows: u64,
    cols: u32,
    rows_per_part: u32,
}

/// How the rows are split: parts and rows per part, a multiple of the rows a block reads side by side.
pub(super) fn split(rows: usize) -> (usize, usize) {
    let per_part = rows.div_ceil(PARTS).max(1).next_multiple_of(ROWS);
    (rows.div_ceil(per_part).max(1), per_part)
}

pub(super) fn column_sums(dy: &Tensor, rows: usize, cols: usize, db: &mut Tensor) -> Result<()> {
    let (parts, rows_per_part) = split(rows);
    let mut part = Tensor::uninit([parts, cols], DType::F32, dy.device())?;
    let args = BiasArgs {
        dy: dy.ptr(),
        part: part.ptr_mut(OP)?,
        rows: rows as u64,
        cols: count32(OP, "dy", cols)?,
        rows_per_part: count32(OP, "dy", rows_per_part)?,
    };
    let grid = Launch { grid: [args.cols.div_ceil(COLS), parts as u32, 1], block: [COLS, ROWS as u32, 1], shared: 0 };
    // SAFETY: dy is [rows, cols] by its own shape, `part` is [parts, cols]; both outlive the call.
    unsafe { dy.device().launch(OP, "linear_bwd_bias", dy.dtype(), grid, &args)? };
    let reduce = ColumnSum::new(OP, &part, db)?;
    // SAFETY: db is [cols] and `part` [parts, cols], filled by the launch before on the same stream.
    unsafe { dy.device().launch(OP, "linear_bwd_bias_reduce", DType::F32, reduce.grid(), &reduce) }
}
