use proptest::prelude::*;

use super::{Form, case, form_case, gelu};
use crate::testing::{check, check_gradients};
use crate::{DType, Device, Error, Tape, Tensor, Var};

#[test]
fn matches_the_oracle_on_odd_shapes() {
    for (rows, cols) in [(0, 5), (1, 1), (1, 7), (3, 33), (1, 1024), (5, 411)] {
        check(&case(rows, cols)).unwrap();
        check(&form_case(rows, cols, Form::Tanh)).unwrap();
    }
}

#[test]
fn gradients_match_finite_differences() {
    check_gradients(&case(3, 17)).unwrap();
    check_gradients(&form_case(3, 17, Form::Tanh)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn matches_the_oracle(rows in 1usize..20, cols in 1usize..300) {
        check(&case(rows, cols)).unwrap();
    }
}

#[test]
fn known_values_and_the_ends() {
    let x = [0.0f32, 1.0, -1.0, 3.0, 40.0, -40.0, f32::INFINITY, f32::NAN];
    let x = Var::constant(Tensor::from_slice(&x, [8], &Device::Cpu).unwrap());
    for (form, known) in
        [(Form::Erf, [0.841_344_8, -0.158_655_25, 2.995_950_2]), (Form::Tanh, [0.841_192, -0.158_808, 2.996_363])]
    {
        let y = gelu(&Tape::no_grad(), &x, form).unwrap().value().to_vec::<f32>().unwrap();
        let expected = [0.0, known[0], known[1], known[2], 40.0, 0.0, f32::INFINITY];
        for (y, expected) in y.iter().zip(expected) {
            assert!(*y == expected || (y - expected).abs() < 1e-6, "{y} instead of {expected}");
        }
        assert!(y[7].is_nan());
    }
}

#[test]
fn wrong_arguments_are_named() {
    let x = Var::constant(Tensor::zeros([3], DType::I32, &Device::Cpu).unwrap());
    let error = gelu(&Tape::no_grad(), &x, Form::Erf).unwrap_err();
    assert!(matches!(error, Error::Argument { .. }));
    assert_eq!(error.to_string(), "gelu: `x` has dtype i32, expected a float type");
}
