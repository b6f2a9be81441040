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

/// Rows of a matrix product.
const MMA_ROWS: usize = 16;
/// Warps of a block of the short forward at most. A block of few warps that each take several query tiles leaves room
/// for more blocks on a multiprocessor, and thus more bytes in flight.
const SHORT_FWD_WARPS: usize = 6;
/// Queries between barriers of the short backward (`BLOCK` in attention_bwd.cu).
const SHORT_BWD_BLOCK: usize = 64;

/// Forward or backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    Forward,
    Backward,
}

/// Kernels of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// f32 arithmetic on tiles: every type, head dimension and length.
    Tiled,
    /// Tensor cores, with all of a head of a sequence in shared memory: up to 288 tokens, where attention is bound by
    /// the bytes of qkv and no library is good.
    Short,
}

/// Which kernels a problem runs on, given the bytes of shared memory that a block of the device may have.
///
/// Tensor cores take 16-bit types, rows of whole 16-byte pieces (for `cp.async`), and a positive scale (their softmax
/// takes the row's maximum before it scales). The short family takes what fits into shared memory and, backward, into
/// the registers of one block. Kernels for one architecture (TMA and wgmma on sm_90a) are to be chosen here, ahead of
/// `Short` where arithmetic and not bytes sets the time: from about 300 tokens on.
pub(super) fn family(pass: Pass, dtype: DType, scale: f32, dims: Dims, shared: usize) -> Family {
    let tensor_cores = matches!(dtype, DType::BF16 | DType::F16) && dims.dim.is_multiple_of(8) && scale > 0.0;
    let in_registers = pass == Pass::Forward || mma_tiles(dims) <= short_bwd(dims.dim, mma_tiles(dims)).1;
    let in_a_grid = dims.seqs.saturating_mul(dims.heads) <= i32::MAX as usize;
    let fits = in_registers && in_a_grid && short_shared(pass, dims) <= shared;
    if tensor_cores && fits { Family::Short } else { Family::Tiled }
}

/// 16-row tiles of the longest sequence; none is longer than all tokens, whatever bound was given.
fn mma_tiles(Dims { max_seqlen, tokens, .. }: Dims) -> usize {
    max_seqlen.min(tokens).div_ceil(MMA_ROWS)
}

/// Bytes of shared memory of a block of the short family: rows of 16-bit elements, the head dimension padded to 32.
pub(super) fn short_shared(pass: Pass, dims: Dims) -> usize {
    let (rows, row) = (MMA_ROWS * mma_tiles(dims), 2 * dims.dim.next_multiple_of(32));
    match pass {
        Pass::Forward => rows * 3 * row,
        Pass::Backward => rows * (4 * row + 2 * SHORT_BWD_BLOCK + 8),
    }
}

/// The short forward kernel of a head dimension.
pub(super) fn short_fwd(dim: usize) -> &'static str {
    match dim {
        0..=32 => "attention_fwd_short_hd32",
        33..=64 => "attention_fwd_short_hd64",
        65..=96 => "attention_fwd_short_hd96",
        _ => "attention_fwd_short_hd128",
    }
}

/// The short backward kernel for so many 16-row tiles and the most it takes: a warp owns a tile, and its gradients by k
/// and v fill `dim` registers of each thread, so that beyond 64 columns 8 warps are the most that have room for them.
pub(super) fn short_bwd(dim: usize, tiles: usize) -> (&'static str, usize) {
    match dim {
        0..=32 => ("attention_bwd_short_288_hd32", 18),
        33..=64 if tiles <= 8 => ("attention_bwd_short_128_hd64", 8),
        33..=64 => ("attention_bwd_short_288_hd64", 18),
        65..=96 => ("attention_bwd_short_128_hd96", 8),
        _ => ("attention_bwd_short_128_hd128", 8),
    }
}

/// Tiles of the longest sequence, and a block per sequence and head.
pub(super) fn short_grid(pass: Pass, dims: Dims) -> (u32, Launch) {
    let tiles = mma_tiles(dims);
    let warps = match pass {
        Pass::Forward => tiles.div_ceil(tiles.div_ceil(SHORT_FWD_WARPS).max(1)), // the same number of rounds for all
        Pass::Backward => tiles,
    };
    let grid = [(dims.seqs * dims.heads) as u32, 1, 1];
    (tiles as u32, Launch { grid, block: [32 * warps as u32, 1, 1], shared: short_shared(pass, dims) as u32 })
}

/// A tiled kernel with tiles of `tile` x `tile` scores; four threads a row.
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
    let (kernel, (tiles, launch)) = match family(Pass::Forward, qkv.dtype(), scale, dims, qkv.device().shared_limit()) {
        Family::Short => (short_fwd(dims.dim), short_grid(Pass::Forward, dims)),
        Family::Tiled => {
            let Tiles { kernel, tile } = fwd(dims.dim);
            (kernel, grid(tile, dims)?)
        }
    };
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
    // `family` saw to it that the short kernel's rows lie at multiples of 16 bytes.
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
    const STEM: &str = "attention_bwd";
    let mut args = BwdArgs {
        qkv: qkv.ptr(),
        o: o.ptr(),
        d_o: d_o.ptr(),
        lse: lse.ptr(),
        delta: 0, // of the tiled kernels
        cu_seqlens: cu_seqlens.ptr(),
        dqkv: dqkv.ptr_mut(OP)?,
        tokens: dims.tokens as u32,
        heads: dims.heads as u32,
        dim: dims.dim as u32,
        tiles: 0,
        scale,
        pad: 0,
    };
    if family(Pass::Backward, qkv.dtype(), scale, dims, qkv.device().shared_limit()) == Family::Short {
        let launch;
        (args.tiles, launch) = short_grid(Pass::Backward, dims);
        // SAFETY: `backward` checked o, do and lse against the extents of qkv, and made dqkv to them; `family` saw to it
        // that rows lie at multiples of 16 bytes. The kernel takes no offset beyond tokens from cu_seqlens.
        return unsafe {
            qkv.device().launch(STEM, short_bwd(dims.dim, mma_tiles(dims)).0, qkv.dtype(), launch, &args)
        };
    }
    let (kv, q) = bwd(dims.dim);
    let (tiles, launch) = grid(kv.tile, dims)?;
    let mut delta = Tensor::uninit([dims.heads, dims.tokens], DType::F32, qkv.device())?;
    (args.tiles, args.delta) = (tiles, delta.ptr_mut(OP)?);
    let rows = (dims.tokens as u32).div_ceil(DELTA_WARPS);
    let per_row = Launch { grid: [rows, dims.heads as u32, 1], block: [DELTA_WARPS * 32, 1, 1], shared: 0 };
    // SAFETY: `backward` checked o, do and lse against the extents of qkv, and made dqkv to them; delta is
    // [heads, tokens] as struct AttentionBwd states.
    unsafe { qkv.device().launch(STEM, "attention_bwd_delta", qkv.dtype(), per_row, &args)? };
    // SAFETY: as above; delta was filled by the launch before on the same stream; this one writes dk and dv only.
    unsafe { qkv.device().launch(STEM, kv.kernel, qkv.dtype(), launch, &args)? };
    // SAFETY: as above; this one writes dq only.
    unsafe { qkv.device().launch(STEM, q.kernel, qkv.dtype(), launch, &args) }
}
