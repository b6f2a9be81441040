//! Queries and keys of different sequences.

use proptest::prelude::*;

use super::super::choice::{Family, Pass, family, long_bwd, long_fwd, long_grid};
use super::super::operands::Dims;
use super::super::{KeyValues, Operands, Packing, cross_attention, cross_case};
use super::{little, offsets, places};
use crate::random::{normal, stream};
use crate::testing::{check, check_dtype, check_gradients, scheduled, with_shared_limit};
use crate::{DType, Device, Error, Tape, Tensor, Var};

/// Queries and keys of each sequence, heads, head dimension.
type Shape = (&'static [usize], &'static [usize], usize, usize);

fn dims(queries: &[usize], keys: &[usize], heads: usize, dim: usize) -> Dims {
    let most = |lengths: &[usize]| lengths.iter().copied().max().unwrap_or(0);
    Dims {
        queries: queries.iter().sum(),
        keys: keys.iter().sum(),
        heads,
        dim,
        v_dim: dim,
        seqs: queries.len(),
        max_q: most(queries),
        max_k: most(keys),
    }
}

#[test]
fn matches_the_oracle_in_every_type() {
    // Every kernel of the tiled family (f32), of the short one and of the long one at 256 (16-bit); tile edges on
    // either side, and sequences that are empty on one or both. Some sequence has two keys or more: with one, P is 1 and
    // dq zero, and what rounding leaves of it has nothing to be compared with.
    let shapes: [Shape; 9] = [
        (&[1], &[5], 2, 8),
        (&[17, 0, 3], &[2, 4, 33], 1, 16),
        (&[5, 6, 0], &[0, 3, 0], 2, 24),
        (&[33], &[7], 1, 56),
        (&[2, 1], &[31, 1], 1, 72),
        (&[9], &[34], 1, 80),
        (&[18], &[2], 1, 96),
        (&[1, 4], &[17, 0], 1, 128),
        (&[3, 0, 17], &[9, 2, 0], 1, 256),
    ];
    for (at, (queries, keys, heads, dim)) in shapes.into_iter().enumerate() {
        check(&cross_case(queries, keys, heads, dim, at % 2 == 0)).unwrap();
    }
    for (queries, keys) in [(&[0, 0][..], &[3, 1][..]), (&[2, 1], &[0, 0]), (&[], &[])] {
        check(&cross_case(queries, keys, 2, 8, true)).unwrap();
    }
}

#[test]
fn short_tensor_cores_match_the_oracle() {
    // A probe of an image, windows with pooled queries, more queries than keys.
    let shapes = [(1, 196, 64), (16, 64, 56), (49, 113, 32), (65, 7, 80), (1, 2, 96), (31, 128, 128)];
    for (at, (n, m, dim)) in shapes.into_iter().enumerate() {
        let case = cross_case(&[n], &[m], 1, dim, at % 2 == 0);
        check_dtype(&case, [DType::BF16, DType::F16][at % 2]).unwrap();
    }
    check_dtype(&cross_case(&[20, 0, 1, 3], &[0, 7, 65, 16], 3, 64, false), DType::BF16).unwrap();
}

#[test]
fn long_tensor_cores_match_the_oracle() {
    let shapes: [(Shape, DType); 5] = [
        ((&[1], &[257], 2, 32), DType::BF16),
        ((&[5, 0, 130], &[161, 3, 0], 1, 64), DType::F16),
        ((&[380], &[2], 1, 72), DType::BF16),
        ((&[63, 2], &[65, 170], 1, 96), DType::F16),
        ((&[17], &[181], 1, 128), DType::BF16),
    ];
    long(&shapes);
}

#[test]
fn heads_of_256_match_the_oracle() {
    let shapes: [(Shape, DType); 4] = [
        ((&[35, 1, 0, 2], &[66, 0, 5, 33], 1, 256), DType::BF16),
        ((&[1], &[101], 1, 256), DType::F16),
        ((&[131], &[33], 2, 256), DType::BF16),
        ((&[30], &[70], 1, 184), DType::BF16),
    ];
    long(&shapes);
}

/// Checks shapes that go to the long kernels.
fn long(shapes: &[(Shape, DType)]) {
    for (at, &((queries, keys, heads, dim), dtype)) in shapes.iter().enumerate() {
        for pass in [Pass::Forward, Pass::Backward] {
            let dims = dims(queries, keys, heads, dim);
            assert_eq!(family(pass, dtype, 0.1, dims, little(dim)), Family::Long, "{queries:?} and {keys:?} x {dim}");
        }
        let case = cross_case(queries, keys, heads, dim, at % 2 == 0);
        with_shared_limit(little(dim), || check_dtype(&case, dtype)).unwrap();
    }
}

/// Shapes of which each of three passes (forward, dq, dk and dv) runs in parts or not, as stated.
const IN_PARTS: [(Shape, [bool; 3]); 5] = [
    ((&[3], &[530], 1, 32), [true, true, false]),
    ((&[2, 0, 1], &[600, 5, 0], 2, 64), [true, true, false]),
    ((&[517], &[9], 1, 72), [false, false, true]),
    ((&[2], &[777], 1, 256), [true, true, false]),
    ((&[515], &[5], 1, 256), [false, false, true]),
];

#[test]
fn parts_of_what_streams_match_the_oracle() {
    for (at, ((queries, keys, heads, dim), expected)) in IN_PARTS.into_iter().enumerate() {
        let dims = dims(queries, keys, heads, dim);
        let (q, kv) = long_bwd(dims);
        let passes = [
            long_grid(Pass::Forward, long_fwd(dims), dims, dims.max_q, dims.max_k),
            long_grid(Pass::Backward, q, dims, dims.max_q, dims.max_k),
            long_grid(Pass::Backward, kv, dims, dims.max_k, dims.max_q),
        ];
        assert_eq!(passes.map(|(_, launch)| launch.grid[1] > 1), expected, "{queries:?} and {keys:?}");
        let case = cross_case(queries, keys, heads, dim, at % 2 == 1);
        with_shared_limit(little(dim), || check_dtype(&case, [DType::F16, DType::BF16][at % 2])).unwrap();
    }
}

#[test]
fn gradients_match_finite_differences() {
    for packed in [true, false] {
        check_gradients(&cross_case(&[5], &[3], 1, 4, packed)).unwrap();
        check_gradients(&cross_case(&[2, 0, 7, 1], &[0, 3, 9, 4], 2, 8, packed)).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]
    #[test]
    fn matches_the_oracle(
        lengths in prop::collection::vec((0usize..24, (0usize..23).prop_map(|n| if n > 0 { n + 1 } else { 0 })), 1..4), heads in 1usize..3, dim in 1usize..257, packed: bool
    ) {
        let (queries, keys): (Vec<usize>, Vec<usize>) = lengths.into_iter().unzip();
        check(&cross_case(&queries, &keys, heads, dim, packed)).unwrap();
    }
}

/// Operands `q`, `k`, `v` of normal values, in a storage type on a device.
fn operands(queries: usize, keys: usize, heads: usize, dim: usize, dtype: DType, device: &Device) -> [Tensor; 3] {
    let mut seed = 0;
    [queries, keys, keys].map(|rows| {
        seed += 1;
        let values = normal(&mut stream(seed, 0), rows * heads * dim);
        let t = Tensor::from_slice(&values, [rows, heads, dim], &Device::Cpu).unwrap();
        t.cast(dtype).unwrap().to_device(device).unwrap()
    })
}

/// Output, lse and gradients by q, k and v, `do` being the output.
fn run([q, k, v]: &[Tensor; 3], queries: &[usize], keys: &[usize], scale: f32) -> Vec<Vec<f64>> {
    let (cu_q, cu_k) = (offsets(queries, q.device()), offsets(keys, q.device()));
    let pack = |cu_seqlens| Packing { cu_seqlens, max_seqlen: usize::MAX };
    let (x, of_q, of_k) = (Operands::Apart(q, k, v), pack(&cu_q), pack(&cu_k));
    let (o, lse) = super::super::forward(x, of_q, of_k, scale).unwrap();
    let gradients = super::super::backward(&o, x, &o, &lse, of_q, of_k, scale).unwrap();
    [o, lse].into_iter().chain(gradients).map(|t| t.to_f64().unwrap()).collect()
}

/// Runs `test` on every device with every kind of kernel that takes more than 300 keys: those of f32, and the long ones.
fn on_every_kind(dim: usize, test: impl Fn(DType, &Device)) {
    for device in places() {
        test(DType::F32, &device);
        with_shared_limit(little(dim), || test(DType::BF16, &device));
    }
}

#[test]
fn queries_without_keys_give_zero() {
    for (device, dtype) in places().flat_map(|device| [(device.clone(), DType::F32), (device, DType::BF16)]) {
        let x = operands(6, 4, 2, 16, dtype, &device);
        // The tiled kernels of f32 need more than the little that keeps short ones out.
        for limit in if dtype == DType::F32 { vec![232_448] } else { vec![little(16), 232_448] } {
            let results = with_shared_limit(limit, || run(&x, &[3, 2, 1], &[0, 4, 0], 0.5));
            let [o, lse, dq, dk, dv] = &results[..] else { panic!("five results") };
            let without = |row: usize| !(3..5).contains(&row);
            for row in 0..6 {
                for t in [o, dq] {
                    let row_of_t = &t[row * 32..][..32];
                    assert!(row_of_t.iter().all(|x| (*x == 0.0) == without(row)), "row {row} in {dtype} on {device}");
                }
                assert!((0..2).all(|head| (lse[head * 6 + row] == f64::NEG_INFINITY) == without(row)));
            }
            assert!(dk.iter().chain(dv).all(|x| x.is_finite() && *x != 0.0));
        }
    }
}

#[test]
fn sequences_do_not_see_each_other() {
    let (heads, dim, queries, keys) = (2, 24, [2, 3, 1], [5, 530, 9]);
    on_every_kind(dim, |dtype, device| {
        let x = operands(6, 544, heads, dim, dtype, device);
        let spoiled = [0, 1, 2].map(|i| {
            let rows = if i == 0 { 2..5 } else { 5..535 };
            let mut values = x[i].to_f64().unwrap();
            values[rows.start * heads * dim..rows.end * heads * dim].fill(f64::NAN);
            let t = Tensor::from_slice(&values, x[i].shape().clone(), &Device::Cpu).unwrap();
            t.cast(dtype).unwrap().to_device(device).unwrap()
        });
        let (before, after) = (run(&x, &queries, &keys, 0.3), run(&spoiled, &queries, &keys, 0.3));
        for (i, rows) in [(0, 2..5), (2, 2..5), (3, 5..535), (4, 5..535)] {
            let row = heads * dim;
            for (at, (a, b)) in before[i].iter().zip(&after[i]).enumerate() {
                assert!(if rows.contains(&(at / row)) { b.is_nan() } else { a == b }, "{i}, {at}: {a} and {b}");
            }
        }
    });
}

#[test]
fn two_runs_give_the_same_bits() {
    for ((queries, keys, heads, dim), _) in IN_PARTS.into_iter().filter(|(shape, _)| shape.3 <= 64) {
        on_every_kind(dim, |dtype, device| {
            let x = operands(queries.iter().sum(), keys.iter().sum(), heads, dim, dtype, device);
            let runs = [0, 1, 2].map(|schedule| scheduled(schedule, || run(&x, queries, keys, 0.2)));
            assert!(runs.iter().all(|run| *run == runs[0]), "{dtype} on {device}");
        });
    }
}

#[test]
fn self_attention_is_cross_attention_to_oneself() {
    // The same bits wherever the operands lie.
    let (lengths, heads, dim) = ([5, 150, 0, 9], 2, 24);
    on_every_kind(dim, |dtype, device| {
        let x = operands(164, 164, heads, dim, dtype, device);
        let (row, values) = (heads * dim, [0, 1, 2].map(|i: usize| x[i].to_f64().unwrap()));
        // Rows of several tensors side by side, and apart again.
        let join = |of: &[usize]| {
            let rows = (0..164).flat_map(|at| of.iter().flat_map(move |&i| (0..row).map(move |c| (i, at * row + c))));
            let joint: Vec<f64> = rows.map(|(i, at)| values[i][at]).collect();
            let t = Tensor::from_slice(&joint, [164, of.len(), heads, dim], &Device::Cpu).unwrap();
            t.cast(dtype).unwrap().to_device(device).unwrap()
        };
        let split = |t: &Tensor, parts: usize| {
            let all = t.to_f64().unwrap();
            let part = |p| (0..164).flat_map(|at| all[(at * parts + p) * row..][..row].to_vec()).collect::<Vec<f64>>();
            (0..parts).map(part).collect::<Vec<_>>()
        };
        let cu = offsets(&lengths, device);
        let packing = Packing { cu_seqlens: &cu, max_seqlen: 150 };
        let apart = run(&x, &lengths, &lengths, 0.3);
        let (qkv, kv) = (join(&[0, 1, 2]), join(&[1, 2]));
        for x in [Operands::Joint(&qkv), Operands::Packed(&x[0], &kv)] {
            let (o, lse) = super::super::forward(x, packing, packing, 0.3).unwrap();
            let gradients = super::super::backward(&o, x, &o, &lse, packing, packing, 0.3).unwrap();
            let gradients = match &gradients[..] {
                [dqkv] => split(dqkv, 3),
                [dq, dkv] => [split(dq, 1), split(dkv, 2)].concat(),
                _ => panic!("one or two gradients"),
            };
            assert_eq!(o.to_f64().unwrap(), apart[0]);
            assert_eq!(gradients, apart[2..], "{dtype} on {device}");
        }
    });
}

#[test]
fn extreme_logits_in_one_part_win() {
    // One key, in the last part, outweighs all others by e^1000; a second query sees only equal keys.
    on_every_kind(8, |dtype, device| {
        let [q, k, v] = operands(2, 601, 1, 8, dtype, device);
        let fill = |t: &Tensor, f: &dyn Fn(usize) -> f64| {
            let values: Vec<f64> = (0..t.numel()).map(f).collect();
            let t = Tensor::from_slice(&values, t.shape().clone(), &Device::Cpu).unwrap();
            t.cast(dtype).unwrap().to_device(device).unwrap()
        };
        let q = fill(&q, &|at| if at == 0 { 100.0 } else { 0.0 });
        let k = fill(&k, &|at| if at == 590 * 8 { 10.0 } else { 0.0 });
        let values = v.to_f64().unwrap();
        let results = run(&[q, k, v], &[2], &[601], 1.0);
        assert!(results.iter().flatten().all(|x| x.is_finite()));
        for c in 0..8 {
            assert_eq!(results[0][c], values[590 * 8 + c], "{dtype} on {device}");
            let mean = (0..601).map(|i| values[i * 8 + c]).sum::<f64>() / 601.0;
            assert!((results[0][8 + c] - mean).abs() < 2e-3, "{dtype} on {device}");
        }
    });
}

#[test]
fn very_negative_logits_stay_finite() {
    // All logits are -200, so that exp(-lse) overflows: what tiles hold for keys past the end, whose logit is 0, reaches
    // no sum.
    let test = |dtype, device: &Device| {
        let [_, _, v] = operands(3, 150, 1, 8, dtype, device);
        let constant = |rows: usize, x: f32| {
            let t = Tensor::from_slice(&vec![x; rows * 8], [rows, 1, 8], &Device::Cpu).unwrap();
            t.cast(dtype).unwrap().to_device(device).unwrap()
        };
        let values = v.to_f64().unwrap();
        let results = run(&[constant(3, -5.0), constant(150, 5.0), v], &[3], &[150], 1.0);
        assert!(results.iter().flatten().all(|x| x.is_finite()), "{dtype} on {device}");
        for c in 0..8 {
            let mean = (0..150).map(|i| values[i * 8 + c]).sum::<f64>() / 150.0;
            assert!((0..3).all(|i| (results[0][i * 8 + c] - mean).abs() < 2e-3), "{dtype} on {device}");
        }
    };
    on_every_kind(8, test);
    places().for_each(|device| test(DType::BF16, &device)); // the short kernels
}

#[test]
fn host_chunks_of_keys_join_without_seams() {
    // Three chunks of 1500 keys, and tasks of 300 queries; a sequence of one chunk beside it, and one without keys.
    let (queries, keys) = ([600, 3, 2], [4500, 7, 0]);
    let run_in = |dtype| {
        let x = operands(605, 4507, 1, 8, DType::F32, &Device::Cpu).map(|t| t.cast(dtype).unwrap());
        run(&x, &queries, &keys, 0.25)
    };
    let (wide, narrow) = (run_in(DType::F64), run_in(DType::F32));
    for (wide, narrow) in wide.iter().zip(&narrow) {
        let worst = crate::testing::distance(narrow, wide).0;
        assert!(worst < 512.0 * crate::testing::ulp(DType::F32, 8.0), "{worst:e}"); // as the tolerance policy; values below 16
    }
    let pool = |threads: usize| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    assert_eq!(pool(1).install(|| run_in(DType::F32)), narrow);

    // The oracle itself: one chunk at a time by hand, joined by their lse.
    let x = operands(605, 4507, 1, 8, DType::F32, &Device::Cpu).map(|t| t.cast(DType::F64).unwrap());
    let (q, k, v) = (x[0].to_f64().unwrap(), x[1].to_f64().unwrap(), x[2].to_f64().unwrap());
    for query in [0, 299, 300, 599] {
        let logit = |key: usize| (0..8).map(|c| 0.25 * q[query * 8 + c] * k[key * 8 + c]).sum::<f64>();
        let weights: Vec<f64> = (0..4500).map(|key| logit(key).exp()).collect();
        let sum: f64 = weights.iter().sum();
        assert!((wide[1][query] - sum.ln()).abs() < 1e-12);
        for c in 0..8 {
            let expected = (0..4500).map(|key| weights[key] * v[key * 8 + c]).sum::<f64>() / sum;
            assert!((wide[0][query * 8 + c] - expected).abs() < 1e-12);
        }
    }
}

#[test]
fn saves_operands_result_and_one_number_per_row() {
    for packed in [true, false] {
        let tape = Tape::new();
        let leaf = |shape: &[usize]| tape.leaf(Tensor::zeros(shape, DType::BF16, &Device::Cpu).unwrap());
        let (q, kv, k, v) = (leaf(&[3, 2, 8]), leaf(&[22, 2, 2, 8]), leaf(&[22, 2, 8]), leaf(&[22, 2, 8]));
        let kv = if packed { KeyValues::Packed(&kv) } else { KeyValues::Apart(&k, &v) };
        let (cu_q, cu_k) = (offsets(&[1, 2], &Device::Cpu), offsets(&[3, 19], &Device::Cpu));
        let pack = |cu_seqlens, max_seqlen| Packing { cu_seqlens, max_seqlen };
        cross_attention(&tape, &q, kv, pack(&cu_q, 2), pack(&cu_k, 19), 1.0).unwrap();
        let expected = 2 * 2 * (3 + 22) * 2 * 8 + 4 * 2 * 3 + 8 * 3;
        assert_eq!(tape.saved().last(), Some(&("attention", expected)));
    }
}

#[test]
fn wrong_arguments_are_named() {
    let tensor = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let bounds = |values: &[i32]| Tensor::from_slice(values, [values.len()], &Device::Cpu).unwrap();
    let says = |x: Operands, (cu_q, max_q): (&[i32], usize), (cu_k, max_k): (&[i32], usize), expected: &str| {
        let (cu_q, cu_k) = (bounds(cu_q), bounds(cu_k));
        let pack = |cu_seqlens, max_seqlen| Packing { cu_seqlens, max_seqlen };
        let error = super::super::forward(x, pack(&cu_q, max_q), pack(&cu_k, max_k), 1.0).unwrap_err();
        assert!(matches!(error, Error::Argument { .. }));
        assert_eq!(error.to_string(), format!("attention: `{expected}"));
    };
    let (q, kv, k) = (tensor(&[3, 2, 8]), tensor(&[5, 2, 2, 8]), tensor(&[5, 2, 8]));
    let (of_q, of_k) = ((&[0, 3][..], 3), (&[0, 5][..], 5));
    let extents = "expected [queries, heads, head_dim] with head_dim 1 to 256";
    says(Operands::Packed(&tensor(&[3, 2, 257]), &kv), of_q, of_k, &format!("q` has shape [3, 2, 257], {extents}"));
    says(Operands::Packed(&tensor(&[3, 16]), &kv), of_q, of_k, "q` has shape [3, 16], expected 3 axes");
    says(Operands::Packed(&q, &k), of_q, of_k, "kv` has shape [5, 2, 8], expected 4 axes");
    let three = tensor(&[5, 3, 2, 8]);
    says(Operands::Packed(&q, &three), of_q, of_k, "kv` has shape [5, 3, 2, 8], expected [5, 2, 2, 8]");
    for v in [[3, 2, 8], [5, 1, 8], [5, 2, 0], [5, 2, 9]] {
        let expected = format!("v` has shape {v:?}, expected [5, 2, v_dim] with v_dim 1 to 8, that of q");
        says(Operands::Apart(&q, &k, &tensor(&v)), of_q, of_k, &expected);
    }
    says(Operands::Apart(&q, &k, &tensor(&[5, 16])), of_q, of_k, "v` has shape [5, 16], expected 3 axes");
    let half = k.cast(DType::BF16).unwrap();
    says(Operands::Apart(&q, &half, &k), of_q, of_k, "k` has dtype bf16, expected f32");
    let x = Operands::Packed(&q, &kv);
    says(x, (&[0, 4], 4), of_k, "cu_seqlens_q[1]` has value 4, expected 3, the number of tokens");
    says(x, of_q, (&[0, 5], 4), "cu_seqlens_k[1]` has value 5, expected at most 0 + max_seqlen = 4");
    says(x, of_q, (&[0, 2, 5], 5), "cu_seqlens_k` has shape [3], expected [2], that of cu_seqlens_q");

    let tape = Tape::no_grad();
    let (q, kv, cu) = (Var::constant(q), Var::constant(kv), tensor(&[2]));
    let packing = Packing { cu_seqlens: &cu, max_seqlen: 5 };
    let error = cross_attention(&tape, &q, KeyValues::Packed(&kv), packing, packing, 1.0).unwrap_err();
    assert_eq!(error.to_string(), "attention: `cu_seqlens_q` has dtype f32, expected i32");
}
