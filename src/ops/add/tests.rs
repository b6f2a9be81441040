use proptest::prelude::*;

use super::{add, case, forward};
use crate::ops::{Case, Input};
use crate::testing::{DTYPES, check, check_gradients, devices};
use crate::{DType, Device, Error, Tape, Tensor, Var};

#[test]
fn matches_the_oracle_on_odd_shapes() {
    for (rows, cols) in [(0, 5), (1, 1), (1, 7), (3, 33), (2, 1024), (5, 411)] {
        check(&case(rows, cols)).unwrap();
    }
}

#[test]
fn gradients_match_finite_differences() {
    check_gradients(&case(3, 17)).unwrap();
}

/// Both operands are one variable: its two gradients share a tensor, and the second is added to the first.
#[test]
fn a_sum_with_itself_doubles_the_gradient() {
    let case = |n: usize| {
        Case::new("add", format!("self {n}"), vec![Input::normal("a", [n])], |tape, v| {
            Ok(vec![add(tape, &v[0], &v[0])?])
        })
    };
    for n in [1, 13, 1029] {
        check(&case(n)).unwrap();
    }
    check_gradients(&case(5)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn matches_the_oracle(rows in 1usize..20, cols in 1usize..300) {
        check(&case(rows, cols)).unwrap();
    }
}

/// The kernel of this file that the tensor layer launches.
#[test]
fn accumulation_on_devices_is_that_of_the_host() {
    for (device, dtype) in devices().iter().flat_map(|device| DTYPES.map(|dtype| (device, dtype))) {
        for n in [1usize, 9, 1030] {
            let of = |step: f32| (0..n).map(|i| (i as f32 - 3.0) * step).collect::<Vec<_>>();
            let make = |step, device| Tensor::from_slice(&of(step), [n], &Device::Cpu)?.cast(dtype)?.to_device(device);
            let sum = |device| {
                let mut y = make(0.25, device)?;
                y.accumulate(&make(0.5, device)?)?;
                y.to_f64()
            };
            assert_eq!(sum(device).unwrap(), sum(&Device::Cpu).unwrap(), "{dtype} on {device}");
        }
    }
}

#[test]
fn wrong_arguments_are_named() {
    let t = |s: &[usize], dtype| Tensor::zeros(s, dtype, &Device::Cpu).unwrap();
    let v = |s: &[usize]| Var::constant(t(s, DType::F32));
    let error = add(&Tape::no_grad(), &v(&[3, 7]), &v(&[7, 3])).unwrap_err();
    assert!(matches!(error, Error::Argument { .. }));
    assert_eq!(error.to_string(), "add: `b` has shape [7, 3], expected [3, 7]");
    let error = forward(&t(&[3], DType::F32), &t(&[3], DType::BF16)).unwrap_err();
    assert_eq!(error.to_string(), "add: `b` has dtype bf16, expected f32");
}
