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
    pairs: u32,
}

/// Rows of a matrix product.
const MMA_ROWS: usize = 16;
/// Warps of a block of the short forward at most. A block of few warps that each take several query tiles leaves room
/// for more blocks on a multiprocessor, and thus more bytes in flight.
const SHORT_FWD_WARPS: usize = 6;
/// Queries between barriers of the short backward (`BLOCK` in attention_bwd_mma.cuh).
const SHORT_BWD_BLOCK: usize = 64;
/// Rows of a stage of the long kernels (`LONG_STAGE` tiles in attention_long.cuh).
const LONG_STAGE: usize = 64;

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
    /// Tensor cores, with keys (or queries) streaming past the rows that a block keeps: any length.
    Long,
}

/// Which kernels a problem runs on, given the bytes of shared memory that a block of the device may have.
///
/// Tensor cores take 16-bit types, rows of whole 16-byte pieces (for `cp.async`), and a positive scale (their softmax
/// takes the row's maximum before it scales). The short family takes what fits into shared memory and, backward, into
/// the registers of one block: it reads every operand once, and its backward computes scores once, the long one's twice.
/// Kernels for one architecture (TMA and wgmma on sm_90a) are to be chosen here, ahead of `Long`: arithmetic and not
/// bytes sets the time from about 300 tokens on.
pub(super) fn family(pass: Pass, dtype: DType, scale: f32, dims: Dims, shared: usize) -> Family {
    let tensor_cores = matches!(dtype, DType::BF16 | DType::F16)
        && dims.dim.is_multiple_of(8)
        && scale > 0.0
        && 3 * dims.heads * dims.dim <= u32::MAX as usize; // the stride from token to token
    let in_registers = pass == Pass::Forward || mma_tiles(dims) <= short_bwd(dims.dim).1;
    let in_a_grid = |blocks: usize| dims.seqs.saturating_mul(dims.heads).saturating_mul(blocks) <= i32::MAX as usize;
    if tensor_cores && in_registers && in_a_grid(1) && short_shared(pass, dims) <= shared {
        Family::Short
    } else if tensor_cores && in_a_grid(mma_tiles(dims)) && long_shared(pass, dims) <= shared {
        Family::Long
    } else {
        Family::Tiled
    }
}

/// The columns tensor-core kernels are made for; the head dimension is padded to the next.
pub(super) fn columns(dim: usize) -> usize {
    [32, 64, 80, 96, 128].into_iter().find(|&columns| dim <= columns).unwrap_or(super::MAX_DIM)
}

/// 16-row tiles of the longest sequence; none is longer than all tokens, whatever bound was given.
fn mma_tiles(Dims { max_seqlen, tokens, .. }: Dims) -> usize {
    max_seqlen.min(tokens).div_ceil(MMA_ROWS)
}

/// Bytes of shared memory of a block of the short family: rows of 16-bit elements.
pub(super) fn short_shared(pass: Pass, dims: Dims) -> usize {
    let (rows, row) = (MMA_ROWS * mma_tiles(dims), 2 * columns(dims.dim));
    match pass {
        Pass::Forward => rows * 3 * row,
        Pass::Backward => rows * (4 * row + 2 * SHORT_BWD_BLOCK + 8),
    }
}

/// The short forward kernel of a head dimension.
pub(super) fn short_fwd(dim: usize) -> &'static str {
    match columns(dim) {
        32 => "attention_fwd_short_hd32",
        64 => "attention_fwd_short_hd64",
        80 => "attention_fwd_short_hd80",
        96 => "attention_fwd_short_hd96",
        _ => "attention_fwd_short_hd128",
    }
}

/// The short backward kernel and the 16-row tiles it takes at most: a warp owns a tile, and its gradients by k and v
/// fill `dim` registers of each thread, so that beyond 32 columns 8 warps are the most that have room for them.
pub(super) fn short_bwd(dim: usize) -> (&'static str, usize) {
    match columns(dim) {
        32 => ("attention_bwd_short_hd32", 18),
        64 => ("attention_bwd_short_hd64", 8),
        80 => ("attention_bwd_short_hd80", 8),
        96 => ("attention_bwd_short_hd96", 8),
        _ => ("attention_bwd_short_hd128", 8),
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

/// A long kernel: `warps` warps of a block at most, each with `rows` rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Long {
    pub kernel: &'static str,
    pub warps: usize,
    pub rows: usize,
}

/// The long forward kernel of a head dimension. 32 rows a warp, so that what is read from shared memory serves two
/// products, unless their results alone would fill the registers.
pub(super) fn long_fwd(dim: usize) -> Long {
    let (kernel, warps, rows) = match columns(dim) {
        32 => ("attention_fwd_long_4x32_hd32", 4, 32),
        64 => ("attention_fwd_long_4x32_hd64", 4, 32),
        80 => ("attention_fwd_long_4x32_hd80", 4, 32),
        96 => ("attention_fwd_long_4x32_hd96", 4, 32),
        _ => ("attention_fwd_long_8x16_hd128", 8, 16),
    };
    Long { kernel, warps, rows }
}

/// The long kernels for the gradients by q, and by k and v, which hold twice the results; chosen as [`long_fwd`]. Six
/// warps of up to 168 registers at 80 columns: two blocks, and thus twelve warps, fit on a multiprocessor.
pub(super) fn long_bwd(dim: usize) -> (Long, Long) {
    let (q, kv) = match columns(dim) {
        32 => (("attention_bwd_long_q_4x32_hd32", 4, 32), ("attention_bwd_long_kv_4x32_hd32", 4, 32)),
        64 => (("attention_bwd_long_q_4x32_hd64", 4, 32), ("attention_bwd_long_kv_4x32_hd64", 4, 32)),
        80 => (("attention_bwd_long_q_4x32_hd80", 4, 32), ("attention_bwd_long_kv_6x16_hd80", 6, 16)),
        96 => (("attention_bwd_long_q_4x32_hd96", 4, 32), ("attention_bwd_long_kv_8x16_hd96", 8, 16)),
        _ => (("attention_bwd_long_q_8x16_hd128", 8, 16), ("attention_bwd_long_kv_8x16_hd128", 8, 16)),
    };
    let long = |(kernel, warps, rows)| Long { kernel, warps, rows };
    (long(q), long(kv))
}

/// Bytes of shared memory of a block of the long family: two stages of 64 rows of two operands; backward, room for as
/// much that stays, and two numbers for each query of a stage.
pub(super) fn long_shared(pass: Pass, dims: Dims) -> usize {
    let stage = 2 * LONG_STAGE * 2 * columns(dims.dim);
    match pass {
        Pass::Forward => 2 * stage,
        Pass::Backward => 3 * stage + 2 * LONG_STAGE * 8,
    }
}

/// Blocks of the longest sequence, and one per sequence and head. They share its rows evenly: 257 are three times 96,
/// not twice 128 and one.
pub(super) fn long_grid(pass: Pass, long: Long, dims: Dims) -> (u32, Launch) {
    let warps = dims.max_seqlen.min(dims.tokens).div_ceil(long.rows);
    let blocks = warps.div_ceil(long.warps);
    let block = [32 * warps.div_ceil(blocks.max(1)) as u32, 1, 1];
    let grid = [(dims.seqs * dims.heads * blocks) as u32, 1, 1];
    (blocks as u32, Launch { grid, block, shared: long_shared(pass, dims) as u32 })
}

/// Pairs of numbers of the queries of one head between the two long backward kernels: each sequence starts at an even
/// one, as `query_pairs` in attention_bwd_long.cuh lays them out.
pub(super) fn long_pairs(dims: Dims) -> usize {
    (dims.tokens + dims.seqs).next_multiple_of(2)
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
        Family::Long => {
            let long = long_fwd(dims.dim);
            (long.kernel, long_grid(Pass::Forward, long, dims))
        }
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
    // `family` saw to it that rows of the tensor-core kernels lie at multiples of 16 bytes.
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
        delta: 0, // of all but the short kernels
        cu_seqlens: cu_seqlens.ptr(),
        dqkv: dqkv.ptr_mut(OP)?,
        tokens: dims.tokens as u32,
        heads: dims.heads as u32,
        dim: dims.dim as u32,
        tiles: 0,
        scale,
        pairs: 0, // of the long kernels
    };
    let run = |kernel, (tiles, launch), args: BwdArgs| {
        // SAFETY: `backward` checked o, do and lse against the extents of qkv, and made dqkv to them; delta is as struct
        // AttentionBwd states where a kernel takes it, filled by the launch before on the same stream where it reads it.
        // `family` saw to it that rows of the tensor-core kernels lie at multiples of 16 bytes. Kernels take no offset
        // beyond tokens from cu_seqlens.
        unsafe { qkv.device().launch(STEM, kernel, qkv.dtype(), launch, &BwdArgs { tiles, ..args }) }
    };
    match family(Pass::Backward, qkv.dtype(), scale, dims, qkv.device().shared_limit()) {
        Family::Short => run(short_bwd(dims.dim).0, short_grid(Pass::Backward, dims), args),
        Family::Long => {
            let (q, kv) = long_bwd(dims.dim);
            let mut pairs = Tensor::uninit([dims.heads, long_pairs(dims), 2], DType::F32, qkv.device())?;
            (args.delta, args.pairs) = (pairs.ptr_mut(OP)?, long_pairs(dims) as u32);
            run(q.kernel, long_grid(Pass::Backward, q, dims), args)?; // dq; fills the pairs
            run(kv.kernel, long_grid(Pass::Backward, kv, dims), args) // dk and dv
        }
        Family::Tiled => {
            let (kv, q) = bwd(dims.dim);
            let (tiles, launch) = grid(kv.tile, dims)?;
            let mut delta = Tensor::uninit([dims.heads, dims.tokens], DType::F32, qkv.device())?;
            args.delta = delta.ptr_mut(OP)?;
            let rows = (dims.tokens as u32).div_ceil(DELTA_WARPS);
            let per_row = Launch { grid: [rows, dims.heads as u32, 1], block: [DELTA_WARPS * 32, 1, 1], shared: 0 };
            run("attention_bwd_delta", (tiles, per_row), args)?;
            run(kv.kernel, (tiles, launch), args)?; // dk and dv
            run(q.kernel, (tiles, launch), args) // dq
        }
    }
}
