//! Grids and arguments of kernels/max_pool2d.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::{Dims, OP};
use crate::device::Launch;
use crate::ops::indices::count32;
use crate::{DType, Result, Tensor};

/// Threads of a block, a vector of a square of pixels each; not measured yet.
const THREADS: u32 = 256;

/// `struct MaxPool2dFwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct FwdArgs {
    x: u64,
    y: u64,
    index: u64,
    height: u32,
    width: u32,
    channels: u32,
    count: u32,
}

/// `struct MaxPool2dBwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct BwdArgs {
    dy: u64,
    index: u64,
    dx: u64,
    height: u32,
    width: u32,
    channels: u32,
    count: u32,
}

/// A thread for each of `count` vectors.
pub(super) fn grid(count: u32) -> Launch {
    Launch::linear(count.div_ceil(THREADS), THREADS)
}

/// Vectors of `pixels` pixels: of 16 bytes where they divide the channels, else of one element.
pub(super) fn vectors(pixels: usize, channels: usize, dtype: DType) -> usize {
    let width = 16 / dtype.size();
    pixels * if channels.is_multiple_of(width) { channels / width } else { channels }
}

pub(super) fn forward(x: &Tensor, dims: Dims, y: &mut Tensor, index: Option<&mut Tensor>) -> Result<()> {
    let [batch, down, across, channels] = dims.pooled();
    let args = FwdArgs {
        x: x.ptr(),
        y: y.ptr_mut(OP)?,
        index: index.map_or(Ok(0), |index| index.ptr_mut(OP))?,
        height: count32(OP, "x", dims.height)?,
        width: count32(OP, "x", dims.width)?,
        channels: count32(OP, "x", channels)?,
        count: count32(OP, "x", vectors(batch * down * across, channels, x.dtype()))?,
    };
    // SAFETY: `forward` in mod.rs took the extents of struct MaxPool2dFwd from x, and made y and index of them.
    unsafe { x.device().launch(OP, "max_pool2d_fwd", x.dtype(), grid(args.count), &args) }
}

pub(super) fn backward(dy: &Tensor, index: &Tensor, dims: Dims, dx: &mut Tensor) -> Result<()> {
    let Dims { batch, height, width, channels } = dims;
    let squares = batch * height.div_ceil(2) * width.div_ceil(2);
    let args = BwdArgs {
        dy: dy.ptr(),
        index: index.ptr(),
        dx: dx.ptr_mut(OP)?,
        height: count32(OP, "size", height)?,
        width: count32(OP, "size", width)?,
        channels: count32(OP, "dy", channels)?,
        count: count32(OP, "dy", vectors(squares, channels, dy.dtype()))?,
    };
    // SAFETY: `backward` in mod.rs compared dy and index with the extents of struct MaxPool2dBwd, and made dx of them.
    unsafe { dy.device().launch(OP, "max_pool2d_bwd", dy.dtype(), grid(args.count), &args) }
}
