//! Arguments of kernels/sigmoid.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::OP;
use crate::tensor::elementwise;
use crate::{Result, Tensor};

/// `struct SigmoidFwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct FwdArgs {
    x: u64,
    y: u64,
    n: u64,
    scale: f32,
    bias: f32,
}

/// `struct SigmoidBwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct BwdArgs {
    dy: u64,
    x: u64,
    dx: u64,
    n: u64,
    scale: f32,
    pad: u32,
}

pub(super) fn forward(x: &Tensor, scale: f32, bias: f32, y: &mut Tensor) -> Result<()> {
    let n = x.numel();
    let args = FwdArgs { x: x.ptr(), y: y.ptr_mut(OP)?, n: n as u64, scale, bias };
    // SAFETY: `forward` made `y` like `x`, which has `n` elements; both outlive the call.
    unsafe { x.device().launch(OP, "sigmoid_fwd", x.dtype(), elementwise(n, x.dtype()), &args) }
}

pub(super) fn backward(dy: &Tensor, x: &Tensor, scale: f32, dx: &mut Tensor) -> Result<()> {
    let n = x.numel();
    let args = BwdArgs { dy: dy.ptr(), x: x.ptr(), dx: dx.ptr_mut(OP)?, n: n as u64, scale, pad: 0 };
    // SAFETY: `backward` checked that `dy` has the shape and dtype of `x` and made `dx` like it.
    unsafe { x.device().launch(OP, "sigmoid_bwd", x.dtype(), elementwise(n, x.dtype()), &args) }
}
