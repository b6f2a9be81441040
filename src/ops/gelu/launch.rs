//! Arguments of kernels/gelu.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::{Form, OP};
use crate::tensor::elementwise;
use crate::{Result, Tensor};

/// `struct GeluFwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct FwdArgs {
    x: u64,
    y: u64,
    n: u64,
}

/// `struct GeluBwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct BwdArgs {
    dy: u64,
    x: u64,
    dx: u64,
    n: u64,
}

pub(super) fn forward(x: &Tensor, form: Form, y: &mut Tensor) -> Result<()> {
    let n = x.numel();
    let kernel = if form == Form::Erf { "gelu_fwd" } else { "gelu_fwd_tanh" };
    let args = FwdArgs { x: x.ptr(), y: y.ptr_mut(OP)?, n: n as u64 };
    // SAFETY: `forward` made `y` like `x`, which has `n` elements; both outlive the call.
    unsafe { x.device().launch(OP, kernel, x.dtype(), elementwise(n, x.dtype()), &args) }
}

pub(super) fn backward(dy: &Tensor, x: &Tensor, form: Form, dx: &mut Tensor) -> Result<()> {
    let n = x.numel();
    let kernel = if form == Form::Erf { "gelu_bwd" } else { "gelu_bwd_tanh" };
    let args = BwdArgs { dy: dy.ptr(), x: x.ptr(), dx: dx.ptr_mut(OP)?, n: n as u64 };
    // SAFETY: `backward` checked that `dy` has the shape and dtype of `x` and made `dx` like it.
    unsafe { x.device().launch(OP, kernel, x.dtype(), elementwise(n, x.dtype()), &args) }
}
