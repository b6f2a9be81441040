//! Arguments of kernels/scale.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::OP;
use crate::tensor::elementwise;
use crate::{Result, Tensor};

/// `struct ScaleFwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct FwdArgs {
    x: u64,
    y: u64,
    n: u64,
    factor: f32,
    pad: u32,
}

pub(super) fn forward(x: &Tensor, factor: f32, y: &mut Tensor) -> Result<()> {
    let n = x.numel();
    let args = FwdArgs { x: x.ptr(), y: y.ptr_mut(OP)?, n: n as u64, factor, pad: 0 };
    // SAFETY: `forward` made `y` like `x`, which has `n` elements; both outlive the call.
    unsafe { x.device().launch(OP, "scale_fwd", x.dtype(), elementwise(n, x.dtype()), &args) }
}
