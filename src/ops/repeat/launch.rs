//! Grid and arguments of kernels/repeat.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::OP;
use crate::device::Launch;
use crate::tensor::elementwise;
use crate::{DType, Result, Tensor};

/// `struct RepeatFwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct FwdArgs {
    x: u64,
    y: u64,
    n: u64,
    times: u64,
}

/// Blocks at least, if there is work for them: four per SM of an H100; not measured yet.
const BLOCKS: u32 = 528;

/// Elements in x; copies in y, as many blocks as a short tensor needs beside each other to fill a GPU.
pub(super) fn grid(n: usize, times: usize, dtype: DType) -> Launch {
    let mut launch = elementwise(n, dtype);
    let beside = BLOCKS.div_ceil(launch.grid[0].max(1)) as usize; // at most BLOCKS
    launch.grid[1] = times.min(beside) as u32;
    launch
}

pub(super) fn forward(x: &Tensor, times: usize, y: &mut Tensor) -> Result<()> {
    let n = x.numel();
    let args = FwdArgs { x: x.ptr(), y: y.ptr_mut(OP)?, n: n as u64, times: times as u64 };
    // SAFETY: `forward` made `y` of `times` times the `n` elements of `x`, of its dtype; both outlive the call.
    unsafe { x.device().launch(OP, "repeat_fwd", x.dtype(), grid(n, times, x.dtype()), &args) }
}
