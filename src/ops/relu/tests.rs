use proptest::prelude::*;

use super::{backward, case, forward, relu};
use crate::testing::{check, check_gradients, devices};
use crate::{DType, Device, Error, Grads, Tape, Tensor, Var};

#[test]
fn matches_the_oracle_on_odd_shapes() {
    for (rows, cols) in [(0, 5), (1, 1), (1, 7), (3, 33), (1, 1024), (5, 411)] {
        check(&case(rows, cols)).unwrap();
    }
}

#[test]
fn gradients_match_finite_differences() {
    check_gradients(&case(3, 17)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn matches_the_oracle(rows in 1usize..20, cols in 1usize..300) {
        check(&case(rows, cols)).unwrap();
    }
}

/// Zeros of both signs, the ends and NaN: the gradient at 0 is 0.
#[test]
fn known_values_and_the_ends() {
    let x = [0.0f32, -0.0, 1.5, -1.5, f32::MIN_POSITIVE, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    let y = [0.0f32, 0.0, 1.5, 0.0, f32::MIN_POSITIVE, f32::INFINITY, 0.0, f32::NAN];
    let dx = [0.0f32, 0.0, 4.0, 0.0, 4.0, 4.0, 0.0, 4.0];
    let bits = |t: &Tensor| t.to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>();
    for device in devices().into_iter().chain([Device::Cpu]) {
        let tape = Tape::new();
        let x = tape.leaf(Tensor::from_slice(&x, [8], &device).unwrap());
        let result = relu(&tape, &x).unwrap();
        assert_eq!(bits(result.value())[..7], y.map(f32::to_bits)[..7], "{device}");
        assert!(result.value().to_vec::<f32>().unwrap()[7].is_nan(), "{device}");
        let mut grads = Grads::new();
        tape.backward(&result, Tensor::full([8], 4.0f32, &device).unwrap(), &mut grads).unwrap();
        assert_eq!(bits(&grads.take(&x).unwrap()), dx.map(f32::to_bits), "{device}");
    }
}

/// The result is what is saved: no tensor beside it.
#[test]
fn keeps_the_result_alone() {
    let tape = Tape::new();
    let x = tape.leaf(Tensor::full([6], 2.0f32, &Device::Cpu).unwrap());
    let y = relu(&tape, &x).unwrap();
    assert_eq!(tape.saved(), [("leaf", 0), ("relu", 24)]);
    assert!(y.value().is_shared());
}

#[test]
fn wrong_arguments_are_named() {
    let x = Tensor::zeros([3], DType::I32, &Device::Cpu).unwrap();
    let error = relu(&Tape::no_grad(), &Var::constant(x.clone())).unwrap_err();
    assert!(matches!(error, Error::Argument { .. }));
    assert_eq!(error.to_string(), "relu: `x` has dtype i32, expected a float type");
    let y = forward(&Tensor::zeros([3], DType::F32, &Device::Cpu).unwrap()).unwrap();
    let error = backward(&Tensor::zeros([4], DType::F32, &Device::Cpu).unwrap(), &y).unwrap_err();
    assert_eq!(error.to_string(), "relu: `dy` has shape [4], expected [3]");
}
