//! Grid and arguments of kernels/softmax.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::OP;
use crate::device::Launch;
use crate::{DType, Error, Result, Tensor};

/// Rows per block, one warp each; not measured yet.
const WARPS: u32 = 4;

/// Kernels of one direction: for rows of any length; that hold 4 or 8 vectors of 16 bytes a lane, 12 or 32 elements.
type Variants = [&'static str; 5];

const FWD: Variants = ["softmax_fwd", "softmax_fwd_x4", "softmax_fwd_x8", "softmax_fwd_s12", "softmax_fwd_s32"];
const BWD: Variants = ["softmax_bwd", "softmax_bwd_x4", "softmax_bwd_x8", "softmax_bwd_s12", "softmax_bwd_s32"];

/// The kernel that holds rows of `cols` columns with the fewest registers, or the one for any.
pub(super) fn variant(kernels: Variants, cols: usize, dtype: DType) -> &'static str {
    let lane = 16 / dtype.size(); // elements of a vector
    let (first, held) = if cols.is_multiple_of(lane) { (1, [4 * lane, 8 * lane]) } else { (3, [12, 32]) };
    held.iter().position(|held| 32 * held >= cols).map_or(kernels[0], |at| kernels[first + at])
}

/// `struct SoftmaxFwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct FwdArgs {
    x: u64,
    y: u64,
    rows: u32,
    cols: u32,
}

/// `struct SoftmaxBwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct BwdArgs {
    dy: u64,
    y: u64,
    dx: u64,
    rows: u32,
    cols: u32,
}

/// One warp per row.
pub(super) fn grid(rows: u32) -> Launch {
    Launch::warp_per_row(rows, WARPS)
}

fn extents(x: &Tensor) -> Result<(u32, u32)> {
    let (rows, cols) = x.shape().rows_cols();
    match (u32::try_from(rows), u32::try_from(cols)) {
        (Ok(rows), Ok(cols)) => Ok((rows, cols)),
        _ => Err(Error::shape(OP, "x", x.shape(), "less than 2^32 rows and columns")),
    }
}

pub(super) fn forward(x: &Tensor, y: &mut Tensor) -> Result<()> {
    let (rows, cols) = extents(x)?;
    let args = FwdArgs { x: x.ptr(), y: y.ptr_mut(OP)?, rows, cols };
    // SAFETY: `forward` made `y` like `x`, whose extents these are; both outlive the call.
    unsafe { x.device().launch(OP, variant(FWD, cols as usize, x.dtype()), x.dtype(), grid(rows), &args) }
}

pub(super) fn backward(dy: &Tensor, y: &Tensor, dx: &mut Tensor) -> Result<()> {
    let (rows, cols) = extents(y)?;
    let args = BwdArgs { dy: dy.ptr(), y: y.ptr(), dx: dx.ptr_mut(OP)?, rows, cols };
    // SAFETY: `backward` checked that `dy` has the shape and dtype of `y` and made `dx` like it.
    unsafe { y.device().launch(OP, variant(BWD, cols as usize, y.dtype()), y.dtype(), grid(rows), &args) }
}
