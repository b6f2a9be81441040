use proptest::prelude::*;

use super::{Dims, EPS, case, forward, launch, masked_mse, target};
use crate::ops::patchify::{Grid, patchify};
use crate::random::{normal, stream};
use crate::testing::{check, check_dtype, check_gradients, devices};
use crate::{DType, Device, Grads, Tape, Tensor, Var};

#[test]
fn matches_the_oracle_on_odd_shapes() {
    for (bytes, norm_pix) in [(true, false), (true, true), (false, false), (false, true)] {
        check(&case(bytes, [1, 1, 1, 2], 2, 1, norm_pix)).unwrap();
        check(&case(bytes, [2, 3, 2, 3], 5, 2, norm_pix)).unwrap();
        check(&case(bytes, [3, 2, 3, 1], 4, 0, norm_pix)).unwrap();
        check(&case(bytes, [1, 3, 2, 2], 14, 1, norm_pix)).unwrap();
        check(&case(bytes, [1, 3, 2, 2], 16, 1, norm_pix)).unwrap();
    }
}

/// Patches too large for shared memory are read from the image in every pass.
#[test]
fn large_patches_match_the_oracle() {
    check_dtype(&case(true, [1, 3, 1, 2], 66, 1, true), DType::BF16).unwrap();
    check_dtype(&case(true, [1, 3, 1, 2], 64, 1, true), DType::F16).unwrap(); // exactly 48 KiB
    check_dtype(&case(false, [1, 3, 1, 2], 65, 1, true), DType::F32).unwrap();
}

#[test]
fn gradients_match_finite_differences() {
    check_gradients(&case(false, [2, 2, 2, 2], 3, 1, true)).unwrap();
    check_gradients(&case(true, [1, 3, 1, 3], 2, 1, false)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn matches_the_oracle(b in 1usize..4, c in 1usize..5, hg in 1usize..4, wg in 1usize..4, p in 2usize..9, part in 0.0f64..1.0) {
        let keep = ((hg * wg) as f64 * part) as usize;
        check(&case(true, [b, c, hg, wg], p, keep, true)).unwrap();
        check(&case(false, [b, c, hg, wg], p, keep, true)).unwrap();
    }
}

#[test]
fn plans_cover_every_row_within_shared_memory() {
    let square = |channels, patch| Grid { batch: 1, channels, height: patch, width: patch, patch };
    for grid in [square(1, 1), square(3, 2), square(3, 14), square(3, 16), square(4, 16), square(3, 18)] {
        let values = grid.values();
        for rows in [1u32, 3, 4, 5, 37632] {
            let plan = launch::plan(rows, &grid);
            let (blocks, threads) = (plan.launch.grid[0], plan.launch.block[0]);
            assert!(blocks * plan.rows_per_block >= rows && blocks <= rows && threads.is_multiple_of(32));
            assert!(plan.held || plan.rows_per_block == threads / 32);
            assert!(plan.launch.shared + 1024 <= 48 << 10, "no room for static memory");
            assert_eq!(plan.held, grid.channels == 3 && [2, 14, 16].contains(&grid.patch));
            assert!(
                !plan.staged || plan.launch.shared as usize >= threads as usize / 32 * values.next_multiple_of(4) * 4
            );
        }
    }
    // 12032 values fill what a block has of shared memory; the next multiple of a whole patch does not fit.
    let staged = |channels| launch::plan(1, &square(channels, 1)).staged;
    assert!(staged(12032) && !staged(12033));
}

fn images(seed: u64, shape: [usize; 4]) -> Tensor {
    let values = normal(&mut stream(seed, 0), shape.iter().product());
    Tensor::from_slice(&values, shape, &Device::Cpu).unwrap()
}

fn ids(batch: usize, len: usize) -> Tensor {
    let v: Vec<i32> = (0..batch).flat_map(|_| 0..len as i32).collect();
    Tensor::from_slice(&v, [batch, len], &Device::Cpu).unwrap()
}

/// Mean 0 and Σt² = (P-1)·var / (var + eps) in every patch; a constant added to a patch changes nothing.
#[test]
fn normalised_targets_have_the_documented_moments() {
    let x = images(1, [2, 3, 6, 9]);
    let raw = patchify(&x, 3).unwrap().to_vec::<f64>().unwrap();
    let t = target(&x, None, 3, true).unwrap().to_vec::<f64>().unwrap();
    for (raw, t) in raw.chunks(27).zip(t.chunks(27)) {
        let mean = raw.iter().sum::<f64>() / 27.0;
        let var = raw.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 26.0;
        assert!(t.iter().sum::<f64>().abs() < 1e-12);
        assert!((t.iter().map(|x| x * x).sum::<f64>() - 26.0 * var / (var + EPS)).abs() < 1e-9);
    }
    let shifted: Vec<f64> = x.to_vec::<f64>().unwrap().iter().map(|x| x + 3.0).collect();
    let shifted = Tensor::from_slice(&shifted, [2, 3, 6, 9], &Device::Cpu).unwrap();
    let moved = target(&shifted, None, 3, true).unwrap().to_vec::<f64>().unwrap();
    assert!(t.iter().zip(moved).all(|(a, b)| (a - b).abs() < 1e-12));
}

/// A prediction equal to the target costs nothing; a zero one costs (P-1)/P up to eps.
#[test]
fn known_predictions_have_known_losses() {
    let (x, ids) = (images(2, [2, 3, 6, 9]), ids(2, 6));
    for norm_pix in [false, true] {
        let t = target(&x, None, 3, norm_pix).unwrap().reshape([12, 27]).unwrap();
        assert_eq!(forward(&t, &x, None, &ids, 3, norm_pix).unwrap().0.item().unwrap(), 0.0);
    }
    let zero = Tensor::zeros([12, 27], DType::F64, &Device::Cpu).unwrap();
    let loss = forward(&zero, &x, None, &ids, 3, true).unwrap().0.item().unwrap();
    assert!((loss - 26.0 / 27.0).abs() < 1e-5);
}

/// One colour per patch: exactly zero, in f32, whatever the colour; a spread of 1e-3 around 2.7 keeps its digits.
#[test]
fn constant_patches_give_zero_and_small_spreads_keep_their_digits() {
    let x = Tensor::full([1, 3, 16, 16], 0.1f32, &Device::Cpu).unwrap();
    assert!(target(&x, None, 16, true).unwrap().to_vec::<f32>().unwrap().iter().all(|&t| t == 0.0));
    let small: Vec<f32> = normal(&mut stream(3, 0), 768).iter().map(|x| (2.7 + 1e-3 * x) as f32).collect();
    let x = Tensor::from_slice(&small, [1, 3, 16, 16], &Device::Cpu).unwrap();
    let t = target(&x, None, 16, true).unwrap().to_f64().unwrap();
    let truth = target(&x.cast(DType::F64).unwrap(), None, 16, true).unwrap().to_f64().unwrap();
    assert!(t.iter().zip(&truth).all(|(a, b)| (a - b).abs() < 1e-5));
}

/// Pixels of patches that are not scored do not matter, to the loss or its gradient.
#[test]
fn visible_patches_do_not_matter() {
    let case = case(true, [2, 3, 2, 2], 4, 2, true);
    let operands = crate::testing::operands(&case, DType::F32, DType::F32, &Device::Cpu).unwrap();
    let scored = operands[3].to_vec::<i32>().unwrap();
    let run = |images: &Tensor| {
        let tape = Tape::new();
        let pred = tape.leaf(operands[0].clone());
        let loss = masked_mse(&tape, &pred, images, Some(&operands[2]), &operands[3], 4, true).unwrap();
        let (value, mut grads) = (loss.value().item().unwrap(), Grads::new());
        tape.backward_scaled(&loss, 1.0, &mut grads).unwrap();
        (value, grads.take(&pred).unwrap().to_vec::<f32>().unwrap())
    };
    let mut patches = patchify(&operands[1], 4).unwrap().to_vec::<u8>().unwrap();
    for (at, patch) in patches.chunks_mut(48).enumerate() {
        if !scored[at / 4 * 2..][..2].contains(&(at as i32 % 4)) {
            patch.fill(7);
        }
    }
    let changed = Tensor::from_slice(&patches, [2, 4, 48], &Device::Cpu).unwrap();
    let changed = crate::ops::patchify::unpatchify(&changed, 4, (2, 2)).unwrap();
    assert_ne!(changed.to_vec::<u8>().unwrap(), operands[1].to_vec::<u8>().unwrap());
    assert_eq!(run(&operands[1]), run(&changed));
}

/// Where the host cannot check the indices, one out of range gives NaN and reads nothing.
#[test]
fn kernels_guard_against_wrong_indices() {
    for device in devices() {
        let t = |v: &[f32], s: &[usize]| Tensor::from_slice(v, s, &device).unwrap();
        let (x, pred) = (t(&[0.5; 8], &[1, 1, 2, 4]), t(&[0.0; 8], &[2, 4]));
        let good = Tensor::from_slice(&[0i32, 1], [1, 2], &device).unwrap();
        let dims = Dims::check(&x, None, &good, 2, true).unwrap();
        for wrong in [-1, 2] {
            let ids = Tensor::from_slice(&[0i32, wrong], [1, 2], &device).unwrap();
            let (mut loss, mut stats) = (t(&[0.0], &[1]), t(&[0.0, 1.0, 0.0, 1.0], &[2, 2]));
            launch::forward(&pred, &x, None, &ids, dims, &mut loss, &mut stats).unwrap();
            assert!(loss.item().unwrap().is_nan());
            let mut dpred = t(&[0.0; 8], &[2, 4]);
            launch::backward(&t(&[1.0], &[1]), &pred, &x, None, &ids, &stats, dims, &mut dpred).unwrap();
            let dpred = dpred.to_vec::<f32>().unwrap();
            assert!(dpred[..4].iter().all(|x| *x == 0.0) && dpred[4..].iter().all(|x| x.is_nan()), "{dpred:?}");
        }
    }
}

#[test]
fn wrong_arguments_are_named() {
    let x = Tensor::zeros([1, 3, 8, 8], DType::U8, &Device::Cpu).unwrap();
    let pred = |rows| Var::constant(Tensor::zeros([rows, 48], DType::F32, &Device::Cpu).unwrap());
    let ids = |v: &[i32]| Tensor::from_slice(v, [1, v.len()], &Device::Cpu).unwrap();
    let error = |rows, v: &[i32], patch| {
        masked_mse(&Tape::no_grad(), &pred(rows), &x, None, &ids(v), patch, true).unwrap_err().to_string()
    };
    let op = "masked_mse";
    assert_eq!(error(3, &[0, 1], 4), format!("{op}: `pred` has shape [3, 48], expected [2, 48]"));
    assert!(error(0, &[], 4).starts_with(&format!("{op}: `pred` has shape [0, 48], expected at least one row")));
    assert_eq!(error(1, &[4], 4), format!("{op}: `ids[0, 0]` has value 4, expected an index below 4"));
    assert!(error(1, &[0], 3).ends_with("expected sides that are multiples of the patch, 3"));
}
