use proptest::prelude::*;

use super::{case, launch, softmax};
use crate::testing::{check, check_gradients};
use crate::{DType, Device, Error, Tape, Tensor, Var};

#[test]
fn matches_the_oracle_on_odd_shapes() {
    for (rows, cols) in [(0, 5), (3, 0), (1, 1), (5, 31), (3, 32), (7, 257), (130, 8), (2, 1000)] {
        check(&case(rows, cols)).unwrap();
    }
}

/// Rows held in registers as vectors and as elements, full and with a rest, and rows longer than that.
#[test]
fn rows_in_registers_match_the_oracle() {
    for (rows, cols) in [(9, 520), (3, 1024), (1, 1032), (2, 383), (1, 385), (1, 1023), (1, 2049), (1, 2056)] {
        check(&case(rows, cols)).unwrap();
    }
}

#[test]
fn a_kernel_holds_the_whole_row() {
    let name = |cols, dtype| launch::variant(["any", "x4", "x8", "s12", "s32"], cols, dtype);
    for (cols, f32, bf16) in [
        (0, "x4", "x4"),
        (257, "s12", "s12"),
        (385, "s32", "s32"),
        (512, "x4", "x4"),
        (516, "x8", "s32"),
        (1000, "x8", "x4"),
        (1032, "any", "x8"),
        (2048, "any", "x8"),
        (1025, "any", "any"),
        (2056, "any", "any"),
    ] {
        assert_eq!((name(cols, DType::F32), name(cols, DType::BF16)), (f32, bf16), "{cols} columns");
    }
}

#[test]
fn gradients_match_finite_differences() {
    for (rows, cols) in [(1, 2), (4, 7), (3, 33)] {
        check_gradients(&case(rows, cols)).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn matches_the_oracle(rows in 1usize..60, cols in 1usize..300) {
        check(&case(rows, cols)).unwrap();
    }
}

#[test]
fn extreme_rows_stay_right() {
    let inf = f32::INFINITY;
    let x = [[1e4, 1e4, -1e4], [3e38, 0.0, -3e38], [-inf, 0.0, 0.0], [f32::NAN, 0.0, 0.0], [-inf, -inf, -inf]].concat();
    let x = Var::constant(Tensor::from_slice(&x, [5, 3], &Device::Cpu).unwrap());
    let y = softmax(&Tape::no_grad(), &x).unwrap().value().to_vec::<f32>().unwrap();
    assert_eq!(y[..9], [0.5, 0.5, 0.0, 1.0, 0.0, 0.0, 0.0, 0.5, 0.5]);
    assert!(y[9..].iter().all(|y| y.is_nan()));
}

#[test]
fn grids_cover_every_row() {
    for rows in [0, 1, 3, 4, 5, 31, 100_000, u32::MAX] {
        let grid = launch::grid(rows);
        assert!(u64::from(grid.grid[0]) * u64::from(grid.block[0] / 32) >= u64::from(rows));
    }
}

#[test]
fn wrong_arguments_are_named() {
    let x = Var::constant(Tensor::zeros([3], DType::I32, &Device::Cpu).unwrap());
    let error = softmax(&Tape::no_grad(), &x).unwrap_err();
    assert!(matches!(error, Error::Argument { .. }));
    assert_eq!(error.to_string(), "softmax: `x` has dtype i32, expected a float type");
    let y = Tensor::zeros([3], DType::F32, &Device::Cpu).unwrap();
    let dy = Tensor::zeros([2], DType::F32, &Device::Cpu).unwrap();
    let error = super::backward(&dy, &y).unwrap_err();
    assert_eq!(error.to_string(), "softmax: `dy` has shape [2], expected [3]");
}
