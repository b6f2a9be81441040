mod absent;
mod distillation;

use proptest::prelude::*;

use super::groups::LayerDecay;
use super::schedule::{Cosine, cosine_with_warmup, scaled_lr};
use super::{Adafactor, AdamW, Group, Lars, Lion, Optimizer, Rates, Rules};
use crate::ops::adafactor::{self, View};
use crate::ops::{adamw, lars, lion};
use crate::testing::{devices, ulp};
use crate::{DType, Device, Error, Grads, Param, Tape, Tensor};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn the_schedule_is_continuous_and_never_above_its_rate(
        lr in 1e-6f64..10.0, floor in 0.0f64..1.0, warmup in 0.0f64..20.0, rest in 0.5f64..400.0, at in 0.0f64..1.0,
    ) {
        let s = Cosine { lr, min_lr: floor * lr, warmup_epochs: warmup, epochs: warmup + rest };
        let value = s.at(at * s.epochs);
        prop_assert!((0.0..=lr * (1.0 + 1e-12)).contains(&value));
        prop_assert!((s.at(warmup) - lr).abs() <= 1e-12 * lr, "full rate at the end of the warm-up");
        prop_assert!((s.at(warmup - 1e-9 * rest) - lr).abs() <= 1e-6 * lr * (1.0 + rest / warmup.max(1e-9) * 1e-3));
        prop_assert!((s.at(s.epochs) - s.min_lr).abs() <= 1e-12 * lr);
        prop_assert_eq!(s.at(s.epochs + 3.0), s.at(s.epochs));
        prop_assert!(warmup == 0.0 || s.at(0.0) == 0.0);
    }
}

#[test]
fn a_run_without_cosine_or_without_warmup_has_no_division_by_zero() {
    assert_eq!(cosine_with_warmup(0.0, 1.0, 0.1, 0.0, 10.0), 1.0);
    assert_eq!(cosine_with_warmup(5.0, 1.0, 0.0, 10.0, 10.0), 0.5);
    assert_eq!(cosine_with_warmup(10.0, 1.0, 0.25, 10.0, 10.0), 0.25);
    assert!((cosine_with_warmup(6.5, 2.4e-3, 0.0, 3.0, 10.0) - 1.2e-3).abs() < 1e-15);
    assert_eq!(scaled_lr(1.5e-4, 4096), 2.4e-3);
}

fn encoder(depth: usize) -> Vec<(String, Vec<usize>)> {
    let mut all: Vec<(String, Vec<usize>)> = [
        ("cls_token", vec![1, 1, 8]),
        ("pos_embed", vec![1, 5, 8]),
        ("patch_embed.proj.weight", vec![8, 3, 2, 2]),
        ("patch_embed.proj.bias", vec![8]),
        ("norm.weight", vec![8]),
        ("fc_norm.bias", vec![8]),
        ("head.weight", vec![7, 8]),
        ("head.bias", vec![7]),
    ]
    .map(|(name, shape)| (name.to_string(), shape))
    .into();
    for i in 0..depth {
        all.push((format!("blocks.{i}.attn.qkv.weight"), vec![24, 8]));
        all.push((format!("blocks.{i}.attn.qkv.bias"), vec![24]));
        all.push((format!("blocks.{i}.norm1.weight"), vec![8]));
    }
    all
}

#[test]
fn tokens_decay_in_pretraining_only() {
    let (pre, fine) = (Rules::pretraining(0.05), Rules::finetuning(0.05, 0.75, 3));
    let decay = |rules: &Rules, name: &str, shape: &[usize]| rules.group(name, shape).weight_decay;
    for (name, shape, in_pretraining, in_finetuning) in [
        ("cls_token", &[1, 1, 8][..], 0.05, 0.0),
        ("mask_token", &[1, 1, 8], 0.05, 0.05),
        ("pos_embed", &[1, 5, 8], 0.05, 0.0),
        ("patch_embed.proj.weight", &[8, 3, 2, 2], 0.05, 0.05),
        ("blocks.0.norm1.weight", &[8], 0.0, 0.0),
        ("decoder_blocks.0.mlp.fc1.bias", &[8], 0.0, 0.0),
        ("odd.bias", &[2, 8], 0.0, 0.0),
        ("head.weight", &[7, 8], 0.05, 0.05),
    ] {
        assert_eq!(decay(&pre, name, shape), in_pretraining, "{name}");
        assert_eq!(decay(&fine, name, shape), in_finetuning, "{name}");
    }
    assert_eq!(pre.group("blocks.0.norm1.weight", &[8]), Group { lr_scale: 1.0, weight_decay: 0.0 });
}

#[test]
fn kernels_of_image_text_models_decay_and_towers_differ() {
    let rules = Rules::image_text(0.1, 0.25, 0.0);
    let group = |name: &str, shape: &[usize]| {
        let Group { lr_scale, weight_decay } = rules.group(name, shape);
        (lr_scale, weight_decay)
    };
    assert_eq!(group("text_model.encoder.layers.0.self_attn.qkv_proj.weight", &[24, 8]), (1.0, 0.1));
    assert_eq!(group("text_model.head.weight", &[8, 8]), (1.0, 0.1));
    for name in ["embeddings.token_embedding.weight", "embeddings.position_embedding.weight"] {
        assert_eq!(group(&format!("text_model.{name}"), &[5, 8]), (1.0, 0.0), "{name}");
    }
    assert_eq!(group("vision_model.head.mlp.fc1.weight", &[8, 8]), (0.25, 0.0));
    assert_eq!(group("logit_scale", &[1]), (1.0, 0.0));
    let plain = Rules::image_text(0.1, 1.0, 0.1);
    let decay = |name: &str, shape: &[usize]| plain.group(name, shape).weight_decay;
    assert_eq!(decay("vision_model.embeddings.patch_embedding.weight", &[8, 3, 4, 4]), 0.1);
    assert_eq!(decay("vision_model.embeddings.position_embedding.weight", &[4, 8]), 0.0);
    assert_eq!(decay("vision_model.head.probe", &[1, 1, 8]), 0.0);
    assert_eq!(decay("vision_model.post_layernorm.weight", &[8]), 0.0);
}

#[test]
fn rates_rise_with_the_layer_and_reach_one_at_the_head() {
    for blocks in [1, 3, 12] {
        let names = encoder(blocks);
        let rules = Rules::finetuning(0.05, 0.65, blocks);
        let scale = |name: &str| rules.group(name, &[1, 1]).lr_scale;
        let mut scales = vec![scale("pos_embed")];
        scales.extend((0..blocks).map(|i| scale(&format!("blocks.{i}.attn.proj.weight"))));
        scales.push(scale("head.weight"));
        assert!(scales.windows(2).all(|w| (w[0] / w[1] - 0.65).abs() < 1e-12), "{scales:?}");
        assert_eq!(scale("fc_norm.weight"), 1.0);
        for (name, _) in names {
            assert!(LayerDecay { decay: 0.65, depth: blocks, root: "" }.layer(&name) <= blocks + 1);
        }
    }
    let twelve = LayerDecay { decay: 0.65, depth: 12, root: "" };
    assert_eq!(twelve.layer("patch_embed.proj.bias"), 0);
    assert_eq!(twelve.layer("blocks.11.norm2.bias"), 12);
    assert_eq!(twelve.layer("decoder_blocks.3.norm2.bias"), 13);
    assert_eq!(twelve.layer("blocks.x.norm"), 13);
}

/// A matrix, a bias, a token, and a frozen table; values depend on the name's length and the index.
fn model(device: &Device, dtype: DType) -> Vec<Param> {
    let shapes: [(&str, &[usize]); 4] =
        [("head.weight", &[5, 7]), ("head.bias", &[5]), ("cls_token", &[1, 1, 9]), ("pos_embed", &[1, 2, 9])];
    let make = |(name, shape): (&str, &[usize])| {
        let values: Vec<f32> = wave(name.len() as f32, shape.iter().product());
        let master = Tensor::from_slice(&values, shape, device).unwrap();
        let mut p = Param::new(name, master, dtype).unwrap();
        p.trainable = name != "pos_embed";
        p
    };
    shapes.map(make).into()
}

fn wave(phase: f32, n: usize) -> Vec<f32> {
    (0..n).map(|i| (phase + 0.7 * i as f32).sin()).collect()
}

/// Gradients of step `t` for all trainable parameters, with `edit` applied to the values of each.
fn gradients(params: &[Param], t: u64, edit: impl Fn(&str, &mut [f32])) -> Grads {
    let mut grads = Grads::new();
    for p in params {
        let mut values = wave(t as f32 + 0.1 * p.name().len() as f32, p.master.numel());
        edit(p.name(), &mut values);
        let g = Tensor::from_slice(&values, p.master.shape().clone(), p.master.device()).unwrap();
        grads.add(Tape::new().param(p).slot(), g).unwrap();
    }
    grads
}

fn keep(_: &str, _: &mut [f32]) {}

fn refs(params: &mut [Param]) -> Vec<&mut Param> {
    params.iter_mut().collect()
}

fn values(params: &[Param]) -> Vec<Vec<f64>> {
    params.iter().flat_map(|p| [&p.master, p.value()]).map(|t| t.to_f64().unwrap()).collect()
}

fn adamw() -> AdamW {
    AdamW::new(adamw::Hyper { beta1: 0.9, beta2: 0.95, eps: 1e-8 }, Rules::pretraining(0.05))
}

fn lars() -> Lars {
    Lars::new(lars::Hyper { momentum: 0.9, trust: Some(0.001) }, Rules::pretraining(0.05))
}

fn lion() -> Lion {
    Lion::new(lion::Hyper { beta1: 0.9, beta2: 0.99 }, Rules::pretraining(0.05))
}

/// Factors the one matrix. Its momentum is not rounded: what is a digit of f32 apart would be one of bf16 apart.
fn adafactor() -> Adafactor {
    let hyper = adafactor::Hyper { round: false, ..adafactor::Hyper::scaling_vit() };
    let views = |name: &str, shape: &[usize]| (name == "head.weight").then(|| View::matrix(shape[0], shape[1]));
    Adafactor::new(hyper, Rules::pretraining(0.05), Box::new(views))
}

/// Step `t` with unedited gradients.
fn advance(optimizer: &mut dyn Optimizer, params: &mut [Param], t: u64, clip: Option<f64>) {
    let grads = gradients(params, t, keep);
    optimizer.step(&mut refs(params), &grads, &Rates::new(0.01), clip).unwrap();
}

#[test]
fn adamw_follows_the_equations_by_group() {
    let mut params = model(&Device::Cpu, DType::F32);
    let mut expected: Vec<Vec<f64>> = params.iter().map(|p| p.master.to_f64().unwrap()).collect();
    let mut moments: Vec<[Vec<f64>; 2]> = expected.iter().map(|w| [vec![0.0; w.len()], vec![0.0; w.len()]]).collect();
    let mut optimizer = adamw();
    for t in 1..=3 {
        let (lr, grads) = (0.01 * t as f64, gradients(&params, t, keep));
        optimizer.step(&mut refs(&mut params), &grads, &Rates::new(lr), None).unwrap();
        for ((p, w), [m, v]) in params.iter().zip(&mut expected).zip(&mut moments).filter(|((p, _), _)| p.trainable) {
            let decay = if p.name() == "head.bias" { 0.0 } else { 0.05 };
            let g = grads.get(p).unwrap().to_f64().unwrap();
            for i in 0..w.len() {
                m[i] = 0.9 * m[i] + 0.1 * g[i];
                v[i] = 0.95 * v[i] + 0.05 * g[i] * g[i];
                let root = (v[i] / (1.0 - 0.95f64.powi(t as i32))).sqrt();
                w[i] = w[i] * (1.0 - lr * decay) - lr / (1.0 - 0.9f64.powi(t as i32)) * m[i] / (root + 1e-8);
            }
        }
    }
    for (p, w) in params.iter().zip(&expected) {
        let error = p.master.to_f64().unwrap().iter().zip(w).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(error < 2e-6, "{}: {error}", p.name());
    }
    assert_eq!(optimizer.steps(), 3);
}

fn first_step_with_rate_zero(optimizer: &mut dyn Optimizer) {
    let mut params = model(&Device::Cpu, DType::BF16);
    let before = values(&params);
    let grads = gradients(&params, 1, keep);
    optimizer.step(&mut refs(&mut params), &grads, &Rates::new(0.0), None).unwrap();
    assert_eq!(values(&params), before);
    let moved = |(name, t): &(String, Tensor)| name == "step" || t.to_f64().unwrap().iter().all(|x| *x != 0.0);
    assert!(optimizer.state().unwrap().iter().all(moved));
}

#[test]
fn the_first_step_of_a_warmup_moves_moments_only() {
    first_step_with_rate_zero(&mut adamw());
    first_step_with_rate_zero(&mut lars());
}

fn resumes(mut one: impl Optimizer, mut two: impl Optimizer) {
    let (mut params, mut names) = (model(&Device::Cpu, DType::BF16), vec![]);
    for t in 1..=2 {
        advance(&mut one, &mut params, t, Some(0.5));
    }
    let mut copy: Vec<Param> = model(&Device::Cpu, DType::BF16);
    for (to, from) in copy.iter_mut().zip(&params) {
        to.set(&from.master).unwrap();
    }
    let saved = one.state().unwrap(); // held over the next steps, which must not write to it
    two.load_state(saved.clone()).unwrap();
    let frozen: Vec<Vec<f64>> = saved.iter().map(|(_, t)| t.to_f64().unwrap()).collect();
    for t in 3..=4 {
        advance(&mut one, &mut params, t, Some(0.5));
        advance(&mut two, &mut copy, t, Some(0.5));
    }
    assert_eq!(values(&params), values(&copy));
    assert_eq!(frozen, saved.iter().map(|(_, t)| t.to_f64().unwrap()).collect::<Vec<_>>());
    for ((name, a), (other, b)) in one.state().unwrap().into_iter().zip(two.state().unwrap()) {
        assert_eq!((&name, a.to_f64().unwrap()), (&other, b.to_f64().unwrap()));
        names.push(name);
    }
    assert!(names.contains(&"step".to_string()) && names.iter().any(|n| n.ends_with(".head.weight")), "{names:?}");
}

#[test]
fn a_restored_state_continues_bit_for_bit() {
    resumes(adamw(), adamw());
    resumes(lars(), lars());
    resumes(adafactor(), adafactor());
    resumes(lion(), lion());
}

#[test]
fn clipping_scales_the_gradient_and_reports_the_norm() {
    let run = |factor: f32, clip| {
        let mut params = model(&Device::Cpu, DType::F32);
        let grads = gradients(&params, 1, |_, g| g.iter_mut().for_each(|g| *g *= factor));
        let stats = lars().step(&mut refs(&mut params), &grads, &Rates::new(0.01), clip).unwrap();
        (stats, values(&params))
    };
    let (free, _) = run(1.0, None);
    assert_eq!(free.clip_factor, 1.0);
    let (clipped, by_clip) = run(1.0, Some(free.grad_norm / 4.0));
    let (scaled, by_hand) = run(0.25, None);
    assert_eq!(clipped.grad_norm, free.grad_norm);
    assert!((clipped.clip_factor - 0.25).abs() < 1e-6 && (scaled.grad_norm - free.grad_norm / 4.0).abs() < 1e-6);
    let close = by_clip.iter().flatten().zip(by_hand.iter().flatten()).all(|(a, b)| (a - b).abs() < 1e-6);
    assert!(close);
}

fn bad_gradients(optimizer: &mut dyn Optimizer) {
    let mut params = model(&Device::Cpu, DType::BF16);
    advance(optimizer, &mut params, 1, None);
    let state = |o: &dyn Optimizer| {
        o.state().unwrap().iter().map(|(n, t)| (n.clone(), t.to_f64().unwrap())).collect::<Vec<_>>()
    };
    let (weights, before) = (values(&params), state(optimizer));
    for (bad, text) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        let grads = gradients(&params, 2, |name, g| {
            if name == "head.weight" {
                g[3] = bad;
            }
        });
        let error = optimizer.step(&mut refs(&mut params), &grads, &Rates::new(0.01), Some(1.0)).unwrap_err();
        let Error::NonFinite { step, tensor, value, .. } = &error else { panic!("{error}") };
        assert_eq!((*step, tensor.as_str(), value.as_str()), (2, "gradient of head.weight", text));
        assert_eq!((values(&params), state(optimizer)), (weights.clone(), before.clone()));
    }
    let mut grads = gradients(&params[..1], 2, keep);
    let error = optimizer.step(&mut refs(&mut params), &grads, &Rates::new(0.01), None).unwrap_err();
    assert!(matches!(&error, Error::MissingGradients(names) if names == &["cls_token", "head.bias"]), "{error}");
    grads.clear();
    assert!(
        optimizer.step(&mut refs(&mut params), &grads, &Rates::new(0.01), None).is_err(),
        "a cleared gradient is none"
    );
    assert_eq!(values(&params), weights);
}

#[test]
fn a_bad_gradient_is_named_and_nothing_changes() {
    bad_gradients(&mut adamw());
    bad_gradients(&mut lars());
    bad_gradients(&mut adafactor());
    bad_gradients(&mut lion());
}

#[test]
fn a_tensor_that_others_hold_is_not_written() {
    let mut params = model(&Device::Cpu, DType::BF16);
    let held: Vec<Tensor> = params.iter().flat_map(|p| [p.master.clone(), p.value().clone()]).collect();
    let before: Vec<Vec<f64>> = held.iter().map(|t| t.to_f64().unwrap()).collect();
    let grads = gradients(&params, 1, keep);
    adamw().step(&mut refs(&mut params), &grads, &Rates::new(0.01), None).unwrap();
    assert_eq!(before, held.iter().map(|t| t.to_f64().unwrap()).collect::<Vec<_>>());
    let changed: Vec<bool> =
        params.iter().zip(before.chunks(2)).map(|(p, b)| p.master.to_f64().unwrap() != b[0]).collect();
    assert_eq!(changed, [true, true, true, false], "all but the frozen one");
}

#[test]
fn a_state_that_does_not_fit_is_refused() {
    let mut params = model(&Device::Cpu, DType::F32);
    let mut optimizer = adamw();
    advance(&mut optimizer, &mut params, 1, None);
    let state = || optimizer.state().unwrap();
    let load = |state| adamw().load_state(state).unwrap_err().to_string();
    let without = |name: &str| state().into_iter().filter(|(n, _)| n != name).collect::<Vec<_>>();
    assert_eq!(load(without("step")), "adamw: `step` has value missing, expected a whole number");
    let lonely = load(without("exp_avg.head.bias"));
    assert_eq!(lonely, "adamw: `state` has value other names of exp_avg_sq, expected the names of exp_avg");
    let mut odd = state();
    odd.push(("momentum.head.bias".into(), Tensor::zeros([5], DType::F32, &Device::Cpu).unwrap()));
    let expected = "adamw: `state` has value momentum.head.bias, expected step or exp_avg, exp_avg_sq and a name";
    assert_eq!(load(odd), expected);

    let step_with = |state: Vec<(String, Tensor)>| {
        let (mut params, mut fresh) = (model(&Device::Cpu, DType::F32), adamw());
        fresh.load_state(state).unwrap();
        let grads = gradients(&params, 2, keep);
        fresh.step(&mut refs(&mut params), &grads, &Rates::new(0.01), None).unwrap_err().to_string()
    };
    let fewer: Vec<_> = state().into_iter().filter(|(n, _)| !n.ends_with(".head.bias")).collect();
    assert!(step_with(fewer).contains("1 steps without `exp_avg.head.bias`"));
    let renamed = state().into_iter().map(|(n, t)| (n.replace("cls_token", "reg_token"), t)).collect();
    assert!(step_with(renamed).contains("no trainable `reg_token`"));
    let flat = |t: Tensor| t.reshape([t.numel()]).unwrap();
    let reshaped = state().into_iter().map(|(n, t)| (n.clone(), if n == "step" { t } else { flat(t) })).collect();
    assert!(step_with(reshaped).contains("`exp_avg.cls_token` has shape [9], expected [1, 1, 9]"));
}

#[test]
fn two_parameters_of_one_name_are_refused() {
    let mut params = model(&Device::Cpu, DType::F32);
    params.push(Param::new("head.bias", params[1].master.deep_clone().unwrap(), DType::F32).unwrap());
    let grads = gradients(&params, 1, keep);
    let error = adamw().step(&mut refs(&mut params), &grads, &Rates::new(0.01), None).unwrap_err();
    assert_eq!(error.to_string(), "adamw: `params` has value `head.bias` twice, expected one per name");
}

/// Devices with kernels agree with the CPU over several steps, with copies and clipping.
#[test]
fn devices_agree_over_steps() {
    fn run(device: &Device, mut optimizer: impl Optimizer) -> Vec<Vec<f64>> {
        let mut params = model(device, DType::BF16);
        for t in 1..=3 {
            advance(&mut optimizer, &mut params, t, Some(0.5));
        }
        params.iter().map(|p| p.master.to_f64().unwrap()).collect()
    }
    for device in devices() {
        let both = [
            (run(&device, adamw()), run(&Device::Cpu, adamw())),
            (run(&device, lars()), run(&Device::Cpu, lars())),
            (run(&device, adafactor()), run(&Device::Cpu, adafactor())),
            (run(&device, lion()), run(&Device::Cpu, lion())),
        ];
        for (got, truth) in both {
            let far = got.iter().flatten().zip(truth.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(far <= 8.0 * ulp(DType::F32, 1.0), "{device}: {far}"); // the largest values are near 1
        }
        let mut params = model(&device, DType::BF16);
        let before = values(&params);
        let grads = gradients(&params, 1, |_, g| g[0] = f32::NAN);
        let error = adamw().step(&mut refs(&mut params), &grads, &Rates::new(0.01), None).unwrap_err();
        assert!(error.to_string().contains("gradient of cls_token is NaN"), "{error}");
        assert_eq!(values(&params), before);
    }
}
