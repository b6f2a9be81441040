use proptest::prelude::*;

use super::{add, case, forward, launch, leading_case, leading_sum};
use crate::ops::{Case, Input};
use crate::testing::{DTYPES, check, check_gradients, devices};
use crate::{DType, Device, Error, Grads, Tape, Tensor, Var};

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

#[test]
fn an_operand_that_repeats_matches_the_oracle() {
    for (rows, extents) in [
        (0, &[5][..]),
        (3, &[0]),
        (1, &[1]),
        (5, &[]),
        (2, &[3, 7]),
        (7, &[33]),
        (3, &[2, 4, 8]),
        (45, &[264]),
        (131, &[1]),
        (300, &[40]),
        (2, &[1025]),
    ] {
        check(&leading_case(rows, extents, true)).unwrap();
        check(&leading_case(rows, extents, false)).unwrap();
    }
    check_gradients(&leading_case(4, &[2, 3], true)).unwrap();
    check_gradients(&leading_case(3, &[], false)).unwrap();
}

/// Long rows: chunks of the reference begin within a copy of `b`, and a sum has several pieces.
#[test]
fn a_long_operand_repeats() {
    let (rows, len) = (3, 20_011);
    let values: Vec<f32> = (0..rows * len).map(|i| (i % 1009) as f32).collect();
    let b: Vec<f32> = (0..len).map(|i| (i % 31) as f32 * 2.0).collect();
    let a = Tensor::from_slice(&values, [rows, len], &Device::Cpu).unwrap();
    let y = forward(&a, &Tensor::from_slice(&b, [1, len], &Device::Cpu).unwrap()).unwrap();
    let expected: Vec<f32> = values.iter().enumerate().map(|(i, x)| x + b[i % len]).collect();
    assert_eq!(y.to_vec::<f32>().unwrap(), expected);
    let sums: Vec<f32> = (0..len).map(|j| (0..rows).map(|i| values[i * len + j]).sum()).collect();
    assert_eq!(leading_sum(&a, len).unwrap().to_vec::<f32>().unwrap(), sums);
}

/// Leading axes of extent 1 do not count, neither more nor fewer than `a` has, and gradients have the operands' shapes.
#[test]
fn extents_of_one_are_dropped() {
    let full = |shape: &[usize], value: f32| Tensor::full(shape, value, &Device::Cpu).unwrap();
    for (a, b, db) in [
        (&[2, 3][..], &[1, 1, 3][..], 2.0),
        (&[2, 3], &[1, 3], 2.0),
        (&[3], &[1, 1, 3], 1.0),
        (&[2, 3], &[1, 1], 6.0),
        (&[1, 3], &[3], 1.0),
    ] {
        let tape = Tape::new();
        let (x, z) = (tape.leaf(full(a, 1.0)), tape.leaf(full(b, 2.0)));
        let y = add(&tape, &x, &z).unwrap();
        assert_eq!((&**y.value().shape(), y.value().to_vec::<f32>().unwrap()[0]), (a, 3.0));
        let mut grads = Grads::new();
        tape.backward(&y, full(a, 1.0), &mut grads).unwrap();
        let (da, dz) = (grads.take(&x).unwrap(), grads.take(&z).unwrap());
        assert_eq!((&**da.shape(), &**dz.shape()), (a, b));
        assert!(dz.to_vec::<f32>().unwrap().iter().all(|&g| g == db), "{a:?} + {b:?}");
    }
}

/// A constant `b` costs no sum, a constant `a` no gradient.
#[test]
fn constants_get_nothing() {
    let full = |shape: &[usize]| Tensor::full(shape, 1.0f32, &Device::Cpu).unwrap();
    let tape = Tape::new();
    let (a, b) = (tape.leaf(full(&[4, 3])), tape.leaf(full(&[3])));
    let y = add(&tape, &a, &Var::constant(full(&[3]))).unwrap();
    let y = add(&tape, &add(&tape, &Var::constant(full(&[4, 3])), &b).unwrap(), &y).unwrap();
    let mut grads = Grads::new();
    tape.backward(&y, full(&[4, 3]), &mut grads).unwrap();
    assert_eq!(grads.take(&a).unwrap().to_vec::<f32>().unwrap(), [1.0; 12]);
    assert_eq!(grads.take(&b).unwrap().to_vec::<f32>().unwrap(), [4.0; 3]);
    let y = add(&Tape::new(), &Var::constant(full(&[4, 3])), &Var::constant(full(&[3]))).unwrap();
    assert!(y.slot().is_none());
}

#[test]
fn sums_do_not_depend_on_the_number_of_threads() {
    let values: Vec<f32> = (0..5000 * 7).map(|i| (i as f32 * 0.37).sin()).collect();
    let x = Tensor::from_slice(&values, [5000, 7], &Device::Cpu).unwrap();
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| leading_sum(&x, 7).unwrap().to_vec::<f32>().unwrap())
    };
    assert_eq!(with(1), with(3));
}

#[test]
fn splits_cover_every_row() {
    for rows in [0, 1, 2, 8, 31, 32, 33, 4224, 16_897, 100_000] {
        for cols in [1, 255, 256, 257, 4096, 1 << 20] {
            let (parts, per_part) = launch::split(rows, cols);
            assert!(parts * per_part >= rows && parts <= 528);
            assert!(rows == 0 || (parts - 1) * per_part < rows, "no empty part");
            let grid = launch::sum_grid(parts, per_part, rows as u32, cols);
            assert!(grid.grid[0] as usize == parts && grid.grid[1] * 256 >= cols);
            assert!(grid.block[0] >= 32 && grid.block[0] <= 256 && grid.block[0].is_multiple_of(32));
        }
    }
    assert_eq!(launch::split(8, 1 << 20).0, 1, "few long rows need no second pass");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn matches_the_oracle(rows in 1usize..20, cols in 1usize..300) {
        check(&case(rows, cols)).unwrap();
    }

    #[test]
    fn an_operand_that_repeats_matches(rows in 1usize..80, cols in 1usize..300, weight: bool) {
        check(&leading_case(rows, &[cols], weight)).unwrap();
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
    assert_eq!(error.to_string(), "add: `b` has shape [7, 3], expected the last axes of [3, 7]");
    for b in [&[3][..], &[3, 1], &[2, 3, 7], &[1, 3, 1, 7]] {
        let error = add(&Tape::no_grad(), &v(&[3, 7]), &v(b)).unwrap_err();
        assert_eq!(error.to_string(), format!("add: `b` has shape {b:?}, expected the last axes of [3, 7]"));
    }
    let error = leading_sum(&t(&[3, 7], DType::F32), 4).unwrap_err();
    assert_eq!(error.to_string(), "add: `x` has shape [3, 7], expected [.., 4]");
    let error = forward(&t(&[3], DType::F32), &t(&[3], DType::BF16)).unwrap_err();
    assert_eq!(error.to_string(), "add: `b` has dtype bf16, expected f32");
}
