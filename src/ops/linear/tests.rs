use proptest::prelude::*;

use super::case::build;
use super::{bias_gradient, case, launch, linear};
use crate::testing::{check, check_gradients};
use crate::{DType, Device, Grads, Param, Tape, Tensor, Var};

#[test]
fn matches_the_oracle_on_odd_shapes() {
    for (rows, inner, outer, residual) in [
        (1, 1, 1, false),
        (3, 5, 7, true),
        (33, 31, 65, false),
        (70, 16, 33, true),
        (515, 9, 3, false),
        (0, 5, 7, true),
    ] {
        check(&case(rows, inner, outer, residual)).unwrap();
    }
    check(&build(33, 31, 65, false, false)).unwrap();
    check(&build(7, 5, 3, false, true)).unwrap();
}

#[test]
fn gradients_match_finite_differences() {
    check_gradients(&case(4, 3, 5, true)).unwrap();
    check_gradients(&case(1, 7, 2, false)).unwrap();
    check_gradients(&build(3, 4, 2, false, true)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5))]
    #[test]
    fn matches_the_oracle(rows in 1usize..60, inner in 1usize..50, outer in 1usize..70, residual: bool) {
        check(&case(rows, inner, outer, residual)).unwrap();
    }
}

#[test]
fn splits_cover_every_row() {
    for rows in [0, 1, 7, 8, 9, 512, 513, 100_000] {
        let (parts, per_part) = launch::split(rows);
        assert!(parts * per_part >= rows && parts <= 64 && per_part % 8 == 0);
    }
}

#[test]
fn weight_gradients_accumulate_in_f32() {
    let w = Param::new("w", Tensor::full([2, 2], 1.0f32, &Device::Cpu).unwrap(), DType::BF16).unwrap();
    let mut grads = Grads::new();
    for _ in 0..2 {
        let tape = Tape::new();
        let x = Var::constant(Tensor::full([3, 2], half::bf16::ONE, &Device::Cpu).unwrap());
        let y = linear(&tape, &x, &tape.param(&w), None, None).unwrap();
        let seed = Tensor::full([3, 2], half::bf16::ONE, &Device::Cpu).unwrap();
        tape.backward(&y, seed, &mut grads).unwrap();
    }
    assert_eq!(grads.get(&w).unwrap().to_vec::<f32>().unwrap(), [6.0; 4]);
}

#[test]
fn sums_do_not_depend_on_the_number_of_threads() {
    let values: Vec<f32> = (0..5000 * 7).map(|i| (i as f32 * 0.37).sin()).collect();
    let dy = Tensor::from_slice(&values, [5000, 7], &Device::Cpu).unwrap();
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| bias_gradient(&dy).unwrap().to_vec::<f32>().unwrap())
    };
    assert_eq!(with(1), with(3));
}

#[test]
fn wrong_arguments_are_named() {
    let t = |s: &[usize]| Var::constant(Tensor::zeros(s, DType::F32, &Device::Cpu).unwrap());
    let tape = Tape::no_grad();
    let error = linear(&tape, &t(&[3, 7]), &t(&[5, 8]), None, None).unwrap_err();
    assert_eq!(error.to_string(), "linear: `w` has shape [5, 8], expected [out, 7]");
    let error = linear(&tape, &t(&[3, 7]), &t(&[5, 7]), Some(&t(&[4])), None).unwrap_err();
    assert_eq!(error.to_string(), "linear: `b` has shape [4], expected [5]");
    let error = linear(&tape, &t(&[3, 7]), &t(&[5, 7]), None, Some(&t(&[3, 4]))).unwrap_err();
    assert_eq!(error.to_string(), "linear: `residual` has shape [3, 4], expected [3, 5]");
}
