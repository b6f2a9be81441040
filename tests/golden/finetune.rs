//! The classifier, its training, and the linear probe.

use ocellus::nn::{Builder, Module, pos_embed};
use ocellus::ops::cross_entropy::{Targets, cross_entropy};
use ocellus::ops::lars;
use ocellus::optim::{AdamW, Lars, Optimizer, Rates, Rules};
use ocellus::recipes::mae::classifier::{Classifier, Pool, drops};
use ocellus::recipes::mae::probe::ProbeHead;
use ocellus::{DType, Device, Grads, Tape, Tensor, Var};

use crate::model::{after, hyper, schedule, sizes};
use crate::reader::{Golden, Outcome, Report, gradient, load, value};

fn classifier(g: &Golden, device: &Device, classes: usize) -> Result<Classifier, Box<dyn std::error::Error>> {
    let pool = if g.bool("global_pool") { Pool::Mean } else { Pool::Cls };
    Ok(Classifier::new(&Builder::new(device, DType::F32, 0), &sizes(g), classes, pool)?)
}

fn rates(g: &Golden) -> Vec<f64> {
    g.config["drop_path_per_block"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

/// The numbers a block's branch drew; a file has none for blocks of rate 0.
fn drawn<'a>(g: &'a Golden, prefix: &'a str) -> impl FnMut(usize, usize) -> Vec<f32> + 'a {
    move |block, branch| g.floats(&format!("{prefix}.{block}.{}", ["attn", "mlp"][branch]))
}

/// The rules of fine-tuning, compared with the file's group of every parameter.
fn groups_of(g: &Golden, model: &Classifier, report: &mut Report) -> Result<Rules, Box<dyn std::error::Error>> {
    let rules = Rules::finetuning(g.f64("weight_decay"), g.f64("layer_decay"), g.usize("depth"));
    let listed = g.metadata.get("param_groups").and_then(|v| v.as_object()).ok_or("no metadata `param_groups`")?;
    let params = model.params();
    for p in &params {
        let Some(truth) = listed.get(p.name()) else {
            report.fail(format!("{}: in no group of the file", p.name()));
            continue;
        };
        let group = rules.group(p.name(), p.master.shape());
        let [scale, decay] = ["lr_scale", "weight_decay"].map(|k| truth[k].as_f64().unwrap_or(f64::NAN));
        let equal = |a: f64, b: f64| (a - b).abs() <= 1e-12;
        if !(equal(group.lr_scale, scale) && equal(group.weight_decay, decay)) {
            report.fail(format!("{}: group {group:?}, expected {truth}", p.name()));
        }
    }
    if listed.len() != params.len() {
        report.fail(format!("{} parameters, the file has groups of {}", params.len(), listed.len()));
    }
    Ok(rules)
}

pub fn forward(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let mut model = classifier(g, device, g.usize("num_classes"))?;
    load(&mut model, &g.dict("param"))?;
    groups_of(g, &model, report)?;
    let images = Var::constant(g.tensor("input.imgs", device));
    let none = Tape::no_grad();
    report.tensor(g, "output.features_eval", model.features(&none, &images, None, &[])?.value());
    report.tensor(g, "output.logits_eval", model.forward(&none, &images, None, &[])?.value());
    let dropped = drops(&rates(g), device, drawn(g, "input.drop_u"))?;
    let (tape, mut grads) = (Tape::new(), Grads::new());
    let logits = model.forward(&tape, &images, None, &dropped)?;
    report.tensor(g, "output.logits", logits.value());
    let (classes, soft) = (g.indices("input.target", device), g.tensor("input.soft_target", device));
    let plain = cross_entropy(&none, &logits, Targets::Classes(&classes), 0.0)?;
    report.tensor(g, "output.loss_ce", plain.value());
    let smoothed = cross_entropy(&none, &logits, Targets::Classes(&classes), g.f64("smoothing") as f32)?;
    report.tensor(g, "output.loss_label_smoothing", smoothed.value());
    let loss = cross_entropy(&tape, &logits, Targets::Soft(&soft), 0.0)?;
    report.tensor(g, "output.loss", loss.value());
    tape.backward_scaled(&loss, 1.0, &mut grads)?;
    grads.check_complete(model.params())?;
    report.params(g, "grad", gradient(&model, &grads));
    Ok(())
}

pub fn trajectory(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let mut model = classifier(g, device, g.usize("num_classes"))?;
    load(&mut model, &g.dict("param"))?;
    let rules = groups_of(g, &model, report)?;
    let mut adamw = AdamW::new(hyper(g), rules);
    let clip = g.config["clip_grad"].as_f64();
    let (mut losses, mut lrs, mut norms) = (vec![], vec![], vec![]);
    for step in 0..g.usize("steps") {
        let epoch = step as f64 / g.f64("iters_per_epoch");
        let lr = schedule(g).at(epoch);
        let (tape, mut grads) = (Tape::new(), Grads::new());
        let dropped = drops(&rates(g), device, drawn(g, &format!("input.drop_u.{step}")))?;
        let images = Var::constant(g.tensor(&format!("input.imgs.{step}"), device));
        let logits = model.forward(&tape, &images, None, &dropped)?;
        let target = format!("input.target.{step}");
        let loss = if g.get(&target).integer {
            let classes = g.indices(&target, device);
            cross_entropy(&tape, &logits, Targets::Classes(&classes), g.f64("smoothing") as f32)?
        } else {
            cross_entropy(&tape, &logits, Targets::Soft(&g.tensor(&target, device)), 0.0)?
        };
        losses.push(loss.value().item()?);
        tape.backward_scaled(&loss, 1.0, &mut grads)?;
        let stats = adamw.step(&mut model.params_mut(), &grads, &Rates::new(lr), clip)?;
        lrs.push(lr);
        norms.push(stats.grad_norm);
    }
    report.compare(g, "output.losses", &losses);
    report.compare(g, "output.lr", &lrs);
    report.compare(g, "output.grad_norm", &norms);
    let eval = |name: &str| {
        let images = Var::constant(g.tensor(name, device));
        model.forward(&Tape::no_grad(), &images, None, &[]).and_then(|y| y.value().to_f64())
    };
    nearest(g, report, "output.logits_after", eval)?;
    after(g, report, &model, &adamw)
}

/// Compares a tensor that upstream computed on one of the file's image batches, without saying on which.
fn nearest(
    g: &Golden,
    report: &mut Report,
    name: &str,
    compute: impl Fn(&str) -> Result<Vec<f64>, ocellus::Error>,
) -> Outcome {
    let Some(truth) = g.tensors.get(name).map(|t| &t.values) else { return Ok(()) };
    let mut best: Option<(f64, Vec<f64>)> = None;
    for images in g.tensors.keys().filter(|n| n.starts_with("input.imgs") || n.starts_with("input.eval_imgs")) {
        let values = compute(images)?;
        let distance = values.iter().zip(truth).fold(0.0f64, |m, (a, b)| m.max((a - b).abs()));
        if values.len() == truth.len() && best.as_ref().is_none_or(|(d, _)| distance < *d) {
            best = Some((distance, values));
        }
    }
    report.compare(g, name, &best.ok_or_else(|| format!("{name}: no image batch gives its shape"))?.1);
    Ok(())
}

fn head(
    g: &Golden,
    device: &Device,
    dim: usize,
    classes: usize,
) -> Result<(ProbeHead, Lars), Box<dyn std::error::Error>> {
    let mut head = ProbeHead::new(&Builder::new(device, DType::F32, 0), dim, classes)?;
    (head.eps, head.momentum) = (g.f64("bn_eps") as f32, g.f64("bn_momentum"));
    let dict = g.dict("param");
    for p in head.params_mut() {
        match dict.get(p.name()) {
            Some(t) => p.set(t)?,
            None if p.trainable => return Err(format!("no param.{}", p.name()).into()),
            None => {} // running statistics start at 0 and 1
        }
    }
    let lars = {
        let hyper = lars::Hyper { momentum: g.f64("momentum"), trust: Some(g.f64("trust_coefficient")) };
        // Upstream exempts tensors of one axis, and no name.
        Lars::new(hyper, Rules { weight_decay: g.f64("weight_decay"), ..Rules::default() })
    };
    Ok((head, lars))
}

fn after_probe(g: &Golden, report: &mut Report, head: &ProbeHead, lars: &Lars) -> Outcome {
    let state = lars.state()?;
    let mut weights = value(head);
    report.params(g, "after", |name| match name.starts_with("mu.") {
        true => state.iter().find(|(n, _)| n == name).and_then(|(_, t)| t.to_f64().ok()),
        false => weights(name),
    });
    Ok(())
}

pub fn linprobe_head(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let (mut head, mut lars) = head(g, device, g.usize("dim"), g.usize("classes"))?;
    let (mut losses, mut all_logits) = (vec![], vec![]);
    for step in 0..g.usize("steps") {
        let (tape, mut grads) = (Tape::new(), Grads::new());
        let features = tape.leaf(g.tensor(&format!("input.features.{step}"), device));
        let logits = head.train(&tape, &features)?;
        all_logits.extend(logits.value().to_f64()?);
        let classes = g.indices(&format!("input.target.{step}"), device);
        let loss = cross_entropy(&tape, &logits, Targets::Classes(&classes), 0.0)?;
        losses.push(loss.value().item()?);
        tape.backward_scaled(&loss, 1.0, &mut grads)?;
        let dx = grads.take(&features).ok_or("no feature gradient")?;
        report.tensor(g, &format!("grad_input.features.{step}"), &dx);
        if step == 0 {
            report.params(g, "grad", gradient(&head, &grads));
        }
        lars.step(&mut head.params_mut(), &grads, &Rates::new(g.f64("lr")), None)?;
    }
    report.compare(g, "output.losses", &losses);
    report.compare(g, "output.logits_train", &all_logits);
    report.tensor(g, "output.logits_eval_after", &head.eval(&g.tensor("input.eval_features", device))?);
    after_probe(g, report, &head, &lars)
}

/// The probe on a frozen trunk.
pub fn linprobe_trajectory(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let sizes = sizes(g);
    let mut model = classifier(g, device, 1)?; // its own head is not used
    let mut dict = g.dict("param");
    let [gh, gw] = sizes.vit().grid()?;
    if !dict.contains("pos_embed") {
        let table = pos_embed::sincos_2d(sizes.embed_dim, gh, gw, true)?;
        let shape = model.trunk.pos_embed.master.shape().clone();
        dict.insert("pos_embed", Tensor::from_slice(&table, shape, &Device::Cpu)?)?;
    }
    for p in model.trunk.params_mut().into_iter().chain(model.norm.params_mut()) {
        p.set(dict.require(p.name())?)?;
    }
    let (mut head, mut lars) = head(g, device, sizes.embed_dim, g.usize("num_classes"))?;
    let features = |name: &str| {
        let images = Var::constant(g.tensor(name, device));
        Ok::<_, ocellus::Error>(model.features(&Tape::no_grad(), &images, None, &[])?.value().clone())
    };
    let (mut losses, mut all_features) = (vec![], vec![]);
    for step in 0..g.usize("steps") {
        let (tape, mut grads) = (Tape::new(), Grads::new());
        let x = features(&format!("input.imgs.{step}"))?;
        all_features.extend(x.to_f64()?);
        let logits = head.train(&tape, &Var::constant(x))?;
        let classes = g.indices(&format!("input.target.{step}"), device);
        let loss = cross_entropy(&tape, &logits, Targets::Classes(&classes), 0.0)?;
        losses.push(loss.value().item()?);
        tape.backward_scaled(&loss, 1.0, &mut grads)?;
        if step == 0 {
            report.params(g, "grad", gradient(&head, &grads));
        }
        lars.step(&mut head.params_mut(), &grads, &Rates::new(g.f64("lr")), None)?;
    }
    report.compare(g, "output.losses", &losses);
    if g.tensors.get("output.features").is_some_and(|t| t.values.len() == all_features.len()) {
        report.compare(g, "output.features", &all_features);
    } else {
        nearest(g, report, "output.features", |name| features(name)?.to_f64())?;
    }
    nearest(g, report, "output.logits_eval_after", |name| head.eval(&features(name)?)?.to_f64())?;
    after_probe(g, report, &head, &lars)
}
