use proptest::prelude::*;

use super::{Dims, Wanted, assemble_tokens, backward, case, launch};
use crate::ops::{Case, indices};
use crate::testing::{check, check_gradients, devices};
use crate::{DType, Device, Grads, Tape, Tensor, Var};

#[test]
fn matches_the_oracle_on_odd_shapes() {
    for (batch, len, keep, cols) in [(1, 1, 1, 1), (3, 5, 2, 31), (2, 7, 7, 8), (4, 6, 0, 33), (37, 3, 1, 24)] {
        check(&case(batch, len, keep, cols)).unwrap();
    }
}

#[test]
fn gradients_match_finite_differences() {
    check_gradients(&case(3, 5, 2, 4)).unwrap();
    check_gradients(&case(2, 3, 3, 2)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn matches_the_oracle(batch in 1usize..80, len in 1usize..12, part in 0.0f64..1.0, cols in 1usize..70) {
        check(&case(batch, len, (len as f64 * part) as usize, cols)).unwrap();
    }
}

#[test]
fn grids_cover_everything() {
    for n in [0u32, 1, 7, 8, 9, 12801] {
        let grid = launch::rows_grid(n);
        assert!(grid.grid[0] * (grid.block[0] / 32) >= n);
    }
}

/// Only what is asked for is computed, and a position row that no image keeps has a zero gradient.
#[test]
fn gradients_are_computed_on_demand() {
    let t = |v: &[i32], s: [usize; 2]| Tensor::from_slice(v, s, &Device::Cpu).unwrap();
    let (keep, restore) = (t(&[1, 0], [2, 1]), t(&[1, 0, 2, 0, 1, 2], [2, 3]));
    let dy = Tensor::from_slice(&[1f32, 2., 3., 4.], [4, 1], &Device::Cpu).unwrap();
    let all = Wanted { patches: true, cls_token: true, pos_embed: true };
    let (dx, dcls, dpos) = backward(&dy, &keep, &restore, all).unwrap();
    let v = |t: Option<Tensor>| t.unwrap().to_vec::<f32>().unwrap();
    assert_eq!((v(dx), v(dcls), v(dpos)), (vec![2., 4.], vec![4.], vec![4., 4., 2., 0.]));
    let none = Wanted { patches: false, cls_token: false, pos_embed: false };
    let (dx, dcls, dpos) = backward(&dy, &keep, &restore, none).unwrap();
    assert!(dx.is_none() && dcls.is_none() && dpos.is_none());
}

/// A constant table, as in pre-training, gets no gradient and the others do.
#[test]
fn a_frozen_table_gets_no_gradient() {
    let tape = Tape::new();
    let m = indices::example(2, 4, 2);
    let zeros = |s: &[usize]| Tensor::zeros(s, DType::F32, &Device::Cpu).unwrap();
    let (x, cls, pos) = (tape.leaf(zeros(&[4, 3])), tape.leaf(zeros(&[1, 1, 3])), Var::constant(zeros(&[1, 5, 3])));
    let keep = Tensor::from_slice(&m.keep, [2, 2], &Device::Cpu).unwrap();
    let restore = Tensor::from_slice(&m.restore, [2, 4], &Device::Cpu).unwrap();
    let y = assemble_tokens(&tape, &x, &cls, &pos, &keep, &restore).unwrap();
    assert_eq!(tape.saved().last(), Some(&("assemble_tokens", 4 * (4 + 8))));
    let mut grads = Grads::new();
    tape.backward(&y, Tensor::full([6, 3], 1f32, &Device::Cpu).unwrap(), &mut grads).unwrap();
    assert_eq!(grads.take(&x).unwrap().to_vec::<f32>().unwrap(), [1.0; 12]);
    assert_eq!(grads.take(&cls).unwrap().to_vec::<f32>().unwrap(), [2.0; 3]);
}

/// Where the host cannot check the indices, one out of range gives a row of NaN, and no gradient comes from it.
#[test]
fn kernels_guard_against_wrong_indices() {
    for device in devices() {
        let t = |v: &[f32]| Tensor::from_slice(v, [v.len(), 1], &device).unwrap();
        let dims = Dims { batch: 1, keep: 1, len: 2, cols: 1 };
        for wrong in [-1i32, 2] {
            let ids = Tensor::from_slice(&[wrong], [1, 1], &device).unwrap();
            let mut y = t(&[0.0; 2]);
            launch::forward(&t(&[1.0]), &t(&[2.0]), &t(&[4.0, 8.0, 16.0]), &ids, dims, &mut y).unwrap();
            let y = y.to_vec::<f32>().unwrap();
            assert!(y[0] == 6.0 && y[1].is_nan(), "{y:?}");
            let restore = Tensor::from_slice(&[wrong, 0], [1, 2], &device).unwrap();
            let mut dpos = t(&[0.0; 3]);
            launch::backward(&t(&[1.0, 2.0]), &restore, dims, (None, None, Some(&mut dpos))).unwrap();
            assert_eq!(dpos.to_vec::<f32>().unwrap(), [1.0, 0.0, 2.0]);
        }
    }
}

#[test]
fn wrong_arguments_are_named() {
    let run = |case: Case, at: usize, shape: &[usize]| {
        let operands = crate::testing::operands(&case, DType::F32, DType::F32, &Device::Cpu).unwrap();
        let mut vars: Vec<Var> = operands.into_iter().map(Var::constant).collect();
        let dtype = vars[at].value().dtype();
        vars[at] = Var::constant(Tensor::zeros(shape, dtype, &Device::Cpu).unwrap());
        (case.run)(&Tape::no_grad(), &vars).unwrap_err().to_string()
    };
    let small = || case(2, 4, 2, 3);
    let op = "assemble_tokens";
    assert_eq!(run(small(), 0, &[5, 3]), format!("{op}: `patches` has shape [5, 3], expected [4, 3]"));
    assert_eq!(run(small(), 1, &[3]), format!("{op}: `cls_token` has shape [3], expected [1, 1, 3]"));
    assert_eq!(run(small(), 2, &[1, 4, 3]), format!("{op}: `pos_embed` has shape [1, 4, 3], expected [1, 5, 3]"));
    assert_eq!(run(small(), 3, &[2, 2]), format!("{op}: `ids_keep[0, 1]` has value 0, expected each index once"));
    assert_eq!(run(small(), 4, &[3, 4]), format!("{op}: `ids_restore` has shape [3, 4], expected [2, L]"));
    let error = run(case(1, 4, 1, 3), 3, &[1, 1]);
    assert!(error.contains("`ids_restore[0, 0]`") && error.contains("`ids_keep[0, 0]` is 0"), "{error}");
}
