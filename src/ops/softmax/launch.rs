//! Grid and arguments of kernels/softmax.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::OP;
use crate::device::Launch;
use crate::{Error, Result, Tensor};

/// Rows per block, one warp each; not measured yet.
const WARPS: u32 = 4;

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
    unsafe { x.device().launch(OP, "softmax_fwd", x.dtype(), grid(rows), &args) }
}

pub(super) fn backward(dy: &Tensor, y: &Tensor, dx: &mut Tensor) -> Result<()> {
    let (rows, cols) = extents(y)?;
    let args = BwdArgs { dy: dy.ptr(), y: y.ptr(), dx: dx.ptr_mut(OP)?, rows, cols };
    // SAFETY: `backward` checked that `dy` has the shape and dtype of `y` and made `dx` like it.
    unsafe { y.device().launch(OP, "softmax_bwd", y.dtype(), grid(rows), &args) }
}
