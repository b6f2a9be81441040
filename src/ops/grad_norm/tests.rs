use proptest::prelude::*;

use super::{case, grad_norm, grad_norms};
use crate::ops::multi_tensor::{CHUNK, TASK, Workspace};
use crate::testing::{check, devices};
use crate::{DType, Device, Result, Shape, Tensor};

fn shapes(lengths: &[usize]) -> Vec<Shape> {
    lengths.iter().map(|&n| Shape::from([n])).collect()
}

#[test]
fn matches_the_oracle_on_odd_lengths() {
    check(&case("odd", &shapes(&[1, 0, 3, 4, 5, 31, 257, 1030]), Some(0.5))).unwrap();
    check(&case("unclipped", &shapes(&[7, 260]), None)).unwrap();
    check(&case("below the limit", &shapes(&[7, 260]), Some(1e3))).unwrap();
    check(&case("none", &[], Some(1.0))).unwrap();
}

#[test]
fn matches_the_oracle_across_tasks_and_chunks() {
    check(&case("chunks", &shapes(&[TASK + 3, CHUNK + 5]), Some(1.0))).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn matches_the_oracle(lengths in prop::collection::vec(0usize..300, 1..6)) {
        check(&case(format!("{lengths:?}"), &shapes(&lengths), Some(1.0))).unwrap();
    }
}

fn norm_of(grads: &[&[f32]], max_norm: Option<f64>) -> Result<Vec<f32>> {
    let grads: Vec<Tensor> = grads.iter().map(|g| Tensor::from_slice(g, [g.len()], &Device::Cpu).unwrap()).collect();
    let mut out = Tensor::zeros([2], DType::F32, &Device::Cpu)?;
    grad_norm(&grads.iter().collect::<Vec<_>>(), max_norm, &mut out, &mut Workspace::new())?;
    out.to_vec()
}

#[test]
fn clips_to_the_limit_only() {
    assert_eq!(norm_of(&[&[3.0], &[0.0, 4.0]], None).unwrap(), [5.0, 1.0]);
    assert_eq!(norm_of(&[&[3.0], &[0.0, 4.0]], Some(6.0)).unwrap(), [5.0, 1.0]);
    assert_eq!(norm_of(&[&[3.0], &[0.0, 4.0]], Some(2.5)).unwrap(), [5.0, (2.5f64 / (5.0 + 1e-6)) as f32]);
    assert_eq!(norm_of(&[&[0.0]], Some(1.0)).unwrap(), [0.0, 1.0]);
}

/// On every device: each group is clipped on its own, and all of them are those of separate calls.
#[test]
fn groups_have_norms_of_their_own() {
    let grads: Vec<Vec<f32>> = [5, 300, CHUNK + 3, 1].map(|n| (0..n).map(|i| (i as f32 * 0.37).sin()).collect()).into();
    let groups = [1, 0, 1, 3];
    for device in devices().into_iter().chain([Device::Cpu]) {
        let on = |g: &Vec<f32>| Tensor::from_slice(g, [g.len()], &device).unwrap();
        let grads: Vec<Tensor> = grads.iter().map(on).collect();
        let mut out = Tensor::full([4, 2], f32::NAN, &device).unwrap();
        let all: Vec<&Tensor> = grads.iter().collect();
        grad_norms(&all, &groups, Some(2.0), &mut out, &mut Workspace::new()).unwrap();
        for (group, row) in out.to_vec::<f32>().unwrap().chunks(2).enumerate() {
            let own: Vec<&Tensor> = all.iter().zip(groups).filter(|(_, g)| *g == group).map(|(t, _)| *t).collect();
            let mut one = Tensor::zeros([2], DType::F32, &device).unwrap();
            grad_norm(&own, Some(2.0), &mut one, &mut Workspace::new()).unwrap();
            assert_eq!(one.to_vec::<f32>().unwrap(), row, "group {group} on {device}");
        }
    }
    let g = Tensor::zeros([2], DType::F32, &Device::Cpu).unwrap();
    let message = |groups: &[usize]| {
        let mut out = Tensor::zeros([2, 2], DType::F32, &Device::Cpu).unwrap();
        grad_norms(&[&g], groups, None, &mut out, &mut Workspace::new()).unwrap_err().to_string()
    };
    assert_eq!(message(&[2]), "grad_norm: `groups[0]` has value 2, expected a group below 2");
    assert_eq!(message(&[]), "grad_norm: `groups` has length 0, expected 1");
}

#[test]
fn finite_gradients_do_not_overflow_and_others_show() {
    assert_eq!(norm_of(&[&[3e30, 4e30]], None).unwrap()[0], 5e30);
    assert_eq!(norm_of(&[&[3e-30, 4e-30]], None).unwrap()[0], 5e-30);
    let nan = norm_of(&[&[1.0], &[f32::NAN]], Some(1.0)).unwrap();
    assert!(nan[0].is_nan() && nan[1].is_nan());
    assert_eq!(norm_of(&[&[f32::NEG_INFINITY]], Some(1.0)).unwrap()[0], f32::INFINITY);
}

#[test]
fn the_result_does_not_depend_on_the_number_of_threads() {
    let g: Vec<f32> = (0..5 * TASK + 7).map(|i| (i as f32 * 0.37).sin()).collect();
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| norm_of(&[&g, &g[..100]], None).unwrap())
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn wrong_arguments_are_named() {
    for max in [0.0, -1.0, f64::NAN] {
        let error = norm_of(&[&[1.0]], Some(max)).unwrap_err();
        assert_eq!(error.to_string(), format!("grad_norm: `max_norm` has value {max}, expected a positive number"));
    }
    let g = Tensor::zeros([2], DType::BF16, &Device::Cpu).unwrap();
    let mut out = Tensor::zeros([2], DType::F32, &Device::Cpu).unwrap();
    let error = grad_norm(&[&g], None, &mut out, &mut Workspace::new()).unwrap_err();
    assert_eq!(error.to_string(), "grad_norm: `grads[0]` has dtype bf16, expected f32");
    let mut out = Tensor::zeros([3], DType::F32, &Device::Cpu).unwrap();
    let error = grad_norm(&[], None, &mut out, &mut Workspace::new()).unwrap_err();
    assert_eq!(error.to_string(), "grad_norm: `out` has shape [3], expected [2]");
}
