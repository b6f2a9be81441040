//! Arguments of kernels/add.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::OP;
use crate::tensor::elementwise;
use crate::{Result, Tensor};

/// `struct AddFwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct FwdArgs {
    a: u64,
    b: u64,
    y: u64,
    n: u64,
}

pub(super) fn forward(a: &Tensor, b: &Tensor, y: &mut Tensor) -> Result<()> {
    let n = a.numel();
    let args = FwdArgs { a: a.ptr(), b: b.ptr(), y: y.ptr_mut(OP)?, n: n as u64 };
    // SAFETY: `forward` checked that `b` has the shape and dtype of `a` and made `y` like it; all outlive the call.
    unsafe { a.device().launch(OP, "add_fwd", a.dtype(), elementwise(n, a.dtype()), &args) }
}
