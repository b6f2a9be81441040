//! Which kernels run on what grid: pure functions, tested without a device.

use super::super::Dims;
use super::super::launch::{
    self, Family, Pass, columns, family, long_bwd, long_fwd, long_grid, long_pairs, short_bwd, short_fwd, short_grid,
    short_shared,
};
use crate::DType;

#[test]
fn kernels_hold_every_head_dimension() {
    for dim in 1..=128 {
        let (q, kv) = long_bwd(dim);
        for long in [long_fwd(dim), q, kv] {
            let tile = format!("_{}x{}_hd{}", long.warps, long.rows, columns(dim));
            assert!(long.kernel.ends_with(&tile) && dim <= columns(dim), "{long:?} for {dim}");
        }
        for short in [short_fwd(dim), short_bwd(dim).0] {
            assert!(short.ends_with(&format!("_hd{}", columns(dim))), "{short} for {dim}");
        }
        let (kv, q) = launch::bwd(dim);
        assert_eq!(kv.tile, q.tile);
        for tiles in [launch::fwd(dim), kv, q] {
            let columns: usize = tiles.kernel.rsplit_once("_hd").unwrap().1.parse().unwrap();
            assert!(dim <= columns && dim > columns - 32, "{tiles:?} for {dim}");
            assert!(tiles.kernel.contains(&format!("_{0}x{0}_", tiles.tile)), "{tiles:?}");
        }
        // Tiles of padded rows as in attention.cuh, in bytes: static shared memory ends at 48 KiB.
        let columns = dim.next_multiple_of(32);
        let tile = |rows: usize, columns: usize| 4 * rows * (columns + 4);
        let f = launch::fwd(dim).tile;
        assert!(2 * tile(f, columns) + tile(f, f) <= 48 << 10);
        assert!(4 * tile(kv.tile, columns) + 2 * tile(kv.tile, kv.tile) + 8 * kv.tile <= 48 << 10);
    }
}

/// Bytes of shared memory per block of sm_90, sm_80 and sm_86.
const SHARED: [usize; 3] = [232_448, 166_912, 101_376];

#[test]
fn sequences_of_16_bit_types_go_to_tensor_cores() {
    let dims = |n, dim| Dims { tokens: 64 * n, heads: 12, dim, seqs: 64, max_seqlen: n };
    let both =
        |dtype, scale, dims, shared| [Pass::Forward, Pass::Backward].map(|p| family(p, dtype, scale, dims, shared));
    for dtype in [DType::BF16, DType::F16] {
        for (n, dim) in [(49, 32), (50, 64), (64, 56), (65, 80), (64, 96), (80, 128)] {
            for shared in SHARED {
                assert_eq!(both(dtype, 0.1, dims(n, dim), shared), [Family::Short; 2], "{n} x {dim}, {shared}");
            }
        }
        for (n, dim) in [(197, 64), (257, 64), (196, 96), (256, 72)] {
            let families = both(dtype, 0.1, dims(n, dim), SHARED[0]);
            assert_eq!(families, [Family::Short, Family::Long], "{n} x {dim}");
        }
        for (n, dim) in [(729, 72), (1370, 64), (4096, 96), (4096, 128), (2048, 32)] {
            for shared in SHARED {
                assert_eq!(both(dtype, 0.1, dims(n, dim), shared), [Family::Long; 2], "{n} x {dim}, {shared}");
            }
        }
    }
    let tiled = [
        both(DType::F32, 0.1, dims(50, 64), SHARED[0]),
        both(DType::BF16, 0.1, dims(50, 63), SHARED[0]), // rows are not whole 16-byte pieces
        both(DType::BF16, -0.1, dims(50, 64), SHARED[0]),
        both(DType::BF16, f32::NAN, dims(50, 64), SHARED[0]),
        both(DType::BF16, 0.1, dims(50, 64), 0),
    ];
    assert_eq!(tiled, [[Family::Tiled; 2]; 5]);
}

#[test]
fn short_launches_cover_every_sequence() {
    for (n, dim) in (1..=300).flat_map(|n| [8, 32, 56, 64, 72, 96, 128].map(|dim| (n, dim))) {
        let dims = Dims { tokens: 7 * n, heads: 3, dim, seqs: 7, max_seqlen: n };
        for pass in [Pass::Forward, Pass::Backward] {
            if family(pass, DType::BF16, 1.0, dims, SHARED[0]) != Family::Short {
                continue;
            }
            let (tiles, launch) = short_grid(pass, dims);
            let warps = launch.block[0] as usize / 32;
            assert!(tiles as usize * 16 >= n && (tiles as usize - 1) * 16 < n);
            assert_eq!((launch.grid, launch.block[0] % 32), ([21, 1, 1], 0));
            assert_eq!(launch.shared as usize, short_shared(pass, dims));
            assert!((1..=18).contains(&warps) && (pass == Pass::Forward || warps == tiles as usize));
            assert!(pass == Pass::Forward || warps <= short_bwd(dim).1);
        }
    }
}

#[test]
fn long_launches_cover_every_sequence() {
    for (n, dim) in (1..=300).chain([729, 1024, 1370, 4096]).flat_map(|n| [16, 64, 72, 96, 128].map(|dim| (n, dim))) {
        let dims = Dims { tokens: 7 * n, heads: 3, dim, seqs: 7, max_seqlen: n };
        let (q, kv) = long_bwd(dim);
        for (pass, long) in [(Pass::Forward, long_fwd(dim)), (Pass::Backward, q), (Pass::Backward, kv)] {
            let (blocks, launch) = long_grid(pass, long, dims);
            let warps = launch.block[0] as usize / 32;
            let rows = warps * long.rows;
            assert!((1..=long.warps).contains(&warps) && launch.block[0] % 32 == 0);
            assert!(blocks as usize * rows >= n && (blocks as usize - 1) * rows < n, "{n}: {blocks} of {rows}");
            assert!(blocks as usize * rows - n < long.rows * blocks as usize, "each block has at most one idle warp");
            assert_eq!(launch.grid, [21 * blocks, 1, 1]);
            // 24 tiles of 16 rows hold two stages of 64 rows of two operands and 128 rows that stay.
            assert!(rows <= 128 && launch.shared as usize <= SHARED[2]);
        }
    }
}

#[test]
fn long_pairs_hold_every_query() {
    // As `query_pairs` in attention_bwd_long.cuh.
    for lengths in [&[0, 3, 0, 0, 5, 1][..], &[7], &[1, 1, 1], &[]] {
        let (mut start, mut free) = (0, 0);
        let dims = Dims { tokens: lengths.iter().sum(), heads: 1, dim: 8, seqs: lengths.len(), max_seqlen: 7 };
        for (i, n) in lengths.iter().enumerate() {
            let at = (start + i).next_multiple_of(2);
            assert!(at >= free);
            (start, free) = (start + n, at + n);
        }
        assert!(free.next_multiple_of(2) <= long_pairs(dims));
    }
}

#[test]
fn grids_cover_every_sequence() {
    for (tile, max_seqlen, tokens, seqs) in [(32, 1, 9, 9), (16, 50, 500, 10), (32, 257, 257, 1), (16, 900, 33, 4)] {
        let dims = Dims { tokens, heads: 3, dim: 64, seqs, max_seqlen };
        let (tiles, grid) = launch::grid(tile, dims).unwrap();
        assert!(tiles as usize * tile >= max_seqlen.min(tokens));
        assert_eq!(grid.grid, [tiles * seqs as u32, 3, 1]);
        assert_eq!(grid.block, [4 * tile as u32, 1, 1]);
    }
    let dims = Dims { tokens: 1 << 30, heads: 1, dim: 64, seqs: 1 << 20, max_seqlen: usize::MAX };
    assert!(launch::grid(32, dims).unwrap_err().to_string().starts_with("attention: `max_seqlen` has value"));
}
