use proptest::prelude::*;

use super::{backward, case, forward, launch, swiglu};
use crate::testing::{check, check_gradients};
use crate::{DType, Device, Error, Tape, Tensor, Var};

#[test]
fn matches_the_oracle_on_odd_shapes() {
    for (rows, hidden) in [(0, 5), (3, 0), (1, 1), (2, 7), (3, 33), (5, 264), (2, 2736 / 2), (1, 2056)] {
        check(&case(rows, hidden)).unwrap();
    }
}

#[test]
fn gradients_match_finite_differences() {
    check_gradients(&case(3, 9)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn matches_the_oracle(rows in 1usize..9, hidden in 1usize..200) {
        check(&case(rows, hidden)).unwrap();
    }
}

#[test]
fn known_values_and_the_ends() {
    let gates = [0.0f32, 1.0, -1.0, 90.0, -90.0, 1e30, -1e30, f32::NAN];
    let x: Vec<f32> = gates.into_iter().chain([2.0; 8]).collect();
    let x = Tensor::from_slice(&x, [1, 16], &Device::Cpu).unwrap();
    let y = forward(&x).unwrap().to_vec::<f32>().unwrap();
    for (y, expected) in y.iter().zip([0.0, 1.462_117_2, -0.537_882_8, 180.0, 0.0, 2e30, 0.0]) {
        assert!(*y == expected || (y - expected).abs() < 1e-6, "{y} instead of {expected}");
    }
    let dy = Tensor::from_slice(&[1.0f32; 8], [1, 8], &Device::Cpu).unwrap();
    let dx = backward(&dy, &x).unwrap().to_vec::<f32>().unwrap();
    for (at, expected) in [(0, 1.0), (3, 2.0), (4, 0.0), (5, 2.0), (11, 90.0), (12, 0.0)] {
        assert!((dx[at] - expected).abs() < 1e-6, "dx[{at}] is {} instead of {expected}", dx[at]);
    }
    assert!(y[7].is_nan() && dx[7].is_nan());
}

#[test]
fn threads_share_the_vectors_of_a_row_evenly() {
    for hidden in [0, 1, 31, 257, 2736, 4096, 100_001] {
        for dtype in [DType::F32, DType::BF16] {
            let grid = launch::grid(5, hidden, dtype);
            assert!(grid.grid[0] == 5 && grid.block[0].is_multiple_of(32) && (32..=256).contains(&grid.block[0]));
        }
    }
    assert_eq!(launch::grid(1, 2736, DType::BF16).block[0], 192); // 342 vectors in two rounds
}

#[test]
fn wrong_arguments_are_named() {
    let message = |shape: &[usize], dtype| {
        let x = Var::constant(Tensor::zeros(shape, dtype, &Device::Cpu).unwrap());
        let error = swiglu(&Tape::no_grad(), &x).unwrap_err();
        assert!(matches!(error, Error::Argument { .. }));
        error.to_string()
    };
    assert_eq!(message(&[2, 3], DType::F32), "swiglu: `x` has shape [2, 3], expected an even number of columns");
    assert_eq!(message(&[2, 4], DType::I32), "swiglu: `x` has dtype i32, expected a float type");
}
