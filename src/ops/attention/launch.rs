//! Grid and arguments of kernels/attention.cu and kernels/attention_bwd.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::{Dims, OP};
use crate::device::Launch;
use crate::{DType, Error, Result, Tensor};

/// Warps of a block of the delta kernel, one row each.
const DELTA_WARPS: u32 = 4;

/// `struct AttentionFwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct FwdArgs {
    qkv: u64,
    cu_seqlens: u64,
    o: u64,
    lse: u64,
    tokens: u32,
    heads: u32,
    dim: u32,
    tiles: u32,
    scale: f32,
    pad: u32,
}

/// `struct AttentionBwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct BwdArgs {
    qkv: u64,
    o: u64,
    d_o: u64,
    lse: u64,
    delta: u64,
    cu_seqlens: u64,
    dqkv: u64,
    tokens: u32,
    heads: u32,
    dim: u32,
    tiles: u32,
    scale: f32,
    pad: u32,
}

/// A kernel with tiles of `tile` x `tile` scores; four threads a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tiles {
    pub kernel: &'static str,
    pub tile: usize,
}

/// The smallest forward kernel that holds `dim` columns.
pub(super) fn fwd(dim: usize) -> Tiles {
    let kernel = match dim {
        0..=32 => "attention_fwd_32x32_hd32",
        33..=64 => "attention_fwd_32x32_hd64",
        65..=96 => "attention_fwd_32x32_hd96",
        _ => "attention_fwd_32x32_hd128",
    };
    Tiles { kernel, tile: 32 }
}

/// The smallest kernels for the gradients by k and v, and by q. Beyond 64 columns four tiles of 32 rows exceed 48 KiB.
pub(super) fn bwd(dim: usize) -> (Tiles, Tiles) {
    let (kv, q, tile) = match dim {
        0..=32 => ("attention_bwd_kv_32x32_hd32", "attention_bwd_q_32x32_hd32", 32),
        33..=64 => ("attention_bwd_kv_32x32_hd64", "attention_bwd_q_32x32_hd64", 32),
        65..=96 => ("attention_bwd_kv_16x16_hd96", "attention_bwd_q_16x16_hd96", 16),
        _ => ("attention_bwd_kv_16x16_hd128", "attention_bwd_q_16x16_hd128", 16),
    };
    (Tiles { kernel: kv, tile }, Tiles { kernel: q, tile })
}

/// Tiles of the longest sequence, and one block per tile, sequence and head; shorter sequences leave blocks idle.
pub(super) fn grid(tile: usize, Dims { heads, seqs, max_seqlen, tokens, .. }: Dims) -> Result<(u32, Launch)> {
    // No sequence is longer than all tokens, whatever bound was given.
    let tiles = max_seqlen.min(tokens).div_ceil(tile);
    let Some(blocks) = seqs.checked_mul(tiles).filter(|&blocks| blocks <= i32::MAX as usize) else {
        let expected = format!("at most {} tiles of {tile} tokens over all sequences", i32::MAX);
        return Err(Error::value(OP, "max_seqlen", max_seqlen, expected));
    };
    let launch = Launch { grid: [blocks as u32, heads as u32, 1], block: [4 * tile as u32, 1, 1], shared: 0 };
    Ok((tiles as u32, launch))
}

pub(super) fn forward(
    qkv: &Tensor,
    cu_seqlens: &Tensor,
    scale: f32,
    dims: Dims,
    o: &mut Tensor,
    lse: &mut Tensor,
) -> Result<()> {
    let Tiles { kernel, tile } = fwd(dims.dim);
    let (tiles, launch) = grid(tile, dims)?;
    let args = FwdArgs {
        qkv: qkv.ptr(),
        cu_seqlens: cu_seqlens.ptr(),
        o: o.ptr_mut(OP)?,
        lse: lse.ptr_mut(OP)?,
        tokens: dims.tokens as u32,
        heads: dims.heads as u32,
        dim: dims.dim as u32,
        tiles,
        scale,
        pad: 0,
    };
    // SAFETY: `Dims::check` fixed the extents of qkv and cu_seqlens that struct AttentionFwd states, and that dim fits
    // the kernel's tiles; `forward` made o and lse to them. The kernel takes no offset beyond tokens from cu_seqlens.
    unsafe { qkv.device().launch(OP, kernel, qkv.dtype(), launch, &args) }
}

pub(super) fn backward(
    d_o: &Tensor,
    qkv: &Tensor,
    o: &Tensor,
    lse: &Tensor,
    cu_seqlens: &Tensor,
    scale: f32,
    dims: Dims,
    dqkv: &mut Tensor,
) -> Result<()> {
    let (kv, q) = bwd(dims.dim);
    let (tiles, launch) = grid(kv.tile, dims)?;
    let mut delta = Tensor::uninit([dims.heads, dims.tokens], DType::F32, qkv.device())?;
    let args = BwdArgs {
        qkv: qkv.ptr(),
        o: o.ptr(),
        d_o: d_o.ptr(),
        lse: lse.ptr(),
        delta: delta.ptr_mut(OP)?,
        cu_seqlens: cu_seqlens.ptr(),
        dqkv: dqkv.ptr_mut(OP)?,
        tokens: dims.tokens as u32,
        heads: dims.heads as u32,
        dim: dims.dim as u32,
        tiles,
        scale,
        pad: 0,
    };
    let rows = (dims.tokens as u32).div_ceil(DELTA_WARPS);
    let per_row = Launch { grid: [rows, dims.heads as u32, 1], block: [DELTA_WARPS * 32, 1, 1], shared: 0 };
    const STEM: &str = "attention_bwd";
    // SAFETY: `backward` checked o, do and lse against the extents of qkv, and made dqkv to them; delta is
    // [heads, tokens] as struct AttentionBwd states.
    unsafe { qkv.device().launch(STEM, "attention_bwd_delta", qkv.dtype(), per_row, &args)? };
    // SAFETY: as above; delta was filled by the launch before on the same stream; this one writes dk and dv only.
    unsafe { qkv.device().launch(STEM, kv.kernel, qkv.dtype(), launch, &args)? };
    // SAFETY: as above; this one writes dq only.
    unsafe { qkv.device().launch(STEM, q.kernel, qkv.dtype(), launch, &args) }
}
