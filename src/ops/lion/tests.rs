use super::case::build;
use super::{Hyper, Item, case, lion};
use crate::ops::multi_tensor::{CHUNK, TASK, Workspace};
use crate::testing::check;
use crate::{DType, Device, Error, Result, Shape, Tensor};

fn shapes(lengths: &[usize]) -> Vec<Shape> {
    lengths.iter().map(|&n| Shape::from([n])).collect()
}

#[test]
fn matches_the_oracle_on_odd_lengths() {
    check(&build("odd", &shapes(&[1, 0, 3, 4, 5, 31, 257, 1030]), |i| i % 3 != 2)).unwrap();
    check(&build("no copies", &shapes(&[7, 260]), |_| false)).unwrap();
    check(&build("none", &[], |_| true)).unwrap();
}

#[test]
fn matches_the_oracle_across_tasks_and_chunks() {
    check(&build("chunks", &shapes(&[TASK + 3, CHUNK + 5]), |_| true)).unwrap();
}

/// Weights and means after a step.
fn step(w: &[f64], m: &[f64], g: &[f64], norm: [f64; 2]) -> Result<(Vec<f64>, Vec<f64>)> {
    let t = |x: &[f64]| Tensor::from_slice(x, [x.len()], &Device::Cpu).unwrap();
    let (mut w, mut m, g, lr, norm) = (t(w), t(m), t(g), t(&[0.1]), t(&norm));
    let item = Item { w: &mut w, m: &mut m, g: &g, compute: None, lr_scale: 0.5, weight_decay: 0.2 };
    lion(&mut [item], Hyper { beta1: 0.9, beta2: 0.99 }, &lr, Some(&norm), &mut Workspace::new())?;
    Ok((w.to_vec()?, m.to_vec()?))
}

#[test]
fn follows_the_equations() {
    let (w, m) = step(&[1.0, 1.0, 1.0, 1.0], &[0.5, -0.5, 0.0, 1.0], &[1.0, 1.0, 0.0, -6.0], [1.0, 2.0]).unwrap();
    let expected_m = [0.515, -0.475, 0.0, 0.87];
    // β₁ m + (1 - β₁) 2 g = 0.65, -0.25, 0, -0.3
    let expected_w = [0.94, 1.04, 0.99, 1.04];
    for (got, expected) in w.iter().chain(&m).zip(expected_w.iter().chain(&expected_m)) {
        assert!((got - expected).abs() < 1e-12, "{w:?} {m:?}");
    }
}

#[test]
fn a_norm_that_is_not_finite_leaves_everything() {
    let (w, m) = step(&[1.0, 2.0], &[0.5, 0.5], &[f64::NAN, 1.0], [f64::NAN, 1.0]).unwrap();
    assert_eq!((w, m), (vec![1.0, 2.0], vec![0.5, 0.5]));
}

#[test]
fn wrong_arguments_are_named() {
    let t = |n: usize, dtype| Tensor::zeros([n], dtype, &Device::Cpu).unwrap();
    let error = |m: Tensor, g: Tensor, lr: Tensor| {
        let (mut w, mut m) = (t(3, DType::F32), m);
        let item = Item { w: &mut w, m: &mut m, g: &g, compute: None, lr_scale: 1.0, weight_decay: 0.0 };
        lion(&mut [item], Hyper { beta1: 0.9, beta2: 0.99 }, &lr, None, &mut Workspace::new()).unwrap_err()
    };
    let f32 = |n| t(n, DType::F32);
    assert_eq!(error(f32(4), f32(3), f32(1)).to_string(), "lion: `m[0]` has shape [4], expected 3 elements");
    assert_eq!(error(f32(3), t(3, DType::BF16), f32(1)).to_string(), "lion: `g[0]` has dtype bf16, expected f32");
    assert_eq!(error(f32(3), f32(3), f32(2)).to_string(), "lion: `lr` has shape [2], expected [1]");
    let shared = f32(3);
    assert!(matches!(error(shared.clone(), f32(3), f32(1)), Error::SharedTensor { .. }));
    assert_eq!(case("one", &[[3].into()]).inputs.len(), 5);
}
