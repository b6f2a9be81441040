//! Grid and arguments of kernels/prepare_tokens.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::{Dims, Gradients, OP, Part, Tokens};
use crate::device::Launch;
use crate::ops::column_sum::lanes_grid;
use crate::ops::indices::count32;
use crate::{Result, Tensor};

/// Rows per block of the forward, one warp each; not measured yet.
const WARPS: u32 = 8;
/// `SUM_WARPS` of the kernel.
const SUM_WARPS: u32 = 8;

/// `struct PrepareTokensFwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct FwdArgs {
    patches: u64,
    cls: u64,
    mask: u64,
    extra: u64,
    pos: u64,
    masks: u64,
    y: u64,
    rows: u32,
    registers: u32,
    len: u32,
    cols: u32,
}

/// `struct PrepareTokensBwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct BwdArgs {
    dy: u64,
    masks: u64,
    dpatches: u64,
    dcls: u64,
    dmask: u64,
    dextra: u64,
    dpos: u64,
    images: u32,
    registers: u32,
    len: u32,
    cols: u32,
}

/// One warp per row.
pub(super) fn rows_grid(rows: u32) -> Launch {
    Launch::warp_per_row(rows, WARPS)
}

/// Bytes before the part's rows.
fn offset(dims: Dims, like: &Tensor) -> u64 {
    (dims.first * dims.cols * like.dtype().size()) as u64
}

pub(super) fn forward(part: &Part, tokens: Tokens, dims: Dims, y: &mut Tensor) -> Result<()> {
    let patches = part.patches.value();
    let args = FwdArgs {
        patches: patches.ptr(),
        cls: tokens.cls.ptr(),
        mask: tokens.mask.ptr(),
        extra: tokens.registers.map_or(0, Tensor::ptr),
        pos: part.pos_embed.value().ptr(),
        masks: part.masks.map_or(0, Tensor::ptr),
        y: y.ptr_mut(OP)? + offset(dims, patches),
        rows: count32(OP, "patches", dims.rows())?,
        registers: count32(OP, "register_tokens", dims.registers)?,
        len: count32(OP, "pos_embed", dims.len)?,
        cols: count32(OP, "patches", dims.cols)?,
    };
    // SAFETY: `super::check` fixed every extent that struct PrepareTokensFwd states, and the rows of the part lie in y.
    unsafe { patches.device().launch(OP, "prepare_tokens_fwd", patches.dtype(), rows_grid(args.rows), &args) }
}

pub(super) fn backward(dy: &Tensor, masks: Option<&Tensor>, dims: Dims, g: &mut Gradients) -> Result<()> {
    let address = |t: Option<&mut Tensor>| t.map_or(Ok(0), |t| t.ptr_mut(OP));
    let args = BwdArgs {
        dy: dy.ptr() + offset(dims, dy),
        masks: masks.map_or(0, Tensor::ptr),
        dpatches: address(g.patches.as_mut())?,
        dcls: address(g.cls.as_mut())?,
        dmask: address(g.mask.as_mut())?,
        dextra: address(g.registers.as_mut())?,
        dpos: address(g.pos.as_mut())?,
        images: count32(OP, "patches", dims.images)?,
        registers: count32(OP, "register_tokens", dims.registers)?,
        len: count32(OP, "pos_embed", dims.len)?,
        cols: count32(OP, "dy", dims.cols)?,
    };
    let grid = lanes_grid(count32(OP, "pos_embed", dims.tokens())?, args.cols, SUM_WARPS);
    // SAFETY: dy holds the part's rows from its first on, masks are null or [N, L], and the gradients null or [N·L, D],
    // [D], [L, D], [R, D] and [1 + L, D], as struct PrepareTokensBwd states.
    unsafe { dy.device().launch(OP, "prepare_tokens_bwd", dy.dtype(), grid, &args) }
}
