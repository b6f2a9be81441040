//! Grid and arguments of kernels/argmax.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::{Dims, OP};
use crate::device::Launch;
use crate::{Result, Tensor};

/// Rows per block, one warp each; not measured yet.
const WARPS: u32 = 8;

/// `struct Argmax`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Args {
    scores: u64,
    y: u64,
    rows: u32,
    cols: u32,
}

/// One warp per row.
pub(super) fn grid(rows: u32) -> Launch {
    Launch::warp_per_row(rows, WARPS)
}

pub(super) fn best_row(scores: &Tensor, dims: Dims, y: &mut Tensor) -> Result<()> {
    // Below 2^31: `Dims::check`; with rows, the columns are as well.
    let (rows, cols) = (dims.rows as u32, dims.cols.min(i32::MAX as usize) as u32);
    let args = Args { scores: scores.ptr(), y: y.ptr_mut(OP)?, rows, cols };
    // SAFETY: scores is [rows, cols] and y [rows], as struct Argmax states; both outlive the call.
    unsafe { scores.device().launch(OP, "argmax", scores.dtype(), grid(rows), &args) }
}
