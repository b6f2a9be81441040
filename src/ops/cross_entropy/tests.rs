use proptest::prelude::*;

use super::{Targets, backward, case, cross_entropy, forward, launch, soft_case};
use crate::testing::{check, check_gradients};
use crate::{DType, Device, Error, Grads, Tape, Tensor, Var};

#[test]
fn matches_the_oracle_on_odd_shapes() {
    for (rows, cols) in [(1, 1), (1, 2), (3, 31), (5, 33), (7, 257), (67, 10), (9, 96), (2, 1000), (1, 1024), (1, 1032)]
    {
        check(&case(rows, cols, 0.0)).unwrap();
        check(&case(rows, cols, 0.1)).unwrap();
        check(&soft_case(rows, cols)).unwrap();
    }
}

#[test]
fn gradients_match_finite_differences() {
    check_gradients(&case(3, 7, 0.0)).unwrap();
    check_gradients(&case(4, 5, 0.3)).unwrap();
    check_gradients(&soft_case(3, 6)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn matches_the_oracle(rows in 1usize..40, cols in 1usize..300, smoothing in 0f32..1.0) {
        check(&case(rows, cols, smoothing)).unwrap();
        check(&soft_case(rows, cols)).unwrap();
    }
}

#[test]
fn grids_cover_every_row() {
    for rows in [1, 3, 4, 5, 16384, 100_001] {
        let grid = launch::grid(rows as u32);
        assert!(grid.grid[0] as usize * (grid.block[0] / 32) as usize >= rows);
    }
}

fn tensor<T: crate::dtype::Element>(values: &[T], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
}

#[test]
fn equal_logits_cost_the_logarithm_of_the_classes() {
    let x = tensor(&[2.5f32; 12], &[3, 4]);
    for smoothing in [0.0, 0.5] {
        let loss = forward(&x, Targets::Classes(&tensor(&[0, 1, 3], &[3])), smoothing).unwrap().0;
        assert!((loss.item().unwrap() - 4f64.ln()).abs() < 1e-6);
    }
}

/// Smoothing is the soft target it stands for.
#[test]
fn smoothing_is_a_soft_target() {
    let x: Vec<f64> = (0..10).map(|i| (i as f64).sin() * 4.0).collect();
    let (x, classes, s) = (tensor(&x, &[2, 5]), [3usize, 0], 0.1f32);
    let mut soft = vec![f64::from(s) / 5.0; 10];
    classes.iter().enumerate().for_each(|(row, c)| soft[row * 5 + c] += 1.0 - f64::from(s));
    let classes = tensor(&classes.map(|c| c as i32), &[2]);
    let run = |targets, smoothing| {
        let (tape, mut grads) = (Tape::new(), Grads::new());
        let x = tape.leaf(x.clone());
        let loss = cross_entropy(&tape, &x, targets, smoothing).unwrap();
        tape.backward_scaled(&loss, 1.0, &mut grads).unwrap();
        let mut values = grads.take(&x).unwrap().to_f64().unwrap();
        values.push(loss.value().item().unwrap());
        values
    };
    let (smoothed, given) = (run(Targets::Classes(&classes), s), run(Targets::Soft(&tensor(&soft, &[2, 5])), 0.0));
    assert!(smoothed.iter().zip(&given).all(|(a, b)| (a - b).abs() < 1e-12), "{smoothed:?} {given:?}");
}

#[test]
fn huge_and_infinite_logits_stay_finite() {
    let x = tensor(&[3e38f32, -3e38, 0.0, f32::NEG_INFINITY, 1.0, 2.0], &[2, 3]);
    let soft = tensor(&[1f32, 0.0, 0.0, 0.0, 0.5, 0.5], &[2, 3]);
    for targets in [Targets::Classes(&tensor(&[0, 2], &[2])), Targets::Soft(&soft)] {
        assert!(forward(&x, targets, 0.0).unwrap().0.item().unwrap().is_finite());
    }
}

#[test]
fn wrong_arguments_are_named() {
    let x = |s: &[usize]| Tensor::zeros(s, DType::F32, &Device::Cpu).unwrap();
    fn message(x: Tensor, targets: Targets<'_>, smoothing: f32) -> String {
        let error = cross_entropy(&Tape::no_grad(), &Var::constant(x), targets, smoothing).unwrap_err();
        assert!(matches!(error, Error::Argument { .. }));
        error.to_string()
    }
    let classes = |c: &[i32]| tensor(c, &[c.len()]);
    for (class, c) in [(3, [0, 3]), (-1, [-1, 0])] {
        assert_eq!(
            message(x(&[2, 3]), Targets::Classes(&classes(&c)), 0.0),
            format!("cross_entropy: `targets` has value {class}, expected classes in 0..3")
        );
    }
    let expected = "cross_entropy: `targets` has shape [3], expected [2]";
    assert_eq!(message(x(&[2, 3]), Targets::Classes(&classes(&[0, 1, 2])), 0.0), expected);
    let expected = "cross_entropy: `logits` has shape [0, 3], expected at least one row and one class";
    assert_eq!(message(x(&[0, 3]), Targets::Classes(&classes(&[])), 0.0), expected);
    let expected = "cross_entropy: `smoothing` has value 1.5, expected 0 to 1";
    assert_eq!(message(x(&[2, 3]), Targets::Classes(&classes(&[0, 1])), 1.5), expected);
    let expected = "cross_entropy: `smoothing` has value 0.1, expected 0 with soft targets, which are made smooth";
    assert_eq!(message(x(&[2, 3]), Targets::Soft(&x(&[2, 3])), 0.1), expected);
    let expected = "cross_entropy: `targets` has dtype f32, expected i32";
    assert_eq!(message(x(&[2, 3]), Targets::Classes(&x(&[2])), 0.0), expected);
}

#[test]
fn a_backward_refuses_what_its_forward_did_not_make() {
    let t = |s: &[usize], dtype| Tensor::zeros(s, dtype, &Device::Cpu).unwrap();
    let (x, classes) = (t(&[2, 3], DType::BF16), tensor(&[0, 2], &[2]));
    let message = |lse: DType, dloss: DType| {
        let targets = Targets::Classes(&classes);
        backward(&t(&[1], dloss), &x, &t(&[2], lse), targets, 0.0).unwrap_err().to_string()
    };
    assert_eq!(message(DType::BF16, DType::BF16), "cross_entropy: `lse` has dtype bf16, expected f32");
    assert_eq!(message(DType::F32, DType::BF16), "cross_entropy: `dloss` has dtype bf16, expected f32");
}
