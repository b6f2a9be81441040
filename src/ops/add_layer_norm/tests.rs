use proptest::prelude::*;

use super::{add_layer_norm, case, forward, joint_case};
use crate::ops::{add, layer_norm};
use crate::testing::{check, check_gradients};
use crate::{DType, Device, Error, Grads, Tape, Tensor, Var};

#[test]
fn matches_the_oracle_on_odd_shapes() {
    for (rows, cols) in [(0, 7), (1, 5), (1, 31), (3, 32), (5, 33), (67, 8), (130, 100)] {
        check(&case(rows, cols)).unwrap();
        check(&joint_case(rows, cols)).unwrap();
    }
    // Few columns without dx, as in layer_norm.
    for (rows, cols) in [(3, 1), (5, 2), (4, 3), (33, 4)] {
        check(&joint_case(rows, cols).constants(|input| ["x", "r"].contains(&input.name))).unwrap();
    }
}

/// Every number of vectors that a lane may hold, and rows longer than that.
#[test]
fn rows_in_registers_match_the_oracle() {
    for (rows, cols) in [(9, 264), (3, 520), (1, 1024), (2, 1160), (1, 1544)] {
        check(&joint_case(rows, cols)).unwrap();
    }
    check(&case(3, 520)).unwrap();
}

#[test]
fn gradients_match_finite_differences() {
    for (rows, cols) in [(1, 2), (4, 7), (3, 33)] {
        check_gradients(&case(rows, cols)).unwrap();
        check_gradients(&joint_case(rows, cols)).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn matches_the_oracle(rows in 1usize..90, cols in 5usize..300) {
        check(&joint_case(rows, cols)).unwrap();
    }
}

fn tensor(shape: &[usize], step: f32) -> Tensor {
    let values: Vec<f32> = (0..shape.iter().product()).map(|i| (i as f32 * step).sin()).collect();
    Tensor::from_slice(&values, shape, &Device::Cpu).unwrap()
}

/// Bit for bit: both run the same row function.
#[test]
fn is_the_composition_of_add_and_layer_norm() {
    let (x, r, w, b) = (tensor(&[70, 48], 0.3), tensor(&[70, 48], 0.7), tensor(&[48], 1.1), tensor(&[48], 1.3));
    let run = |fused: bool| {
        let (tape, mut grads) = (Tape::new(), Grads::new());
        let leaves = [&x, &r, &w, &b].map(|t| tape.leaf(t.clone()));
        let [x, r, w, b] = &leaves;
        let y = if fused {
            add_layer_norm(&tape, x, r, w, b, 1e-6).unwrap().1
        } else {
            layer_norm::layer_norm(&tape, &add::add(&tape, x, r).unwrap(), w, b, 1e-6).unwrap()
        };
        tape.backward(&y, tensor(&[70, 48], 0.9), &mut grads).unwrap();
        let mut tensors = vec![y.value().clone()];
        tensors.extend(leaves.iter().map(|l| grads.take(l).unwrap()));
        tensors.iter().map(|t| t.to_vec::<f32>().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(run(true), run(false));
}

/// Only the sum is used: the weights get no gradient and nothing is computed.
#[test]
fn a_sum_alone_passes_its_gradient_on() {
    let (tape, mut grads) = (Tape::new(), Grads::new());
    let leaves = [[2, 3], [2, 3], [3, 1], [3, 1]].map(|s| tape.leaf(tensor(&s, 0.4)));
    let [x, r, w, b] = &leaves;
    let (w, b) = (w.reshape([3]).unwrap(), b.reshape([3]).unwrap());
    let (sum, _) = add_layer_norm(&tape, x, r, &w, &b, 1e-6).unwrap();
    tape.backward(&sum, tensor(&[2, 3], 0.2), &mut grads).unwrap();
    let expected = tensor(&[2, 3], 0.2).to_vec::<f32>().unwrap();
    assert_eq!(grads.take(x).unwrap().to_vec::<f32>().unwrap(), expected);
    assert_eq!(grads.take(r).unwrap().to_vec::<f32>().unwrap(), expected);
    assert!(grads.take(&w).is_none() && grads.take(&b).is_none());
}

#[test]
fn wrong_arguments_are_named() {
    let t = |s: &[usize]| Var::constant(Tensor::zeros(s, DType::F32, &Device::Cpu).unwrap());
    let message = |r: &[usize], w: &[usize]| {
        let error = add_layer_norm(&Tape::no_grad(), &t(&[3, 7]), &t(r), &t(w), &t(&[7]), 1e-6).unwrap_err();
        assert!(matches!(error, Error::Argument { .. }));
        error.to_string()
    };
    assert_eq!(message(&[7, 3], &[7]), "add_layer_norm: `r` has shape [7, 3], expected [3, 7]");
    assert_eq!(message(&[3, 7], &[21]), "add_layer_norm: `w` has shape [21], expected [7]");
    let half = Tensor::zeros([3, 7], DType::F16, &Device::Cpu).unwrap();
    let (x, w) = (t(&[3, 7]), t(&[7]));
    let error = forward(x.value(), &half, w.value(), w.value(), 1e-6).unwrap_err();
    assert_eq!(error.to_string(), "add_layer_norm: `r` has dtype f16, expected f32");
}
