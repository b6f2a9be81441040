//! Grid and arguments of kernels/l2_normalize.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::{EPS, OP};
use crate::device::Launch;
use crate::ops::indices::count32;
use crate::{Result, Tensor};

/// Rows per block, one warp each; not measured yet.
const WARPS: u32 = 4;

/// `struct L2NormalizeFwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct FwdArgs {
    x: u64,
    y: u64,
    inverse: u64,
    rows: u32,
    cols: u32,
    eps: f32,
    pad: u32,
}

/// `struct L2NormalizeBwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct BwdArgs {
    dy: u64,
    x: u64,
    inverse: u64,
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
    Ok((count32(OP, "x", rows)?, count32(OP, "x", cols)?))
}

pub(super) fn forward(x: &Tensor, y: &mut Tensor, inverse: &mut Tensor) -> Result<()> {
    let (rows, cols) = extents(x)?;
    let (y, inverse) = (y.ptr_mut(OP)?, inverse.ptr_mut(OP)?);
    let args = FwdArgs { x: x.ptr(), y, inverse, rows, cols, eps: EPS as f32, pad: 0 };
    // SAFETY: `forward` made `y` like `x`, whose extents these are, and `inverse` [rows]; all outlive the call.
    unsafe { x.device().launch(OP, "l2_normalize_fwd", x.dtype(), grid(rows), &args) }
}

pub(super) fn backward(dy: &Tensor, x: &Tensor, inverse: &Tensor, dx: &mut Tensor) -> Result<()> {
    let (rows, cols) = extents(x)?;
    let args = BwdArgs { dy: dy.ptr(), x: x.ptr(), inverse: inverse.ptr(), dx: dx.ptr_mut(OP)?, rows, cols };
    // SAFETY: `backward` checked that `dy` is like `x` and `inverse` [rows], and made `dx` like `x`.
    unsafe { x.device().launch(OP, "l2_normalize_bwd", x.dtype(), grid(rows), &args) }
}
