//! Kernel launches of the tensor layer: casts and accumulation.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::Tensor;
use crate::device::Launch;
use crate::{DType, Error, Result};

/// Threads per block of elementwise kernels; not measured yet.
const THREADS: u32 = 256;

/// `struct Cast` of kernels/cast.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct CastArgs {
    x: u64,
    y: u64,
    n: u64,
}

/// `struct AddAccumulate` of kernels/add.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct AccumulateArgs {
    y: u64,
    x: u64,
    n: u64,
}

/// Grid for `n` elements, a vector of 16 bytes of `dtype` to a thread; kernels stride over what is left when it is capped.
pub(crate) fn elementwise(n: usize, dtype: DType) -> Launch {
    let blocks = n.div_ceil(16 / dtype.size() * THREADS as usize).min(1 << 16);
    Launch::linear(blocks as u32, THREADS)
}

/// `y = cast(x)`: the kernel is named by the target dtype, its variant by the source.
pub(super) fn cast(x: &Tensor, y: &mut Tensor) -> Result<()> {
    let kernel = match x.dtype() {
        DType::F32 => "cast_from_f32",
        DType::BF16 => "cast_from_bf16",
        DType::F16 => "cast_from_f16",
        other => return Err(Error::argument("cast", "x", "dtype", other.name(), "f32, bf16 or f16")),
    };
    let (device, n) = (x.device().clone(), x.numel());
    let args = CastArgs { x: x.ptr(), y: y.ptr_mut("cast")?, n: n as u64 };
    // SAFETY: `Tensor::cast` made `y` with the element count of `x`; both outlive the call.
    unsafe { device.launch("cast", kernel, y.dtype(), elementwise(n, DType::F32), &args) }
}

/// `y += x`, same dtype.
pub(super) fn accumulate(y: &mut Tensor, x: &Tensor) -> Result<()> {
    let (device, n) = (x.device().clone(), x.numel());
    let args = AccumulateArgs { y: y.ptr_mut("accumulate")?, x: x.ptr(), n: n as u64 };
    // SAFETY: `Tensor::accumulate` checked that the counts are equal and cast `x` to the dtype of `y`.
    unsafe { device.launch("add", "add_accumulate", y.dtype(), elementwise(n, y.dtype()), &args) }
}
