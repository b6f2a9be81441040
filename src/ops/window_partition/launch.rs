//! Grid and arguments of kernels/window_partition.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::{BACK, Dims, OP};
use crate::device::Launch;
use crate::ops::indices::count32;
use crate::{Result, Tensor};

/// Lines of windows per block, one warp each; not measured yet.
const WARPS: u32 = 8;

/// `struct WindowPartition`: both directions; `from` is x or y, `to` the other.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Args {
    from: u64,
    to: u64,
    lines: u32,
    height: u32,
    width: u32,
    channels: u32,
    window: u32,
    down: u32,
    across: u32,
    pad: u32,
}

/// One warp per line of a window.
pub(super) fn grid(lines: u32) -> Launch {
    Launch::warp_per_row(lines, WARPS)
}

fn args(op: &'static str, arg: &'static str, from: &Tensor, to: &mut Tensor, dims: Dims) -> Result<Args> {
    let [down, across] = dims.grid();
    Ok(Args {
        from: from.ptr(),
        to: to.ptr_mut(op)?,
        lines: count32(op, arg, dims.windows() * dims.window)?,
        height: count32(op, arg, dims.height)?,
        width: count32(op, arg, dims.width)?,
        channels: count32(op, arg, dims.window * dims.channels)? / dims.window as u32, // at most 65535
        window: dims.window as u32,
        down: down as u32, // at most height
        across: across as u32,
        pad: 0,
    })
}

pub(super) fn forward(x: &Tensor, dims: Dims, y: &mut Tensor) -> Result<()> {
    let args = args(OP, "x", x, y, dims)?;
    // SAFETY: `forward` in mod.rs took the extents of struct WindowPartition from x, and made y of them.
    unsafe { x.device().launch(OP, "window_partition_fwd", x.dtype(), grid(args.lines), &args) }
}

pub(super) fn backward(y: &Tensor, dims: Dims, x: &mut Tensor) -> Result<()> {
    let args = args(BACK, "y", y, x, dims)?;
    // SAFETY: `backward` in mod.rs found y to hold the windows of whole maps, of whose extents it made x.
    unsafe { y.device().launch(OP, "window_partition_bwd", y.dtype(), grid(args.lines), &args) }
}
