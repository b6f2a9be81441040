//! Grid and arguments of kernels/swiglu.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::{Dims, OP};
use crate::device::Launch;
use crate::ops::indices::count32;
use crate::{DType, Result, Tensor};

/// Threads per block at most; not measured yet.
const THREADS: usize = 256;

/// `struct SwigluFwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct FwdArgs {
    x: u64,
    y: u64,
    rows: u32,
    hidden: u32,
}

/// `struct SwigluBwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct BwdArgs {
    dy: u64,
    x: u64,
    dx: u64,
    rows: u32,
    hidden: u32,
}

/// A block per row, of as many threads as share its vectors of 16 bytes evenly.
pub(super) fn grid(rows: u32, hidden: usize, dtype: DType) -> Launch {
    let lanes = 16 / dtype.size();
    let vectors = if hidden.is_multiple_of(lanes) { hidden / lanes } else { hidden };
    let rounds = vectors.div_ceil(THREADS).max(1);
    Launch::linear(rows, vectors.div_ceil(rounds).next_multiple_of(32).max(32) as u32) // at most THREADS
}

pub(super) fn forward(x: &Tensor, Dims { rows, hidden }: Dims, y: &mut Tensor) -> Result<()> {
    let (rows, width) = (count32(OP, "x", rows)?, count32(OP, "x", hidden)?);
    let args = FwdArgs { x: x.ptr(), y: y.ptr_mut(OP)?, rows, hidden: width };
    // SAFETY: `Dims::check` made x [rows, 2 hidden], `forward` y [rows, hidden]; both outlive the call.
    unsafe { x.device().launch(OP, "swiglu_fwd", x.dtype(), grid(rows, hidden, x.dtype()), &args) }
}

pub(super) fn backward(dy: &Tensor, x: &Tensor, Dims { rows, hidden }: Dims, dx: &mut Tensor) -> Result<()> {
    let (rows, width) = (count32(OP, "x", rows)?, count32(OP, "x", hidden)?);
    let args = BwdArgs { dy: dy.ptr(), x: x.ptr(), dx: dx.ptr_mut(OP)?, rows, hidden: width };
    // SAFETY: `backward` checked that dy is [rows, hidden], and made dx like x, which is [rows, 2 hidden].
    unsafe { x.device().launch(OP, "swiglu_bwd", x.dtype(), grid(rows, hidden, x.dtype()), &args) }
}
