//! Updates of whole SigLIP models by the optimizers of big_vision and of open_clip.

use ocellus::checkpoint::{StateDict, siglip};
use ocellus::nn::{Builder, Module};
use ocellus::ops::l2_normalize::l2_normalize;
use ocellus::ops::sigmoid_pair_loss::{Block, sigmoid_pair_loss};
use ocellus::ops::{adafactor, adamw, lion};
use ocellus::optim::schedule::Cosine;
use ocellus::optim::{Adafactor, AdamW, Lion, Optimizer, Rates, Rules};
use ocellus::recipes::siglip::{Siglip, TokenIds, factor, freeze};
use ocellus::{DType, Device, Grads, Tape, Tensor, Var};
use serde_json::Value;

use crate::reader::{Golden, Outcome, Report, load};
use crate::siglip_model::{Fallible, axes, bv_sizes, hf_sizes};

fn model(device: &Device, sizes: &ocellus::recipes::siglip::Sizes, g: &Golden) -> Fallible<Siglip> {
    let mut model = Siglip::new(&Builder::new(device, DType::F32, 0), sizes)?;
    load(&mut model, &siglip::to_ours(&g.dict("param"))?)?;
    Ok(model)
}

/// Loss and gradients of a batch.
fn gradients(model: &Siglip, images: Tensor, ids: &TokenIds) -> Fallible<(f64, Grads)> {
    let (tape, mut grads) = (Tape::new(), Grads::new());
    let x = l2_normalize(&tape, &model.vision.forward(&tape, &Var::constant(images), None)?)?;
    let y = l2_normalize(&tape, &model.text.forward(&tape, ids)?)?;
    let (scale, bias) = (tape.param(&model.logit_scale), tape.param(&model.logit_bias));
    let (loss, _) = sigmoid_pair_loss(&tape, &x, &y, &scale, &bias, Block::whole(ids.batch()))?;
    tape.backward_scaled(&loss, 1.0, &mut grads)?;
    Ok((loss.value().item()?, grads))
}

/// One of the equal parts of a tensor's first axis.
fn part(t: &Tensor, index: usize) -> Fallible<Tensor> {
    let shape = &t.shape()[1..];
    let n: usize = shape.iter().product();
    let values = t.to_vec::<f32>()?;
    Ok(Tensor::from_slice(&values[index * n..(index + 1) * n], shape, t.device())?)
}

/// Weights after the last update by the file's own rule: the distance of what changed, over all elements of a tensor. Of a
/// key's bias nothing is known: its true gradient is zero, so what changed it is rounding.
fn after(g: &Golden, report: &mut Report, weights: &StateDict) -> Outcome {
    let allowed = g.metadata.get("update_tolerance").and_then(Value::as_f64).ok_or("no update_tolerance")?;
    let norm = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt();
    for (name, truth) in g.tensors.iter().filter_map(|(n, t)| Some((n.strip_prefix("after.")?, t))) {
        report.note(&format!("after.{name}"));
        let (mut got, mut truth) = (weights.require(name)?.to_f64()?, truth.values.clone());
        let mut before = g.get(&format!("param.{name}")).values.clone();
        if name.ends_with("in_proj_bias") {
            let third = got.len() / 3; // q, k, v
            [&mut got, &mut truth, &mut before].into_iter().for_each(|v| drop(v.drain(third..2 * third)));
        }
        let (far, moved) = (norm(&got, &truth), norm(&truth, &before));
        if far.is_nan() || far > allowed * moved {
            report.fail(format!("after.{name}: {:.1e} of the update, over {allowed:.1e}", far / moved));
        }
    }
    Ok(())
}

/// `[".*", x]`-like rules of big_vision for the towers: the value of the first that covers image or text tower and numbers.
fn tower_rule<'a>(rules: &'a Value, tower: &str) -> Fallible<Option<&'a Value>> {
    let Some(rules) = rules.as_array() else { return Ok(None) };
    for rule in rules {
        let pattern = rule[0].as_str().ok_or("a rule without a pattern")?;
        let start =
            pattern.strip_suffix(".*").ok_or_else(|| format!("pattern `{pattern}`: only `start.*` is there"))?;
        if !["", "img/", "txt/"].contains(&start) {
            return Err(format!("pattern `{pattern}`: only towers are there").into());
        }
        if tower.starts_with(start) {
            return Ok(Some(&rule[1]));
        }
    }
    Ok(None)
}

/// Refuses options that are not known.
fn only(options: &Value, known: &[&str]) -> Outcome {
    let odd = options.as_object().into_iter().flatten().find(|(key, _)| !known.contains(&key.as_str()));
    odd.map_or(Ok(()), |(key, value)| Err(format!("option `{key}` = {value} is not there").into()))
}

/// The optimizer of a configuration; its decay is not multiplied by the learning rate.
fn bv_optimizer(optim: &Value, sizes: &ocellus::recipes::siglip::Sizes) -> Fallible<Box<dyn Optimizer>> {
    let number = |of: &Value, key: &str, usual: f64| of[key].as_f64().unwrap_or(usual);
    only(optim, &["grad_clip_norm", "lr", "optax", "optax_name", "schedule", "wd", "lr_mults"])?;
    let (lr, wd) = (number(optim, "lr", 0.0), number(optim, "wd", 0.0));
    let factor_of = |tower| -> Fallible<f64> {
        let rule = tower_rule(&optim["lr_mults"], tower)?;
        Ok(rule.and_then(Value::as_f64).unwrap_or(1.0))
    };
    let (image, text) = (factor_of("img/")?, factor_of("txt/")?);
    if text != 1.0 {
        return Err("only the image tower may have a factor of the learning rate".into());
    }
    let rules = Rules::image_text(wd / lr, image, wd / lr / image);
    let options = &optim["optax"];
    Ok(match optim["optax_name"].as_str().unwrap_or_default() {
        "scale_by_adam" => {
            only(options, &["b1", "b2", "eps"])?;
            let [beta1, beta2] = [number(options, "b1", 0.9), number(options, "b2", 0.999)];
            Box::new(AdamW::new(adamw::Hyper { beta1, beta2, eps: number(options, "eps", 1e-8) }, rules))
        }
        "big_vision.scale_by_adafactor" => {
            only(options, &["beta2_cap", "decay_rate", "momentum", "dtype_momentum"])?;
            let hyper = adafactor::Hyper {
                momentum: number(options, "momentum", 0.9),
                round: options["dtype_momentum"].as_str().unwrap_or("bfloat16") == "bfloat16",
                exponent: number(options, "decay_rate", 0.8),
                cap: number(options, "beta2_cap", 0.999),
                eps: 1e-30,
            };
            Box::new(Adafactor::new(hyper, rules, factor::views(sizes)))
        }
        "scale_by_lion" => {
            only(options, &["b1", "b2"])?;
            let [beta1, beta2] = [number(options, "b1", 0.9), number(options, "b2", 0.99)];
            Box::new(Lion::new(lion::Hyper { beta1, beta2 }, rules))
        }
        other => return Err(format!("optimizer `{other}` is not there").into()),
    })
}

/// big_vision: the first rate is zero; a schedule of `null` means that a tower is not trained.
pub fn bv_trajectory(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let (sizes, optim) = (bv_sizes(g), &g.config["optim"]);
    let mut model = model(device, &sizes, g)?;
    let schedule = tower_rule(&optim["schedule"], "txt/")?.ok_or("no schedule")?;
    only(schedule, &["decay_type", "warmup_steps"])?;
    if schedule["decay_type"] != "cosine" {
        return Err(format!("schedule {schedule}: only a cosine is there").into());
    }
    let frozen = tower_rule(&optim["schedule"], "img/")?.is_none_or(Value::is_null);
    freeze(&mut model, |_| frozen);
    let schedule = Cosine {
        lr: optim["lr"].as_f64().ok_or("no lr")?,
        min_lr: 0.0,
        warmup_epochs: schedule["warmup_steps"].as_f64().unwrap_or(0.0),
        epochs: g.f64("total_steps"),
    };
    let mut optimizer = bv_optimizer(optim, &sizes)?;
    let images = g.tensor("input.image", device);
    let (labels, len) = (g.ints("input.labels"), g.usize("len"));
    let per_batch = labels.len() / g.usize("nbatches");
    let mut out: [Vec<f64>; 5] = Default::default();
    for step in 0..g.usize("steps") {
        let batch = step % g.usize("nbatches");
        let images = axes(&part(&images, batch)?, [0, 3, 1, 2])?;
        let ids = TokenIds::new(&labels[batch * per_batch..][..per_batch], len, sizes.vocab_size, device)?;
        let (loss, grads) = gradients(&model, images, &ids)?;
        let lr = schedule.at(step as f64);
        let clip = optim["grad_clip_norm"].as_f64();
        let stats = optimizer.step(&mut model.params_mut(), &grads, &Rates::new(lr), clip)?;
        let numbers = [&model.logit_scale, &model.logit_bias].map(|p| p.master.item());
        let [t, b] = numbers;
        out.iter_mut().zip([loss, lr, stats.grad_norm, t?, b?]).for_each(|(all, value)| all.push(value));
    }
    for (name, values) in ["loss", "lr", "grad_norm", "t", "b"].into_iter().zip(&out) {
        report.compare(g, &format!("output.{name}"), values);
    }
    let weights = StateDict::from_params(model.params())?;
    after(g, report, &siglip::to_big_vision(&weights, [sizes.vision.heads, sizes.text.heads])?)
}

/// open_clip: groups and schedule of its training, torch's AdamW. Embeddings, positions and the probe decay.
pub fn hf_trajectory(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let sizes = hf_sizes(&g.config["text"], &g.config["vision"])?;
    let mut model = model(device, &sizes, g)?;
    let beta = |i: usize| g.config["betas"][i].as_f64().ok_or("no betas");
    let hyper = adamw::Hyper { beta1: beta(0)?, beta2: beta(1)?, eps: g.f64("eps") };
    let mut optimizer = AdamW::new(hyper, Rules::pretraining(g.f64("wd")));
    let [lr, warmup, total] = ["lr", "warmup", "total"].map(|key| g.f64(key));
    let cosine = Cosine { lr, min_lr: 0.0, warmup_epochs: warmup, epochs: total };
    let pixels = g.tensor("input.pixel_values", device);
    let (tokens, len) = (g.ints("input.input_ids"), g.usize("len"));
    let per_batch = tokens.len() / g.usize("steps");
    let mut out: [Vec<f64>; 4] = Default::default();
    for step in 0..g.usize("steps") {
        let ids = TokenIds::new(&tokens[step * per_batch..][..per_batch], len, sizes.vocab_size, device)?;
        let (loss, grads) = gradients(&model, part(&pixels, step)?, &ids)?;
        // The warm-up is one update ahead.
        let at = step as f64;
        let lr = if at < warmup { cosine.lr * (at + 1.0) / warmup } else { cosine.at(at) };
        let stats = optimizer.step(&mut model.params_mut(), &grads, &Rates::new(lr), g.config["clip"].as_f64())?;
        if g.bool("clamp") {
            let t = model.logit_scale.master.item()?.clamp(0.0, 100f64.ln()) as f32;
            model.logit_scale.set(&Tensor::from_slice(&[t], [1], &Device::Cpu)?)?;
        }
        let t = model.logit_scale.master.item()?;
        out.iter_mut().zip([loss, lr, stats.grad_norm, t]).for_each(|(all, value)| all.push(value));
    }
    for (name, values) in ["loss", "lr", "grad_norm", "logit_scale"].into_iter().zip(&out) {
        report.compare(g, &format!("output.{name}"), values);
    }
    after(g, report, &siglip::to_hf(&StateDict::from_params(model.params())?)?)
}
