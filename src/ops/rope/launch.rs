//! Grid and arguments of kernels/rope.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::{Dims, Direction, OP};
use crate::device::Launch;
use crate::ops::indices::count32;
use crate::{Result, Tensor};

/// Rows per block, one warp each; not measured yet.
const WARPS: u32 = 8;

/// `struct Rope`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Args {
    x: u64,
    table: u64,
    tokens: u32,
    parts: u32,
    rotated: u32,
    cols: u32,
    dim: u32,
    positions: u32,
    sequence: u32,
    turned: u32,
    sign: f32,
    pad: u32,
}

/// One warp per token and rotated part.
pub(super) fn grid(tokens: u32, rotated: u32) -> Launch {
    Launch::warp_per_row(tokens * rotated, WARPS)
}

pub(super) fn rotate(x: &mut Tensor, table: &Tensor, direction: Direction, dims: Dims) -> Result<()> {
    count32(OP, "x", dims.tokens * dims.rotated)?;
    let args = Args {
        x: x.ptr_mut(OP)?,
        table: table.ptr(),
        tokens: dims.tokens as u32, // with the parts below 2^32
        parts: count32(OP, "x", dims.parts)?,
        rotated: dims.rotated as u32, // at most 2
        cols: count32(OP, "x", dims.heads * dims.dim)?,
        dim: count32(OP, "x", dims.dim)?,
        positions: count32(OP, "table", dims.positions)?,
        sequence: dims.sequence as u32, // at most the tokens
        turned: (dims.sequence - dims.excluded) as u32,
        sign: if direction == Direction::Forward { 1.0 } else { -1.0 },
        pad: 0,
    };
    let grid = grid(args.tokens, args.rotated);
    // SAFETY: `Dims::check` compared x, [tokens, parts, heads, dim], and the table, [positions, dim / 2, 2], with these
    // extents; a warp writes only what it alone reads.
    unsafe { x.device().launch(OP, "rope", x.dtype(), grid, &args) }
}
