use proptest::prelude::*;

use super::{backward, case, forward, sigmoid};
use crate::testing::{check, check_gradients, devices};
use crate::{DType, Device, Error, Tape, Tensor, Var};

#[test]
fn matches_the_oracle_on_odd_shapes() {
    for (rows, cols) in [(0, 5), (1, 1), (1, 7), (3, 33), (1, 1024), (5, 411)] {
        check(&case(rows, cols, 1.0, 0.0)).unwrap();
        check(&case(rows, cols, 20.0, -10.0)).unwrap();
    }
}

#[test]
fn gradients_match_finite_differences() {
    check_gradients(&case(3, 17, 1.0, 0.0)).unwrap();
    check_gradients(&case(3, 17, 20.0, -10.0)).unwrap();
    check_gradients(&case(2, 5, -0.5, 3.0)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn matches_the_oracle(rows in 1usize..20, cols in 1usize..300, scale in -4f32..4.0, bias in -2f32..2.0) {
        check(&case(rows, cols, scale, bias)).unwrap();
    }
}

/// Neither end overflows, and gradients far out keep their digits on both sides.
#[test]
fn known_values_and_the_ends() {
    let x = [0.0f32, 1.0, -1.0, 30.0, -30.0, 1e30, -1e30, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    let sigma = [0.5, 0.731_058_6, 0.268_941_43, 1.0, 9.357_623e-14, 1.0, 0.0, 1.0, 0.0];
    let slope = [0.25, 0.196_611_94, 0.196_611_94, 9.357_623e-14, 9.357_623e-14, 0.0, 0.0, 0.0, 0.0];
    // Far out, half a unit in the last place of x is as much of the result.
    let near = |a: f32, b: f32| (a - b).abs() <= 4e-6 * b.abs() || (b == 0.0 && a.abs() < 1e-37);
    for device in devices().into_iter().chain([Device::Cpu]) {
        let x = Tensor::from_slice(&x, [10], &device).unwrap();
        let y = forward(&x, 2.0, 0.0).unwrap().to_vec::<f32>().unwrap();
        let dx = backward(&Tensor::full([10], 3.0f32, &device).unwrap(), &x, 2.0).unwrap().to_vec::<f32>().unwrap();
        for i in 0..9 {
            assert!(near(y[i], 2.0 * sigma[i]), "y[{i}] is {} on {device}", y[i]);
            assert!(near(dx[i], 6.0 * slope[i]), "dx[{i}] is {} on {device}", dx[i]);
        }
        assert!(y[9].is_nan() && dx[9].is_nan(), "{device}");
        let y = forward(&x, 20.0, -10.0).unwrap().to_vec::<f32>().unwrap();
        assert_eq!([y[0], y[5], y[6]], [0.0, 10.0, -10.0], "{device}");
    }
}

#[test]
fn wrong_arguments_are_named() {
    let x = Tensor::zeros([3], DType::U8, &Device::Cpu).unwrap();
    let error = sigmoid(&Tape::no_grad(), &Var::constant(x), 1.0, 0.0).unwrap_err();
    assert!(matches!(error, Error::Argument { .. }));
    assert_eq!(error.to_string(), "sigmoid: `x` has dtype u8, expected a float type");
    let t = |s: &[usize]| Tensor::zeros(s, DType::F32, &Device::Cpu).unwrap();
    let error = backward(&t(&[4]), &t(&[3]), 1.0).unwrap_err();
    assert_eq!(error.to_string(), "sigmoid: `dy` has shape [4], expected [3]");
}
