use proptest::prelude::*;

use super::{best_row, case, launch};
use crate::ops::gather_rows;
use crate::testing::{check, devices};
use crate::{DType, Device, Error, Tensor};

#[test]
fn matches_the_oracle_on_odd_shapes() {
    for (rows, cols) in [(0, 3), (1, 1), (7, 3), (9, 4), (3, 31), (5, 33), (2, 257)] {
        check(&case(rows, cols)).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn matches_the_oracle(rows in 1usize..40, cols in 1usize..80) {
        check(&case(rows, cols)).unwrap();
    }
}

/// Every device, the plain one too.
fn everywhere() -> impl Iterator<Item = Device> {
    std::iter::once(Device::Cpu).chain(devices())
}

#[test]
fn the_first_of_equal_scores_and_the_first_nan_win() {
    const NAN: f32 = f32::NAN;
    const LOW: f32 = f32::NEG_INFINITY;
    let scores = [
        [1.0, 3.0, 3.0, 2.0],
        [0.0, -0.0, 0.0, -1.0],
        [LOW, LOW, LOW, LOW],
        [9.0, NAN, f32::INFINITY, NAN],
        [NAN, NAN, 1.0, 2.0],
        [-5.0, -4.0, -3.0, -2.0],
    ];
    for device in everywhere() {
        let scores = Tensor::from_slice(scores.as_flattened(), [6, 4], &device).unwrap();
        assert_eq!(best_row(&scores).unwrap().to_vec::<i32>().unwrap(), [1, 4, 8, 13, 16, 23], "{device}");
    }
}

/// Equal scores further apart than the lanes of a warp.
#[test]
fn ties_of_long_rows_go_to_the_left() {
    for device in everywhere() {
        for at in [0usize, 31, 32, 63, 70] {
            let row: Vec<f32> = (0..100).map(|c| if c >= at && c % 7 == at % 7 { 2.0 } else { 1.0 }).collect();
            let scores = Tensor::from_slice(&row, [1, 100], &device).unwrap();
            assert_eq!(best_row(&scores).unwrap().to_vec::<i32>().unwrap(), [at as i32], "{device}");
        }
    }
}

#[test]
fn the_result_picks_rows() {
    let scores = Tensor::from_slice(&[0.1f32, 0.9, 0.2, 0.8, 0.1, 0.3], [2, 3], &Device::Cpu).unwrap();
    let x = Tensor::from_slice(&[0f32, 1., 2., 3., 4., 5.], [6, 1], &Device::Cpu).unwrap();
    let picked = gather_rows::forward(&x, &best_row(&scores).unwrap()).unwrap();
    assert_eq!(picked.to_vec::<f32>().unwrap(), [1.0, 3.0]);
}

#[test]
fn grids_cover_every_row() {
    for rows in [0u32, 1, 7, 8, 9, 100_000] {
        let grid = launch::grid(rows);
        assert!(grid.grid[0] * (grid.block[0] / 32) >= rows && grid.block[0].is_multiple_of(32));
    }
}

#[test]
fn wrong_arguments_are_named() {
    let message = |shape: &[usize], dtype| {
        let error = best_row(&Tensor::zeros(shape, dtype, &Device::Cpu).unwrap()).unwrap_err();
        assert!(matches!(error, Error::Argument { .. }));
        error.to_string()
    };
    assert_eq!(message(&[2, 3], DType::I32), "argmax: `scores` has dtype i32, expected a float type");
    assert_eq!(message(&[2, 0], DType::F32), "argmax: `scores` has shape [2, 0], expected at least one column");
    assert_eq!(message(&[2], DType::F32), "argmax: `scores` has shape [2], expected 2 axes");
}
