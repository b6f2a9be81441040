use proptest::prelude::*;

use super::{case, grad_norm};
use crate::ops::multi_tensor::{CHUNK, TASK, Workspace};
use crate::testing::check;
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
