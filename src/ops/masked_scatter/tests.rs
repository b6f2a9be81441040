use proptest::prelude::*;

use super::{Dims, Wanted, backward, case, forward, launch, masked_scatter};
use crate::ops::{gather_rows, indices};
use crate::testing::{check, check_gradients, devices};
use crate::{DType, Device, Tape, Tensor, Var};

#[test]
fn matches_the_oracle_on_odd_shapes() {
    for (batch, len, keep, cols) in [(1, 1, 1, 1), (3, 5, 2, 31), (2, 7, 7, 8), (4, 6, 0, 33), (40, 3, 1, 1032)] {
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
    fn matches_the_oracle(batch in 1usize..80, len in 1usize..20, part in 0.0f64..1.0, cols in 1usize..70) {
        check(&case(batch, len, (len as f64 * part) as usize, cols)).unwrap();
    }
}

#[test]
fn grids_cover_everything() {
    for rows in [1usize, 3, 8, 9, 264, 50432, 1_000_001] {
        let grid = launch::rows_grid(rows as u32);
        assert!((grid.grid[0] * (grid.block[0] / 32)) as usize >= rows);
    }
}

/// Scattering what was gathered gives every patch back, kept ones from `z`, removed ones from the token.
#[test]
fn restores_what_was_gathered() {
    let (batch, len, keep) = (3, 9, 4);
    let m = indices::example(batch, len, keep);
    let host = |v: &[f64], s: &[usize]| Tensor::from_slice(v, s, &Device::Cpu).unwrap();
    let all: Vec<f64> = (0..batch * (len + 1)).map(|i| 1.0 + i as f64).collect();
    let rows = (0..batch).flat_map(|b| {
        let kept = m.keep[b * keep..][..keep].iter().map(move |i| (b * (len + 1) + 1) as i32 + i);
        std::iter::once((b * (len + 1)) as i32).chain(kept)
    });
    let rows: Vec<i32> = rows.collect();
    let rows = Tensor::from_slice(&rows, [rows.len()], &Device::Cpu).unwrap();
    let z = gather_rows::forward(&host(&all, &[all.len(), 1]), &rows).unwrap();
    let restore = Tensor::from_slice(&m.restore, [batch, len], &Device::Cpu).unwrap();
    let zeros = host(&vec![0.0; len + 1], &[1, len + 1, 1]);
    let y = forward(&z, &host(&[-1.0], &[1, 1, 1]), &zeros, &restore).unwrap().to_vec::<f64>().unwrap();
    for (at, (y, x)) in y.iter().zip(&all).enumerate() {
        let (b, t) = (at / (len + 1), at % (len + 1));
        let kept = t == 0 || m.restore[b * len + t - 1] < keep as i32;
        assert_eq!(*y, if kept { *x } else { -1.0 });
    }
}

/// The token's gradient is the sum over masked rows; with nothing masked it is zero.
#[test]
fn token_gradient_is_the_sum_over_masked_rows() {
    let restore = Tensor::from_slice(&[1i32, 0, 2], [1, 3], &Device::Cpu).unwrap();
    let dy = Tensor::from_slice(&[1f32, 2., 4., 8.], [4, 1], &Device::Cpu).unwrap();
    let wanted = Wanted { mask_token: true, pos_embed: false };
    let grads = |rows| {
        let (dz, dmask, dpos) = backward(&dy, &restore, rows, wanted).unwrap();
        assert!(dpos.is_none());
        (dz.to_vec::<f32>().unwrap(), dmask.unwrap().to_vec::<f32>().unwrap())
    };
    assert_eq!(grads(2), (vec![1., 4.], vec![10.]));
    assert_eq!(grads(4), (vec![1., 4., 2., 8.], vec![0.]));
}

/// Where the host cannot check the ranks, one out of range counts as masked.
#[test]
fn kernels_guard_against_wrong_ranks() {
    for device in devices() {
        let t = |v: &[f32]| Tensor::from_slice(v, [v.len(), 1], &device).unwrap();
        let dims = Dims { batch: 1, keep: 1, len: 2, cols: 1 };
        for wrong in [-1i32, 7] {
            let restore = Tensor::from_slice(&[wrong, 0], [1, 2], &device).unwrap();
            let mut y = t(&[0.0; 3]);
            launch::forward(&t(&[1.0, 2.0]), &t(&[4.0]), &t(&[0.0; 3]), &restore, dims, &mut y).unwrap();
            assert_eq!(y.to_vec::<f32>().unwrap(), [1.0, 4.0, 2.0]);
            let (mut dz, mut dmask) = (t(&[0.0; 2]), t(&[0.0]));
            launch::backward(&t(&[1.0, 2.0, 4.0]), &restore, dims, &mut dz, Some(&mut dmask), None).unwrap();
            assert_eq!(dz.to_vec::<f32>().unwrap(), [1.0, 4.0]);
            assert_eq!(dmask.to_vec::<f32>().unwrap(), [2.0]);
        }
    }
}

#[test]
fn wrong_arguments_are_named() {
    let t = |s: &[usize]| Var::constant(Tensor::zeros(s, DType::F32, &Device::Cpu).unwrap());
    let restore = |v: &[i32]| Tensor::from_slice(v, [2, v.len() / 2], &Device::Cpu).unwrap();
    let error = |z: &[usize], mask: &[usize], pos: &[usize], ids: &[i32]| {
        masked_scatter(&Tape::no_grad(), &t(z), &t(mask), &t(pos), &restore(ids)).unwrap_err().to_string()
    };
    let (good, op) = (&[0, 1, 2, 2, 1, 0], "masked_scatter");
    assert_eq!(
        error(&[5, 4], &[1, 1, 4], &[1, 4, 4], good),
        format!("{op}: `z` has shape [5, 4], expected [2 x (1 + K), D] with K at most 3")
    );
    assert!(error(&[10, 4], &[1, 1, 4], &[1, 4, 4], good).contains("with K at most 3"));
    assert_eq!(error(&[4, 4], &[4], &[1, 4, 4], good), format!("{op}: `mask_token` has shape [4], expected [1, 1, 4]"));
    assert_eq!(
        error(&[4, 4], &[1, 1, 4], &[1, 3, 4], good),
        format!("{op}: `pos_embed` has shape [1, 3, 4], expected [1, 4, 4]")
    );
    assert_eq!(
        error(&[4, 4], &[1, 1, 4], &[1, 4, 4], &[0, 1, 2, 2, 1, 2]),
        format!("{op}: `ids_restore[1, 2]` has value 2, expected each index once")
    );
}
