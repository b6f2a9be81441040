use proptest::prelude::*;

use super::{backward, case, forward, l2_normalize, launch};
use crate::testing::{check, check_gradients, devices};
use crate::{DType, Device, Error, Tape, Tensor, Var};

#[test]
fn matches_the_oracle_on_odd_shapes() {
    for (rows, cols) in [(0, 7), (3, 0), (1, 2), (1, 31), (3, 32), (5, 33), (7, 257), (67, 8), (130, 100), (2, 1152)] {
        check(&case(rows, cols)).unwrap();
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
    fn matches_the_oracle(rows in 1usize..90, cols in 2usize..300) {
        check(&case(rows, cols)).unwrap();
    }
}

/// The CPU and the devices whose kernels are tested.
fn everywhere() -> Vec<Device> {
    [Device::Cpu].into_iter().chain(devices()).collect()
}

#[test]
fn rows_without_a_direction_get_no_gradient() {
    for device in everywhere() {
        let x = [[0.0f32; 8], [1e-13; 8], [1e-6; 8]].concat();
        let x = Tensor::from_slice(&x, [3, 8], &device).unwrap();
        let dy = Tensor::from_slice(&[0.5f32, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0].repeat(3), [3, 8], &device).unwrap();
        let (y, inverse) = forward(&x).unwrap();
        let values = y.to_vec::<f32>().unwrap();
        assert_eq!(values[..8], [0.0; 8]);
        assert!(values[8..16].iter().all(|y| (y - 0.1).abs() < 1e-6), "{values:?}");
        assert!(values[16..].iter().all(|y| (y - 8f32.powf(-0.5)).abs() < 1e-6), "{values:?}");
        let inverse_values = inverse.to_vec::<f32>().unwrap();
        assert_eq!(inverse_values[..2], [0.0; 2]);
        let dx = backward(&dy, &x, &inverse).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(dx[..16], [0.0; 16]);
        assert!(dx[16..].iter().all(|dx| dx.is_finite() && dx.abs() > 1e4), "{dx:?}");
    }
}

/// `u · du = 0`, and the length of a row does not matter to what comes out.
#[test]
fn the_gradient_is_across_the_row() {
    for device in everywhere() {
        let values: Vec<f32> = (0..5 * 36).map(|i| (i as f32 * 0.37).sin()).collect();
        let x = Tensor::from_slice(&values, [5, 36], &device).unwrap();
        let long: Vec<f32> = values.iter().map(|x| 64.0 * x).collect(); // a power of two: nothing is rounded
        let long = Tensor::from_slice(&long, [5, 36], &device).unwrap();
        let dy: Vec<f32> = (0..5 * 36).map(|i| (i as f32 * 1.7).cos()).collect();
        let dy = Tensor::from_slice(&dy, [5, 36], &device).unwrap();
        let (y, inverse) = forward(&x).unwrap();
        assert_eq!(y.to_vec::<f32>().unwrap(), forward(&long).unwrap().0.to_vec::<f32>().unwrap());
        let dx = backward(&dy, &x, &inverse).unwrap().to_vec::<f32>().unwrap();
        for (x, dx) in values.chunks(36).zip(dx.chunks(36)) {
            let dot: f64 = x.iter().zip(dx).map(|(&x, &dx)| f64::from(x) * f64::from(dx)).sum();
            assert!(dot.abs() < 1e-5, "{dot}");
        }
    }
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
    let t = |s: &[usize], dtype| Tensor::zeros(s, dtype, &Device::Cpu).unwrap();
    let error = l2_normalize(&Tape::no_grad(), &Var::constant(t(&[3], DType::I32))).unwrap_err();
    assert!(matches!(error, Error::Argument { .. }));
    assert_eq!(error.to_string(), "l2_normalize: `x` has dtype i32, expected a float type");
    let x = t(&[3, 2], DType::BF16);
    let (_, inverse) = forward(&x).unwrap();
    let message = |dy: &Tensor, inverse: &Tensor| backward(dy, &x, inverse).unwrap_err().to_string();
    assert_eq!(message(&t(&[2, 3], DType::BF16), &inverse), "l2_normalize: `dy` has shape [2, 3], expected [3, 2]");
    assert_eq!(message(&x, &t(&[2], DType::F32)), "l2_normalize: `inverse` has shape [2], expected [3]");
    assert_eq!(message(&x, &t(&[3], DType::BF16)), "l2_normalize: `inverse` has dtype bf16, expected f32");
}
