//! Values of fewer columns than queries and keys.

use proptest::prelude::*;

use super::super::choice::{Family, Pass, family, long_bwd, long_fwd, long_grid, long_shared};
use super::super::operands::Dims;
use super::super::{KeyValues, Operands, Packing, cross_attention, narrow_case};
use super::{offsets, places, square};
use crate::random::{normal, stream};
use crate::testing::{check, check_dtype, check_gradients, scheduled, with_shared_limit};
use crate::{DType, Device, Tape, Tensor};

/// Queries and keys of each sequence, heads, columns of queries and keys, and of values.
type Shape = (&'static [usize], &'static [usize], usize, usize, usize);

fn dims((queries, keys, heads, dim, v_dim): Shape) -> Dims {
    let (n, m) = (queries.iter().sum(), keys.iter().sum());
    let [max_q, max_k] = [queries, keys].map(|lengths| lengths.iter().copied().max().unwrap_or(0));
    Dims { keys: m, v_dim, max_k, ..square(n, heads, dim, queries.len(), max_q) }
}

/// Shared memory that the long kernels need.
fn enough(dims: Dims) -> usize {
    long_shared(Pass::Forward, dims).max(long_shared(Pass::Backward, dims))
}

#[test]
fn matches_the_oracle_in_every_type() {
    // Every width of the tiled kernels, with and without vector loads; values of one column, of all but one, and of
    // widths at the edges of 4 and 32; sequences that are empty on one or both sides.
    let shapes: [Shape; 7] = [
        (&[2], &[5], 2, 8, 1),
        (&[17, 0, 3], &[2, 4, 33], 1, 16, 15),
        (&[5, 6, 0], &[0, 3, 0], 3, 24, 8),
        (&[9], &[7], 1, 50, 33),
        (&[2, 1], &[18, 1], 1, 96, 32),
        (&[1, 4], &[9, 0], 2, 128, 20),
        (&[3, 0, 9], &[17, 2, 0], 2, 256, 64),
    ];
    for (queries, keys, heads, dim, v_dim) in shapes {
        check(&narrow_case(queries, keys, heads, dim, v_dim)).unwrap();
    }
    for (queries, keys) in [(&[0, 0][..], &[3, 1][..]), (&[2, 1], &[0, 0]), (&[], &[])] {
        check(&narrow_case(queries, keys, 2, 8, 3)).unwrap();
    }
}

/// Shapes that the long kernels take, and which of three passes (forward, dq, dk and dv) run in parts.
const LONG: [(Shape, [bool; 3], DType); 9] = [
    ((&[35, 1, 0, 2], &[66, 0, 5, 33], 1, 256, 64), [false; 3], DType::BF16),
    ((&[131], &[130], 2, 256, 40), [false; 3], DType::F16),
    ((&[19], &[70], 1, 136, 8), [false; 3], DType::BF16),
    ((&[2], &[777], 1, 256, 64), [true, true, false], DType::F16),
    ((&[515], &[5], 1, 256, 64), [false, false, true], DType::BF16),
    ((&[67], &[97], 2, 64, 24), [false; 3], DType::F16), // padded as keys are
    ((&[70, 3], &[97, 0], 2, 256, 72), [false; 3], DType::BF16), // likewise, by pairs of warps
    ((&[2], &[777], 1, 256, 128), [true, true, false], DType::F16),
    ((&[515], &[5], 1, 256, 128), [false, false, true], DType::BF16),
];

#[test]
fn long_tensor_cores_match_the_oracle() {
    for (shape, in_parts, dtype) in LONG {
        let dims = dims(shape);
        for pass in [Pass::Forward, Pass::Backward] {
            assert_eq!(family(pass, dtype, 0.1, dims, enough(dims)), Family::Long, "{shape:?}");
        }
        let (q, kv) = long_bwd(dims);
        let passes = [
            long_grid(Pass::Forward, long_fwd(dims), dims, dims.max_q, dims.max_k),
            long_grid(Pass::Backward, q, dims, dims.max_q, dims.max_k),
            long_grid(Pass::Backward, kv, dims, dims.max_k, dims.max_q),
        ];
        assert_eq!(passes.map(|(_, launch)| launch.grid[1] > 1), in_parts, "{shape:?}");
        let (queries, keys, heads, dim, v_dim) = shape;
        let case = narrow_case(queries, keys, heads, dim, v_dim);
        with_shared_limit(enough(dims), || check_dtype(&case, dtype)).unwrap();
    }
}

#[test]
fn gradients_match_finite_differences() {
    check_gradients(&narrow_case(&[5], &[3], 1, 4, 1)).unwrap();
    check_gradients(&narrow_case(&[2, 0, 7, 1], &[0, 3, 9, 4], 2, 8, 5)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3))]
    #[test]
    fn matches_the_oracle(
        lengths in prop::collection::vec((0usize..20, 2usize..20), 1..3), heads in 1usize..3, dim in 1usize..257,
        share in 0.0..1.0f64
    ) {
        let (queries, keys): (Vec<usize>, Vec<usize>) = lengths.into_iter().unzip();
        let v_dim = 1 + (share * dim as f64) as usize;
        check(&narrow_case(&queries, &keys, heads, dim, v_dim.min(dim))).unwrap();
    }
}

/// Normal values `[rows, heads, dim]` in a storage type on a device.
fn random(seed: u64, [rows, heads, dim]: [usize; 3], dtype: DType, device: &Device) -> Tensor {
    let values = normal(&mut stream(seed, 0), rows * heads * dim);
    let t = Tensor::from_slice(&values, [rows, heads, dim], &Device::Cpu).unwrap();
    t.cast(dtype).unwrap().to_device(device).unwrap()
}

/// Output and gradients by q, k and v, `do` being the output.
fn run([q, k, v]: &[Tensor; 3], queries: &[usize], keys: &[usize]) -> Vec<Vec<f64>> {
    let (cu_q, cu_k) = (offsets(queries, q.device()), offsets(keys, q.device()));
    let pack = |cu_seqlens| Packing { cu_seqlens, max_seqlen: usize::MAX };
    let (x, of_q, of_k) = (Operands::Apart(q, k, v), pack(&cu_q), pack(&cu_k));
    let (o, lse) = super::super::forward(x, of_q, of_k, 0.2).unwrap();
    let gradients = super::super::backward(&o, x, &o, &lse, of_q, of_k, 0.2).unwrap();
    [o].into_iter().chain(gradients).map(|t| t.to_f64().unwrap()).collect()
}

#[test]
fn two_runs_give_the_same_bits() {
    let (queries, keys) = ([2, 31], [530, 9]);
    for device in places() {
        for dtype in [DType::F32, DType::BF16] {
            let (heads, dim, v_dim) = (1, 256, 64);
            let x =
                [(33, dim), (539, dim), (539, v_dim)].map(|(rows, dim)| random(9, [rows, heads, dim], dtype, &device));
            let runs = [0, 1].map(|schedule| scheduled(schedule, || run(&x, &queries, &keys)));
            assert_eq!(runs[0], runs[1], "{dtype} on {device}");
        }
    }
}

#[test]
fn narrow_values_are_wide_ones_with_columns_of_zeros() {
    // 2050 keys are two chunks of the host.
    let (queries, keys, heads, dim, v_dim) = ([3, 0, 2], [2050, 4, 0], 2, 12, 5);
    let host = |seed, rows, dim| random(seed, [rows, heads, dim], DType::F64, &Device::Cpu);
    let (q, k, v) = (host(1, 5, dim), host(2, 2054, dim), host(3, 2054, v_dim));
    let pad = |values: &[f64]| -> Vec<f64> {
        let rows = values.chunks_exact(v_dim);
        rows.flat_map(|row| row.iter().copied().chain([0.0; 7])).collect()
    };
    let padded = Tensor::from_slice(&pad(&v.to_f64().unwrap()), [2054, heads, dim], &Device::Cpu).unwrap();
    let expected = run(&[q.clone(), k.clone(), padded], &queries, &keys);
    let mut got = run(&[q, k, v], &queries, &keys);
    for wide in [0, 3] {
        got[wide] = pad(&got[wide]);
    }
    for (got, expected) in got.iter().zip(&expected) {
        assert_eq!(got.len(), expected.len());
        assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-13));
    }
}

#[test]
fn saves_values_and_result_as_narrow_as_they_are() {
    let tape = Tape::new();
    let leaf = |shape: &[usize]| tape.leaf(Tensor::zeros(shape, DType::BF16, &Device::Cpu).unwrap());
    let (q, k, v) = (leaf(&[3, 2, 8]), leaf(&[22, 2, 8]), leaf(&[22, 2, 3]));
    let (cu_q, cu_k) = (offsets(&[1, 2], &Device::Cpu), offsets(&[3, 19], &Device::Cpu));
    let pack = |cu_seqlens, max_seqlen| Packing { cu_seqlens, max_seqlen };
    let o = cross_attention(&tape, &q, KeyValues::Apart(&k, &v), pack(&cu_q, 2), pack(&cu_k, 19), 1.0).unwrap();
    assert_eq!(**o.value().shape(), [3, 6]);
    let expected = 2 * (3 + 22) * 2 * (8 + 3) + 4 * 2 * 3 + 8 * 3;
    assert_eq!(tape.saved().last(), Some(&("attention", expected)));
}

#[test]
fn cases_count_both_widths() {
    let case = narrow_case(&[5, 0], &[7, 2], 2, 16, 6);
    assert_eq!((case.id.as_str(), case.flops), ("(1x5+1x0/1x7+1x2)x2x16v6", 2 * 35 * 2 * (16 + 6)));
    assert_eq!((case.bytes)(DType::BF16), 2 * (5 + 9) * 2 * (16 + 6) + 4 * 2 * 5);
}
