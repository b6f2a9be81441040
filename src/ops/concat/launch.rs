//! Grid and arguments of kernels/concat.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::{OP, Part, Write};
use crate::tensor::elementwise;
use crate::{Result, Tensor};

/// `struct ConcatPart`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct PartArgs {
    from: u64,
    to: u64,
    outer: u64,
    len: u64,
    from_whole: u64,
    to_whole: u64,
    from_start: u64,
    to_start: u64,
}

pub(super) fn transfer((from, source): (&Tensor, Part), (to, target): (&mut Tensor, Part), write: Write) -> Result<()> {
    let kernel = if write == Write::Copy { "concat_copy" } else { "concat_add" };
    let args = PartArgs {
        from: from.ptr(),
        to: to.ptr_mut(OP)?,
        outer: source.outer as u64,
        len: source.len as u64,
        from_whole: source.whole as u64,
        to_whole: target.whole as u64,
        from_start: source.start as u64,
        to_start: target.start as u64,
    };
    let grid = elementwise(source.outer * source.len, from.dtype());
    // SAFETY: the callers made both parts from the shapes of their tensors, so that each run lies inside, with one
    // `outer` and one `len`; the tensors are of one dtype, and outlive the call.
    unsafe { from.device().launch(OP, kernel, from.dtype(), grid, &args) }
}
