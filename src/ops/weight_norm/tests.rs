use proptest::prelude::*;

use super::{backward, case, forward, launch, weight_norm};
use crate::ops::{Case, Input};
use crate::testing::{check, check_gradients};
use crate::{DType, Device, Error, Tape, Tensor, Var};

fn without_g(rows: usize, cols: usize) -> Case {
    let inputs = vec![Input::param("v", [rows, cols])];
    Case::new("weight_norm", format!("{rows}x{cols} without g"), inputs, |tape, v| {
        Ok(vec![weight_norm(tape, &v[0], None)?])
    })
    .terms(cols)
}

#[test]
fn matches_the_oracle_on_odd_shapes() {
    for (rows, cols) in [(0, 4), (3, 0), (2, 2), (5, 7), (9, 32), (3, 264), (1, 1030)] {
        check(&case(rows, cols)).unwrap();
    }
    check(&without_g(4, 40)).unwrap();
}

#[test]
fn gradients_match_finite_differences() {
    check_gradients(&case(3, 5)).unwrap();
    check_gradients(&without_g(4, 3)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn matches_the_oracle(rows in 1usize..40, cols in 2usize..200) {
        check(&case(rows, cols)).unwrap();
    }
}

fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
}

#[test]
fn lengths_are_g_whatever_v_and_gradients_are_tangents() {
    let (v, dw) = (tensor(&[3.0, 4.0, 0.0, 0.0, 30.0, 40.0], &[3, 2]), tensor(&[1.0; 6], &[3, 2]));
    let g = tensor(&[1.0, 2.0, 5.0], &[3]);
    let (w, norms) = forward(&v, Some(&g)).unwrap();
    assert_eq!(norms.to_vec::<f32>().unwrap(), [5.0, 0.0, 50.0]);
    for (w, expected) in w.to_vec::<f32>().unwrap().iter().zip([0.6, 0.8, 0.0, 0.0, 3.0, 4.0]) {
        assert!((w - expected).abs() < 1e-6, "{w} instead of {expected}");
    }
    let (dv, dg) = backward(&dw, &v, Some(&g), &norms).unwrap();
    for (d, expected) in dg.unwrap().to_vec::<f32>().unwrap().iter().zip([1.4, 0.0, 1.4]) {
        assert!((d - expected).abs() < 1e-6, "{d} instead of {expected}");
    }
    let dv = dv.to_vec::<f32>().unwrap();
    assert!((3.0 * dv[0] + 4.0 * dv[1]).abs() < 1e-6 && dv[2..4] == [0.0, 0.0]);
}

#[test]
fn a_frozen_g_gets_no_gradient() {
    let tape = Tape::new();
    let v = tape.leaf(tensor(&[3.0, 4.0], &[1, 2]));
    let g = Var::constant(tensor(&[1.0], &[1, 1]));
    let w = weight_norm(&tape, &v, Some(&g)).unwrap();
    let mut grads = crate::Grads::new();
    tape.backward(&w, tensor(&[1.0, 0.0], &[1, 2]), &mut grads).unwrap();
    let dv = grads.take(&v).unwrap().to_vec::<f32>().unwrap();
    assert!((dv[0] - 0.128).abs() < 1e-6 && (dv[1] + 0.096).abs() < 1e-6, "{dv:?}");
}

#[test]
fn grids_cover_every_row() {
    for rows in [0, 1, 8, 9, 131_072] {
        let grid = launch::grid(rows);
        assert!(grid.grid[0] * (grid.block[0] / 32) >= rows);
    }
}

#[test]
fn wrong_arguments_are_named() {
    let v = |s: &[usize]| Var::constant(Tensor::zeros(s, DType::F32, &Device::Cpu).unwrap());
    let message = |shape: &[usize], g: &[usize]| {
        let error = weight_norm(&Tape::no_grad(), &v(shape), Some(&v(g))).unwrap_err();
        assert!(matches!(error, Error::Argument { .. }));
        error.to_string()
    };
    assert_eq!(message(&[3, 4], &[4]), "weight_norm: `g` has shape [4], expected [3] or [3, 1]");
    assert_eq!(message(&[3, 4], &[1, 3]), "weight_norm: `g` has shape [1, 3], expected [3] or [3, 1]");
    assert_eq!(message(&[3], &[3]), "weight_norm: `v` has shape [3], expected 2 axes");
}
