//! The loss as a whole: finite differences in f64, small batches, equal images, distillation.

use super::load::NetworkSizes;
use super::model::Found;
use super::*;
use crate::nn::{Builder, Module};
use crate::random::{normal, stream};
use crate::testing::{devices, distance};
use crate::{DType, Device, Grads, Result, Tape, Tensor};

const SIDES: [usize; 2] = [6, 4];

fn sizes(registers: usize) -> NetworkSizes {
    let head = HeadSizes { hidden: 10, bottleneck: 6, prototypes: 7, layers: 2 };
    NetworkSizes {
        backbone: Sizes {
            image_size: SIDES[0],
            patch_size: 2,
            embed_dim: 8,
            depth: 2,
            num_heads: 2,
            ffn: FfnKind::SwiGlu,
            hidden: 8,
            registers,
            interpolate_offset: if registers == 0 { 0.1 } else { 0.0 },
            interpolate_antialias: registers > 0,
        },
        dino_head: head,
        ibot_head: Some(HeadSizes { prototypes: 5, ..head }),
    }
}

/// Values that no initialisation gives, so that no term of a layer is zero.
fn shaken(sizes: &NetworkSizes, dtype: DType, name: &str) -> Network {
    shaken_on(&Device::Cpu, sizes, dtype, name)
}

fn shaken_on(device: &Device, sizes: &NetworkSizes, dtype: DType, name: &str) -> Network {
    let start = Start { gamma: 0.7, ..Start::OFFICIAL };
    let mut network = sizes.network(&Builder::new(device, dtype, 3).pp(name), &start).unwrap();
    for (i, p) in network.params_mut().into_iter().enumerate() {
        let noise = normal(&mut stream(i as u64, 4), p.master.numel());
        let values: Vec<f64> = p.master.to_f64().unwrap().iter().zip(noise).map(|(x, r)| x + 0.3 * r).collect();
        let values = Tensor::from_slice(&values, p.master.shape().clone(), &Device::Cpu).unwrap();
        p.set(&values.cast(dtype).unwrap().to_device(device).unwrap()).unwrap();
    }
    network
}

fn model(registers: usize, dtype: DType, targets: Targets) -> Ssl {
    let sizes = sizes(registers);
    let settings = LossSettings { targets, ..LossSettings::default() };
    Ssl::new(shaken(&sizes, dtype, "student"), shaken(&sizes, dtype, "teacher"), None, settings).unwrap()
}

/// Views of `images` random images, or of one image `images` times, with one hidden patch in each of the first crops.
fn views(images: usize, locals: usize, equal: bool, dtype: DType, model: &Ssl) -> Views {
    let crops = |count: usize, side: usize, seed: u64| {
        let one = normal(&mut stream(seed, 5), 3 * side * side);
        let values: Vec<f64> = match equal {
            true => one.repeat(count),
            false => normal(&mut stream(seed, 6), count * 3 * side * side),
        };
        Tensor::from_slice(&values, [count, 3, side, side], &Device::Cpu).unwrap().cast(dtype).unwrap()
    };
    let f = |v: &[f64]| Tensor::from_slice(v, [v.len()], &Device::Cpu).unwrap().cast(dtype).unwrap();
    let shapes = [[2 * images, SIDES[0], SIDES[0]], [locals * images, SIDES[1], SIDES[1]]];
    let shapes = &shapes[..if locals > 0 { 2 } else { 1 }];
    let layout = model.student.backbone.layout(shapes).unwrap();
    let flat: Vec<usize> = (0..images).map(|i| i * 9 + i % 9).collect();
    let mut hidden = vec![0i32; 2 * images * 9];
    flat.iter().for_each(|&i| hidden[i] = 1);
    let rows: Vec<i32> = flat.iter().map(|&i| layout.patch_row(0, i)).collect();
    let theirs = &model.teacher.backbone;
    let teacher_rows = (theirs.sizes.registers != model.student.backbone.sizes.registers).then(|| {
        let layout = theirs.layout(&shapes[..1]).unwrap();
        let rows: Vec<i32> = flat.iter().map(|&i| layout.patch_row(0, i)).collect();
        Tensor::from_slice(&rows, [rows.len()], &Device::Cpu).unwrap()
    });
    let kept = |shift: usize| {
        let lists: Vec<Vec<usize>> =
            layout.lists.iter().map(|&n| (0..Kept::count(n, 0.4)).map(|i| (i + shift) % n).collect()).collect();
        let mut kept = Kept::new(&layout.cu_seqlens, &layout.lists, &lists, &Device::Cpu).unwrap();
        kept.tensors().filter(|t| t.dtype() == DType::F32).for_each(|t| *t = t.cast(dtype).unwrap());
        Some(kept)
    };
    Views {
        global: crops(2 * images, SIDES[0], 7),
        local: (locals > 0).then(|| crops(locals * images, SIDES[1], 8)),
        masks: Some(Masks {
            hidden: Some(Tensor::from_slice(&hidden, [2 * images, 9], &Device::Cpu).unwrap()),
            rows: Tensor::from_slice(&rows, [rows.len()], &Device::Cpu).unwrap(),
            teacher_rows,
            weights: f(&vec![1.0; rows.len()]),
            count: None,
        }),
        teacher_temp: f(&[0.3]),
        drops: (0..2).map(|i| Drops { attn: kept(i), ffn: kept(i + 1) }).collect(),
    }
}

fn run(model: &mut Ssl, views: &Views) -> Result<(f64, Found, Grads)> {
    let (tape, mut grads) = (Tape::new(), Grads::new());
    let (loss, found) = model.loss(&tape, views, None, false)?;
    let value = loss.value().item()?;
    tape.backward_scaled(&loss, 1.0, &mut grads)?;
    Ok((value, found, grads))
}

/// The gradient of the whole loss by every parameter of the student, in one random direction for each.
#[test]
fn gradients_match_finite_differences() {
    for registers in [0, 2] {
        let mut model = model(registers, DType::F64, Targets::Sinkhorn);
        let views = views(2, 2, false, DType::F64, &model);
        let (_, _, grads) = run(&mut model, &views).unwrap();
        let count = model.student.params().len();
        for at in 0..count {
            let p = model.student.params()[at].clone();
            let direction = normal(&mut stream(at as u64, 9), p.master.numel());
            let old = p.master.to_f64().unwrap();
            let mut at_step = |step: f64| {
                let values: Vec<f64> = old.iter().zip(&direction).map(|(x, d)| x + step * d).collect();
                let values = Tensor::from_slice(&values, p.master.shape().clone(), &Device::Cpu).unwrap();
                model.student.params_mut()[at].set(&values).unwrap();
                model.loss(&Tape::no_grad(), &views, None, false).unwrap().0.value().item().unwrap()
            };
            let h = 1e-5;
            let numeric = (at_step(h) - at_step(-h)) / (2.0 * h);
            at_step(0.0);
            let gradient = grads.get(&p).unwrap_or_else(|| panic!("{} has no gradient", p.name())).to_f64().unwrap();
            let exact: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
            let scale = gradient.iter().map(|g| g.abs()).sum::<f64>().max(1e-3);
            assert!((exact - numeric).abs() < 1e-6 * scale, "{}: {exact} and {numeric}", p.name());
        }
    }
}

/// No batch is too small, no images too alike, with or without local crops.
#[test]
fn small_batches_and_equal_images_stay_finite() {
    for targets in [Targets::Sinkhorn, Targets::Centering, Targets::Softmax] {
        for (images, locals, equal) in [(1, 2, false), (1, 0, false), (2, 2, true), (8, 1, true), (8, 3, false)] {
            let mut model = model(0, DType::F32, targets);
            let views = views(images, locals, equal, DType::F32, &model);
            let (loss, _, grads) = run(&mut model, &views).unwrap();
            assert!(loss.is_finite(), "{images} images");
            for p in model.student.params() {
                let finite = grads.get(p).map(|g| g.to_f64().unwrap().into_iter().all(f64::is_finite));
                assert_eq!(finite, Some(true), "{} of {images} images, {locals} local crops", p.name());
            }
        }
    }
}

/// A teacher that is the student gives at least the entropy of its targets, and hiding nothing is allowed.
#[test]
fn the_loss_is_bounded_by_the_entropy_of_the_targets() {
    let mut model = model(0, DType::F64, Targets::Sinkhorn);
    model.settings = LossSettings { koleo: 0.0, ibot: 0.0, ..model.settings };
    let mut views = views(3, 0, false, DType::F64, &model);
    views.masks = None;
    let (loss, found, _) = run(&mut model, &views).unwrap();
    let p = found.classes.probabilities().unwrap().to_f64().unwrap();
    let entropy = -p.iter().map(|p| p * p.ln()).sum::<f64>();
    // n = 3 without local crops: the mean over 6 rows counts 2/3.
    assert!(loss > 2.0 / 3.0 * entropy / 6.0, "{loss} {entropy}");
    assert!(found.terms[0].is_none() && found.terms[2].is_none() && found.terms[3].is_none());
}

/// The gradient stops at the teacher, and everything trained has one.
#[test]
fn the_teacher_gets_no_gradient() {
    let mut model = model(0, DType::F32, Targets::Sinkhorn);
    let views = views(2, 2, false, DType::F32, &model);
    let (_, _, grads) = run(&mut model, &views).unwrap();
    assert!(model.teacher.params().iter().all(|p| !p.trainable && grads.get(p).is_none()));
    grads.check_complete(model.student.params()).unwrap();
}

/// Registers stand between class token and patches: a teacher with another number of them has its patches in other rows.
#[test]
fn a_teacher_may_have_other_registers() {
    let logits = |registers: usize| {
        let settings = LossSettings::default();
        let (student, teacher) =
            (shaken(&sizes(registers), DType::F32, "student"), shaken(&sizes(2), DType::F32, "teacher"));
        let mut model = Ssl::new(student, teacher, None, settings).unwrap();
        let views = views(2, 1, false, DType::F32, &model);
        assert_eq!(views.masks.as_ref().unwrap().teacher_rows.is_some(), registers != 2);
        let (_, found, _) = run(&mut model, &views).unwrap();
        found.patches.unwrap().logits().to_vec::<f32>().unwrap()
    };
    assert_eq!(logits(0), logits(2));
    assert_eq!(logits(3), logits(2));
}

/// The list of hidden patches filled up with others, which do not count.
fn filled_up(views: &Views, model: &Ssl) -> Views {
    let (mut views, device) = (views.clone(), Device::Cpu);
    let crops = views.global.shape()[0];
    let seen = crops / 2 * 9..crops * 9; // the second crops hide nothing
    let masks = views.masks.as_mut().unwrap();
    let shapes = [[crops, SIDES[0], SIDES[0]]];
    let longer = |rows: &Tensor, network: &Network| {
        let layout = network.backbone.layout(&shapes).unwrap();
        let more = seen.clone().take(7).map(|i| layout.patch_row(0, i));
        let rows: Vec<i32> = rows.to_vec::<i32>().unwrap().into_iter().chain(more).collect();
        Tensor::from_slice(&rows, [rows.len()], &device).unwrap()
    };
    masks.count = Some(Tensor::full([1], masks.rows.numel() as i32, &device).unwrap());
    masks.rows = longer(&masks.rows, &model.student);
    masks.teacher_rows = masks.teacher_rows.as_ref().map(|rows| longer(rows, &model.teacher));
    let mut weights = masks.weights.to_f64().unwrap();
    weights.resize(masks.rows.numel(), 0.0);
    let dtype = masks.weights.dtype();
    masks.weights = Tensor::from_slice(&weights, [weights.len()], &device).unwrap().cast(dtype).unwrap();
    views
}

/// The same on another device.
fn moved(mut views: Views, device: &Device) -> Views {
    let Views { global, local, masks, teacher_temp, drops } = &mut views;
    let Masks { hidden, rows, teacher_rows, weights, count } = masks.as_mut().unwrap();
    let optional = local.iter_mut().chain(hidden).chain(teacher_rows).chain(count);
    let kept = drops.iter_mut().flat_map(|d| d.attn.iter_mut().chain(&mut d.ffn)).flat_map(Kept::tensors);
    let all = [global, rows, weights, teacher_temp].into_iter().chain(optional).chain(kept);
    all.for_each(|t| *t = t.to_device(device).unwrap());
    views
}

/// Patches that are in the list but do not count change neither the loss nor a gradient nor a centre, which is late: two
/// steps. On the CPU in f64, on other devices but for what another order of sums does.
#[test]
fn patches_that_do_not_count_change_nothing() {
    let cases = [(Targets::Sinkhorn, 0), (Targets::Centering, 0), (Targets::Centering, 2), (Targets::Softmax, 2)];
    let places = devices().into_iter().map(|d| (d, DType::F32, 1e-4)).chain([(Device::Cpu, DType::F64, 1e-12)]);
    for ((device, dtype, share), (targets, registers)) in places.flat_map(|p| cases.map(|case| (p.clone(), case))) {
        let what = format!("{targets:?} on {device}");
        let make = || {
            let settings = LossSettings { targets, ..LossSettings::default() };
            let [student, teacher] = [(registers, "student"), (0, "teacher")]
                .map(|(registers, name)| shaken_on(&device, &sizes(registers), dtype, name));
            Ssl::new(student, teacher, None, settings).unwrap()
        };
        let (mut short, mut long) = (make(), make());
        let near = |a: &[f64], b: &[f64]| {
            let largest = a.iter().fold(1e-2f64, |m, x| m.max(x.abs()));
            a.len() == b.len() && distance(a, b).0 < share * largest
        };
        for step in 0..2 {
            let views = views(2, 1, false, dtype, &short);
            let filled = moved(filled_up(&views, &long), &device);
            let (expected, _, grads) = run(&mut short, &moved(views, &device)).unwrap();
            let (loss, found, others) = run(&mut long, &filled).unwrap();
            assert!(near(&[loss], &[expected]), "{what} step {step}: {loss} and {expected}");
            for (p, same) in short.student.params().into_iter().zip(long.student.params()) {
                let [a, b] = [grads.get(p), others.get(same)].map(|g| g.unwrap().to_f64().unwrap());
                assert!(near(&a, &b), "{what} step {step}: {}", p.name());
            }
            let rows = found.patches.unwrap().rows().to_f64().unwrap();
            assert!(rows[..2].iter().all(|l| l.is_finite()) && rows[2..] == [f64::NEG_INFINITY; 7], "{what}");
        }
        let state = |model: &Ssl| -> Vec<f64> {
            let all = model.centers.iter().flatten().flat_map(|c| [&c.center, &c.pending]);
            all.flat_map(|p| p.master.to_f64().unwrap()).collect()
        };
        assert_eq!(state(&short).iter().any(|x| *x != 0.0), targets == Targets::Centering);
        assert!(near(&state(&short), &state(&long)), "{what}");
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let (a, mut other) = (sizes(0), sizes(0));
    other.dino_head.prototypes = 9;
    let new = |student: &NetworkSizes, teacher: &NetworkSizes| {
        let [student, teacher] = [(student, "student"), (teacher, "teacher")].map(|(s, n)| shaken(s, DType::F32, n));
        Ssl::new(student, teacher, None, LossSettings::default()).err().map(|e| e.to_string())
    };
    assert_eq!(new(&a, &a), None);
    assert_eq!(new(&a, &other).unwrap(), "config: `prototypes` is 7, expected the teacher's 9");
    other = sizes(0);
    (other.backbone.patch_size, other.backbone.image_size) = (3, 9);
    assert_eq!(new(&a, &other).unwrap(), "config: `patch_size` is 2, expected the teacher's 3");
    let mut model = model(0, DType::F32, Targets::Sinkhorn);
    let mut views = views(1, 0, false, DType::F32, &model);
    views.global = Tensor::zeros([3, 3, 6, 6], DType::F32, &Device::Cpu).unwrap();
    let error = run(&mut model, &views).err().unwrap().to_string();
    assert_eq!(error, "dinov2: `global` has shape [3, 3, 6, 6], expected two crops of each image");
}

/// As upstream counts: in double precision, and never none.
#[test]
fn kept_sequences_are_counted_as_upstream() {
    for (count, rate, kept) in [(10, 0.9, 1), (64, 0.4, 38), (256, 0.4, 153), (1, 0.5, 1), (10, 0.3, 7), (3, 0.0, 3)] {
        assert_eq!(Kept::count(count, rate), kept, "{count} at {rate}");
    }
    let error = Kept::new(&[0, 2, 4], &[2], &[vec![2]], &Device::Cpu).unwrap_err().to_string();
    assert_eq!(error, "stochastic_depth: `kept[0]` has value 2, expected a sequence below 2");
}
