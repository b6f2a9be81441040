use proptest::prelude::*;

use super::{Dims, backward, case, forward, gather_rows, launch};
use crate::testing::{check, check_gradients, devices};
use crate::{DType, Device, Tape, Tensor, Var};

#[test]
fn matches_the_oracle_on_odd_shapes() {
    for (rows, picked, cols) in [(1, 1, 1), (5, 2, 31), (9, 9, 8), (40, 17, 33), (3, 0, 4), (2, 1, 264)] {
        check(&case(rows, picked, cols)).unwrap();
    }
}

#[test]
fn gradients_match_finite_differences() {
    check_gradients(&case(7, 3, 5)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn matches_the_oracle(rows in 1usize..60, part in 0.0f64..1.0, cols in 1usize..80) {
        check(&case(rows, (rows as f64 * part) as usize, cols)).unwrap();
    }
}

#[test]
fn grids_cover_every_row() {
    for picked in [0u32, 1, 7, 8, 9, 100_000] {
        let grid = launch::grid(picked);
        assert!(grid.grid[0] * (grid.block[0] / 32) >= picked && grid.block[0].is_multiple_of(32));
    }
}

#[test]
fn removed_rows_have_no_gradient() {
    let ids = Tensor::from_slice(&[2i32, 0], [2], &Device::Cpu).unwrap();
    let x = Tensor::from_slice(&[1f32, 2., 3., 4., 5., 6., 7., 8.], [4, 2], &Device::Cpu).unwrap();
    assert_eq!(forward(&x, &ids).unwrap().to_vec::<f32>().unwrap(), [5., 6., 1., 2.]);
    let dy = Tensor::from_slice(&[1f32, 2., 3., 4.], [2, 2], &Device::Cpu).unwrap();
    assert_eq!(backward(&dy, &ids, 4).unwrap().to_vec::<f32>().unwrap(), [3., 4., 0., 0., 1., 2., 0., 0.]);
}

/// Where the host cannot check the indices, one out of range gives a row of NaN and its gradient goes nowhere.
#[test]
fn kernels_guard_against_wrong_indices() {
    for device in devices() {
        let t = |v: &[f32]| Tensor::from_slice(v, [v.len(), 1], &device).unwrap();
        let dims = Dims { rows: 3, picked: 2, cols: 1 };
        for wrong in [-1, 3] {
            let ids = Tensor::from_slice(&[wrong, 2], [2], &device).unwrap();
            let (mut y, mut dx) = (t(&[0.0; 2]), t(&[0.0; 3]));
            launch::forward(&t(&[1.0, 2.0, 4.0]), &ids, dims, &mut y).unwrap();
            let y = y.to_vec::<f32>().unwrap();
            assert!(y[0].is_nan() && y[1] == 4.0, "{y:?}");
            launch::backward(&t(&[1.0, 2.0]), &ids, dims, &mut dx).unwrap();
            assert_eq!(dx.to_vec::<f32>().unwrap(), [0.0, 0.0, 2.0]);
        }
    }
}

#[test]
fn wrong_indices_are_named() {
    let x = Var::constant(Tensor::zeros([4, 2], DType::F32, &Device::Cpu).unwrap());
    let error = |ids: &[i32]| {
        let ids = Tensor::from_slice(ids, [ids.len()], &Device::Cpu).unwrap();
        gather_rows(&Tape::no_grad(), &x, &ids).unwrap_err().to_string()
    };
    assert_eq!(error(&[0, 4]), "gather_rows: `ids[0, 1]` has value 4, expected an index below 4");
    assert_eq!(error(&[-1]), "gather_rows: `ids[0, 0]` has value -1, expected an index below 4");
    assert_eq!(error(&[3, 1, 3]), "gather_rows: `ids[0, 2]` has value 3, expected each index once");
    let wrong = Tensor::zeros([2], DType::F32, &Device::Cpu).unwrap();
    let error = gather_rows(&Tape::no_grad(), &x, &wrong).unwrap_err().to_string();
    assert_eq!(error, "gather_rows: `ids` has dtype f32, expected i32");
}
