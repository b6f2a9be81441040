//! What the emulated language and its intrinsics compute, against Rust.

use bytemuck::{Pod, Zeroable};
use half::{bf16, f16};

use super::*;

/// The same numbers in every run.
fn numbers(count: usize) -> Vec<u32> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 32) as u32
    };
    (0..count).map(|_| next()).collect()
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Convert {
    x: u64,
    bf: u64,
    half: u64,
    back_bf: u64,
    back_half: u64,
    count: u32,
    pad: u32,
}

#[test]
fn conversions_round_as_the_half_crate() {
    // Random bit patterns, every 16-bit value, its neighbours and the midpoints between values.
    let mut bits = numbers(20_000);
    for high in 0..=u16::MAX {
        let (as_bf, as_half) = ((high as u32) << 16, f16::from_bits(high).to_f32().to_bits());
        bits.extend([as_bf, as_bf | 0x8000, as_bf | 0x7fff, as_bf | 0x8001, as_half]);
        bits.extend([0x0fff, 0x1000, 0x1001].map(|low| as_half.wrapping_add(low)));
    }
    let values: Vec<f32> = bits.iter().map(|b| f32::from_bits(*b)).collect();
    let count = values.len();
    let x = Buffer::of("x", &values);
    let [bf, half] = ["bf", "half"].map(|name| Buffer::fresh(name, 2 * count));
    let [back_bf, back_half] = ["back_bf", "back_half"].map(|name| Buffer::fresh(name, 4 * count));
    let args = Convert {
        x: x.ptr(),
        bf: bf.ptr(),
        half: half.ptr(),
        back_bf: back_bf.ptr(),
        back_half: back_half.ptr(),
        count: count as u32,
        pad: 0,
    };
    launch("probe_convert", Launch::linear((count as u32).div_ceil(256), 256), &args).unwrap();
    let (bf, half, back_bf, back_half) =
        (bf.get::<u16>(), half.get::<u16>(), back_bf.get::<f32>(), back_half.get::<f32>());
    for (i, v) in values.iter().enumerate() {
        if v.is_nan() {
            // As on the GPU every NaN becomes the one without sign and payload.
            assert_eq!((bf[i], half[i]), (0x7fff, 0x7fff), "{v}");
            assert!(back_bf[i].is_nan() && back_half[i].is_nan());
            continue;
        }
        assert_eq!(bf[i], bf16::from_f32(*v).to_bits(), "{v:e} as bf16");
        assert_eq!(half[i], f16::from_f32(*v).to_bits(), "{v:e} as f16");
        assert_eq!(back_bf[i].to_bits(), bf16::from_f32(*v).to_f32().to_bits());
        assert_eq!(back_half[i].to_bits(), f16::from_f32(*v).to_f32().to_bits());
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Words {
    x: u64,
    y: u64,
    count: u32,
    pad: u32,
}

fn rows_of(kernel: &str, x: &[u32], rows: usize) -> Vec<Vec<u32>> {
    let threads = x.len();
    let mut first: Option<Vec<u32>> = None;
    in_every_order(|options| {
        let (input, y) = (Buffer::of("x", x), Buffer::fresh("y", 4 * rows * threads));
        let args = Words { x: input.ptr(), y: y.ptr(), count: threads as u32, pad: 0 };
        launch(kernel, Launch::linear(1, threads as u32), &args).unwrap();
        let got = y.get();
        assert_eq!(first.get_or_insert_with(|| got.clone()), &got, "{options:?}");
    });
    first.unwrap().chunks(threads).map(<[u32]>::to_vec).collect()
}

#[test]
fn warp_operations() {
    let x: Vec<u32> = numbers(64).iter().map(|n| n & 0x8000_03ff).collect();
    let rows = rows_of("probe_warp_ops", &x, 25);
    for t in 0..64 {
        let (warp, lane) = (&x[t / 32 * 32..][..32], t % 32);
        let segment = |width: usize| (lane / width * width, lane / width * width + width - 1);
        let signed = warp.iter().map(|v| *v as i32);
        let all = |f: fn(u32, u32) -> u32| warp.iter().copied().reduce(f).unwrap();
        let odd = |v: &u32| v & 1 == 1;
        let ballot = |p: &dyn Fn(&u32) -> bool| (0..32).filter(|i| p(&warp[*i])).map(|i| 1u32 << i).sum::<u32>();
        let first8 = segment(8).0;
        let expected = [
            warp[5],
            warp[first8 + (lane + 3) % 8],
            warp[if lane >= 3 { lane - 3 } else { lane }],
            warp[if lane - first8 >= 3 { lane - 3 } else { lane }],
            warp[if lane + 5 < 32 { lane + 5 } else { lane }],
            warp[if lane + 5 <= segment(16).1 { lane + 5 } else { lane }],
            warp[lane ^ 9],
            warp[if (lane ^ 9) <= segment(8).1 { lane ^ 9 } else { lane }],
            ballot(&odd),
            1,
            u32::from(warp.iter().all(|v| *v < 1000)),
            all(u32::wrapping_add),
            all(u32::min),
            all(u32::max),
            signed.clone().min().unwrap() as u32,
            signed.max().unwrap() as u32,
            all(|a, b| a & b),
            all(|a, b| a | b),
            all(|a, b| a ^ b),
            ballot(&|v| v & 7 == warp[lane] & 7),
            if lane < 8 { u32::MAX } else { 0 },
            x.iter().filter(|v| odd(v)).count() as u32,
            u32::from(x.contains(&77)),
            u32::from(!x.contains(&77)),
            warp[lane ^ 1],
        ];
        for (row, expected) in expected.iter().enumerate() {
            assert_eq!(rows[row][t], *expected, "result {row} of thread {t}");
        }
    }
}

#[test]
fn integer_intrinsics() {
    let mut x = numbers(128);
    x[..8].copy_from_slice(&[0, 1, u32::MAX, 0x8000_0000, 0x7fff_ffff, 2, 3, 0x00ff_00ff]);
    let rows = rows_of("probe_bits", &x, 17);
    for t in 0..x.len() {
        let (v, u) = (x[t], x[t ^ 1]);
        let pair = (u as u64) << 32 | v as u64;
        let byte = |i: u32| (pair >> (8 * i)) as u32 & 0xff;
        let quarter = v as i32 as f32 * 0.25;
        let expected = [
            v.count_ones(),
            v.leading_zeros(),
            if v == 0 { 0 } else { v.trailing_zeros() + 1 },
            v.reverse_bits(),
            ((v as u64 * u as u64) >> 32) as u32,
            (pair << 7 >> 32) as u32,
            (pair >> 7) as u32,
            byte(7) << 24 | byte(2) << 16 | byte(5) << 8 | byte(0),
            v,
            quarter.round_ties_even() as i32 as u32,
            quarter as i32 as u32,
            quarter.floor() as i32 as u32,
            quarter.ceil() as i32 as u32,
            (v as i32 as f32 * 16.0).round_ties_even() as i32 as u32,
            (v as i32 as f32 * 16.0).round_ties_even() as u32,
            v.min(u),
            (v as i32).max(u as i32) as u32,
        ];
        for (row, expected) in expected.iter().enumerate() {
            assert_eq!(rows[row][t], *expected, "result {row} of {v:#x}, {u:#x}");
        }
    }
}

/// The order of additions of `warp_sum`: x += shfl_xor(x, 16), 8, 4, 2, 1.
fn butterfly(x: &[f32], join: fn(f32, f32) -> f32) -> f32 {
    let mut x: Vec<f32> = x.to_vec();
    for step in [16, 8, 4, 2, 1] {
        x = (0..32).map(|i| join(x[i], x[i ^ step])).collect();
    }
    assert!(x.iter().all(|v| v.to_bits() == x[0].to_bits()));
    x[0]
}

fn over_block(x: &[f32], empty: f32, join: fn(f32, f32) -> f32) -> f32 {
    let mut part: Vec<f32> = x.chunks(32).map(|warp| butterfly(warp, join)).collect();
    part.resize(32, empty);
    butterfly(&part, join)
}

#[test]
fn reductions_and_arithmetic() {
    let x: Vec<f32> = numbers(256).iter().map(|n| (*n as f32 / 2f32.powi(31) - 1.0) * 3.0).collect();
    let (input, y) = (Buffer::of("x", &x), Buffer::fresh("y", 15 * 4 * 256));
    let args = Words { x: input.ptr(), y: y.ptr(), count: 256, pad: 0 };
    launch("probe_math", Launch::linear(2, 128), &args).unwrap();
    let y = y.get::<f32>();
    let add: fn(f32, f32) -> f32 = |a, b| a + b;
    for (t, v) in x.iter().enumerate() {
        let (warp, block) = (&x[t / 32 * 32..][..32], &x[t / 128 * 128..][..128]);
        let squares: Vec<f32> = block.iter().map(|v| v * v).collect();
        let exact = [
            (0, butterfly(warp, add)),
            (1, butterfly(warp, f32::max)),
            (2, over_block(block, 0.0, add)),
            (3, over_block(block, f32::NEG_INFINITY, f32::max)),
            (4, over_block(&squares, 0.0, add)),
            (7, v / 3.0),
            (8, v.clamp(0.0, 1.0)),
            (13, v * v + v),
            (14, v.mul_add(*v, *v)),
        ];
        for (row, expected) in exact {
            assert_eq!(y[256 * row + t].to_bits(), expected.to_bits(), "result {row} of {v}");
        }
        let (wide, shifted) = (*v as f64, (v.abs() + 1.0) as f64);
        let close = [
            (5, wide.exp()),
            (6, 1.0 / shifted.sqrt()),
            (9, libm::erf(wide)),
            (10, wide.tanh()),
            (11, wide.exp2()),
            (12, shifted.ln()),
        ];
        for (row, expected) in close {
            // libm's f32 functions are good to two units in the last place.
            let error = (y[256 * row + t] as f64 - expected).abs();
            assert!(error <= 2.0 * f32::EPSILON as f64 * expected.abs().max(1e-3), "result {row} of {v}: {error:e}");
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Atomics {
    x: u64,
    n: u64,
    f: u64,
    l: u64,
    h: u64,
}

#[test]
fn atomics() {
    let x = numbers(256);
    let total = x.iter().fold(0u32, |a, v| a.wrapping_add(*v));
    let signed = x.iter().map(|v| *v as i32);
    in_every_order(|options| {
        let mut n = [0u32; 16];
        (n[2], n[6]) = (u32::MAX, u32::MAX);
        let (input, n) = (Buffer::of("x", &x), Buffer::of("n", &n));
        let (f, l, h) = (Buffer::of("f", &[0f32; 4]), Buffer::of("l", &[0u64; 2]), Buffer::of("h", &[0u16; 2]));
        let args = Atomics { x: input.ptr(), n: n.ptr(), f: f.ptr(), l: l.ptr(), h: h.ptr() };
        launch("probe_atomics", Launch::linear(4, 64), &args).unwrap();
        let n = n.get::<u32>();
        let expected = [
            total,
            total.wrapping_neg(),
            *x.iter().min().unwrap(),
            *x.iter().max().unwrap(),
            signed.clone().min().unwrap() as u32,
            signed.clone().max().unwrap() as u32,
            x.iter().fold(u32::MAX, |a, v| a & v),
            x.iter().fold(0, |a, v| a | v),
            x.iter().fold(0, |a, v| a ^ v),
            256 % 7,
            7 - 256 % 7, // down from 0: 6, 5, .. 0, 6, ..
            42,
            256 * 3,
        ];
        assert_eq!(n[..13], expected, "{options:?}");
        assert_eq!(f.get::<f32>()[0], x.iter().map(|v| (v & 15) as f32).sum::<f32>());
        assert_eq!(l.get::<u64>()[0], x.iter().map(|v| *v as u64).sum::<u64>());
        let h = h.get::<u16>();
        assert_eq!(bf16::from_bits(h[0]).to_f32(), 128.0);
        assert_eq!(f16::from_bits(h[1]).to_f32(), 64.0);
    });
}

#[test]
fn grid_and_block_indices() {
    let (grid, block) = ([3u32, 2, 2], [5u32, 4, 2]);
    let blocks: u32 = grid.iter().product();
    let threads: u32 = block.iter().product();
    in_every_order(|_| {
        let y = Buffer::fresh("y", (blocks * threads * 12 * 4) as usize);
        launch("probe_indices", Launch { grid, block, shared: 0 }, &y.ptr()).unwrap();
        let place = |i: u32, n: [u32; 3]| [i % n[0], i / n[0] % n[1], i / n[0] / n[1]];
        for (i, got) in y.get::<u32>().chunks(12).enumerate() {
            let expected = [place(i as u32 / threads, grid), place(i as u32 % threads, block), grid, block].concat();
            assert_eq!(got, expected);
        }
    });
}
