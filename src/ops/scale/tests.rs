use proptest::prelude::*;

use super::{case, scale};
use crate::testing::{check, check_gradients};
use crate::{DType, Device, Error, Tape, Tensor, Var};

#[test]
fn matches_the_oracle_on_odd_shapes() {
    for (rows, cols) in [(0, 5), (1, 1), (1, 7), (3, 33), (2, 1024), (5, 411)] {
        check(&case(rows, cols, -1.7)).unwrap();
    }
}

#[test]
fn gradients_match_finite_differences() {
    check_gradients(&case(3, 17, 0.3)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn matches_the_oracle(rows in 1usize..20, cols in 1usize..300, factor in -4f32..4.0) {
        check(&case(rows, cols, factor)).unwrap();
    }
}

#[test]
fn wrong_arguments_are_named() {
    let x = Var::constant(Tensor::zeros([3], DType::U8, &Device::Cpu).unwrap());
    let error = scale(&Tape::no_grad(), &x, 2.0).unwrap_err();
    assert!(matches!(error, Error::Argument { .. }));
    assert_eq!(error.to_string(), "scale: `x` has dtype u8, expected a float type");
}
