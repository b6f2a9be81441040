use proptest::prelude::*;

use super::{backward_other, backward_x, case, forward, launch, one_case, row_case, select_rows};
use crate::testing::{check, check_gradients};
use crate::{DType, Device, Error, Grads, Shape, Tape, Tensor, Var};

#[test]
fn matches_the_oracle_on_odd_shapes() {
    for (rows, cols) in [(0, 5), (4, 0), (1, 1), (3, 8), (5, 31), (2, 520), (37, 24), (3, 2100)] {
        check(&case(rows, cols)).unwrap();
        check(&row_case(rows, cols)).unwrap();
        check(&one_case(rows, cols)).unwrap();
    }
}

#[test]
fn gradients_match_finite_differences() {
    check_gradients(&case(5, 3)).unwrap();
    check_gradients(&row_case(7, 3)).unwrap();
    check_gradients(&one_case(7, 3)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn matches_the_oracle(rows in 1usize..40, cols in 1usize..80) {
        check(&case(rows, cols)).unwrap();
        check(&row_case(rows, cols)).unwrap();
        check(&one_case(rows, cols)).unwrap();
    }
}

fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
}

#[test]
fn each_form_takes_what_it_should_and_nothing_else() {
    // A NaN that is not chosen stays out of everything.
    let flags = tensor(&[1.0, 0.0, -2.0, f32::NAN, 1e-30], &[5]);
    let x = tensor(&[0., 1., f32::NAN, 3., 4., 5., 6., 7., 8., 9.], &[5, 2]);
    let run = |other: &Tensor| forward(&flags, &x, other).unwrap().to_vec::<f32>().unwrap();
    let rows = tensor(&[f32::NAN, f32::NAN, -2., -3., -4., -5., -6., -7., f32::NAN, f32::NAN], &[5, 2]);
    assert_eq!(run(&rows), [0., 1., -2., -3., -4., -5., -6., -7., 8., 9.]);
    assert_eq!(run(&tensor(&[10., 20.], &[2])), [0., 1., 10., 20., 10., 20., 10., 20., 8., 9.]);
    assert_eq!(run(&tensor(&[-1024.], &[1])), [0., 1., -1024., -1024., -1024., -1024., -1024., -1024., 8., 9.]);
    assert_eq!(backward_x(&rows.reshape([5, 2]).unwrap(), &flags).unwrap().to_vec::<f32>().unwrap()[2..8], [0.0; 6]);
    let dy = tensor(&[f32::NAN, 1., 2., 3., 4., 5., 6., 7., f32::NAN, 9.], &[5, 2]);
    let other = |shape: &[usize]| backward_other(&dy, &flags, &Shape::from(shape)).unwrap().to_vec::<f32>().unwrap();
    assert_eq!(other(&[5, 2]), [0., 0., 2., 3., 4., 5., 6., 7., 0., 0.]);
    assert_eq!(other(&[2]), [12., 15.]);
    assert_eq!(other(&[1]), [27.]);
}

#[test]
fn rows_may_have_any_number_of_axes() {
    let flags = tensor(&[0.0, 1.0], &[2]);
    let x = tensor(&[1., 2., 3., 4.], &[2, 1, 2, 1]);
    let y = forward(&flags, &x, &tensor(&[5., 6.], &[1, 2, 1])).unwrap();
    assert_eq!((y.to_vec::<f32>().unwrap(), &**y.shape()), (vec![5., 6., 3., 4.], &[2, 1, 2, 1][..]));
    let y = forward(&flags, &tensor(&[7., 8.], &[2]), &tensor(&[9.], &[1])).unwrap();
    assert_eq!(y.to_vec::<f32>().unwrap(), [9., 8.]);
}

#[test]
fn constants_get_no_gradient() {
    let (tape, mut grads) = (Tape::new(), Grads::new());
    let (flags, one) = (tensor(&[1.0, 0.0], &[2]), Var::constant(tensor(&[0.5], &[1])));
    let x = tape.leaf(tensor(&[1., 2.], &[2, 1]));
    let y = select_rows(&tape, &flags, &x, &one).unwrap();
    tape.backward(&y, tensor(&[3., 4.], &[2, 1]), &mut grads).unwrap();
    assert_eq!(grads.take(&x).unwrap().to_vec::<f32>().unwrap(), [3., 0.]);
    assert!(grads.take(&one).is_none());
}

#[test]
fn grids_cover_every_element() {
    for dtype in [DType::F32, DType::BF16] {
        for (rows, cols) in [(0, 1), (1, 1), (3, 255), (70_000, 8), (2, 1 << 22)] {
            let grid = launch::grid(rows, cols, dtype);
            assert!(grid.block[0].is_multiple_of(32) && (32..=256).contains(&grid.block[0]));
            assert!(rows == 0 || grid.grid[1] > 0 && grid.grid[1] <= 65535);
            assert!(grid.grid[0] > 0 && grid.grid[0] <= 1024);
            let [x, y, _] = launch::one_grid(rows, cols, dtype).grid;
            assert!(x > 0 && x * y <= 528 && (rows == 0 || y > 0));
        }
    }
    for rows in [0, 1, 16, 17, 8448, 8449, 100_000] {
        let (parts, per_part) = launch::split(rows);
        assert!(parts * per_part >= rows && parts <= 528);
        assert!(rows == 0 || (parts - 1) * per_part < rows, "no empty part");
    }
}

#[test]
fn wrong_arguments_are_named() {
    let v = |s: &[usize]| Var::constant(Tensor::zeros(s, DType::F32, &Device::Cpu).unwrap());
    let message = |flags: &Var, x: &Var, other: &Var| {
        let error = select_rows(&Tape::no_grad(), flags.value(), x, other).unwrap_err();
        assert!(matches!(error, Error::Argument { .. }));
        error.to_string()
    };
    let x = v(&[2, 3]);
    assert_eq!(message(&v(&[3]), &x, &x), "select_rows: `flags` has shape [3], expected [2]");
    assert_eq!(message(&v(&[2]), &x, &v(&[2])), "select_rows: `other` has shape [2], expected [2, 3], [3] or [1]");
    let other = Var::constant(Tensor::zeros([3], DType::BF16, &Device::Cpu).unwrap());
    assert_eq!(message(&v(&[2]), &x, &other), "select_rows: `other` has dtype bf16, expected f32");
    let flags = Var::constant(Tensor::zeros([2], DType::I32, &Device::Cpu).unwrap());
    assert_eq!(message(&flags, &x, &x), "select_rows: `flags` has dtype i32, expected f32");
    assert_eq!(message(&v(&[2]), &v(&[]), &v(&[1])), "select_rows: `x` has shape [], expected at least one axis");
}
