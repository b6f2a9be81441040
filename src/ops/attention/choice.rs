//! Which kernels run on what grid: pure functions of extents, dtype and shared memory.

use super::operands::Dims;
use super::{MAX_DIM, OP};
use crate::device::Launch;
use crate::{DType, Error, Result};

/// Warps of a block of the kernels with a row per warp.
const ROW_WARPS: u32 = 4;
/// Threads of a block of the sum over parts.
const SUM_THREADS: u32 = 256;
/// Rows of a matrix product.
const MMA_ROWS: usize = 16;
/// Warps of a block of the short forward at most. A block of few warps that each take several query tiles leaves room
/// for more blocks on a multiprocessor, and thus more bytes in flight.
const SHORT_FWD_WARPS: usize = 6;
/// Queries between barriers of the short backward (`BLOCK` in attention_bwd_mma.cuh).
const SHORT_BWD_BLOCK: usize = 64;
/// Rows of a stage of the long kernels (`LONG_STAGE` tiles in attention_long.cuh); half of it in the backward at 256
/// columns of everything (`BwdStage` in attention_bwd_long.cuh).
const LONG_STAGE: usize = 64;
/// Columns of values for which the long kernels have instances of their own at [`MAX_DIM`] columns of keys.
const NARROW: usize = 64;
/// Warps below which the long kernels cut what streams into parts: eight for each multiprocessor of an H100 or H200,
/// whatever the device, so that results do not depend on it. Their registers allow about as many at a time.
const ENOUGH_WARPS: usize = 8 * 132;
/// Rows of a part at least: what a block loads to start and stores at the end is then below its work.
const PART_ROWS: usize = 256;

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
/// the registers of one block, up to 128 columns: it reads every operand once, and its backward computes scores once, the
/// long one's twice. Values narrower than queries and keys are for the long family (and the tiled one). Where few warps
/// would run, the long family cuts its work into [`parts`].
/// Kernels for one architecture (TMA and wgmma on sm_90a) are to be chosen here, ahead of `Long`: arithmetic and not
/// bytes sets the time from about 300 tokens on.
pub(super) fn family(pass: Pass, dtype: DType, scale: f32, dims: Dims, shared: usize) -> Family {
    let tensor_cores = matches!(dtype, DType::BF16 | DType::F16)
        && dims.dim.is_multiple_of(8)
        && dims.v_dim.is_multiple_of(8)
        && scale > 0.0
        && 3 * dims.heads * dims.dim <= u32::MAX as usize; // the stride from token to token
    let tiles = q_tiles(dims).max(k_tiles(dims));
    let short = dims.dim <= 128 && dims.v_dim == dims.dim && (pass == Pass::Forward || tiles <= short_bwd(dims.dim).1);
    let in_a_grid = |blocks: usize| dims.seqs.saturating_mul(dims.heads).saturating_mul(blocks) <= i32::MAX as usize;
    if tensor_cores && short && in_a_grid(1) && short_shared(pass, dims) <= shared {
        Family::Short
    } else if tensor_cores && in_a_grid(tiles) && long_shared(pass, dims) <= shared {
        Family::Long
    } else {
        Family::Tiled
    }
}

/// Into how many parts the rows that stream past the `warps` warps of a long kernel are cut: one, unless that leaves
/// multiprocessors idle; then as many as fill them, and no more than have [`PART_ROWS`] rows of the longest sequence. A
/// part costs the bytes of its result in f32, written once and read once.
///
/// One query and 28 736 keys: 112 parts; 4096 queries of one head of 256: 4 parts of 32 blocks forward.
pub(super) fn parts(warps: usize, rows: usize) -> usize {
    (ENOUGH_WARPS / warps.max(1)).min(rows / PART_ROWS).max(1)
}

/// The columns tensor-core kernels are made for; the head dimension is padded to the next.
pub(super) fn columns(dim: usize) -> usize {
    [32, 64, 80, 96, 128].into_iter().find(|&columns| dim <= columns).unwrap_or(MAX_DIM)
}

/// Queries of the longest sequence: none is longer than all together, whatever bound was given.
pub(super) fn most_q(dims: Dims) -> usize {
    dims.max_q.min(dims.queries)
}

/// Keys of the longest sequence, likewise.
pub(super) fn most_k(dims: Dims) -> usize {
    dims.max_k.min(dims.keys)
}

/// 16-row tiles of the longest sequence of queries.
fn q_tiles(dims: Dims) -> usize {
    most_q(dims).div_ceil(MMA_ROWS)
}

/// 16-row tiles of the longest sequence of keys.
pub(super) fn k_tiles(dims: Dims) -> usize {
    most_k(dims).div_ceil(MMA_ROWS)
}

/// Bytes of shared memory of a block of the short family: rows of 16-bit elements.
pub(super) fn short_shared(pass: Pass, dims: Dims) -> usize {
    let (row, q, k) = (2 * columns(dims.dim), q_tiles(dims), k_tiles(dims));
    match pass {
        Pass::Forward => MMA_ROWS * (q + 2 * k) * row,
        Pass::Backward => MMA_ROWS * q.max(k) * (4 * row + 2 * SHORT_BWD_BLOCK + 8),
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

/// Tiles of the longest sequence (backward, of either side), and a block per sequence and head.
pub(super) fn short_grid(pass: Pass, dims: Dims) -> (u32, Launch) {
    let tiles = if pass == Pass::Forward { q_tiles(dims) } else { q_tiles(dims).max(k_tiles(dims)) };
    let warps = match pass {
        Pass::Forward => tiles.div_ceil(tiles.div_ceil(SHORT_FWD_WARPS).max(1)), // the same number of rounds for all
        Pass::Backward => tiles,
    };
    let grid = [(dims.seqs * dims.heads) as u32, 1, 1];
    (tiles as u32, Launch { grid, block: [32 * warps as u32, 1, 1], shared: short_shared(pass, dims) as u32 })
}

/// A long kernel: `groups` of one warp, or of a pair of warps, a block at most, each with `rows` rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Long {
    pub kernel: &'static str,
    pub groups: usize,
    pub threads: usize,
    pub rows: usize,
}

impl Long {
    fn new((kernel, groups, rows): (&'static str, usize, usize)) -> Self {
        let threads = if kernel.contains("_pairs_") { 64 } else { 32 };
        Self { kernel, groups, threads, rows }
    }
}

/// The columns the long kernels for a head dimension are made for: of queries and keys, and of values. Narrow values
/// take a kernel of their own where it saves most, SAM-2's memories (256 and 64); elsewhere they are padded as much as
/// keys.
pub(super) fn long_columns(dims: Dims) -> [usize; 2] {
    match columns(dims.dim) {
        MAX_DIM if dims.v_dim <= NARROW => [MAX_DIM, NARROW],
        columns => [columns; 2],
    }
}

/// The long forward kernel of a head dimension. 32 rows a warp, so that what is read from shared memory serves two
/// products, unless their results alone would fill the registers.
pub(super) fn long_fwd(dims: Dims) -> Long {
    Long::new(match long_columns(dims) {
        [MAX_DIM, NARROW] => ("attention_fwd_long_4x32_hd256v64", 4, 32),
        [32, _] => ("attention_fwd_long_4x32_hd32", 4, 32),
        [64, _] => ("attention_fwd_long_4x32_hd64", 4, 32),
        [80, _] => ("attention_fwd_long_4x32_hd80", 4, 32),
        [96, _] => ("attention_fwd_long_4x32_hd96", 4, 32),
        [128, _] => ("attention_fwd_long_8x16_hd128", 8, 16),
        _ => ("attention_fwd_long_8x16_hd256", 8, 16),
    })
}

/// The long kernels for the gradients by q, and by k and v, which hold twice the results; chosen as [`long_fwd`]. Six
/// warps of up to 168 registers at 80 columns: two blocks, and thus twelve warps, fit on a multiprocessor. At 256 columns dk
/// and dv are in the registers of two warps, but for narrow values, which leave room for both in those of one.
pub(super) fn long_bwd(dims: Dims) -> (Long, Long) {
    let (q, kv) = match long_columns(dims) {
        [MAX_DIM, NARROW] => {
            (("attention_bwd_long_q_8x16_hd256v64", 8, 16), ("attention_bwd_long_kv_8x16_hd256v64", 8, 16))
        }
        [32, _] => (("attention_bwd_long_q_4x32_hd32", 4, 32), ("attention_bwd_long_kv_4x32_hd32", 4, 32)),
        [64, _] => (("attention_bwd_long_q_4x32_hd64", 4, 32), ("attention_bwd_long_kv_4x32_hd64", 4, 32)),
        [80, _] => (("attention_bwd_long_q_4x32_hd80", 4, 32), ("attention_bwd_long_kv_6x16_hd80", 6, 16)),
        [96, _] => (("attention_bwd_long_q_4x32_hd96", 4, 32), ("attention_bwd_long_kv_8x16_hd96", 8, 16)),
        [128, _] => (("attention_bwd_long_q_8x16_hd128", 8, 16), ("attention_bwd_long_kv_8x16_hd128", 8, 16)),
        _ => (("attention_bwd_long_q_4x16_hd256", 4, 16), ("attention_bwd_long_pairs_4x16_hd256", 4, 16)),
    };
    (Long::new(q), Long::new(kv))
}

/// Bytes of shared memory of a block of the long family: two stages of two operands; backward, room for twice a stage's
/// rows that stay, and two numbers for each query of a stage; at 256 columns of everything, P of four pairs of warps.
pub(super) fn long_shared(pass: Pass, dims: Dims) -> usize {
    let [columns, v_columns] = long_columns(dims);
    let halved = pass == Pass::Backward && v_columns > 128;
    let rows = if halved { LONG_STAGE / 2 } else { LONG_STAGE };
    let stage = 2 * rows * (columns + v_columns);
    match pass {
        Pass::Forward => 2 * stage,
        Pass::Backward => {
            2 * stage + 2 * 2 * rows * columns + 2 * rows * 8 + if halved { 4 * MMA_ROWS * rows * 4 } else { 0 }
        }
    }
}

/// Blocks of the longest sequence, of `most` rows, and one per sequence and head, for each of the [`parts`] of the
/// `streaming` rows that pass by. Blocks share their rows evenly: 257 are three times 96, not twice 128 and one.
pub(super) fn long_grid(pass: Pass, long: Long, dims: Dims, most: usize, streaming: usize) -> (u32, Launch) {
    let groups = most.div_ceil(long.rows);
    let blocks = groups.div_ceil(long.groups);
    let threads = long.threads * groups.div_ceil(blocks.max(1));
    let x = dims.seqs * dims.heads * blocks;
    let grid = [x as u32, parts(x * threads / 32, streaming) as u32, 1];
    (blocks as u32, Launch { grid, block: [threads as u32, 1, 1], shared: long_shared(pass, dims) as u32 })
}

/// Pairs of numbers of the queries of one head between the two long backward kernels: each sequence starts at an even
/// one, as `query_pairs` in attention_bwd_long.cuh lays them out.
pub(super) fn long_pairs(dims: Dims) -> usize {
    (dims.queries + dims.seqs).next_multiple_of(2)
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
        97..=128 => "attention_fwd_32x32_hd128",
        _ => "attention_fwd_16x16_hd256",
    };
    Tiles { kernel, tile: if dim <= 128 { 32 } else { 16 } }
}

/// The smallest kernels for the gradients by k and v, and by q. Beyond 64 columns four tiles of 32 rows exceed 48 KiB.
pub(super) fn bwd(dim: usize) -> (Tiles, Tiles) {
    let (kv, q, tile) = match dim {
        0..=32 => ("attention_bwd_kv_32x32_hd32", "attention_bwd_q_32x32_hd32", 32),
        33..=64 => ("attention_bwd_kv_32x32_hd64", "attention_bwd_q_32x32_hd64", 32),
        65..=96 => ("attention_bwd_kv_16x16_hd96", "attention_bwd_q_16x16_hd96", 16),
        97..=128 => ("attention_bwd_kv_16x16_hd128", "attention_bwd_q_16x16_hd128", 16),
        _ => ("attention_bwd_kv_8x8_hd256", "attention_bwd_q_8x8_hd256", 8),
    };
    (Tiles { kernel: kv, tile }, Tiles { kernel: q, tile })
}

/// Tiles of the longest sequence, of `most` rows, and one block per tile, sequence and head; shorter sequences leave
/// blocks idle.
pub(super) fn grid(tile: usize, Dims { heads, seqs, .. }: Dims, most: usize) -> Result<(u32, Launch)> {
    let tiles = most.div_ceil(tile);
    let Some(blocks) = seqs.checked_mul(tiles).filter(|&blocks| blocks <= i32::MAX as usize) else {
        let expected = format!("at most {} tiles of {tile} tokens over all sequences", i32::MAX);
        return Err(Error::value(OP, "max_seqlen", most, expected));
    };
    let launch = Launch { grid: [blocks as u32, heads as u32, 1], block: [4 * tile as u32, 1, 1], shared: 0 };
    Ok((tiles as u32, launch))
}

/// A query and head per warp.
pub(super) fn per_query(dims: Dims) -> Launch {
    let grid = [(dims.queries as u32).div_ceil(ROW_WARPS), dims.heads as u32, 1];
    Launch { grid, block: [ROW_WARPS * 32, 1, 1], shared: 0 }
}

/// A thread per group of four elements of a gradient.
pub(super) fn sum_grid(elements: usize) -> Launch {
    let grid = [(elements / 4).div_ceil(SUM_THREADS as usize) as u32, 1, 1];
    Launch { grid, block: [SUM_THREADS, 1, 1], shared: 0 }
}
