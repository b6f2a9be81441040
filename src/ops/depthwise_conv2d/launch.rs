//! Grids and arguments of kernels/depthwise_conv2d.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::{Dims, OP};
use crate::device::Launch;
use crate::ops::column_sum::{self, lanes_grid};
use crate::ops::indices::count32;
use crate::{DType, Result, Tensor};

/// Threads of a block that turns kernels; not measured yet.
const THREADS: u32 = 256;
/// Pixels of a line that a warp works on at once, and taps of a row: `ACROSS` in the kernel. Four of each
/// take 64 registers of a lane with 16-bit types, beside the vectors on their way; not measured yet.
const ACROSS: usize = 4;
/// Lines of a block of the forward, a warp each: `LINES` in the kernel. With the three above and below that a kernel of
/// seven reaches, a block reads 14 lines for 8; not measured yet.
const LINES: usize = 8;
/// Row blocks of the kernels' gradient: one per SM of an H100, times the blocks that share the taps; not measured yet.
const PARTS: usize = 132;
/// Warps of such a block at most.
const WARPS: usize = 8;

/// `struct DepthwiseConv2dTaps`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct TapsArgs {
    w: u64,
    to: u64,
    channels: u32,
    taps: u32,
    reversed: u32,
    pad: u32,
}

/// `struct DepthwiseConv2dFwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct FwdArgs {
    x: u64,
    taps: u64,
    bias: u64,
    y: u64,
    height: u32,
    width: u32,
    channels: u32,
    kernel: u32,
}

/// `struct DepthwiseConv2dBwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct BwdArgs {
    dy: u64,
    x: u64,
    part: u64,
    lines: u32,
    lines_per_part: u32,
    height: u32,
    width: u32,
    channels: u32,
    kernel: u32,
}

/// `struct DepthwiseConv2dReduce`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct ReduceArgs {
    part: u64,
    dw: u64,
    db: u64,
    parts: u32,
    taps: u32,
    channels: u32,
    pad: u32,
}

/// Tiles of `LINES` lines by `ACROSS` columns in x, channels in y.
pub(super) fn fwd_grid(batch: usize, height: usize, width: usize, channels: u32) -> Result<Launch> {
    let tiles = count32(OP, "x", batch * height.div_ceil(LINES) * width.div_ceil(ACROSS))?;
    Ok(lanes_grid(tiles, channels, LINES as u32))
}

/// How the lines of all maps are split: parts and lines per part.
pub(super) fn split(lines: usize) -> (usize, usize) {
    let per_part = lines.div_ceil(PARTS).max(1);
    (lines.div_ceil(per_part).max(1), per_part)
}

/// Parts in x, channels in y, and in z blocks that share the groups of `ACROSS` taps evenly, a warp each.
pub(super) fn bwd_grid(parts: u32, channels: u32, kernel: usize) -> Launch {
    let groups = kernel * kernel.div_ceil(ACROSS);
    let blocks = groups.div_ceil(WARPS).clamp(1, 65535);
    let mut grid = lanes_grid(parts, channels, groups.div_ceil(blocks).min(WARPS) as u32);
    grid.grid[2] = blocks as u32;
    grid
}

/// Kernels `[k·k, C]`, in reverse if asked.
fn taps(w: &Tensor, dims: Dims, reversed: bool) -> Result<Tensor> {
    let mut to = Tensor::uninit([dims.taps(), dims.channels], w.dtype(), w.device())?;
    let count = count32(OP, "w", dims.taps() * dims.channels)?;
    let args = TapsArgs {
        w: w.ptr(),
        to: to.ptr_mut(OP)?,
        channels: dims.channels as u32, // at most `count`, as the taps, or nothing is launched
        taps: dims.taps() as u32,
        reversed: reversed.into(),
        pad: 0,
    };
    let grid = Launch::linear(count.div_ceil(THREADS), THREADS);
    // SAFETY: `Dims::check` found w to be [C, 1, k, k]; `to` has as many elements.
    unsafe { w.device().launch(OP, "depthwise_conv2d_taps", w.dtype(), grid, &args)? };
    Ok(to)
}

/// A convolution by `taps: [k·k, C]`.
fn convolve(x: &Tensor, taps: &Tensor, bias: Option<&Tensor>, dims: Dims, y: &mut Tensor) -> Result<()> {
    let Dims { batch, height, width, channels, kernel } = dims;
    let args = FwdArgs {
        x: x.ptr(),
        taps: taps.ptr(),
        bias: bias.map_or(0, Tensor::ptr),
        y: y.ptr_mut(OP)?,
        height: count32(OP, "x", height + kernel)?, // kernels compare coordinates that may have wrapped around
        width: count32(OP, "x", width + kernel + ACROSS)?,
        channels: count32(OP, "x", channels)?,
        kernel: kernel as u32, // at most 65535
    };
    let args = FwdArgs { height: height as u32, width: width as u32, ..args };
    let grid = fwd_grid(batch, height, width, args.channels)?;
    // SAFETY: `Dims::check` took the extents of struct DepthwiseConv2dFwd from x; y is like x, taps are from `taps`, on
    // the same stream, and `forward` in mod.rs found the bias to be [C].
    unsafe { x.device().launch(OP, "depthwise_conv2d_fwd", x.dtype(), grid, &args) }
}

pub(super) fn forward(x: &Tensor, w: &Tensor, b: &Tensor, dims: Dims, y: &mut Tensor) -> Result<()> {
    convolve(x, &taps(w, dims, false)?, Some(b), dims, y)
}

pub(super) fn backward_x(dy: &Tensor, w: &Tensor, dims: Dims, dx: &mut Tensor) -> Result<()> {
    convolve(dy, &taps(w, dims, true)?, None, dims, dx)
}

pub(super) fn backward_w(dy: &Tensor, x: &Tensor, dims: Dims, dw: &mut Tensor, db: &mut Tensor) -> Result<()> {
    let Dims { height, width, channels, kernel, .. } = dims;
    let (device, (parts, lines_per_part)) = (x.device(), split(dims.lines()));
    let mut part = Tensor::uninit([parts, dims.taps() + 1, channels], DType::F32, device)?;
    let columns = count32(OP, "w", (dims.taps() + 1) * channels)?;
    let args = BwdArgs {
        dy: dy.ptr(),
        x: x.ptr(),
        part: part.ptr_mut(OP)?,
        lines: count32(OP, "x", dims.lines())?,
        lines_per_part: lines_per_part as u32, // at most lines, or 1
        height: count32(OP, "x", height + kernel)?,
        width: count32(OP, "x", width + kernel + ACROSS)?,
        channels: count32(OP, "x", channels)?,
        kernel: kernel as u32, // at most 65535
    };
    let args = BwdArgs { height: height as u32, width: width as u32, ..args };
    let grid = bwd_grid(parts as u32, args.channels, kernel); // at most PARTS
    // SAFETY: `backward_w` in mod.rs compared dy with x, from which `Dims::check` took the extents of struct
    // DepthwiseConv2dBwd; `part` has the taps and the bias for each block in x.
    unsafe { device.launch(OP, "depthwise_conv2d_bwd", x.dtype(), grid, &args)? };
    let args = ReduceArgs {
        part: part.ptr(),
        dw: dw.ptr_mut(OP)?,
        db: db.ptr_mut(OP)?,
        parts: parts as u32,
        taps: dims.taps() as u32, // at most `columns`, as the channels, or nothing is launched
        channels: channels as u32,
        pad: 0,
    };
    // SAFETY: dw is [C, 1, k, k] and db [C]; `part` was filled by the launch before on the same stream.
    unsafe {
        device.launch(OP, "depthwise_conv2d_bwd_reduce", DType::F32, column_sum::grid(parts as u32, columns), &args)
    }
}
