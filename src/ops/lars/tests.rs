use proptest::prelude::*;

use super::case::build;
use super::{Hyper, Item, lars};
use crate::ops::multi_tensor::{CHUNK, TASK, Workspace};
use crate::testing::check;
use crate::{DType, Device, Error, Result, Shape, Tensor};

/// Matrices and vectors in turn.
fn shapes(lengths: &[usize]) -> Vec<Shape> {
    let shape = |(i, &n): (usize, &usize)| if i % 3 == 2 { Shape::from([n]) } else { Shape::from([1, n]) };
    lengths.iter().enumerate().map(shape).collect()
}

#[test]
fn matches_the_oracle_on_odd_lengths() {
    for trust in [Some(0.001), None] {
        check(&build("odd", &shapes(&[1, 0, 3, 4, 5, 31, 257, 1030]), trust, |i| i % 4 != 3)).unwrap();
        check(&build("no copies", &shapes(&[7, 260]), trust, |_| false)).unwrap();
    }
}

#[test]
fn matches_the_oracle_across_tasks_and_chunks() {
    check(&build("chunks", &shapes(&[5, CHUNK + 5, TASK + 3]), Some(0.01), |_| true)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn matches_the_oracle(lengths in prop::collection::vec(0usize..300, 1..6)) {
        check(&build(format!("{lengths:?}"), &shapes(&lengths), Some(0.1), |i| i % 2 == 0)).unwrap();
    }
}

/// One step from momentum zero; returns weights and momentum.
fn step(w: &[f64], g: &[f64], shape: &[usize], hyper: Hyper, decay: f64) -> Result<(Vec<f64>, Vec<f64>)> {
    let t = |x: &[f64], shape: &[usize]| Tensor::from_slice(x, shape, &Device::Cpu).unwrap();
    let (mut w, mut mu, g, lr) = (t(w, shape), t(&vec![0.0; g.len()], shape), t(g, shape), t(&[0.5], &[1]));
    let item = Item { w: &mut w, mu: &mut mu, g: &g, compute: None, lr_scale: 1.0, weight_decay: decay };
    lars(&mut [item], hyper, &lr, None, &mut Workspace::new())?;
    Ok((w.to_vec()?, mu.to_vec()?))
}

const LARS: Hyper = Hyper { momentum: 0.9, trust: Some(0.01) };

#[test]
fn the_ratio_is_for_matrices_with_positive_norms() {
    let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12);
    // |w| = 5, |g + wd·w| = 13.
    let (w, mu) = step(&[3.0, 4.0], &[4.7, 11.6], &[1, 2], LARS, 0.1).unwrap();
    assert!(close(&mu, &[0.05 / 13.0 * 5.0, 0.05 / 13.0 * 12.0]), "{mu:?}");
    assert!(close(&w, &[3.0 - 0.5 * mu[0], 4.0 - 0.5 * mu[1]]));
    for (w, g, shape) in
        [([3.0, 4.0], [5.0, 12.0], &[2][..]), ([0.0; 2], [5.0, 12.0], &[1, 2]), ([3.0, 4.0], [0.0; 2], &[1, 2])]
    {
        assert_eq!(step(&w, &g, shape, LARS, 0.0).unwrap().1, g, "no ratio");
    }
    assert_eq!(step(&[3.0, 4.0], &[5.0, 12.0], &[1, 2], Hyper { trust: None, ..LARS }, 0.0).unwrap().1, [5.0, 12.0]);
}

#[test]
fn the_first_step_does_not_depend_on_the_scale_of_the_gradient() {
    let g = [0.3, -0.7, 0.2, 0.9];
    let scaled = g.map(|g| 1024.0 * g); // a power of two: the same bits
    let run = |g: &[f64]| step(&[1.0, 2.0, -3.0, 0.5], g, &[2, 2], LARS, 0.0).unwrap();
    assert_eq!(run(&g), run(&scaled));
}

#[test]
fn a_norm_that_is_not_finite_leaves_everything() {
    let t = |x: &[f32]| Tensor::from_slice(x, [1, x.len()], &Device::Cpu).unwrap();
    let (mut w, mut mu, g) = (t(&[1.0, 2.0]), t(&[0.5, 0.5]), t(&[f32::NAN, 1.0]));
    let (lr, norm) = (t(&[0.1]).reshape([1]).unwrap(), t(&[f32::NAN, 1.0]).reshape([2]).unwrap());
    let item = Item { w: &mut w, mu: &mut mu, g: &g, compute: None, lr_scale: 1.0, weight_decay: 0.0 };
    lars(&mut [item], LARS, &lr, Some(&norm), &mut Workspace::new()).unwrap();
    assert_eq!((w.to_vec::<f32>().unwrap(), mu.to_vec::<f32>().unwrap()), (vec![1.0, 2.0], vec![0.5, 0.5]));
}

#[test]
fn wrong_arguments_are_named() {
    let t = |n: usize, dtype| Tensor::zeros([n], dtype, &Device::Cpu).unwrap();
    let error = |mu: Tensor, g: Tensor, lr: Tensor| {
        let (mut w, mut mu) = (t(3, DType::F32), mu);
        let item = Item { w: &mut w, mu: &mut mu, g: &g, compute: None, lr_scale: 1.0, weight_decay: 0.0 };
        lars(&mut [item], LARS, &lr, None, &mut Workspace::new()).unwrap_err()
    };
    let f32 = |n| t(n, DType::F32);
    assert_eq!(error(f32(4), f32(3), f32(1)).to_string(), "lars: `mu[0]` has shape [4], expected 3 elements");
    assert_eq!(error(f32(3), t(3, DType::BF16), f32(1)).to_string(), "lars: `g[0]` has dtype bf16, expected f32");
    assert_eq!(error(f32(3), f32(3), f32(2)).to_string(), "lars: `lr` has shape [2], expected [1]");
    let shared = f32(3);
    assert!(matches!(error(shared.clone(), f32(3), f32(1)), Error::SharedTensor { .. }));
}
