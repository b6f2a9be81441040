mod choice;
mod cross;
mod narrow;

use proptest::prelude::*;

use super::choice::{Family, Pass, family, long_shared};
use super::operands::Dims;
use super::{Operands, Packing, attention, case, probabilities};
use crate::ops::{Case, Fill};
use crate::random::{normal, stream};
use crate::testing::{check, check_dtype, check_gradients, devices, scheduled, ulp, with_shared_limit};
use crate::{DType, Device, Error, Result, Tape, Tensor, Var};

#[test]
fn matches_the_oracle_at_every_tile_edge() {
    // Lengths around the tiles of 16 and 32 rows; dims in every variant, with and without vector loads.
    for (n, dim) in
        [(1, 8), (2, 16), (7, 20), (33, 33), (33, 64), (50, 32), (65, 56), (18, 72), (17, 80), (34, 96), (19, 256)]
    {
        check(&case(&[n], 1, dim)).unwrap();
    }
}

#[test]
fn tensor_cores_match_the_oracle() {
    // Every padded width with and without its last 16 columns; lengths at the edges of 16-row tiles, of the backward's 64
    // queries and of the forward's 64 keys.
    let shapes =
        [(16, 32), (15, 24), (65, 16), (31, 40), (64, 64), (128, 56), (49, 72), (67, 88), (48, 128), (129, 104)];
    for (at, (n, dim)) in shapes.into_iter().enumerate() {
        check_dtype(&case(&[n], 1, dim), [DType::BF16, DType::F16][at % 2]).unwrap();
    }
    check_dtype(&case(&[50, 0, 1, 64, 17], 3, 64), DType::BF16).unwrap();
    check_dtype(&case(&[0, 65, 2], 2, 80), DType::F16).unwrap();
}

#[test]
fn tensor_cores_match_the_oracle_at_the_lengths_of_images() {
    check_dtype(&case(&[197], 1, 32), DType::BF16).unwrap();
    check_dtype(&case(&[257], 1, 64), DType::BF16).unwrap();
    check_dtype(&case(&[196], 1, 96), DType::F16).unwrap();
}

/// Extents of self-attention.
fn square(tokens: usize, heads: usize, dim: usize, seqs: usize, max: usize) -> Dims {
    Dims { queries: tokens, keys: tokens, heads, dim, v_dim: dim, seqs, max_q: max, max_k: max }
}

/// Shared memory with which everything but the shortest sequences goes to the long tensor-core kernels.
fn little(dim: usize) -> usize {
    let shared = |pass| long_shared(pass, square(0, 1, dim, 1, 0));
    shared(Pass::Forward).max(shared(Pass::Backward))
}

/// [`super::forward`] on one tensor.
fn forward(qkv: &Tensor, cu_seqlens: &Tensor, max_seqlen: usize, scale: f32) -> Result<(Tensor, Tensor)> {
    let packing = Packing { cu_seqlens, max_seqlen };
    super::forward(Operands::Joint(qkv), packing, packing, scale)
}

/// [`super::backward`] on one tensor.
fn backward(
    d_o: &Tensor,
    qkv: &Tensor,
    o: &Tensor,
    lse: &Tensor,
    cu_seqlens: &Tensor,
    max_seqlen: usize,
    scale: f32,
) -> Result<Tensor> {
    let packing = Packing { cu_seqlens, max_seqlen };
    Ok(super::backward(d_o, Operands::Joint(qkv), o, lse, packing, packing, scale)?.swap_remove(0))
}

#[test]
fn long_tensor_cores_match_the_oracle() {
    // Every width, with and without padding; odd and prime lengths, at the edges of 16-row tiles, of a warp's rows, of the
    // 64 rows of a stage and of blocks; empty sequences and single tokens beside long ones.
    let shapes: [(&[usize], usize, usize, DType); 12] = [
        (&[139], 1, 32, DType::F16),
        (&[1, 150, 0, 16, 64], 2, 16, DType::BF16),
        (&[257], 1, 64, DType::BF16),
        (&[129, 65, 0, 1], 1, 56, DType::F16),
        (&[97, 130, 2], 2, 80, DType::BF16),
        (&[193], 1, 72, DType::F16),
        (&[0, 131, 33], 1, 96, DType::BF16),
        (&[191], 1, 88, DType::F16),
        (&[63, 0, 149, 1, 17], 1, 128, DType::BF16),
        (&[131], 1, 256, DType::BF16),
        (&[1, 0, 67], 2, 256, DType::F16),
        (&[33], 1, 200, DType::BF16),
    ];
    for (lengths, heads, dim, dtype) in shapes {
        let (tokens, longest) = (lengths.iter().sum(), *lengths.iter().max().unwrap());
        let dims = square(tokens, heads, dim, lengths.len(), longest);
        for pass in [Pass::Forward, Pass::Backward] {
            assert_eq!(family(pass, dtype, 0.1, dims, little(dim)), Family::Long, "{lengths:?} x {dim}");
        }
        with_shared_limit(little(dim), || check_dtype(&case(lengths, heads, dim), dtype)).unwrap();
    }
}

#[test]
fn long_tensor_cores_match_the_oracle_at_the_lengths_of_images() {
    check_dtype(&case(&[729], 1, 72), DType::BF16).unwrap();
    check_dtype(&case(&[613], 1, 64), DType::F16).unwrap();
}

#[test]
fn matches_the_oracle_on_long_rows() {
    check_dtype(&case(&[130], 1, 16), DType::F32).unwrap();
    check_dtype(&case(&[130], 1, 128), DType::BF16).unwrap();
    check_dtype(&case(&[50], 1, 128), DType::F16).unwrap();
    check_dtype(&case(&[50], 1, 65), DType::F32).unwrap();
    check_dtype(&case(&[35], 1, 131), DType::BF16).unwrap();
}

#[test]
fn matches_the_oracle_on_packed_lengths() {
    check(&case(&[5, 0, 1, 17], 2, 12)).unwrap();
    check(&case(&[0, 33, 2], 3, 8)).unwrap();
    for nothing in [case(&[], 2, 8), case(&[0, 0], 2, 8), case(&[3], 0, 8)] {
        check(&nothing).unwrap();
    }
}

#[test]
fn gradients_match_finite_differences() {
    for (lengths, heads, dim) in [(&[5][..], 1, 3), (&[2, 0, 7], 2, 8), (&[19], 1, 4)] {
        check_gradients(&case(lengths, heads, dim)).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5))]
    #[test]
    fn matches_the_oracle(lengths in prop::collection::vec(0usize..24, 1..4), heads in 1usize..3, dim in 1usize..129) {
        check(&case(&lengths, heads, dim)).unwrap();
    }
}

#[test]
fn host_blocks_and_tasks_join_without_seams() {
    // 600 tokens are two tasks of 300 queries in three blocks each.
    check_host(&case(&[600, 129], 1, 8));
}

/// [`check_dtype`] where the emulator would take minutes: the CPU against its f64 self.
fn check_host(case: &Case) {
    let run = |held| {
        let inputs = crate::testing::operands(case, DType::F32, held, &Device::Cpu)?;
        let (n, scale) = (inputs[0].shape()[0], 0.25);
        let (o, lse) = forward(&inputs[0], &inputs[1], n, scale)?;
        let d = backward(&o, &inputs[0], &o, &lse, &inputs[1], n, scale)?;
        Ok::<_, Error>([o.to_f64()?, lse.to_f64()?, d.to_f64()?].concat())
    };
    let (wide, got) = (run(DType::F64).unwrap(), run(DType::F32).unwrap());
    let worst = crate::testing::distance(&got, &wide).0;
    assert!(worst < 512.0 * crate::testing::ulp(DType::F32, 8.0), "{worst:e}"); // as the tolerance policy; values below 16
}

/// Every device the tests run on, the reference first.
fn places() -> impl Iterator<Item = Device> {
    [Device::Cpu].into_iter().chain(devices())
}

fn random(tokens: usize, heads: usize, dim: usize, seed: u64) -> Vec<f32> {
    normal(&mut stream(seed, 0), tokens * 3 * heads * dim).into_iter().map(|x| x as f32).collect()
}

fn offsets(lengths: &[usize], device: &Device) -> Tensor {
    let ends = lengths.iter().scan(0, |at, &n| {
        *at += n as i32;
        Some(*at)
    });
    let values: Vec<i32> = std::iter::once(0).chain(ends).collect();
    Tensor::from_slice(&values, [values.len()], device).unwrap()
}

/// Output and gradient, `do` being the output.
fn run(qkv: &[f32], lengths: &[usize], heads: usize, dim: usize, scale: f32, device: &Device) -> [Vec<f32>; 2] {
    run_in(DType::F32, qkv, lengths, heads, dim, scale, device)
}

/// [`run`] on the kernels of a storage type.
fn run_in(
    dtype: DType,
    qkv: &[f32],
    lengths: &[usize],
    heads: usize,
    dim: usize,
    scale: f32,
    device: &Device,
) -> [Vec<f32>; 2] {
    let tokens: usize = lengths.iter().sum();
    let qkv = Tensor::from_slice(qkv, [tokens, 3, heads, dim], &Device::Cpu).unwrap();
    let qkv = qkv.cast(dtype).unwrap().to_device(device).unwrap();
    let cu = offsets(lengths, device);
    let (o, lse) = forward(&qkv, &cu, tokens, scale).unwrap();
    let d = backward(&o, &qkv, &o, &lse, &cu, tokens, scale).unwrap();
    [o, d].map(|t| t.to_device(&Device::Cpu).unwrap().cast(DType::F32).unwrap().to_vec::<f32>().unwrap())
}

/// Runs `test` on every device with every kind of kernel; `dim` and more than 100 tokens go to all three.
fn on_every_kind(dim: usize, test: impl Fn(DType, &Device)) {
    for device in places() {
        test(DType::F32, &device);
        test(DType::BF16, &device);
        with_shared_limit(little(dim), || test(DType::BF16, &device));
    }
}

#[test]
fn sequences_do_not_see_each_other() {
    let (heads, dim, lengths) = (2, 24, [5, 150, 9]);
    on_every_kind(dim, |dtype, device| {
        let row = 3 * heads * dim;
        let mut x = random(164, heads, dim, 1);
        let before = run_in(dtype, &x, &lengths, heads, dim, 0.3, device);
        x[5 * row..155 * row].iter_mut().for_each(|x| *x = f32::NAN);
        let after = run_in(dtype, &x, &lengths, heads, dim, 0.3, device);
        for (before, after) in before.iter().zip(&after) {
            let row = before.len() / 164;
            assert_eq!(before[..5 * row], after[..5 * row]);
            assert_eq!(before[155 * row..], after[155 * row..]);
            assert!(after[5 * row..155 * row].iter().all(|x| x.is_nan()));
        }
    });
}

#[test]
fn permuting_sequences_permutes_results() {
    let (heads, dim, lengths) = (2, 24, [7, 1, 150]);
    on_every_kind(dim, |dtype, device| {
        let swap = |x: &[f32]| {
            let row = x.len() / 158;
            [&x[8 * row..], &x[..7 * row], &x[7 * row..8 * row]].concat()
        };
        let x = random(158, heads, dim, 2);
        let straight = run_in(dtype, &x, &lengths, heads, dim, 0.2, device);
        let swapped = run_in(dtype, &swap(&x), &[150, 7, 1], heads, dim, 0.2, device);
        assert_eq!(straight.map(|t| swap(&t)), swapped, "the same bits in {dtype} on {device}");
    });
}

#[test]
fn two_runs_give_the_same_bits() {
    on_every_kind(32, |dtype, device| {
        let x = random(190, 2, 32, 8);
        let runs = [0, 1, 2].map(|schedule| scheduled(schedule, || run_in(dtype, &x, &[40, 150], 2, 32, 0.2, device)));
        assert!(runs.iter().all(|run| *run == runs[0]), "{dtype} on {device}");
    });
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let x = random(300, 2, 24, 3);
    let run_in = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| run(&x, &[290, 10], 2, 24, 0.2, &Device::Cpu))
    };
    assert_eq!(run_in(1), run_in(3));
}

#[test]
fn a_shift_of_all_keys_changes_nothing() {
    // S moves by q · shift in every column of a row, so P stays, and the gradients by k add up to zero.
    for device in places() {
        let (n, dim) = (37, 16);
        let mut x = random(n, 1, dim, 4);
        let [o, d] = run(&x, &[n], 1, dim, 0.25, &device);
        for c in 0..dim {
            let sum: f32 = (0..n).map(|i| d[(3 * i + 1) * dim + c]).sum();
            let size: f32 = (0..n).map(|i| d[(3 * i + 1) * dim + c].abs()).sum();
            assert!(sum.abs() < 1e-5 * size.max(1.0), "column {c}: {sum} of {size}");
        }
        (0..n).for_each(|i| (0..dim).for_each(|c| x[(3 * i + 1) * dim + c] += 2.0));
        let [shifted, _] = run(&x, &[n], 1, dim, 0.25, &device);
        assert!(o.iter().zip(&shifted).all(|(a, b)| (a - b).abs() < 1e-4));
    }
}

#[test]
fn equal_keys_give_the_mean_of_the_values() {
    for device in places() {
        let (n, dim) = (35, 9);
        let mut x = random(n, 1, dim, 5);
        (0..n).for_each(|i| (0..dim).for_each(|c| x[(3 * i + 1) * dim + c] = x[dim + c]));
        let [o, d] = run(&x, &[n], 1, dim, 1.0, &device);
        for c in 0..dim {
            let mean = (0..n).map(|i| f64::from(x[(3 * i + 2) * dim + c])).sum::<f64>() / n as f64;
            assert!((0..n).all(|i| (f64::from(o[i * dim + c]) - mean).abs() < 1e-6));
        }
        // dq = Σ dS · k with equal k: the sum over a row of dS is zero.
        assert!((0..n).all(|i| (0..dim).all(|c| d[3 * i * dim + c].abs() < 1e-5)));
    }
}

#[test]
fn extreme_logits_stay_finite_and_right() {
    // Logits up to 1e4 apart: every row is one-hot or a tie. What wins comes in the last of several stages of keys.
    on_every_kind(8, |dtype, device| {
        let (n, dim) = (150, 8);
        let mut x = random(n, 1, dim, 6);
        for i in 0..n {
            let [q, k] = [0, 1].map(|part| (3 * i + part) * dim);
            x[q..q + dim].fill(0.0);
            x[k..k + dim].fill(0.0);
            x[q] = if i % 2 == 0 { 100.0 } else { -100.0 };
            x[k] = match i {
                3 | 148 => 100.0,
                145 => -100.0,
                _ => (i as f32) / 2.0 - 40.0,
            };
        }
        let x: Vec<f32> = x.into_iter().map(|x| half::bf16::from_f32(x).to_f32()).collect(); // as every type holds it
        let [o, d] = run_in(dtype, &x, &[n], 1, dim, 1.0, device);
        assert!(o.iter().chain(&d).all(|x| x.is_finite()));
        let v = |i: usize, c: usize| x[(3 * i + 2) * dim + c];
        let tolerance = ulp(dtype, 4.0).max(1e-5) as f32; // one rounding; no value is above 8
        for i in 0..n {
            for c in 0..dim {
                let expected = if i % 2 == 0 { (v(3, c) + v(148, c)) / 2.0 } else { v(145, c) };
                assert!((o[i * dim + c] - expected).abs() <= tolerance, "row {i} in {dtype} on {device}");
            }
        }
    });
}

#[test]
fn probabilities_are_what_attention_used() {
    let (lengths, heads, dim) = ([3, 19], 2, 8);
    let x = random(22, heads, dim, 7);
    let qkv = Tensor::from_slice(&x, [22, 3, heads, dim], &Device::Cpu).unwrap();
    let cu = offsets(&lengths, &Device::Cpu);
    let p = probabilities(&qkv, &cu, 1, 0.3).unwrap();
    assert_eq!(**p.shape(), [heads, 19, 19]);
    let (p, [o, _]) = (p.to_vec::<f32>().unwrap(), run(&x, &lengths, heads, dim, 0.3, &Device::Cpu));
    for (h, i) in (0..heads).flat_map(|h| (0..19).map(move |i| (h, i))) {
        let row = &p[(h * 19 + i) * 19..][..19];
        assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        for c in 0..dim {
            let value = |j: usize| x[(((3 + j) * 3 + 2) * heads + h) * dim + c];
            let expected: f32 = row.iter().enumerate().map(|(j, p)| p * value(j)).sum();
            assert!((o[((3 + i) * heads + h) * dim + c] - expected).abs() < 1e-5);
        }
    }
    let error = probabilities(&qkv, &cu, 2, 0.3).unwrap_err();
    assert_eq!(error.to_string(), "attention: `sequence` has value 2, expected less than 2 sequences");
    let none = offsets(&[22, 0], &Device::Cpu);
    assert_eq!(**probabilities(&qkv, &none, 1, 0.3).unwrap().shape(), [heads, 0, 0]);
}

#[test]
fn saves_the_operand_the_result_and_one_number_per_row() {
    for (dtype, size) in [(DType::F32, 4), (DType::BF16, 2)] {
        let tape = Tape::new();
        let qkv = tape.leaf(Tensor::zeros([22, 3, 2, 8], dtype, &Device::Cpu).unwrap());
        attention(&tape, &qkv, &offsets(&[3, 19], &Device::Cpu), 19, 1.0).unwrap();
        assert_eq!(tape.saved()[1], ("attention", 4 * size * 22 * 2 * 8 + 4 * 2 * 22 + 4 * 3));
    }
}

#[test]
fn wrong_arguments_are_named() {
    let tensor = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let bounds = |values: &[i32]| Tensor::from_slice(values, [values.len()], &Device::Cpu).unwrap();
    let run = |qkv: &Tensor, cu: &Tensor, max: usize| -> Result<Var> {
        attention(&Tape::no_grad(), &Var::constant(qkv.clone()), cu, max, 1.0)
    };
    let qkv = tensor(&[5, 3, 2, 8]);
    let says = |qkv: &Tensor, cu: &Tensor, max: usize, expected: &str| {
        let error = run(qkv, cu, max).unwrap_err();
        assert!(matches!(error, Error::Argument { .. }));
        assert_eq!(error.to_string(), format!("attention: `{expected}"));
    };
    let extents = "[tokens, 3, heads, head_dim] with head_dim 1 to 256";
    says(&tensor(&[5, 2, 2, 8]), &bounds(&[0, 5]), 5, &format!("qkv` has shape [5, 2, 2, 8], expected {extents}"));
    says(&tensor(&[5, 3, 2, 257]), &bounds(&[0, 5]), 5, &format!("qkv` has shape [5, 3, 2, 257], expected {extents}"));
    says(&tensor(&[5, 3, 16]), &bounds(&[0, 5]), 5, "qkv` has shape [5, 3, 16], expected 4 axes");
    says(&qkv, &tensor(&[2]), 5, "cu_seqlens` has dtype f32, expected i32");
    says(&qkv, &bounds(&[]), 5, "cu_seqlens` has shape [0], expected [sequences + 1]");
    says(&qkv, &bounds(&[1, 5]), 5, "cu_seqlens[0]` has value 1, expected 0");
    says(&qkv, &bounds(&[0, 3, 2, 5]), 5, "cu_seqlens[2]` has value 2, expected at least 3, the offset before it");
    says(&qkv, &bounds(&[0, 4]), 5, "cu_seqlens[1]` has value 4, expected 5, the number of tokens");
    says(&qkv, &bounds(&[0, 1, 5]), 3, "cu_seqlens[2]` has value 5, expected at most 1 + max_seqlen = 4");
    let whole = Tensor::zeros([5, 3, 2, 8], DType::I32, &Device::Cpu).unwrap();
    says(&whole, &bounds(&[0, 5]), 5, "qkv` has dtype i32, expected a float type");

    let (o, lse) = forward(&qkv, &bounds(&[0, 5]), 5, 1.0).unwrap();
    let error = backward(&tensor(&[5, 15]), &qkv, &o, &lse, &bounds(&[0, 5]), 5, 1.0).unwrap_err();
    assert_eq!(error.to_string(), "attention: `do` has shape [5, 15], expected [5, 16]");
    let error = backward(&o, &qkv, &o, &o, &bounds(&[0, 5]), 5, 1.0).unwrap_err();
    assert_eq!(error.to_string(), "attention: `lse` has shape [5, 16], expected [2, 5]");
}

#[test]
fn unchecked_offsets_reach_no_foreign_memory() {
    // As on a GPU, whose offsets the host does not see: kernels cut them to the tokens there are.
    for device in devices().into_iter().filter(|device| !device.is_host()) {
        let qkv = Tensor::zeros([5, 3, 2, 8], DType::F32, &device).unwrap();
        let cu = Tensor::from_slice(&[-7, 3, 1, 1 << 30], [4], &device).unwrap();
        forward(&qkv, &cu, 5, 1.0).unwrap();
        device.synchronize().unwrap();
    }
}

#[test]
fn cases_name_equal_and_packed_lengths() {
    assert_eq!(case(&[50; 8], 3, 64).id, "8x3x50x64");
    let packed = case(&[5, 0, 17, 17], 2, 8);
    assert_eq!(packed.id, "(1x5+1x0+2x17)x2x8");
    assert!(matches!(&packed.inputs[1].fill, Fill::I32(v) if *v == [0, 5, 5, 22, 39]));
    assert_eq!(packed.flops, 4 * (25 + 2 * 289) * 2 * 8);
    let ids: Vec<String> = super::cases().into_iter().map(|case| case.id).collect();
    let last = ["(128x257+512x50)x6x64", "1x1x4096/28736x256", "1x1x4096/28736x256v64", "256x12x1/196x64"];
    assert_eq!(ids[ids.len() - 4..], last);
}
