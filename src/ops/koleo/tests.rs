use proptest::prelude::*;

use super::{Dims, PANEL, backward, case, forward, koleo, launch};
use crate::testing::{check, check_gradients, devices};
use crate::{DType, Device, Error, Tape, Tensor, Var};

#[test]
fn matches_the_oracle_on_odd_shapes() {
    for (groups, rows, cols) in [(1, 2, 5), (2, 3, 16), (1, 7, 33), (3, 5, 130), (1, 131, 40)] {
        check(&case(groups, rows, cols)).unwrap();
    }
}

/// More rows than a panel of products has.
#[test]
fn panels_find_the_same_neighbours() {
    let rows = PANEL + 9;
    let x: Vec<f32> = (0..rows * 3).map(|i| (i as f32 * 0.37 + (i * i % 101) as f32).sin()).collect();
    let at = |row: usize| {
        let x: Vec<f64> = x[3 * row..][..3].iter().map(|&v| v.into()).collect();
        let norm = x.iter().map(|v| v * v).sum::<f64>().sqrt();
        [x[0] / norm, x[1] / norm, x[2] / norm]
    };
    let dot = |a: [f64; 3], b: [f64; 3]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for device in devices().into_iter().chain([Device::Cpu]) {
        let x = Tensor::from_slice(&x, [rows, 3], &device).unwrap();
        let found = forward(&x, 1).unwrap().1.neighbours.to_vec::<i32>().unwrap();
        for row in (0..rows).step_by(41).chain([PANEL - 1, PANEL, rows - 1]) {
            let best = (0..rows).filter(|&j| j != row).map(|j| dot(at(row), at(j))).fold(-1.0, f64::max);
            let got = dot(at(row), at(found[row] as usize));
            assert!(found[row] as usize != row && best - got < 1e-6, "row {row} on {device}: {got} instead of {best}");
        }
    }
}

#[test]
fn gradients_match_finite_differences() {
    for (groups, rows, cols) in [(1, 2, 3), (2, 4, 5), (1, 9, 4)] {
        check_gradients(&case(groups, rows, cols)).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    // So many columns that all are farther than 1 from their nearest: logarithms of both signs would cancel, and leave
    // next to nothing that an error could be compared with.
    #[test]
    fn matches_the_oracle(groups in 1usize..3, rows in 2usize..20, cols in 48usize..120) {
        check(&case(groups, rows, cols)).unwrap();
    }
}

/// Loss, neighbours and gradient on every device and the CPU.
fn run(values: &[f32], groups: usize, cols: usize) -> Vec<(f64, Vec<i32>, Vec<f32>)> {
    let on = |device: Device| {
        let x = Tensor::from_slice(values, [values.len() / cols, cols], &device).unwrap();
        let (loss, saved) = forward(&x, groups).unwrap();
        let one = Tensor::from_slice(&[1.0f32], [1], &device).unwrap();
        let dx = backward(&one, &x, &saved, groups).unwrap();
        (loss.item().unwrap(), saved.neighbours.to_vec().unwrap(), dx.to_vec().unwrap())
    };
    devices().into_iter().chain([Device::Cpu]).map(on).collect()
}

#[test]
fn one_row_is_a_constant_without_gradient() {
    let expected = -(1e-8 * (1.0 + 2.0f64)).ln();
    for (loss, neighbours, dx) in run(&[1.0, -2.0, 0.5, 3.0, 0.1, 0.2, 0.3, -0.4], 2, 4) {
        assert!((loss - 2.0 * expected).abs() < 1e-4, "{loss}");
        assert_eq!((neighbours, dx), (vec![0, 1], vec![0.0; 8]));
    }
}

#[test]
fn equal_and_zero_rows_stay_finite() {
    let duplicates = [[1.0, 2.0, 3.0], [-1.0, 0.5, 0.0], [1.0, 2.0, 3.0], [0.0, 1.0, 0.0]].concat();
    for (loss, neighbours, dx) in run(&duplicates, 1, 3) {
        assert_eq!(neighbours[..1], [2]);
        assert_eq!(neighbours[2..3], [0]);
        assert!(loss.is_finite() && dx.iter().all(|d| d.is_finite()), "{loss} {dx:?}");
    }
    for (loss, neighbours, dx) in run(&[[0.5, -1.0].repeat(5), vec![0.0; 2]].concat(), 1, 2) {
        assert_eq!(neighbours, [1, 0, 0, 0, 0, 0], "the first of equals");
        assert!(loss.is_finite() && dx.iter().all(|d| d.is_finite()), "{loss} {dx:?}");
    }
}

#[test]
fn a_row_that_is_not_a_number_has_a_neighbour_in_range() {
    for (loss, neighbours, _) in run(&[f32::NAN, 1.0, 1.0, 2.0, 2.0, 1.0], 1, 2) {
        assert!(loss.is_nan());
        assert_eq!(neighbours, [0, 2, 1]);
    }
}

/// Scaling rows changes nothing but the length of the gradient, which is at right angles to its row.
#[test]
fn gradients_are_tangents() {
    let x: Vec<f32> = (0..7 * 6).map(|i| (0.3 + 1.7 * i as f32).sin()).collect();
    let scaled: Vec<f32> = x.iter().enumerate().map(|(i, x)| x * (1 + i / 6) as f32).collect();
    for ((loss, a, dx), (again, b, scaled)) in run(&x, 1, 6).into_iter().zip(run(&scaled, 1, 6)) {
        assert!((loss - again).abs() < 1e-5);
        assert_eq!(a, b);
        for row in 0..7 {
            let (x, d, s) = (&x[6 * row..][..6], &dx[6 * row..][..6], &scaled[6 * row..][..6]);
            assert!(x.iter().zip(d).map(|(x, d)| x * d).sum::<f32>().abs() < 1e-5);
            d.iter().zip(s).for_each(|(d, s)| assert!((d - s * (1 + row) as f32).abs() < 1e-4));
        }
    }
}

#[test]
fn a_block_has_room_for_a_row() {
    for (rows, cols) in [(1, 1), (64, 1024), (3, launch::MAX_COLS)] {
        let grid = launch::bwd_grid(Dims { rows, cols, group: rows });
        assert!(grid.grid[0] as usize == rows && grid.shared as usize == 4 * cols && grid.shared <= 32 << 10);
    }
}

#[test]
fn wrong_arguments_are_named() {
    let message = |shape: &[usize], groups: usize| {
        let x = Var::constant(Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap());
        let error = koleo(&Tape::no_grad(), &x, groups).unwrap_err();
        assert!(matches!(error, Error::Argument { .. }));
        error.to_string()
    };
    let rule = |groups| format!("at least one row for each of {groups} groups of equal length");
    assert_eq!(message(&[3, 4], 2), format!("koleo: `x` has shape [3, 4], expected {}", rule(2)));
    assert_eq!(message(&[0, 4], 1), format!("koleo: `x` has shape [0, 4], expected {}", rule(1)));
    assert_eq!(message(&[4], 1), "koleo: `x` has shape [4], expected 2 axes");
}
