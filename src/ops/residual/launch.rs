//! Grid and arguments of kernels/residual.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::{Dims, OP};
use crate::device::Launch;
use crate::ops::indices::count32;
use crate::tensor::elementwise;
use crate::{DType, Result, Tensor};

/// Most blocks a grid has in y.
const MAX_Y: usize = 65_535;

/// `struct ResidualFwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct FwdArgs {
    x: u64,
    branch: u64,
    scale: u64,
    y: u64,
    span: u64,
    groups: u32,
    pad: u32,
}

/// `struct ResidualBwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct BwdArgs {
    dy: u64,
    scale: u64,
    dbranch: u64,
    span: u64,
    groups: u32,
    pad: u32,
}

/// Elements of a group in x, groups in y; kernels stride over what is left when either is capped.
pub(super) fn grid(Dims { groups, span }: Dims, dtype: DType) -> Launch {
    let mut launch = elementwise(span, dtype);
    launch.grid[1] = groups.min(MAX_Y) as u32;
    launch
}

pub(super) fn forward(x: &Tensor, branch: &Tensor, scale: &Tensor, dims: Dims, y: &mut Tensor) -> Result<()> {
    let args = FwdArgs {
        x: x.ptr(),
        branch: branch.ptr(),
        scale: scale.ptr(),
        y: y.ptr_mut(OP)?,
        span: dims.span as u64,
        groups: count32(OP, "x", dims.groups)?,
        pad: 0,
    };
    // SAFETY: `Dims::check` made x, branch and y `groups · span` elements long and `scale` `groups`; all outlive the
    // call.
    unsafe { x.device().launch(OP, "residual_fwd", x.dtype(), grid(dims, x.dtype()), &args) }
}

pub(super) fn backward(dy: &Tensor, scale: &Tensor, dims: Dims, dbranch: &mut Tensor) -> Result<()> {
    let args = BwdArgs {
        dy: dy.ptr(),
        scale: scale.ptr(),
        dbranch: dbranch.ptr_mut(OP)?,
        span: dims.span as u64,
        groups: count32(OP, "dy", dims.groups)?,
        pad: 0,
    };
    // SAFETY: `Dims::check` made dy and dbranch `groups · span` elements long and `scale` `groups`.
    unsafe { dy.device().launch(OP, "residual_bwd", dy.dtype(), grid(dims, dy.dtype()), &args) }
}
