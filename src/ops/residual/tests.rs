use proptest::prelude::*;

use super::{Dims, case, launch, residual};
use crate::ops::{Case, Input};
use crate::testing::{check, check_gradients};
use crate::{DType, Device, Error, Tape, Tensor, Var};

fn unscaled(rows: usize, cols: usize) -> Case {
    let inputs = vec![Input::normal("x", [rows, cols]), Input::normal("branch", [rows, cols])];
    Case::new("residual", format!("unscaled {rows}x{cols}"), inputs, |tape, v| {
        Ok(vec![residual(tape, &v[0], &v[1], None)?])
    })
}

#[test]
fn matches_the_oracle_on_odd_shapes() {
    for (groups, rows, cols) in [(0, 3, 5), (1, 1, 1), (2, 3, 7), (5, 2, 16), (3, 5, 101), (7, 1, 1028), (70, 1, 8)] {
        check(&case(groups, rows, cols)).unwrap();
    }
    check(&unscaled(3, 67)).unwrap();
}

/// Chunks of the parallel loop and groups of rows end at different elements.
#[test]
fn groups_longer_and_shorter_than_a_chunk() {
    for (groups, rows, cols) in [(3, 131, 129), (211, 3, 97)] {
        let x = |seed: f32, n: usize| (0..n).map(|i| (i as f32 * seed).sin()).collect::<Vec<f32>>();
        let n = groups * rows * cols;
        let (a, b, s) = (x(0.3, n), x(0.7, n), x(1.1, groups));
        let t = |v: &[f32], shape: &[usize]| Tensor::from_slice(v, shape, &Device::Cpu).unwrap();
        let shape = [groups * rows, cols];
        let y = super::forward(&t(&a, &shape), &t(&b, &shape), Some(&t(&s, &[groups]))).unwrap();
        for (i, y) in y.to_vec::<f32>().unwrap().into_iter().enumerate() {
            assert_eq!(y, a[i] + s[i / (rows * cols)] * b[i], "at {i}");
        }
    }
}

#[test]
fn gradients_match_finite_differences() {
    check_gradients(&case(3, 2, 5)).unwrap();
    check_gradients(&unscaled(3, 5)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn matches_the_oracle(groups in 1usize..6, rows in 1usize..6, cols in 1usize..200) {
        check(&case(groups, rows, cols)).unwrap();
    }
}

#[test]
fn grids_cover_every_group() {
    for (groups, span) in [(1, 1), (3, 1024), (3, 1025), (70_000, 8), (64, 197 * 1024)] {
        let grid = launch::grid(Dims { groups, span }, DType::F32);
        assert!(grid.grid[0] as usize * grid.block[0] as usize * 4 >= span);
        assert!(grid.grid[1] as usize == groups || grid.grid[1] == 65_535, "a grid has at most 65535 blocks in y");
    }
}

#[test]
fn wrong_arguments_are_named() {
    let t = |s: &[usize]| Tensor::zeros(s, DType::F32, &Device::Cpu).unwrap();
    let v = |s: &[usize]| Var::constant(t(s));
    let message = |x: &[usize], branch: &[usize], scale: &[usize]| {
        let error = residual(&Tape::no_grad(), &v(x), &v(branch), Some(&t(scale))).unwrap_err();
        assert!(matches!(error, Error::Argument { .. }));
        error.to_string()
    };
    assert_eq!(message(&[6, 4], &[4, 6], &[3]), "residual: `branch` has shape [4, 6], expected [6, 4]");
    assert_eq!(message(&[6], &[6], &[3]), "residual: `x` has shape [6], expected 2 axes");
    for groups in [0, 4] {
        let expected = format!("residual: `scale` has shape [{groups}], expected one factor per sequence of 6 rows");
        assert_eq!(message(&[6, 4], &[6, 4], &[groups]), expected);
    }
}
