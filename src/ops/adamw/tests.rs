use proptest::prelude::*;

use super::case::{build, build_with_teachers};
use super::{Hyper, Item, Step, Teacher, adamw, correction, scalars};
use crate::ops::multi_tensor::{CHUNK, Scalars, TASK, Workspace};
use crate::testing::check;
use crate::{DType, Device, Error, Result, Shape, Tensor};

const HYPER: Hyper = Hyper { beta1: 0.9, beta2: 0.999, eps: 1e-8 };

fn shapes(lengths: &[usize]) -> Vec<Shape> {
    lengths.iter().map(|&n| Shape::from([n])).collect()
}

#[test]
fn matches_the_oracle_on_odd_lengths() {
    check(&build("odd", &shapes(&[1, 0, 3, 4, 5, 31, 257, 1024, 1030]), |i| i % 3 != 2)).unwrap();
    check(&build("no copies", &shapes(&[7, 260]), |_| false)).unwrap();
    check(&build("none", &[], |_| true)).unwrap();
}

#[test]
fn matches_the_oracle_across_tasks_and_chunks() {
    check(&build("chunks", &shapes(&[TASK + 3, CHUNK + 5]), |_| true)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn matches_the_oracle(lengths in prop::collection::vec(0usize..300, 1..6)) {
        check(&build(format!("{lengths:?}"), &shapes(&lengths), |i| i % 2 == 0)).unwrap();
    }
}

/// One tensor and its moments on the CPU.
struct One {
    w: Tensor,
    m: Tensor,
    v: Tensor,
}

impl One {
    fn new(w: &[f64]) -> Self {
        let t = |x: &[f64]| Tensor::from_slice(x, [x.len()], &Device::Cpu).unwrap();
        Self { w: t(w), m: t(&vec![0.0; w.len()]), v: t(&vec![0.0; w.len()]) }
    }

    fn step(&mut self, g: &[f64], lr: f64, t: u64, norm: Option<&[f64]>) -> Result<()> {
        let tensor = |x: &[f64]| Tensor::from_slice(x, [x.len()], &Device::Cpu).unwrap();
        let (g, norm, mut step) = (tensor(g), norm.map(tensor), Scalars::new());
        let step = step.set(&scalars(HYPER, Step::new(lr, t)), DType::F64, &Device::Cpu)?;
        let Self { w, m, v } = self;
        let item = Item {
            w,
            m,
            v,
            g: &g,
            compute: None,
            lr_scale: 1.0,
            weight_decay: 0.05,
            teacher: None,
            group: 0,
            correction: [1.0; 2],
        };
        adamw(&mut [item], HYPER, step, norm.as_ref(), &mut Workspace::new())
    }
}

/// Two steps worked out by hand: w = 1, g = 0.5 then -0.25, lr 0.1.
#[test]
fn follows_the_equations() {
    let mut one = One::new(&[1.0]);
    one.step(&[0.5], 0.1, 1, None).unwrap();
    // m/(1-β₁) = 0.5 and √(v/(1-β₂)) = 0.5: the step is lr.
    let first = 1.0 - 0.1 * 0.05 - 0.1 * 0.5 / (0.5 + 1e-8);
    assert!((one.w.item().unwrap() - first).abs() < 1e-12);
    one.step(&[-0.25], 0.1, 2, None).unwrap();
    let m: f64 = (0.9 * 0.05 - 0.1 * 0.25) / (1.0 - 0.81);
    let v: f64 = (0.999 * 0.00025 + 0.001 * 0.0625) / (1.0 - 0.998_001);
    let second = first * (1.0 - 0.1 * 0.05) - 0.1 * m / (v.sqrt() + 1e-8);
    assert!((one.w.item().unwrap() - second).abs() < 1e-12);
}

#[test]
fn teachers_and_groups_match_the_oracle() {
    check(&build_with_teachers("teachers", &shapes(&[1, 0, 3, 5, 31, 257, 1030]), |i| i % 2 == 0)).unwrap();
    check(&build_with_teachers("teachers in chunks", &shapes(&[TASK + 3, CHUNK + 5]), |_| true)).unwrap();
}

/// The one pass gives the bits of AdamW and of the average one after the other.
#[test]
fn a_teacher_in_the_same_pass_is_the_average_after_it() {
    let wave = |phase: f32, n: usize| (0..n).map(|i| (phase + 0.7 * i as f32).sin()).collect::<Vec<f32>>();
    let t = |phase: f32| Tensor::from_slice(&wave(phase, 1000), [1000], &Device::Cpu).unwrap();
    let now = Step { momentum: 0.9, ..Step::new(0.1, 2) };
    let (g, v0) = (t(3.0), Tensor::full([1000], 0.5f32, &Device::Cpu).unwrap());
    let run = |teacher: Option<&mut Tensor>| {
        let (mut w, mut m, mut v, mut step) = (t(0.1), t(0.2), v0.deep_clone().unwrap(), Scalars::new());
        let teacher = teacher.map(|average| Teacher { average, compute: None });
        let item = Item {
            w: &mut w,
            m: &mut m,
            v: &mut v,
            g: &g,
            compute: None,
            lr_scale: 1.0,
            weight_decay: 0.05,
            teacher,
            group: 0,
            correction: [1.0; 2],
        };
        let step = step.set(&scalars(HYPER, now), DType::F32, &Device::Cpu).unwrap();
        adamw(&mut [item], HYPER, step, None, &mut Workspace::new()).unwrap();
        w
    };
    let (mut one, mut two) = (t(5.0), t(5.0));
    let w = run(Some(&mut one));
    assert!(w.to_vec::<f32>().unwrap() == run(None).to_vec::<f32>().unwrap());
    let mut momentum = Scalars::new();
    let momentum = momentum.set(&crate::ops::ema::scalars(0.9), DType::F32, &Device::Cpu).unwrap();
    let item = crate::ops::ema::Item { teacher: &mut two, student: &w, compute: None };
    crate::ops::ema::ema(&mut [item], momentum, &mut Workspace::new()).unwrap();
    assert!(one.to_vec::<f32>().unwrap() == two.to_vec::<f32>().unwrap());
}

#[test]
fn a_rate_of_zero_moves_the_moments_only() {
    let mut one = One::new(&[1.5, 0.0, 3e-300]);
    one.step(&[0.5, 2.0, -1.0], 0.0, 1, None).unwrap();
    let bits: Vec<u64> = one.w.to_vec::<f64>().unwrap().iter().map(|x| x.to_bits()).collect();
    assert_eq!(bits, [1.5f64, 0.0, 3e-300].map(f64::to_bits));
    assert!(one.m.to_vec::<f64>().unwrap().iter().all(|m| *m != 0.0));
}

#[test]
fn a_norm_that_is_not_finite_leaves_everything() {
    for norm in [f64::NAN, f64::INFINITY] {
        let mut one = One::new(&[1.0, 2.0]);
        one.step(&[f64::NAN, 1.0], 0.1, 1, Some(&[norm, f64::NAN])).unwrap();
        assert_eq!(one.w.to_vec::<f64>().unwrap(), [1.0, 2.0]);
        assert_eq!(one.m.to_vec::<f64>().unwrap(), [0.0, 0.0]);
    }
}

#[test]
fn the_result_does_not_depend_on_the_number_of_threads() {
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let w: Vec<f64> = (0..3 * TASK + 7).map(|i| (i as f64 * 0.37).sin()).collect();
            let mut one = One::new(&w);
            one.step(&w, 0.1, 1, Some(&[1.0, 0.5])).unwrap();
            one.w.to_vec::<f64>().unwrap()
        })
    };
    assert!(run(1) == run(3));
}

#[test]
fn corrections_are_exact_for_small_and_large_steps() {
    let [lr, step, root, decay, keep, take] = scalars(HYPER, Step::new(2.0, 1));
    assert_eq!((lr, decay, keep, take), (2.0, 1.0, 1.0, 0.0));
    assert!((step / 20.0 - 1.0).abs() < 1e-14 && (root * 0.001f64.sqrt() - 1.0).abs() < 1e-12);
    assert_eq!(scalars(HYPER, Step::new(2.0, 10_000_000))[..3], [2.0, 2.0, 1.0]);
    let none = Hyper { beta1: 0.0, beta2: 0.0, eps: 0.0 };
    assert_eq!(scalars(none, Step::new(2.0, 1))[..3], [2.0, 2.0, 1.0]);
    let half = Step { momentum: 0.25, decay: 3.0, ..Step::new(2.0, 1) };
    assert_eq!(scalars(none, half)[3..], [3.0, 0.25, 0.75]);
}

/// What a tensor that was left out needs is the step of its own count.
#[test]
fn the_correction_turns_a_step_into_an_earlier_one() {
    for (t, own) in [(1, 1), (7, 3), (100_000, 1), (5_000_000, 4_999_999)] {
        let ([of_step, of_root], now, its) =
            (correction(HYPER, t, own), scalars(HYPER, Step::new(2.0, t)), scalars(HYPER, Step::new(2.0, own)));
        assert!((now[1] * of_step / its[1] - 1.0).abs() < 1e-14, "{t} {own}");
        assert!((now[2] * of_root / its[2] - 1.0).abs() < 1e-14, "{t} {own}");
    }
    assert_eq!(correction(HYPER, 9, 9), [1.0, 1.0]);
}

#[test]
fn wrong_arguments_are_named_and_change_nothing() {
    let t = |n: usize, dtype| Tensor::zeros([n], dtype, &Device::Cpu).unwrap();
    let run = |m: Tensor, compute: Option<Tensor>, share: bool| {
        let (mut w, mut m, mut v, g, mut compute) = (t(3, DType::F32), m, t(3, DType::F32), t(3, DType::F32), compute);
        let (scalars, held) = (t(6, DType::F32), share.then(|| v.clone()));
        let item = Item {
            w: &mut w,
            m: &mut m,
            v: &mut v,
            g: &g,
            compute: compute.as_mut(),
            lr_scale: 1.0,
            weight_decay: 0.0,
            teacher: None,
            group: 0,
            correction: [1.0; 2],
        };
        let error = adamw(&mut [item], HYPER, &scalars, None, &mut Workspace::new()).unwrap_err();
        drop(held);
        error
    };
    let good = || t(3, DType::F32);
    let message = |m, compute| run(m, compute, false).to_string();
    assert_eq!(message(t(4, DType::F32), None), "adamw: `m[0]` has shape [4], expected 3 elements");
    assert_eq!(message(t(3, DType::BF16), None), "adamw: `m[0]` has dtype bf16, expected f32");
    assert_eq!(message(good(), Some(t(2, DType::BF16))), "adamw: `compute[0]` has shape [2], expected 3 elements");
    let double = message(good(), Some(t(3, DType::F64)));
    assert_eq!(double, "adamw: `compute` has dtype f64, expected a float type computed in f32");
    assert!(matches!(run(good(), None, true), Error::SharedTensor { .. }));
}
