use proptest::prelude::*;

use super::{case, cast};
use crate::testing::{DTYPES, check};
use crate::{DType, Device, Error, Tape, Tensor, Var};

#[test]
fn matches_the_oracle_on_odd_shapes() {
    for (n, dtype) in [0, 1, 7, 33, 1024, 2055].into_iter().flat_map(|n| DTYPES.map(|d| (n, d))) {
        check(&case(n, dtype)).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn matches_the_oracle(n in 1usize..5000, target in 0usize..3) {
        check(&case(n, DTYPES[target])).unwrap();
    }
}

#[test]
fn the_same_type_is_the_same_variable() {
    let tape = Tape::new();
    let x = tape.leaf(Tensor::zeros([3], DType::F32, &Device::Cpu).unwrap());
    let y = cast(&tape, &x, DType::F32).unwrap();
    assert_eq!(y.slot(), x.slot());
    assert_eq!(y.value().ptr(), x.value().ptr());
}

#[test]
fn wrong_arguments_are_named() {
    let t = |dtype| Var::constant(Tensor::zeros([3], dtype, &Device::Cpu).unwrap());
    let error = cast(&Tape::no_grad(), &t(DType::I32), DType::F32).unwrap_err();
    assert!(matches!(error, Error::Argument { .. }));
    assert_eq!(error.to_string(), "cast: `x` has dtype i32, expected a float type");
    let error = cast(&Tape::no_grad(), &t(DType::F32), DType::I32).unwrap_err();
    assert_eq!(error.to_string(), "cast: `dtype` has value i32, expected a float type");
}
