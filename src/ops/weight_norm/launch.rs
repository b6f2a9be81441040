//! Grid and arguments of kernels/weight_norm.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::{Dims, OP};
use crate::device::Launch;
use crate::ops::indices::count32;
use crate::{Result, Tensor};

/// Rows per block, one warp each; not measured yet.
const WARPS: u32 = 8;

/// `struct WeightNormFwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct FwdArgs {
    v: u64,
    g: u64,
    w: u64,
    norms: u64,
    rows: u32,
    cols: u32,
}

/// `struct WeightNormBwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct BwdArgs {
    dw: u64,
    v: u64,
    g: u64,
    norms: u64,
    dv: u64,
    dg: u64,
    rows: u32,
    cols: u32,
}

/// One warp per row.
pub(super) fn grid(rows: u32) -> Launch {
    Launch::warp_per_row(rows, WARPS)
}

pub(super) fn forward(
    v: &Tensor,
    g: Option<&Tensor>,
    Dims { rows, cols }: Dims,
    w: &mut Tensor,
    norms: &mut Tensor,
) -> Result<()> {
    let args = FwdArgs {
        v: v.ptr(),
        g: g.map_or(0, Tensor::ptr),
        w: w.ptr_mut(OP)?,
        norms: norms.ptr_mut(OP)?,
        rows: count32(OP, "v", rows)?,
        cols: count32(OP, "v", cols)?,
    };
    // SAFETY: `Dims::check` made v [rows, cols] and g [rows]; `forward` made w like v and norms [rows].
    unsafe { v.device().launch(OP, "weight_norm_fwd", v.dtype(), grid(args.rows), &args) }
}

pub(super) fn backward(
    dw: &Tensor,
    v: &Tensor,
    g: Option<&Tensor>,
    norms: &Tensor,
    Dims { rows, cols }: Dims,
    dv: &mut Tensor,
    dg: Option<&mut Tensor>,
) -> Result<()> {
    let args = BwdArgs {
        dw: dw.ptr(),
        v: v.ptr(),
        g: g.map_or(0, Tensor::ptr),
        norms: norms.ptr(),
        dv: dv.ptr_mut(OP)?,
        dg: dg.map_or(Ok(0), |dg| dg.ptr_mut(OP))?,
        rows: count32(OP, "v", rows)?,
        cols: count32(OP, "v", cols)?,
    };
    // SAFETY: `backward` in mod.rs checked that dw is like v and norms [rows], and made dv of that shape and dg [rows], f32.
    unsafe { v.device().launch(OP, "weight_norm_bwd", v.dtype(), grid(args.rows), &args) }
}
