use proptest::prelude::*;

use super::{case, launch, mean_pool};
use crate::testing::{check, check_gradients};
use crate::{DType, Device, Tape, Tensor, Var};

#[test]
fn matches_the_oracle_on_odd_shapes() {
    for (batch, rows, skip, cols) in [(1, 1, 0, 1), (2, 5, 1, 31), (3, 7, 0, 8), (1, 3, 2, 1100), (0, 4, 1, 8)] {
        check(&case(batch, rows, skip, cols)).unwrap();
    }
}

#[test]
fn gradients_match_finite_differences() {
    check_gradients(&case(2, 4, 1, 3)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn matches_the_oracle(batch in 1usize..5, rows in 2usize..40, skip in 0usize..2, cols in 1usize..80) {
        check(&case(batch, rows, skip, cols)).unwrap();
    }
}

#[test]
fn grids_cover_every_row() {
    for rows in [0u32, 1, 8, 9, 25216] {
        let grid = launch::bwd_grid(rows);
        assert!(grid.grid[0] * (grid.block[0] / 32) >= rows);
    }
}

#[test]
fn wrong_arguments_are_named() {
    let x = Var::constant(Tensor::zeros([10, 2], DType::F32, &Device::Cpu).unwrap());
    let error = |rows, skip| mean_pool(&Tape::no_grad(), &x, rows, skip).unwrap_err().to_string();
    assert_eq!(error(3, 1), "mean_pool: `x` has shape [10, 2], expected a multiple of 3 rows");
    assert_eq!(error(5, 5), "mean_pool: `skip` has value 5, expected less than the 5 rows of a sequence");
    assert_eq!(error(0, 0), "mean_pool: `skip` has value 0, expected less than the 0 rows of a sequence");
}
