//! Which kernels run on what grid: pure functions, tested without a device.

use super::super::choice::{
    self, Family, Pass, columns, family, long_bwd, long_columns, long_fwd, long_grid, long_pairs, long_shared, parts,
    short_bwd, short_fwd, short_grid, short_shared,
};
use super::super::operands::Dims;
use super::square;
use crate::DType;

#[test]
fn kernels_hold_every_head_dimension() {
    for dim in 1..=256 {
        let dims = square(9, 1, dim, 1, 9);
        let (q, kv) = long_bwd(dims);
        for long in [long_fwd(dims), q, kv] {
            let tile = format!("_{}x{}_hd{}", long.groups, long.rows, columns(dim));
            assert!(long.kernel.ends_with(&tile) && dim <= columns(dim), "{long:?} for {dim}");
        }
        for short in [short_fwd(dim), short_bwd(dim).0].into_iter().filter(|_| dim <= 128) {
            assert!(short.ends_with(&format!("_hd{}", columns(dim))), "{short} for {dim}");
        }
        let (kv, q) = choice::bwd(dim);
        assert_eq!(kv.tile, q.tile);
        for tiles in [choice::fwd(dim), kv, q] {
            let columns: usize = tiles.kernel.rsplit_once("_hd").unwrap().1.parse().unwrap();
            assert!(dim <= columns && dim > if columns == 256 { 128 } else { columns - 32 }, "{tiles:?} for {dim}");
            assert!(tiles.kernel.contains(&format!("_{0}x{0}_", tiles.tile)), "{tiles:?}");
        }
        // Tiles of padded rows as in attention.cuh, in bytes: static shared memory ends at 48 KiB.
        let columns = if dim > 128 { 256 } else { dim.next_multiple_of(32) };
        let tile = |rows: usize, columns: usize| 4 * rows * (columns + 4);
        let f = choice::fwd(dim).tile;
        assert!(2 * tile(f, columns) + tile(f, f) <= 48 << 10);
        assert!(4 * tile(kv.tile, columns) + 2 * tile(kv.tile, kv.tile) + 8 * kv.tile <= 48 << 10);
    }
}

/// Bytes of shared memory per block of sm_90, sm_80 and sm_86.
const SHARED: [usize; 3] = [232_448, 166_912, 101_376];

#[test]
fn sequences_of_16_bit_types_go_to_tensor_cores() {
    let dims = |n, dim| square(64 * n, 12, dim, 64, n);
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
        for n in [17, 50, 4096] {
            let families = SHARED.map(|shared| both(dtype, 0.1, dims(n, 256), shared));
            assert_eq!(families, [[Family::Long; 2], [Family::Long; 2], [Family::Tiled; 2]], "{n} x 256");
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
        let dims = square(7 * n, 3, dim, 7, n);
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
fn sides_of_different_lengths_have_their_own_tiles() {
    // SigLIP's probe, windows with pooled queries, SAM-2's memories, its few tokens and the picture.
    let dims = |seqs: usize, n, m, heads, dim| Dims {
        queries: seqs * n,
        keys: seqs * m,
        heads,
        dim,
        v_dim: dim,
        seqs,
        max_q: n,
        max_k: m,
    };
    let both = |dims| [Pass::Forward, Pass::Backward].map(|pass| family(pass, DType::BF16, 0.1, dims, SHARED[1]));
    assert_eq!(both(dims(256, 1, 196, 12, 64)), [Family::Short, Family::Long]);
    assert_eq!(both(dims(1024, 16, 64, 2, 56)), [Family::Short; 2]);
    assert_eq!(both(dims(1, 4096, 28736, 1, 256)), [Family::Long; 2]);
    assert_eq!(both(dims(1, 8, 4096, 8, 16)), [Family::Long; 2]);
    assert_eq!(both(dims(1, 4096, 8, 8, 16)), [Family::Long; 2]);

    let windows = dims(1024, 16, 64, 2, 56);
    assert_eq!(short_shared(Pass::Forward, windows), (16 + 2 * 64) * 128);
    assert_eq!(short_grid(Pass::Forward, windows).0, 1);
    assert_eq!(short_grid(Pass::Backward, windows).0, 4);
}

#[test]
fn few_warps_share_what_streams() {
    let cases = [(0, 0), (1, 511), (1, 512), (1, 28736), (528, 28736), (529, 28736), (256, 28736), (3, 400_000)];
    assert_eq!(cases.map(|(warps, rows)| parts(warps, rows)), [1, 1, 2, 112, 2, 1, 4, 352]);
    for (n, m, heads, dim) in [(1, 28736, 1, 256), (4096, 28736, 1, 256), (1, 700, 2, 64), (4096, 8, 8, 16)] {
        let dims = Dims { queries: n, keys: m, heads, dim, v_dim: dim, seqs: 1, max_q: n, max_k: m };
        let (q, kv) = long_bwd(dims);
        let passes = [(Pass::Forward, long_fwd(dims), n, m), (Pass::Backward, q, n, m), (Pass::Backward, kv, m, n)];
        for (pass, long, rows, streaming) in passes {
            let (blocks, launch) = long_grid(pass, long, dims, rows, streaming);
            let [x, y, z] = launch.grid.map(|n| n as usize);
            assert_eq!((x, z), (heads * blocks as usize, 1));
            let warps = x * launch.block[0] as usize / 32;
            assert!(warps * y <= 1056.max(warps) && (y == 1 || streaming / y >= 256), "{n} and {m}: {x} x {y}");
            assert!(y > 1 || warps > 528 || streaming < 512, "{n} and {m}: idle multiprocessors");
        }
    }
}

#[test]
fn long_launches_cover_every_sequence() {
    for (n, dim) in
        (1..=300).chain([729, 1024, 1370, 4096]).flat_map(|n| [16, 64, 72, 96, 128, 256].map(|dim| (n, dim)))
    {
        let dims = square(7 * n, 3, dim, 7, n);
        let (q, kv) = long_bwd(dims);
        for (pass, long) in [(Pass::Forward, long_fwd(dims)), (Pass::Backward, q), (Pass::Backward, kv)] {
            let (blocks, launch) = long_grid(pass, long, dims, n, n);
            let groups = launch.block[0] as usize / long.threads;
            let rows = groups * long.rows;
            assert!((1..=long.groups).contains(&groups) && (launch.block[0] as usize).is_multiple_of(long.threads));
            assert!(blocks as usize * rows >= n && (blocks as usize - 1) * rows < n, "{n}: {blocks} of {rows}");
            assert!(blocks as usize * rows - n < long.rows * blocks as usize, "each block has at most one idle warp");
            assert_eq!(launch.grid[0], 21 * blocks);
            assert_eq!(launch.shared as usize, long_shared(pass, dims));
            // Three stages hold two of those that stream and as many rows that stay.
            let stay = if dim == 256 && pass == Pass::Backward { 64 } else { 128 };
            assert!(rows <= stay && launch.shared as usize <= SHARED[if dim == 256 { 1 } else { 2 }]);
        }
    }
}

#[test]
fn narrow_values_of_wide_keys_have_kernels_of_their_own() {
    let dims = |dim, v_dim| Dims { v_dim, ..square(4096, 1, dim, 1, 4096) };
    for (dim, v_dim, expected) in [
        (256, 64, [256, 64]),
        (256, 8, [256, 64]),
        (136, 64, [256, 64]),
        (256, 72, [256, 256]),
        (128, 64, [128, 128]),
        (64, 8, [64, 64]),
    ] {
        let dims = dims(dim, v_dim);
        assert_eq!(long_columns(dims), expected);
        for pass in [Pass::Forward, Pass::Backward] {
            assert_eq!(family(pass, DType::BF16, 0.1, dims, SHARED[1]), Family::Long, "{dim} and {v_dim}");
        }
        let (q, kv) = long_bwd(dims);
        for (pass, long) in [(Pass::Forward, long_fwd(dims)), (Pass::Backward, q), (Pass::Backward, kv)] {
            assert_eq!(long.kernel.ends_with("_hd256v64"), expected == [256, 64], "{long:?}");
            assert!(long.kernel.contains(&format!("_{}x{}_", long.groups, long.rows)), "{long:?}");
            let (blocks, launch) = long_grid(pass, long, dims, 4096, 4096);
            assert!(blocks as usize * launch.block[0] as usize / long.threads * long.rows >= 4096);
        }
    }
    // Two stages of 64 rows, through both of which the queries come; backward, beside them what stays and the pairs.
    let (stages, stay) = (2 * 64 * 2 * (256 + 64), 128 * 2 * 256);
    let bytes = [Pass::Forward, Pass::Backward].map(|pass| long_shared(pass, dims(256, 64)));
    assert!(bytes == [stages, stages + stay + 2 * 64 * 8] && stages >= 128 * 2 * 256);
    // What the tensor cores and the short family do not take.
    assert_eq!(family(Pass::Forward, DType::BF16, 0.1, dims(256, 63), SHARED[0]), Family::Tiled);
    let short = Dims { v_dim: 32, ..square(50, 1, 64, 1, 50) };
    assert_eq!(family(Pass::Forward, DType::BF16, 0.1, short, SHARED[0]), Family::Long);
}

#[test]
fn long_pairs_hold_every_query() {
    // As `query_pairs` in attention_bwd_long.cuh.
    for lengths in [&[0, 3, 0, 0, 5, 1][..], &[7], &[1, 1, 1], &[]] {
        let (mut start, mut free) = (0, 0);
        let dims = square(lengths.iter().sum(), 1, 8, lengths.len(), 7);
        for (i, n) in lengths.iter().enumerate() {
            let at = start + i + (start + i) % 2; // the first query and its gap
            assert!(at >= free);
            (start, free) = (start + n, at + n);
        }
        assert!(free.next_multiple_of(2) <= long_pairs(dims));
    }
}

#[test]
fn grids_cover_every_sequence() {
    for (tile, most, seqs) in [(32, 1, 9), (16, 50, 10), (32, 257, 1), (8, 33, 4)] {
        let (tiles, grid) = choice::grid(tile, square(seqs * most, 3, 64, seqs, most), most).unwrap();
        assert!(tiles as usize * tile >= most);
        assert_eq!(grid.grid, [tiles * seqs as u32, 3, 1]);
        assert_eq!(grid.block, [4 * tile as u32, 1, 1]);
    }
    let dims = square(1 << 30, 1, 64, 1 << 20, usize::MAX);
    assert_eq!((choice::most_q(dims), choice::most_k(dims)), (1 << 30, 1 << 30));
    let error = choice::grid(32, dims, choice::most_q(dims)).unwrap_err();
    assert!(error.to_string().starts_with("attention: `max_seqlen` has value"));
}
