use proptest::prelude::*;

use super::case::build;
use super::{batched, batched_case, bias_gradient, case, launch, linear, transposed, transposed_case};
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

#[test]
fn a_transposed_weight_matches_the_oracle_on_odd_shapes() {
    for (rows, inner, outer) in [
        (1, 1, &[1][..]),
        (3, 5, &[7]),
        (33, 31, &[13, 2, 2]),
        (515, 3, &[9]),
        (0, 5, &[7]),
        (4, 3, &[0]),
        (2, 0, &[3]),
    ] {
        check(&transposed_case(rows, inner, outer)).unwrap();
    }
    check_gradients(&transposed_case(4, 3, &[2, 2])).unwrap();
}

#[test]
fn a_batch_of_products_matches_the_oracle_on_odd_shapes() {
    for (batch, extents) in [
        (1, [1, 1, 1]),
        (3, [4, 65, 7]),
        (2, [33, 5, 31]),
        (5, [3, 2, 515]),
        (0, [3, 2, 4]),
        (2, [0, 3, 4]),
        (2, [3, 0, 4]),
        (2, [3, 4, 0]),
    ] {
        check(&batched_case(batch, extents, true)).unwrap();
        check(&batched_case(batch, extents, false)).unwrap();
    }
    check_gradients(&batched_case(3, [2, 4, 5], false)).unwrap();
    check_gradients(&batched_case(2, [3, 1, 2], true)).unwrap();
}

fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
}

/// By hand: `[1 2] · [[1 2 3], [4 5 6]]` and its transpose, entry by entry.
#[test]
fn known_products() {
    let (x, w) = (Var::constant(tensor(&[1.0, 2.0], &[1, 2])), tensor(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3]));
    let y = transposed(&Tape::no_grad(), &x, &Var::constant(w.clone())).unwrap();
    assert_eq!((&**y.value().shape(), y.value().to_vec::<f32>().unwrap()), (&[1, 3][..], vec![9.0, 12.0, 15.0]));
    let (x, w) = (w.reshape([2, 1, 3]).unwrap(), tensor(&(0..12).map(|i| i as f32).collect::<Vec<_>>(), &[2, 2, 3]));
    let y = batched(&Tape::no_grad(), &Var::constant(x), &Var::constant(w)).unwrap();
    // [1 2 3] with [0 1 2] and [3 4 5]; [4 5 6] with [6 7 8] and [9 10 11].
    assert_eq!(
        (&**y.value().shape(), y.value().to_vec::<f32>().unwrap()),
        (&[2, 1, 2][..], vec![8.0, 26.0, 107.0, 152.0])
    );
}

/// A gradient that is there is added to, whichever operand it is of.
#[test]
fn products_accumulate() {
    for (shape, of_both) in [(&[2, 2][..], transposed as fn(&Tape, &Var, &Var) -> _), (&[1, 2, 2], batched)] {
        let tape = Tape::new();
        let x = tape.leaf(tensor(&[1.0, 2.0, 3.0, 4.0], shape));
        let w = Param::new("w", tensor(&[1.0; 4], shape), DType::F32).unwrap();
        let once = of_both(&tape, &x, &tape.param(&w)).unwrap();
        let twice = of_both(&tape, &x, &tape.param(&w)).unwrap();
        let y = crate::ops::add::add(&tape, &once, &twice).unwrap();
        let mut grads = Grads::new();
        tape.backward(&y, tensor(&[1.0; 4], shape), &mut grads).unwrap();
        assert_eq!(grads.take(&x).unwrap().to_vec::<f32>().unwrap(), [4.0; 4]);
        let dw = grads.get(&w).unwrap().to_vec::<f32>().unwrap();
        // Column sums of x, twice: along the rows of dw where it is [in, out], along its columns where it is [out, in].
        assert_eq!(dw, if shape.len() == 2 { [8.0, 8.0, 12.0, 12.0] } else { [8.0, 12.0, 8.0, 12.0] });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5))]
    #[test]
    fn matches_the_oracle(rows in 1usize..60, inner in 1usize..50, outer in 1usize..70, residual: bool) {
        check(&case(rows, inner, outer, residual)).unwrap();
    }

    #[test]
    fn batches_match_the_oracle(batch in 1usize..4, n in 1usize..20, m in 1usize..50, k in 1usize..40) {
        check(&batched_case(batch, [n, m, k], false)).unwrap();
        check(&transposed_case(batch * n, k, &[m])).unwrap();
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
    let error = transposed(&tape, &t(&[3, 7]), &t(&[5, 7])).unwrap_err();
    assert_eq!(error.to_string(), "linear: `w` has shape [5, 7], expected [7, out]");
    let error = transposed(&tape, &t(&[3, 7]), &t(&[7])).unwrap_err();
    assert_eq!(error.to_string(), "linear: `w` has shape [7], expected [7, out]");
    let error = batched(&tape, &t(&[2, 3, 7]), &t(&[3, 5, 7])).unwrap_err();
    assert_eq!(error.to_string(), "linear: `w` has shape [3, 5, 7], expected [2, out, 7]");
    let error = batched(&tape, &t(&[3, 7]), &t(&[3, 5, 7])).unwrap_err();
    assert_eq!(error.to_string(), "linear: `x` has shape [3, 7], expected 3 axes");
}
