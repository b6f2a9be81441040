//! What self-distillation asks of an optimizer: groups by name, clipping by sub-network, a teacher, rates that change.

use super::*;

/// Factors of learning rate and decay.
fn factors(rules: &Rules, name: &str) -> (f64, f64) {
    let Group { lr_scale, weight_decay } = rules.group(name, &[8]);
    (lr_scale, weight_decay)
}

#[test]
fn dinov2_has_its_groups() {
    let rules = Rules::self_supervised(0.5, 0.5, 3, 0.25);
    let of = |name: &str| factors(&rules, name);
    for name in ["cls_token", "pos_embed", "mask_token", "register_tokens"] {
        assert_eq!(of(&format!("student.backbone.{name}")), (0.0625, 0.5), "{name}");
    }
    assert_eq!(of("student.backbone.patch_embed.proj.weight"), (0.015625, 0.5));
    assert_eq!(of("student.backbone.patch_embed.proj.bias"), (0.015625, 0.0));
    assert_eq!(of("student.backbone.blocks.0.attn.qkv.weight"), (0.125, 0.5));
    assert_eq!(of("student.backbone.blocks.2.attn.qkv.bias"), (0.5, 0.0));
    assert_eq!(of("student.backbone.blocks.1.2.mlp.fc1.weight"), (0.5, 0.5), "chunks keep the numbers of blocks");
    assert_eq!(of("student.backbone.blocks.1.norm1.weight"), (0.25, 0.0));
    assert_eq!(of("student.backbone.blocks.1.ls2.gamma"), (0.25, 0.0));
    assert_eq!(of("student.backbone.norm.weight"), (1.0, 0.0));
    assert_eq!(of("student.dino_head.mlp.0.weight"), (1.0, 0.5));
    assert_eq!(of("student.ibot_head.last_layer.weight_g"), (1.0, 0.5), "lengths of prototypes decay");
    assert!(rules.is_last_layer("student.dino_head.last_layer.weight_v"));
    assert!(!rules.is_last_layer("student.dino_head.mlp.4.weight"));
    let groups = ["backbone.norm.bias", "dino_head.mlp.0.bias", "ibot_head.mlp.0.bias", "other"];
    assert_eq!(groups.map(|name| rules.clip_group(&format!("student.{name}"))), [0, 1, 2, 3]);
}

#[test]
fn a_star_stands_for_any_text() {
    let exempt = |pattern, name: &str| {
        let rules = Rules { weight_decay: 1.0, no_decay: vec![pattern], vectors_decay: true, ..Rules::default() };
        rules.group(name, &[1]).weight_decay == 0.0
    };
    for (pattern, name, expected) in [
        ("*norm*", "norm", true),
        ("*norm*", "a.norm1.weight", true),
        ("*norm*", "a.nrm", false),
        ("a*b*c", "a.b.c", true),
        ("a*b*c", "abc", true),
        ("a*b*c", "acb", false),
        ("*.bias", ".bias", true),
        ("*.bias", "bias", false),
        ("*.bias", "x.bias.y", false),
        ("a*a", "a", false),
        ("cls_token", "cls_token2", false),
        ("*", "", true),
        ("*ü", "größü", true),
    ] {
        assert_eq!(exempt(pattern, name), expected, "{pattern} on {name}");
    }
}

/// A student of two sub-networks, one last layer and one parameter outside of both, and its teacher.
fn pair(device: &Device, dtype: DType) -> Vec<Param> {
    let shapes: [(&str, &[usize]); 4] =
        [("backbone.w", &[5, 7]), ("head.last_layer.g", &[5]), ("head.mlp", &[3, 9]), ("scale", &[1])];
    let make = |(i, (name, shape)): (usize, (&str, &[usize]))| {
        ["student.", "teacher."].map(|start| {
            let values = wave(i as f32 + start.len() as f32, shape.iter().product());
            let values: Vec<f32> = values.into_iter().map(|x| x + f32::from(start.starts_with('t'))).collect();
            let master = Tensor::from_slice(&values, shape, device).unwrap();
            let mut p = Param::new(format!("{start}{name}"), master, dtype).unwrap();
            p.trainable = start == "student.";
            p
        })
    };
    shapes.into_iter().enumerate().flat_map(make).collect()
}

fn rules() -> Rules {
    Rules {
        weight_decay: 1.0,
        vectors_decay: true,
        last_layer: Some("*last_layer*"),
        clip_groups: vec![
            ("student.backbone.", "norm_backbone"),
            ("student.head.", "norm_head"),
            ("student.more.", "unused"),
        ],
        average: Some(("student.", "teacher.")),
        ..Rules::default()
    }
}

const HYPER: adamw::Hyper = adamw::Hyper { beta1: 0.9, beta2: 0.999, eps: 1e-8 };

/// Rates of step `t` from 1: all of them change, the last layer rests for two steps.
fn rates(t: u64) -> Rates {
    let x = t as f64;
    Rates { lr: 0.01 * x, decay: 0.04 + 0.1 * x, momentum: 1.0 - 0.3 / x, freeze_last_layer: t <= 2 }
}

fn trained_gradients(params: &[Param], t: u64) -> Grads {
    let trained: Vec<Param> = params.iter().filter(|p| p.trainable).cloned().collect();
    gradients(&trained, t, keep)
}

fn of<'a>(params: &'a [Param], name: &str) -> &'a Param {
    params.iter().find(|p| p.name() == name).unwrap()
}

#[test]
fn the_teacher_follows_and_the_last_layer_rests() {
    let mut params = pair(&Device::Cpu, DType::BF16);
    let start = |start: &str| -> Vec<Vec<f64>> {
        params.iter().filter(|p| p.name().starts_with(start)).map(|p| p.master.to_f64().unwrap()).collect()
    };
    let (mut student, mut teacher) = (start("student."), start("teacher."));
    let mut moments: Vec<[Vec<f64>; 2]> = student.iter().map(|w| [vec![0.0; w.len()], vec![0.0; w.len()]]).collect();
    let mut optimizer = AdamW::new(HYPER, rules());
    let limit = 1.5; // above the norm of one sub-network, below the other's
    for t in 1..=4 {
        let (r, grads) = (rates(t), trained_gradients(&params, t));
        let names: Vec<String> = params.iter().filter(|p| p.trainable).map(|p| p.name().to_string()).collect();
        let g: Vec<Vec<f64>> = names.iter().map(|n| grads.get(of(&params, n)).unwrap().to_f64().unwrap()).collect();
        let square = |i: usize| g[i].iter().map(|x| x * x).sum::<f64>();
        let norms = [square(0).sqrt(), (square(1) + square(2)).sqrt(), square(3).sqrt()];
        let stats = optimizer.step(&mut refs(&mut params), &grads, &r, Some(limit)).unwrap();
        let close = |a: f64, b: f64| (a - b).abs() < 1e-6 * b;
        assert!(close(stats.grad_norm, norms.iter().map(|n| n * n).sum::<f64>().sqrt()), "{stats:?}, {norms:?}");
        assert_eq!(stats.groups.iter().map(|g| g.0).collect::<Vec<_>>(), ["norm_backbone", "norm_head"]);
        assert!(stats.groups.iter().zip(norms).all(|(g, n)| close(g.1, n)), "{stats:?}, {norms:?}");
        let factor = norms.map(|n| (limit / (n + 1e-6)).min(1.0));
        assert!(close(stats.clip_factor, factor.iter().copied().fold(1.0, f64::min)));
        for i in 0..4 {
            let (lr, [m, v]) = (if i == 1 && r.freeze_last_layer { 0.0 } else { r.lr }, &mut moments[i]);
            for j in 0..g[i].len() {
                let g = g[i][j] * factor[[0, 1, 1, 2][i]];
                m[j] = 0.9 * m[j] + 0.1 * g;
                v[j] = 0.999 * v[j] + 0.001 * g * g;
                let (m, v) = (m[j] / (1.0 - 0.9f64.powi(t as i32)), v[j] / (1.0 - 0.999f64.powi(t as i32)));
                let w = &mut student[i][j];
                *w = *w * (1.0 - lr * r.decay) - lr * m / (v.sqrt() + 1e-8);
                teacher[i][j] = r.momentum * teacher[i][j] + (1.0 - r.momentum) * *w;
            }
        }
        for (i, name) in ["backbone.w", "head.last_layer.g", "head.mlp", "scale"].iter().enumerate() {
            for (start, expected) in [("student.", &student[i]), ("teacher.", &teacher[i])] {
                let p = of(&params, &format!("{start}{name}"));
                let got = p.master.to_f64().unwrap();
                let far = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                assert!(far < 4e-6, "step {t}, {}: {far}", p.name());
                let copy = p.master.cast(DType::BF16).unwrap().to_f64().unwrap();
                assert_eq!(p.value().to_f64().unwrap(), copy, "{}", p.name());
            }
        }
    }
    assert_eq!(optimizer.steps(), 4);
}

#[test]
fn a_resting_last_layer_keeps_its_bits_and_its_moments_advance() {
    let mut params = pair(&Device::Cpu, DType::F32);
    let before = of(&params, "student.head.last_layer.g").master.to_f64().unwrap();
    let mut optimizer = AdamW::new(HYPER, rules());
    for t in 1..=3 {
        let grads = trained_gradients(&params, t);
        optimizer.step(&mut refs(&mut params), &grads, &rates(t), None).unwrap();
        assert_eq!(of(&params, "student.head.last_layer.g").master.to_f64().unwrap() == before, t <= 2, "step {t}");
        let moments = optimizer.state().unwrap();
        let (_, m) = moments.iter().find(|(name, _)| name == "exp_avg.student.head.last_layer.g").unwrap();
        assert!(m.to_f64().unwrap().iter().all(|x| *x != 0.0));
    }
}

/// Momentum 1 keeps the teacher, 0 makes it a copy.
#[test]
fn the_ends_of_the_momentum() {
    for (momentum, other) in [(1.0, "teacher."), (0.0, "student.")] {
        let mut params = pair(&Device::Cpu, DType::F32);
        let before = params.clone();
        let grads = trained_gradients(&params, 1);
        let rates = Rates { momentum, ..rates(1) };
        AdamW::new(HYPER, rules()).step(&mut refs(&mut params), &grads, &rates, None).unwrap();
        let truth = if momentum == 1.0 { &before } else { &params };
        for p in params.iter().filter(|p| !p.trainable) {
            let name = p.name().replace("teacher.", other);
            assert_eq!(p.master.to_f64().unwrap(), of(truth, &name).master.to_f64().unwrap(), "{name}");
        }
    }
}

#[test]
fn a_teacher_that_does_not_fit_is_refused() {
    let error = |edit: &dyn Fn(&mut Vec<Param>)| {
        let mut params = pair(&Device::Cpu, DType::F32);
        let grads = trained_gradients(&params, 1);
        edit(&mut params);
        let before = values(&params);
        let error = AdamW::new(HYPER, rules()).step(&mut refs(&mut params), &grads, &rates(1), None).unwrap_err();
        assert_eq!(values(&params), before);
        error.to_string()
    };
    let expected = "adamw: `params` has value no `teacher.head.mlp`, expected one that is not trained, as average of \
                    `student.head.mlp`";
    assert_eq!(error(&|params| params.retain(|p| p.name() != "teacher.head.mlp")), expected);
    let train = |params: &mut Vec<Param>| {
        params.iter_mut().filter(|p| p.name() == "teacher.head.mlp").for_each(|p| p.trainable = true);
    };
    assert_eq!(error(&train), expected);
    let turn = |params: &mut Vec<Param>| {
        let p = params.iter_mut().find(|p| p.name() == "teacher.head.mlp").unwrap();
        p.master = p.master.reshape([9, 3]).unwrap();
    };
    assert_eq!(error(&turn), "adamw: `teacher.head.mlp` has shape [9, 3], expected [3, 9]");
}

/// Clipping by group and averages are AdamW's alone; a frozen parameter without a teacher, and one that has one, stay.
#[test]
fn other_optimizers_refuse_what_they_do_not_have() {
    let views = || -> super::super::adafactor::Views { Box::new(|_: &str, _: &[usize]| None) };
    let error = |mut optimizer: Box<dyn Optimizer>| {
        let mut params = pair(&Device::Cpu, DType::F32);
        let grads = trained_gradients(&params, 1);
        optimizer.step(&mut refs(&mut params), &grads, &rates(1), None).unwrap_err().to_string()
    };
    let average = || Rules { clip_groups: vec![], ..rules() };
    let expected = "lion: `rules.clip_groups` has value `student.backbone.`, expected none, which is for adamw";
    assert_eq!(error(Box::new(Lion::new(lion::Hyper { beta1: 0.9, beta2: 0.99 }, rules()))), expected);
    let expected = "lars: `rules.average` has value `teacher.`, expected none, which is for adamw";
    assert_eq!(error(Box::new(Lars::new(lars::Hyper { momentum: 0.9, trust: None }, average()))), expected);
    let expected = "adafactor: `rules.average` has value `teacher.`, expected none, which is for adamw";
    assert_eq!(error(Box::new(Adafactor::new(adafactor::Hyper::scaling_vit(), average(), views()))), expected);
}

/// With a gradient of zero the first step of each of them is the decay alone.
#[test]
fn every_optimizer_follows_decay_and_rest() {
    let rules = || Rules { clip_groups: vec![], average: None, ..rules() };
    let views = || -> super::super::adafactor::Views { Box::new(|_: &str, _: &[usize]| None) };
    let all: [Box<dyn Optimizer>; 4] = [
        Box::new(AdamW::new(HYPER, rules())),
        Box::new(Lion::new(lion::Hyper { beta1: 0.9, beta2: 0.99 }, rules())),
        Box::new(Lars::new(lars::Hyper { momentum: 0.9, trust: None }, rules())),
        Box::new(Adafactor::new(adafactor::Hyper::scaling_vit(), rules(), views())),
    ];
    for mut optimizer in all {
        let mut params = pair(&Device::Cpu, DType::F32);
        let before = params.clone();
        let trained: Vec<Param> = params.iter().filter(|p| p.trainable).cloned().collect();
        let grads = super::gradients(&trained, 1, |_, g| g.fill(0.0));
        let rates = Rates { lr: 0.5, decay: 0.25, momentum: 1.0, freeze_last_layer: true };
        optimizer.step(&mut refs(&mut params), &grads, &rates, None).unwrap();
        for (p, old) in params.iter().zip(&before) {
            let keeps = !p.trainable || p.name().contains("last_layer");
            let factor = if keeps { 1.0 } else { 1.0 - 0.5 * 0.25 };
            let (got, old) = (p.master.to_f64().unwrap(), old.master.to_f64().unwrap());
            assert!(got.iter().zip(&old).all(|(a, b)| (a - factor * b).abs() < 1e-6), "{}", p.name());
        }
    }
}

/// A recording of one step does the others, where `prepare` says so; where it does not, a launch makes it good again.
#[test]
fn a_recording_follows_the_rates() {
    fn numbers(params: &[Param]) -> Vec<u64> {
        params.iter().flat_map(|p| p.master.to_f64().unwrap()).map(f64::to_bits).collect()
    }
    for device in devices() {
        let (mut params, mut plain) = (pair(&device, DType::BF16), pair(&device, DType::BF16));
        let (mut recorded, mut eager) = (AdamW::new(HYPER, rules()), AdamW::new(HYPER, rules()));
        let (mut grads, mut graph, mut launched) = (Grads::new(), None, vec![]);
        for t in 1..=5 {
            let fresh = trained_gradients(&params, t);
            grads.clear();
            for p in params.iter().filter(|p| p.trainable) {
                let g = fresh.get(p).unwrap().deep_clone().unwrap();
                grads.add(Tape::new().param(p).slot(), g).unwrap(); // copied to where the last one was
            }
            let mut all = refs(&mut params);
            let as_before = recorded.prepare(&mut all, &rates(t)).unwrap();
            if t == 2 {
                assert!(as_before);
                let launch = || recorded.launch(&mut all, &grads, Some(1.5));
                graph = Some(device.record(launch).unwrap().1);
            }
            match &mut graph {
                Some(graph) if as_before => graph.replay().unwrap(),
                _ => {
                    launched.push(t);
                    recorded.launch(&mut all, &grads, Some(1.5)).unwrap();
                }
            }
            let stats = recorded.finish(&mut all, &grads).unwrap();
            let grads = trained_gradients(&plain, t);
            assert_eq!(stats, eager.step(&mut refs(&mut plain), &grads, &rates(t), Some(1.5)).unwrap());
            assert_eq!(numbers(&params), numbers(&plain), "step {t} on {device}");
        }
        assert_eq!(launched, [1, 3], "the first, and that in which the last layer wakes");
    }
}
