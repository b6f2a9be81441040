use proptest::prelude::*;

use super::{Dims, Lookup, backward, case, embedding, forward, launch};
use crate::testing::{check, check_gradients, devices};
use crate::{DType, Device, Grads, Tape, Tensor, Var};

fn matrix(values: &[f32], cols: usize, device: &Device) -> Tensor {
    Tensor::from_slice(values, [values.len() / cols, cols], device).unwrap()
}

#[test]
fn matches_the_oracle_on_odd_shapes() {
    for (rows, picked, cols) in [(1, 1, 1), (5, 64, 31), (9, 65, 8), (40, 17, 33), (3, 0, 4), (70, 700, 264)] {
        for added in [false, true] {
            check(&case(rows, picked, cols, added)).unwrap();
        }
    }
}

/// Runs that begin and end at, before and after the borders of the parts, and one over several whole parts.
#[test]
fn runs_are_cut_anywhere() {
    let runs = |lengths: &[usize]| lengths.iter().enumerate().flat_map(|(id, &n)| vec![id as i32; n]).collect();
    for lengths in [vec![64, 64], vec![63, 2, 63], vec![1, 127, 1], vec![300], vec![10, 0, 200, 0, 46], vec![65; 4]] {
        check(&case::of("runs", lengths.len(), runs(&lengths), 5, false)).unwrap();
    }
}

#[test]
fn gradients_match_finite_differences() {
    check_gradients(&case(7, 30, 5, false)).unwrap();
    check_gradients(&case(3, 8, 4, true)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn matches_the_oracle(rows in 1usize..60, picked in 0usize..400, cols in 1usize..40, added: bool) {
        check(&case(rows, picked, cols, added)).unwrap();
    }
}

#[test]
fn grids_cover_every_row() {
    for picked in [0u32, 1, 7, 8, 9, 100_000] {
        let grid = launch::rows_grid(picked);
        assert!(grid.grid[0] * (grid.block[0] / 32) >= picked && grid.block[0].is_multiple_of(32));
        let parts = launch::parts(picked as usize) as u32;
        let runs = launch::runs_grid(parts, 33);
        assert!(parts * 64 >= picked && runs.grid[..2] == [parts, 2] && runs.block[0] <= 1024);
    }
}

#[test]
fn repeated_rows_add_up_and_unused_ones_are_zero() {
    for device in [Device::Cpu].into_iter().chain(devices()) {
        let lookup = Lookup::new(&[3, 0, 3, 3], 5, &device).unwrap();
        assert_eq!(lookup.order().to_vec::<i32>().unwrap(), [1, 0, 2, 3]);
        let table = matrix(&[1., 2., 3., 4., 5., 6., 7., 8., 9., 10.], 2, &device);
        let y = forward(&table, &lookup, None).unwrap();
        assert_eq!(y.to_vec::<f32>().unwrap(), [7., 8., 1., 2., 7., 8., 7., 8.]);
        let dy = matrix(&[1., 2., 10., 20., 3., 4., 5., 6.], 2, &device);
        let dtable = backward(&dy, &lookup).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(dtable, [10., 20., 0., 0., 0., 0., 9., 12., 0., 0.]);
    }
}

/// Equal indices give equal gradients, whatever rows were there before; what is added gets the gradient as it is.
#[test]
fn what_is_added_gets_the_gradient_as_it_is() {
    let (tape, mut grads) = (Tape::new(), Grads::new());
    let lookup = Lookup::new(&[1, 1], 2, &Device::Cpu).unwrap();
    let (x, table) = (tape.leaf(matrix(&[1., 2.], 1, &Device::Cpu)), tape.leaf(matrix(&[4., 8.], 1, &Device::Cpu)));
    let y = embedding(&tape, &table, &lookup, Some(&x)).unwrap();
    assert_eq!(y.value().to_vec::<f32>().unwrap(), [9., 10.]);
    tape.backward(&y, matrix(&[5., 7.], 1, &Device::Cpu), &mut grads).unwrap();
    assert_eq!(grads.take(&x).unwrap().to_vec::<f32>().unwrap(), [5., 7.]);
    assert_eq!(grads.take(&table).unwrap().to_vec::<f32>().unwrap(), [0., 12.]);
}

/// Indices that were replaced on the device are not checked again: a row of NaN, and its gradient goes nowhere.
#[test]
fn kernels_guard_against_wrong_indices() {
    for device in devices() {
        let dims = Dims { rows: 3, picked: 2, cols: 1 };
        let ints = |v: &[i32]| Tensor::from_slice(v, [v.len()], &device).unwrap();
        for (ids, order) in [([-1, 2], [0, 1]), ([3, 2], [1, 0])] {
            let lookup = Lookup::of([ints(&ids), ints(&order)], 3);
            let (mut y, mut dtable) = (matrix(&[0.0; 2], 1, &device), matrix(&[0.0; 3], 1, &device));
            launch::forward(&matrix(&[1., 2., 4.], 1, &device), &lookup, None, dims, &mut y).unwrap();
            let y = y.to_vec::<f32>().unwrap();
            assert!(y[0].is_nan() && y[1] == 4.0, "{y:?}");
            launch::backward(&matrix(&[1., 2.], 1, &device), &lookup, dims, &mut dtable).unwrap();
            assert_eq!(dtable.to_vec::<f32>().unwrap(), [0., 0., 2.]);
        }
    }
}

#[test]
fn wrong_arguments_are_named() {
    let error = |ids: &[i32]| Lookup::new(ids, 4, &Device::Cpu).unwrap_err().to_string();
    assert_eq!(error(&[0, 4]), "embedding: `ids[1]` has value 4, expected an index below 4");
    assert_eq!(error(&[-1]), "embedding: `ids[0]` has value -1, expected an index below 4");
    let lookup = Lookup::new(&[1, 2], 4, &Device::Cpu).unwrap();
    let zeros = |shape: [usize; 2]| Var::constant(Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap());
    let run = |table: [usize; 2], x: [usize; 2]| {
        let error = embedding(&Tape::no_grad(), &zeros(table), &lookup, Some(&zeros(x)));
        error.unwrap_err().to_string()
    };
    assert_eq!(run([5, 3], [2, 3]), "embedding: `table` has length 5, expected 4 rows, as the indices were made for");
    assert_eq!(run([4, 3], [3, 3]), "embedding: `x` has shape [3, 3], expected [2, 3]");
}
