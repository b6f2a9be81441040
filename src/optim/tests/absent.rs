//! Steps that leave parameters without a gradient out.

use super::{gradients, keep, model, refs, values, wave};
use crate::ops::adamw::Hyper;
use crate::optim::{AdamW, Optimizer, Rates, Rules};
use crate::testing::{devices, ulp};
use crate::{DType, Device, Error, Grads, Param, Tape, Tensor};

const HYPER: Hyper = Hyper { beta1: 0.9, beta2: 0.95, eps: 1e-8 };
/// Which of the trained parameters have a gradient in each step: `head.bias` begins late, `cls_token` pauses.
const STEPS: [&[&str]; 6] = [
    &["head.weight", "cls_token"],
    &["head.weight", "cls_token"],
    &["head.weight", "head.bias"],
    &["head.weight"],
    &["head.weight", "head.bias", "cls_token"],
    &["head.weight", "cls_token"],
];

/// A parameter, its moments and the steps it was part of.
type Plain = (Vec<f64>, Vec<f64>, Vec<f64>, i32);

fn rules() -> Rules {
    Rules { vectors_decay: true, no_decay: vec![], optional: vec!["head.bias", "cls_*"], ..Rules::pretraining(0.5) }
}

/// Gradients of step `t` of those that have one in it.
fn present(params: &[Param], t: usize) -> Grads {
    let some: Vec<Param> = params.iter().filter(|p| STEPS[t].contains(&p.name())).cloned().collect();
    gradients(&some, t as u64 + 1, keep)
}

/// The same parameters in f64.
fn exact() -> Vec<Param> {
    let make = |p: Param| {
        let mut exact = Param::new(p.name(), p.master.cast(DType::F64).unwrap(), DType::F64).unwrap();
        exact.trainable = p.trainable;
        exact
    };
    model(&Device::Cpu, DType::F32).into_iter().map(make).collect()
}

/// Torch's rule in f64: each parameter has a count of its own, and without a gradient nothing of it changes.
#[test]
fn adamw_counts_the_steps_of_each_parameter() {
    let mut params = exact();
    let mut plain: Vec<Plain> = params
        .iter()
        .map(|p| p.master.to_f64().unwrap())
        .map(|w| (w.clone(), vec![0.0; w.len()], vec![0.0; w.len()], 0))
        .collect();
    let mut optimizer = AdamW::new(HYPER, rules());
    for (t, with) in STEPS.iter().enumerate() {
        let lr = 0.01 * (1 + t) as f64;
        let (mut grads, mut squares) = (Grads::new(), 0.0);
        let drawn: Vec<Option<Vec<f64>>> = params
            .iter()
            .map(|p| {
                let values: Vec<f64> = wave(t as f32, p.master.numel()).into_iter().map(f64::from).collect();
                with.contains(&p.name()).then_some(values)
            })
            .collect();
        for (p, g) in params.iter().zip(&drawn) {
            let Some(g) = g else { continue };
            squares += g.iter().map(|g| g * g).sum::<f64>();
            let g = Tensor::from_slice(g, p.master.shape().clone(), &Device::Cpu).unwrap();
            grads.add(Tape::new().param(p).slot(), g).unwrap();
        }
        let stats = optimizer.step(&mut refs(&mut params), &grads, &Rates::new(lr), Some(1.0)).unwrap();
        assert!((stats.grad_norm - squares.sqrt()).abs() < 1e-12, "{} {squares}", stats.grad_norm);
        let factor = f64::min(1.0, 1.0 / (squares.sqrt() + 1e-6));
        for ((p, g), (w, m, v, count)) in params.iter().zip(drawn).zip(&mut plain) {
            if let Some(g) = g {
                *count += 1;
                for (i, g) in g.into_iter().map(|g| g * factor).enumerate() {
                    m[i] = 0.9 * m[i] + 0.1 * g;
                    v[i] = 0.95 * v[i] + 0.05 * g * g;
                    let root = (v[i] / (1.0 - 0.95f64.powi(*count))).sqrt();
                    w[i] = w[i] * (1.0 - lr * 0.5) - lr / (1.0 - 0.9f64.powi(*count)) * m[i] / (root + 1e-8);
                }
            }
            let far = p.master.to_f64().unwrap().iter().zip(&*w).fold(0.0f64, |far, (a, b)| far.max((a - b).abs()));
            assert!(far < 1e-13, "{} in step {t}: {far}", p.name());
        }
    }
    assert_eq!(plain.iter().map(|(.., count)| *count).collect::<Vec<_>>(), [6, 2, 4, 0]);
}

#[test]
fn what_is_left_out_keeps_its_bits() {
    let mut params = model(&Device::Cpu, DType::BF16);
    let mut optimizer = AdamW::new(HYPER, rules());
    let all = |params: &[Param], optimizer: &AdamW| -> Vec<(String, Vec<f64>)> {
        let weights =
            params.iter().map(|p| (p.name().to_string(), [p.value(), &p.master].map(|t| t.to_f64().unwrap())));
        let weights = weights.map(|(name, both)| (name, both.concat()));
        let state = optimizer.state().unwrap().into_iter().filter(|(name, _)| name.starts_with("exp_"));
        weights.chain(state.map(|(name, t)| (name, t.to_f64().unwrap()))).collect()
    };
    for (t, with) in STEPS.iter().enumerate() {
        let before = all(&params, &optimizer);
        let grads = present(&params, t);
        optimizer.step(&mut refs(&mut params), &grads, &Rates::new(0.01), Some(0.5)).unwrap();
        for ((name, old), (_, new)) in before.iter().zip(all(&params, &optimizer)).filter(|_| t > 0) {
            let moved = with.iter().any(|with| name.ends_with(with));
            assert_eq!(*old != new, moved, "{name} in step {t}");
        }
    }
}

#[test]
fn counts_are_part_of_the_state() {
    let run = |steps: std::ops::Range<usize>, params: &mut [Param], optimizer: &mut AdamW| {
        for t in steps {
            let grads = present(params, t);
            optimizer.step(&mut refs(params), &grads, &Rates::new(0.01), Some(0.5)).unwrap();
        }
    };
    for at in 0..=STEPS.len() {
        let (mut whole, mut one) = (model(&Device::Cpu, DType::BF16), AdamW::new(HYPER, rules()));
        run(0..at, &mut whole, &mut one);
        let mut resumed = model(&Device::Cpu, DType::BF16);
        resumed.iter_mut().zip(&whole).for_each(|(to, from)| to.set(&from.master).unwrap());
        let mut two = AdamW::new(HYPER, rules());
        two.load_state(one.state().unwrap()).unwrap();
        run(at..STEPS.len(), &mut whole, &mut one);
        run(at..STEPS.len(), &mut resumed, &mut two);
        assert_eq!(values(&whole), values(&resumed), "after {at} steps");
        let missed: Vec<(String, f64)> = two
            .state()
            .unwrap()
            .into_iter()
            .filter(|(name, _)| name.starts_with("missed."))
            .map(|(name, t)| (name, t.item().unwrap()))
            .collect();
        assert_eq!(missed, [("missed.cls_token".into(), 2.0), ("missed.head.bias".into(), 4.0)]);
    }
}

#[test]
fn a_count_that_cannot_be_is_refused() {
    let mut params = model(&Device::Cpu, DType::F32);
    let mut optimizer = AdamW::new(HYPER, rules());
    let grads = present(&params, 0);
    optimizer.step(&mut refs(&mut params), &grads, &Rates::new(0.01), None).unwrap();
    let load = |name: &str, count: f32| {
        let mut state = optimizer.state().unwrap();
        state.retain(|(n, _)| n != name);
        state.push((name.into(), Tensor::from_slice(&[count], [1], &Device::Cpu).unwrap()));
        AdamW::new(HYPER, rules()).load_state(state).map_err(|e| e.to_string())
    };
    assert_eq!(load("missed.head.bias", 1.0), Ok(()));
    let expected = |given| Err(format!("adamw: {given}"));
    let most = "expected at most 1, of a parameter with moments";
    assert_eq!(load("missed.head.bias", 2.0), expected(format!("`missed.head.bias` has value 2, {most}")));
    assert_eq!(load("missed.head", 1.0), expected(format!("`missed.head` has value 1, {most}")));
    let half = "`missed.head.bias` has value 0.5, expected a whole number";
    assert_eq!(load("missed.head.bias", 0.5), expected(half.into()));
}

#[test]
fn only_what_the_rules_name_may_be_left_out() {
    let missing = |rules: Rules, with: &[&str]| {
        let mut params = model(&Device::Cpu, DType::F32);
        let before = values(&params);
        let some: Vec<Param> = params.iter().filter(|p| with.contains(&p.name())).cloned().collect();
        let grads = gradients(&some, 1, keep);
        let mut optimizer = AdamW::new(HYPER, rules);
        let error = optimizer.step(&mut refs(&mut params), &grads, &Rates::new(0.01), None).unwrap_err();
        assert_eq!((values(&params), optimizer.steps()), (before, 0));
        let Error::MissingGradients(names) = error else { panic!("{error}") };
        names.join(" ")
    };
    assert_eq!(missing(rules(), &["cls_token"]), "head.weight");
    assert_eq!(missing(Rules { optional: vec!["cls_token"], ..rules() }, &["head.weight"]), "head.bias");
    let all = Rules { optional: vec!["*"], ..rules() };
    assert_eq!(missing(all, &[]), "cls_token head.bias head.weight", "a step of nothing");
}

#[test]
fn what_cannot_leave_parameters_out_says_so() {
    let error = |optimizer: &mut dyn Optimizer| {
        let mut params = model(&Device::Cpu, DType::F32);
        optimizer.prepare(&mut refs(&mut params), &Rates::new(0.01)).unwrap_err().to_string()
    };
    let mut averaged = AdamW::new(HYPER, Rules { average: Some(("student.", "teacher.")), ..rules() });
    assert_eq!(
        error(&mut averaged),
        "adamw: `rules.optional` has value `head.bias`, expected none beside rules.average"
    );
    let expected = "has value `head.bias`, expected none, which is for adamw";
    let mut lars = crate::optim::Lars::new(crate::ops::lars::Hyper { momentum: 0.9, trust: None }, rules());
    assert_eq!(error(&mut lars), format!("lars: `rules.optional` {expected}"));
    let mut lion = crate::optim::Lion::new(crate::ops::lion::Hyper { beta1: 0.9, beta2: 0.99 }, rules());
    assert_eq!(error(&mut lion), format!("lion: `rules.optional` {expected}"));
}

/// The launches of a step are not those of the next.
#[test]
fn a_recording_is_not_good_for_other_gradients() {
    let mut params = model(&Device::Cpu, DType::F32);
    let mut free = AdamW::new(HYPER, rules());
    let mut whole = AdamW::new(HYPER, Rules { optional: vec![], ..rules() });
    for _ in 0..2 {
        assert!(!free.prepare(&mut refs(&mut params), &Rates::new(0.01)).unwrap());
        assert!(whole.prepare(&mut refs(&mut params), &Rates::new(0.01)).unwrap());
    }
}

#[test]
fn devices_agree_about_what_is_left_out() {
    let run = |device: &Device| -> Vec<Vec<f64>> {
        let (mut params, mut optimizer) = (model(device, DType::BF16), AdamW::new(HYPER, rules()));
        for t in 0..STEPS.len() {
            let grads = present(&params, t);
            optimizer.step(&mut refs(&mut params), &grads, &Rates::new(0.01), Some(0.5)).unwrap();
        }
        params.iter().map(|p| p.master.to_f64().unwrap()).collect()
    };
    let truth = run(&Device::Cpu);
    for device in devices() {
        let got = run(&device);
        let far = got.iter().flatten().zip(truth.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(far <= 8.0 * ulp(DType::F32, 1.0), "{device}: {far}");
    }
}
