//! Grids and arguments of kernels/select_rows.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::{Dims, Form, OP};
use crate::device::Launch;
use crate::ops::column_sum::{ColumnSum, lanes_grid};
use crate::ops::indices::count32;
use crate::{DType, Result, Tensor};

/// Most threads of a block, `THREADS` in the kernel; rows that have fewer vectors get fewer.
const THREADS: u32 = 256;
/// Warps of a block that sums rows, `BWD_WARPS` in the kernel.
const BWD_WARPS: u32 = 8;
/// Parts of the rows that are summed apart: four per SM of an H100, and two rows for each warp at least; not measured yet.
const PARTS: usize = 528;
const MIN_ROWS: usize = 16;

/// `struct SelectRows`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Args {
    flags: u64,
    x: u64,
    other: u64,
    y: u64,
    rows: u32,
    cols: u32,
    form: u32,
    pad: u32,
}

/// `struct SelectRowsBwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct BwdArgs {
    flags: u64,
    dy: u64,
    part: u64,
    rows: u32,
    cols: u32,
    rows_per_part: u32,
    pad: u32,
}

/// Blocks over columns in x and rows in y; kernels stride over what is left when either is capped.
pub(super) fn grid(rows: u32, cols: u32, dtype: DType) -> Launch {
    let vectors = cols.div_ceil((16 / dtype.size()) as u32);
    let threads = vectors.div_ceil(32).clamp(1, THREADS / 32) * 32;
    Launch { grid: [vectors.div_ceil(threads).min(1024), rows.min(65535), 1], block: [threads, 1, 1], shared: 0 }
}

/// The same for a sum over everything: at most [`PARTS`] blocks, each of which leaves a number to add.
pub(super) fn one_grid(rows: u32, cols: u32, dtype: DType) -> Launch {
    let vectors = cols.div_ceil((16 / dtype.size()) as u32);
    let y = rows.min(PARTS as u32);
    let x = vectors.div_ceil(THREADS).min(PARTS as u32 / y.max(1));
    Launch { grid: [x, y, 1], block: [THREADS, 1, 1], shared: 0 }
}

/// How the rows are split to be summed: parts and rows per part.
pub(super) fn split(rows: usize) -> (usize, usize) {
    let per_part = rows.div_ceil(PARTS).max(MIN_ROWS);
    (rows.div_ceil(per_part).max(1), per_part)
}

pub(super) fn select(
    flags: &Tensor,
    x: Option<&Tensor>,
    other: Option<&Tensor>,
    Dims { rows, cols, form }: Dims,
    y: &mut Tensor,
) -> Result<()> {
    let ptr = |t: Option<&Tensor>| t.map_or(0, Tensor::ptr);
    let (rows, cols) = (count32(OP, "x", rows)?, count32(OP, "x", cols)?);
    let args = Args {
        flags: flags.ptr(),
        x: ptr(x),
        other: ptr(other),
        y: y.ptr_mut(OP)?,
        rows,
        cols,
        form: form as u32,
        pad: 0,
    };
    // SAFETY: `Dims::check` fixed every length that struct SelectRows states; y is like x or dy.
    unsafe { flags.device().launch(OP, "select_rows", y.dtype(), grid(rows, cols, y.dtype()), &args) }
}

/// `sum` is one row or, with `Form::One`, one number.
pub(super) fn sum(dy: &Tensor, flags: &Tensor, dims: Dims, sum: &mut Tensor) -> Result<()> {
    let device = dy.device();
    let (rows, cols) = (count32(OP, "dy", dims.rows)?, count32(OP, "dy", dims.cols)?);
    let (parts, rows_per_part) = split(dims.rows);
    let (kernel, grid, shape) = match dims.form {
        Form::One => {
            let grid = one_grid(rows, cols, dy.dtype());
            ("select_rows_bwd_one", grid, [(grid.grid[0] * grid.grid[1]) as usize, 1])
        }
        _ => ("select_rows_bwd_row", lanes_grid(parts as u32, cols, BWD_WARPS), [parts, dims.cols]),
    };
    let mut part = Tensor::uninit(shape, DType::F32, device)?;
    let args = BwdArgs {
        flags: flags.ptr(),
        dy: dy.ptr(),
        part: part.ptr_mut(OP)?,
        rows,
        cols,
        rows_per_part: rows_per_part as u32, // at most rows, or MIN_ROWS
        pad: 0,
    };
    // SAFETY: dy is [rows, cols] and flags [rows]; `part` has a number per block, or a row of columns per block in x.
    unsafe { device.launch(OP, kernel, dy.dtype(), grid, &args)? };
    let second = ColumnSum::new(OP, &part, sum)?;
    // SAFETY: the sum has the columns of `part`, which was filled by the launch before on the same stream.
    unsafe { device.launch(OP, "select_rows_bwd_reduce", DType::F32, second.grid(), &second) }
}
