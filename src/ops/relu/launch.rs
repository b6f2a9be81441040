//! Arguments of kernels/relu.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::OP;
use crate::tensor::elementwise;
use crate::{Result, Tensor};

/// `struct ReluFwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct FwdArgs {
    x: u64,
    y: u64,
    n: u64,
}

/// `struct ReluBwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct BwdArgs {
    dy: u64,
    y: u64,
    dx: u64,
    n: u64,
}

pub(super) fn forward(x: &Tensor, y: &mut Tensor) -> Result<()> {
    let n = x.numel();
    let args = FwdArgs { x: x.ptr(), y: y.ptr_mut(OP)?, n: n as u64 };
    // SAFETY: `forward` made `y` like `x`, which has `n` elements; both outlive the call.
    unsafe { x.device().launch(OP, "relu_fwd", x.dtype(), elementwise(n, x.dtype()), &args) }
}

pub(super) fn backward(dy: &Tensor, y: &Tensor, dx: &mut Tensor) -> Result<()> {
    let n = y.numel();
    let args = BwdArgs { dy: dy.ptr(), y: y.ptr(), dx: dx.ptr_mut(OP)?, n: n as u64 };
    // SAFETY: `backward` checked that `dy` has the shape and dtype of `y` and made `dx` like it.
    unsafe { y.device().launch(OP, "relu_bwd", y.dtype(), elementwise(n, y.dtype()), &args) }
}
