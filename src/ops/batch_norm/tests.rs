use proptest::prelude::*;

use super::{batch_norm, case, launch, normalize, normalize_case};
use crate::testing::{check, check_gradients};
use crate::{DType, Device, Error, Tape, Tensor, Var};

#[test]
fn matches_the_oracle_on_odd_shapes() {
    for (rows, cols) in [(3, 0), (3, 1), (5, 31), (8, 32), (9, 33), (67, 100), (257, 7)] {
        check(&case(rows, cols)).unwrap();
    }
    for (rows, cols) in [(0, 3), (3, 0), (1, 1), (3, 127), (5, 129)] {
        check(&normalize_case(rows, cols)).unwrap();
    }
}

#[test]
fn gradients_match_finite_differences() {
    for (rows, cols) in [(3, 1), (7, 4)] {
        check_gradients(&case(rows, cols)).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn matches_the_oracle(rows in 4usize..200, cols in 1usize..150) {
        check(&case(rows, cols)).unwrap();
        check(&normalize_case(rows, cols)).unwrap();
    }
}

#[test]
fn grids_cover_every_column_and_row() {
    for (rows, cols) in [(1usize, 1u32), (5, 31), (5, 33), (100_000, 768)] {
        let grid = launch::grid(rows, cols);
        assert!(grid.grid[0] as usize * 64 >= rows && grid.grid[1] * 256 >= cols && grid.block[0] == 256);
        let grid = launch::combine_grid(cols);
        assert!(grid.grid[0] * 32 >= cols && grid.block[0] == 1024);
    }
}

#[test]
fn training_and_evaluation_agree_on_the_same_statistics() {
    let x: Vec<f32> = (0..600).map(|i| (i as f32 * 0.7).sin() * 3.0 + 100.0).collect();
    let x = Tensor::from_slice(&x, [40, 15], &Device::Cpu).unwrap();
    let (y, mean, var) = batch_norm(&Tape::no_grad(), &Var::constant(x.clone()), 1e-6).unwrap();
    let evaluated = normalize(&x, &mean, &var, 1e-6).unwrap();
    assert_eq!(y.value().to_vec::<f32>().unwrap(), evaluated.to_vec::<f32>().unwrap());
    let y = y.value().to_f64().unwrap();
    for (col, var) in var.to_f64().unwrap().into_iter().enumerate() {
        let column = || y.iter().skip(col).step_by(15);
        assert!(column().sum::<f64>().abs() < 1e-3);
        let square = column().map(|y| y * y).sum::<f64>() / 40.0;
        assert!((square - var / (var + 1e-6)).abs() < 1e-4, "variance {square}");
    }
}

#[test]
fn wrong_arguments_are_named() {
    let t = |s: &[usize]| Tensor::zeros(s, DType::F32, &Device::Cpu).unwrap();
    let message = |s: &[usize]| {
        let error = batch_norm(&Tape::no_grad(), &Var::constant(t(s)), 1e-6).unwrap_err();
        assert!(matches!(error, Error::Argument { .. }));
        error.to_string()
    };
    assert_eq!(message(&[1, 7]), "batch_norm: `x` has shape [1, 7], expected at least two rows");
    assert_eq!(message(&[7]), "batch_norm: `x` has shape [7], expected 2 axes");
    let error = normalize(&t(&[2, 7]), &t(&[7]), &t(&[2]), 1e-6).unwrap_err();
    assert_eq!(error.to_string(), "batch_norm: `var` has shape [2], expected [7]");
}
