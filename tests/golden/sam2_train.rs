//! Several updates of SAM-2 on clips: rates and decay by name, schedule, clipping, and parameters that a step leaves
//! out.
//!
//! The schema of these files is known in part only, so what a file states is read in several spellings. What it pins is
//! compared by the rules of its kind.

use std::collections::{BTreeMap, BTreeSet};

use ocellus::nn::Module;
use ocellus::optim::{AdamW, Optimizer, Rates, Rules};
use ocellus::recipes::sam2::{Sam2, clip, pretrain};
use ocellus::{Device, Grads, Tape};
use serde_json::Value;

use crate::reader::{Golden, Outcome, Report, Stored, gradient, value};
use crate::sam2_model::{Fallible, model};
use crate::sam2_names::{Optim, Table, parse};
use crate::sam2_video::clip_loss;

/// How far an update of f32 may be from the true one, of its length, where a file does not say. CPU and emulated device
/// are 0.007 apart after three updates of the tiny model at worst, of which nearly all is in single elements.
const UPDATE: f64 = 0.02;
/// One of so many elements may have a gradient so near zero that rounding decides which way its first updates go.
const SIGNS: usize = 50;
/// A gradient below this part of the largest one is the rounding of a true zero.
const ZERO: f64 = 1e-6;

/// Inputs, with the number of axes they have for one step.
const INPUTS: [(&str, usize); 7] = [
    ("images", 5),
    ("masks", 4),
    ("init_cond_frames", 1),
    ("correction_frames", 1),
    ("use_point_input", 0),
    ("point_coords", 3),
    ("point_labels", 2),
];

/// A tensor of all steps, cut to one of them if its first axis is that of the steps.
fn of_step(t: &Stored, axes: usize, step: usize) -> Stored {
    if t.shape.len() != axes + 1 {
        return t.clone();
    }
    let (n, len) = (t.shape[0], t.shape[1..].iter().product::<usize>());
    let values = t.values[step % n * len..][..len].to_vec();
    Stored { shape: t.shape[1..].to_vec(), values, integer: t.integer }
}

/// The clips of a file, each as the kind sam2/train_step has it. A clip for all steps has no number.
struct Clips {
    tensors: Vec<(Option<usize>, String, usize, Stored)>,
    first: usize,
    count: usize,
}

impl Clips {
    fn read(g: &Golden, report: &mut Report) -> Self {
        let mut tensors = Vec::new();
        for (name, stored) in &g.tensors {
            let Some(rest) = name.strip_prefix("input.") else { continue };
            let (step, field) = parse(rest);
            let word = field.rsplit('.').next().unwrap_or_default();
            match INPUTS.iter().find(|(known, _)| *known == word) {
                Some((_, axes)) => tensors.push((step, field, *axes, stored.clone())),
                None => report.hint(name.clone()),
            }
        }
        let numbers = || tensors.iter().filter_map(|(step, ..)| *step);
        let (first, last) = (numbers().min().unwrap_or(0), numbers().max());
        let count = last.map_or(0, |last| last + 1 - first);
        Self { tensors, first, count }
    }

    /// A file with the inputs of one step alone.
    fn step(&self, g: &Golden, step: usize) -> Golden {
        let number = if self.count > 0 { self.first + step % self.count } else { 0 };
        let mut tensors = BTreeMap::new();
        for own in [false, true] {
            for (at, field, axes, stored) in &self.tensors {
                if (own && *at == Some(number)) || (!own && at.is_none()) {
                    tensors.insert(format!("input.{field}"), of_step(stored, *axes, step));
                }
            }
        }
        let clicks = tensors.keys().any(|name| name.ends_with("point_coords"));
        let stated = |values: Vec<f64>, shape: Vec<usize>| Stored { shape, values, integer: true };
        tensors
            .entry("input.use_point_input".into())
            .or_insert_with(|| stated(vec![f64::from(u8::from(clicks))], vec![]));
        tensors.entry("input.init_cond_frames".into()).or_insert_with(|| stated(vec![0.0], vec![1]));
        Golden {
            path: g.path.clone(),
            kind: g.kind.clone(),
            config: g.config.clone(),
            metadata: Default::default(),
            tensors,
        }
    }
}

/// Rates of the first step and decay of every parameter, as the file lists them.
fn groups(model: &Sam2, rules: &Rules, optim: &Optim, first: f64, table: &Table, report: &mut Report) {
    let params = model.params();
    for p in &params {
        let Some([lr, decay]) = table.get(p.name()) else {
            if p.name().ends_with("_gaussian_matrix") {
                continue; // a buffer upstream
            }
            report.fail(format!("{}: in no group of the file", p.name()));
            continue;
        };
        let group = rules.group(p.name(), p.master.shape());
        let equal = |a: f64, b: f64| (a - b).abs() <= 1e-5 * b.abs();
        if !equal(group.lr_scale * optim.lr * first, *lr) || !equal(group.weight_decay, *decay) {
            let (rate, given) = (group.lr_scale * optim.lr * first, group.weight_decay);
            report.fail(format!("{}: rate {rate:.6e} and decay {given}, expected {lr:.6e} and {decay}", p.name()));
        }
    }
    let names: BTreeSet<&str> = params.iter().map(|p| p.name()).collect();
    if let Some(name) = table.keys().find(|name| !names.contains(name.as_str())) {
        report.fail(format!("{name}: in a group of the file, not in the model"));
    }
}

/// Parameters without a gradient, against the list of the file.
fn absent(g: &Golden, model: &Sam2, grads: &Grads, table: &Table, report: &mut Report) {
    let Some(listed) = g.config["no_grad_names_step0"].as_array() else { return };
    let listed: BTreeSet<&str> = listed.iter().filter_map(Value::as_str).collect();
    let params = model.params();
    let ours = params.iter().map(|p| (p.name(), grads.get(p).is_none()));
    let ours: BTreeSet<&str> = ours.filter(|(name, none)| *none && table.contains_key(*name)).map(|(n, _)| n).collect();
    for name in ours.symmetric_difference(&listed) {
        let [has, other] = if ours.contains(name) { ["no", "one"] } else { ["a", "none"] };
        report.fail(format!("{name} has {has} gradient in the first step, upstream has {other}"));
    }
}

/// What is known of the gradients of a parameter over all steps.
#[derive(Clone, Copy, Default)]
struct Seen {
    /// Steps with a gradient.
    steps: usize,
    /// One that is more than the rounding of a zero.
    large: bool,
    /// One that is such a rounding, and not zero.
    noise: bool,
    /// Sum of the rates of those steps.
    way: f64,
}

impl Seen {
    /// Nothing but the rounding of zeros: what AdamW made of it says nothing.
    fn is_noise(self) -> bool {
        self.noise && !self.large
    }
}

fn note(model: &Sam2, grads: &Grads, rules: &Rules, lr: f64, seen: &mut BTreeMap<String, Seen>) -> Outcome {
    let mut sizes = Vec::new();
    for p in model.params() {
        let Some(g) = grads.get(p) else { continue };
        let size = g.to_f64()?.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        sizes.push((p.name().to_string(), size, lr * rules.group(p.name(), p.master.shape()).lr_scale));
    }
    let largest = sizes.iter().fold(0.0f64, |m, (_, size, _)| m.max(*size));
    for (name, size, rate) in sizes {
        let entry = seen.entry(name).or_default();
        entry.steps += 1;
        entry.way += rate;
        entry.large |= size > ZERO * largest;
        entry.noise |= size > 0.0 && size <= ZERO * largest;
    }
    Ok(())
}

/// Numbers of one step under the names of sam2/train_step.
fn numbers(outcome: &clip::Outcome) -> Fallible<BTreeMap<String, Vec<f64>>> {
    let mut all = BTreeMap::from([("loss".to_string(), outcome.loss.value().to_f64()?)]);
    let mut sums = [0.0; 4];
    for terms in &outcome.terms {
        sums.iter_mut().zip(terms.to_f64()?).for_each(|(sum, x)| *sum += x);
    }
    for (name, sum) in ["mask", "dice", "iou", "class"].iter().zip(sums) {
        all.insert(format!("loss_{name}"), vec![sum]);
    }
    for (frame, answers) in &outcome.answers {
        let counts = answers.iter().map(|a| a.all.ious.value().shape()[1] as f64).collect();
        all.insert(format!("f{frame}.n_steps"), counts);
        for (step, answer) in answers.iter().enumerate() {
            all.insert(format!("f{frame}.s{step}.ious"), answer.all.ious.value().to_f64()?);
            all.insert(format!("f{frame}.s{step}.obj"), answer.object_scores.value().to_f64()?);
        }
        let last = answers.last().ok_or("a frame without an answer")?;
        all.insert(format!("f{frame}.pred_masks"), last.low_res_masks.value().to_f64()?);
    }
    Ok(all)
}

/// The series `output.lr`, of one group of parameters or of several: columns begin with the rates of the first step.
fn rates(stored: &Stored, table: &[f64], factors: &[f64]) -> Option<Vec<f64>> {
    let (steps, n) = (factors.len(), stored.values.len());
    if n == 0 || !n.is_multiple_of(steps) {
        return None;
    }
    let by_step = stored.shape.first() == Some(&steps);
    let columns = n / steps;
    let at = |step: usize, column: usize| if by_step { step * columns + column } else { column * steps + step };
    let mut values = vec![0.0; n];
    for column in 0..columns {
        let first = stored.values[at(0, column)];
        let ours = *table.iter().min_by(|a, b| (**a - first).abs().total_cmp(&(**b - first).abs()))?;
        (0..steps).for_each(|step| values[at(step, column)] = ours * factors[step]);
    }
    Some(values)
}

pub fn train_trajectory(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let mut model = model(g, device)?;
    model.no_mem_pos_enc.trainable = false; // used by nothing
    let clips = Clips::read(g, report);
    let table = crate::sam2_names::table(&g.config["lr0_wd_per_param"])?;
    let optim = Optim::read(g, clips.count, &table, report)?;
    let depth = g.config["stages"].as_array().ok_or("no stages")?.iter().filter_map(Value::as_u64).sum::<u64>();
    let rules = pretrain::rules(optim.weight_decay, optim.vision_lr / optim.lr, optim.layer_decay, depth as usize);
    groups(&model, &rules, &optim, optim.factors[0], &table, report);
    let before: BTreeMap<String, Vec<f64>> =
        model.params().iter().map(|p| Ok((p.name().to_string(), p.master.to_f64()?))).collect::<Fallible<_>>()?;
    let mut adamw = AdamW::new(optim.hyper, rules.clone());
    let (mut found, mut seen) = (Vec::new(), BTreeMap::new());
    for (step, factor) in optim.factors.iter().enumerate() {
        let lr = optim.lr * factor;
        let (tape, mut grads) = (Tape::new(), Grads::new());
        let outcome = clip_loss(&clips.step(g, step), &model, &tape, device)?;
        let mut numbers = numbers(&outcome)?;
        tape.backward_scaled(&outcome.loss, 1.0, &mut grads)?;
        if step == 0 {
            absent(g, &model, &grads, &table, report);
            report.params(g, "grad", gradient(&model, &grads));
        }
        note(&model, &grads, &rules, lr, &mut seen)?;
        let stats = adamw.step(&mut model.params_mut(), &grads, &Rates::new(lr), optim.clip)?;
        numbers.insert("grad_norm".into(), vec![stats.grad_norm]);
        numbers.insert("where".into(), vec![optim.wheres[step]]);
        found.push(numbers);
    }
    let shapes = model.params();
    let ours: Vec<f64> = shapes.iter().map(|p| optim.lr * rules.group(p.name(), p.master.shape()).lr_scale).collect();
    outputs(g, report, &found, clips.first, |stored| rates(stored, &ours, &optim.factors));
    after(g, report, &model, &adamw, &before, &seen)
}

/// Compares what steps gave, alone or in a row.
fn outputs(
    g: &Golden,
    report: &mut Report,
    found: &[BTreeMap<String, Vec<f64>>],
    first: usize,
    rates: impl Fn(&Stored) -> Option<Vec<f64>>,
) {
    for (name, stored) in &g.tensors {
        let Some(rest) = name.strip_prefix("output.") else { continue };
        let (step, field) = parse(rest);
        let values = match step {
            Some(number) => number.checked_sub(first).and_then(|k| found.get(k)?.get(&field).cloned()),
            None if field == "lr" => rates(stored),
            None => {
                found.iter().map(|numbers| numbers.get(&field).cloned()).collect::<Option<Vec<_>>>().map(|v| v.concat())
            }
        };
        if let Some(values) = values {
            report.compare(g, name, &values);
        }
    }
}

/// Weights after the last update: values by the file's tolerance, and the way they went by its length.
fn after(
    g: &Golden,
    report: &mut Report,
    model: &Sam2,
    adamw: &AdamW,
    before: &BTreeMap<String, Vec<f64>>,
    seen: &BTreeMap<String, Seen>,
) -> Outcome {
    let stated = g.metadata.get("update_tolerance").and_then(Value::as_f64);
    let (state, mut weights) = (adamw.state()?, value(model));
    let mut got = |name: &str| match name.starts_with("exp_avg") {
        true => state.iter().find(|(n, _)| n == name).and_then(|(_, t)| t.to_f64().ok()),
        false => weights(name),
    };
    let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
    for (name, truth) in g.tensors.iter().filter_map(|(n, t)| Some((n.strip_prefix("after.")?, &t.values))) {
        let (Some(old), Some(mut got)) = (before.get(name), got(name)) else { continue };
        report.note(&format!("after.{name}"));
        let (mut truth, mut old, seen) = (truth.clone(), old.clone(), seen.get(name).copied().unwrap_or_default());
        if got.len() != truth.len() {
            report.fail(format!("after.{name}: {} values, expected {}", got.len(), truth.len()));
            continue;
        }
        if seen.steps == 0 {
            if got != old || truth != old {
                report.fail(format!("after.{name}: changed without a gradient, here {}", got != old));
            }
            continue;
        }
        // Of a key's bias, whose true gradient is zero, nothing is known but how far it can have gone.
        let third = if name.contains("attn.qkv.bias") { got.len() / 3 } else { 0 };
        let unknown = if seen.is_noise() { 0..got.len() } else { third..2 * third };
        let far = unknown.clone().fold(0.0f64, |m, i| m.max((got[i] - truth[i]).abs()));
        if far.is_nan() || far > 2.0 * seen.way {
            report.fail(format!("after.{name}: {far:.1e} apart, with rates of {:.1e} in all", seen.way));
        }
        [&mut got, &mut truth, &mut old].into_iter().for_each(|v| drop(v.drain(unknown.clone())));
        let mut apart: Vec<f64> = got.iter().zip(&truth).map(|(a, b)| (a - b).abs()).collect();
        if stated.is_none() && apart.len() > 8 && apart.iter().all(|x| x.is_finite()) {
            apart.sort_by(f64::total_cmp);
            apart.truncate(apart.len() - apart.len().div_ceil(SIGNS));
        }
        let moved: Vec<f64> = truth.iter().zip(&old).map(|(a, b)| a - b).collect();
        // Every update rounds the weights, the file once more.
        let rounding = match stated {
            Some(_) => 0.0,
            None => (seen.steps + 1) as f64 * norm(&truth) * 0.5 * f64::from(f32::EPSILON),
        };
        let (apart, moved) = (norm(&apart), norm(&moved));
        let allowed = stated.unwrap_or(UPDATE) * moved + rounding;
        if apart.is_nan() || apart > allowed {
            report.fail(format!("after.{name}: {apart:.1e} from an update of {moved:.1e}, allowed {allowed:.1e}"));
        }
    }
    if stated.is_none() || g.tensors.keys().any(|n| n.starts_with("after.exp_avg")) {
        report.params(g, "after", |name| match seen.get(name) {
            Some(seen) if seen.is_noise() => g.tensors.get(&format!("after.{name}")).map(|t| t.values.clone()),
            _ => got(name),
        });
    }
    Ok(())
}
