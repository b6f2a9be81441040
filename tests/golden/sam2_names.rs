//! Names and numbers of a trajectory of SAM-2, in the spellings that are likely. Tested by tests/golden_names.rs.

use std::collections::BTreeMap;

use ocellus::ops::adamw::Hyper;
use ocellus::optim::schedule::Cosine;
use serde_json::Value;

use crate::reader::{Golden, Report};

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// Learning rate of the first step and weight decay by parameter.
pub type Table = BTreeMap<String, [f64; 2]>;

/// `step` and `12` of `step12`; a token without a number at its end has none.
fn numbered(token: &str) -> (&str, Option<usize>) {
    let word = token.trim_end_matches(|c: char| c.is_ascii_digit());
    (word, token[word.len()..].parse().ok())
}

/// Step and field of a name below `input.` or `output.`: `step1.images`, `images.1` and `images_1` are `(1, images)`,
/// and `f0.s1.ious` is the field of a frame and an answer.
pub fn parse(name: &str) -> (Option<usize>, String) {
    const STEPS: [&str; 12] = ["", "step", "s", "t", "it", "iter", "b", "batch", "clip", "i", "k", "update"];
    let (mut step, mut field) = (None, Vec::<String>::new());
    for token in name.split('.') {
        let (word, number) = numbered(token);
        let after_frame = field.last().is_some_and(|last| matches!(numbered(last), ("f", Some(_))));
        match number {
            Some(n) if word == "f" || word == "frame" => field.push(format!("f{n}")),
            Some(_) if word == "s" && after_frame => field.push(token.into()),
            Some(n) if step.is_none() && STEPS.contains(&word.trim_end_matches('_')) => step = Some(n),
            Some(n) if step.is_none() && canonical(word.trim_end_matches('_')).is_some() => {
                step = Some(n);
                field.push(canonical(word.trim_end_matches('_')).unwrap_or(word).into());
            }
            _ => field.push(canonical(token).unwrap_or(token).into()),
        }
    }
    (step, field.join("."))
}

/// One name for what may have several.
fn canonical(word: &str) -> Option<&'static str> {
    const NAMES: [&[&str]; 16] = [
        &["images", "imgs", "image", "video"],
        &["masks", "targets", "gt_masks", "mask_targets"],
        &["init_cond_frames", "cond_frames", "init_cond"],
        &["correction_frames", "frames_to_correct", "corr_frames", "frames_to_add_correction_pt"],
        &["use_point_input", "use_pt_input", "point_input"],
        &["point_coords", "points", "coords"],
        &["point_labels", "labels"],
        &["loss", "losses", "total_loss", "core_loss"],
        &["loss_mask", "losses_mask", "loss_masks"],
        &["loss_dice", "losses_dice"],
        &["loss_iou", "losses_iou"],
        &["loss_class", "losses_class"],
        &["grad_norm", "grad_norms", "total_norm", "total_norms", "norm", "norms", "gnorm"],
        &["lr", "lrs", "base_lr", "base_lrs", "vision_lr", "vision_lrs", "learning_rate", "group_lrs"],
        &["where", "wheres"],
        &["n_steps"],
    ];
    NAMES.iter().find(|names| names.contains(&word)).map(|names| names[0])
}

/// The first value that `pick` takes below one of the keys, wherever they stand; earlier keys win.
fn find<T>(value: &Value, keys: &[&str], pick: &impl Fn(&Value) -> Option<T>) -> Option<T> {
    fn under<T>(value: &Value, key: &str, pick: &impl Fn(&Value) -> Option<T>) -> Option<T> {
        match value {
            Value::Object(map) => map
                .iter()
                .find_map(|(name, value)| if name.eq_ignore_ascii_case(key) { pick(value) } else { None })
                .or_else(|| map.values().find_map(|value| under(value, key, pick))),
            Value::Array(list) => list.iter().find_map(|value| under(value, key, pick)),
            _ => None,
        }
    }
    keys.iter().find_map(|key| under(value, key, pick))
}

fn number(value: &Value, keys: &[&str]) -> Option<f64> {
    find(value, keys, &Value::as_f64)
}

fn list(value: &Value, keys: &[&str]) -> Option<Vec<f64>> {
    let numbers = |value: &Value| value.as_array()?.iter().map(Value::as_f64).collect();
    find(value, keys, &numbers)
}

/// `lr0_wd_per_param`: pairs or tables by name, or a list of rows or of groups with their names.
pub fn table(value: &Value) -> Fallible<Table> {
    let rate = ["lr0", "lr", "rate"];
    let decay = ["wd", "weight_decay", "decay"];
    let pair = |value: &Value| -> Option<[f64; 2]> {
        let numbers: Vec<f64> = value.as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
        match numbers[..] {
            [lr, wd] => Some([lr, wd]),
            _ => Some([number(value, &rate)?, number(value, &decay)?]),
        }
    };
    let names = |value: &Value| -> Vec<String> {
        let many = |value: &Value| -> Option<Vec<String>> {
            value.as_array()?.iter().map(|name| name.as_str().map(String::from)).collect()
        };
        let one = find(value, &["name", "param"], &|value| value.as_str().map(|name| vec![name.to_string()]));
        let first = || value[0].as_str().map(|name| vec![name.to_string()]);
        one.or_else(|| find(value, &["names", "params", "parameters"], &many)).or_else(first).unwrap_or_default()
    };
    let mut all = Table::new();
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                let pair = pair(value).ok_or_else(|| format!("lr0_wd_per_param: `{name}` is {value}"))?;
                let listed = names(value);
                let own = if listed.is_empty() { vec![name.clone()] } else { listed };
                all.extend(own.into_iter().map(|name| (name, pair)));
            }
        }
        Value::Array(rows) => {
            for row in rows {
                let pair = pair(row).ok_or_else(|| format!("lr0_wd_per_param: a row is {row}"))?;
                all.extend(names(row).into_iter().map(|name| (name, pair)));
            }
        }
        _ => {}
    }
    if all.is_empty() { Err(format!("lr0_wd_per_param is {value}").into()) } else { Ok(all) }
}

/// Optimizer and schedule of a file.
#[derive(Debug)]
pub struct Optim {
    pub lr: f64,
    pub vision_lr: f64,
    pub layer_decay: f64,
    pub weight_decay: f64,
    pub hyper: Hyper,
    /// Largest norm of the gradients.
    pub clip: Option<f64>,
    /// Factor of the learning rate in each step.
    pub factors: Vec<f64>,
    /// Part of the training before each step.
    pub wheres: Vec<f64>,
}

impl Optim {
    /// What `optim` says, and what it does not say from the rates of the first step. `clips`: steps with inputs of
    /// their own.
    pub fn read(g: &Golden, clips: usize, table: &Table, report: &mut Report) -> Fallible<Self> {
        let optim = &g.config["optim"];
        let series = |field: &str| {
            let of =
                |name: &String| name.strip_prefix("output.").is_some_and(|rest| parse(rest) == (None, field.into()));
            g.tensors.iter().find(|(name, _)| of(name)).map(|(_, t)| t)
        };
        let stated = number(optim, &["steps", "num_steps", "n_steps", "updates", "iters"]).map(|n| n as usize);
        let counted = series("loss").or(series("grad_norm")).map(|t| t.values.len());
        let steps = stated.or(Some(clips).filter(|n| *n > 0)).or(counted).filter(|n| *n > 0);
        let steps = steps.ok_or_else(|| format!("how many steps? optim is {optim}"))?;
        let rate = |name: &str| table.iter().find(|(n, _)| n.starts_with(name)).map(|(_, [lr, _])| *lr);
        let first = |keys: &[&str], name: &str, what: &str| {
            number(optim, keys).or_else(|| rate(name)).filter(|x| *x > 0.0).ok_or(format!("no {what} in {optim}"))
        };
        let lr = first(&["base_lr", "lr", "lr0", "learning_rate", "base"], "sam_mask_decoder.", "learning rate")?;
        let keys = ["vision_lr", "lr_vision", "image_encoder_lr", "lr_image_encoder", "encoder_lr", "vision"];
        let vision_lr = first(&keys, "image_encoder.neck.", "learning rate of the image encoder")?;
        let between = || Some(rate("image_encoder.trunk.blocks.0.")? / rate("image_encoder.trunk.blocks.1.")?);
        let layer_decay = number(optim, &["layer_decay", "layer_decay_value", "lr_layer_decay"]).or_else(between);
        let largest = table.values().fold(0.0f64, |m, [_, wd]| m.max(*wd));
        let betas = list(optim, &["betas"]).unwrap_or_default();
        let beta = |i: usize, keys: &[&str], or: f64| betas.get(i).copied().or(number(optim, keys)).unwrap_or(or);
        let hyper = Hyper {
            beta1: beta(0, &["beta1", "b1"], 0.9),
            beta2: beta(1, &["beta2", "b2"], 0.999),
            eps: number(optim, &["eps", "adam_eps"]).unwrap_or(1e-8),
        };
        let clip = ["max_norm", "clip", "clip_norm", "clip_grad", "grad_clip", "gradient_clip", "clip_grad_norm"];
        let readings = readings(optim, steps, lr);
        let chosen = match series("lr") {
            None => readings.into_iter().next(),
            Some(lrs) => Some(nearest(readings, lrs, report)),
        };
        let (wheres, factors) = chosen.ok_or("no schedule")?;
        // Where the words of `optim` and the rates of the first step are apart, the words mean something else.
        let agreed = |lr: f64, name: &str| match rate(name) {
            Some(rate) if rate > 0.0 && factors[0] > 0.0 && (lr * factors[0] / rate - 1.0).abs() > 1e-3 => {
                rate / factors[0]
            }
            _ => lr,
        };
        Ok(Self {
            lr: agreed(lr, "sam_mask_decoder."),
            vision_lr: agreed(vision_lr, "image_encoder.neck."),
            layer_decay: layer_decay.unwrap_or(1.0),
            weight_decay: number(optim, &["weight_decay", "wd"]).unwrap_or(largest),
            hyper,
            clip: number(optim, &clip),
            factors,
            wheres,
        })
    }
}

/// Positions and factors of the learning rate.
type Reading = (Vec<f64>, Vec<f64>);

/// What the schedule may be, likeliest first: a cosine to a tenth, as in the public configurations, where a schedule is
/// named at all.
fn readings(optim: &Value, steps: usize, lr: f64) -> Vec<Reading> {
    let n = steps as f64;
    let text = optim.to_string().to_lowercase();
    let total = number(optim, &["total_steps", "total", "max_steps", "schedule_steps", "total_iters", "max_iters"]);
    let uniform = |total: f64| (0..steps).map(|t| t as f64 / total).collect::<Vec<f64>>();
    let given = list(optim, &["where", "wheres"]).filter(|w| w.len() >= steps).map(|w| w[..steps].to_vec());
    let mut wheres: Vec<Vec<f64>> = given.into_iter().chain(total.map(uniform)).collect();
    wheres.extend([uniform(n), uniform(f64::max(n - 1.0, 1.0))]);
    let ratio =
        number(optim, &["end_factor", "end_ratio", "min_lr_ratio", "final_factor", "end_scale", "lr_end_factor"]);
    let end = number(optim, &["end_lr", "lr_end", "min_lr", "end_value", "final_lr"]).map(|end| end / lr);
    let divided = number(optim, &["end_div", "lr_div", "divide"]).map(|by| 1.0 / by);
    let stated = ratio.or(end).or(divided);
    let ends: Vec<f64> = stated.into_iter().chain([0.1, 0.0]).collect();
    let mut all = Vec::new();
    if let Some(lrs) = list(optim, &["lrs", "lr", "base_lrs", "lr_per_step"]).filter(|l| l.len() >= steps) {
        all.push((wheres[0].clone(), lrs[..steps].iter().map(|x| x / lr).collect()));
    }
    let constant: Reading = (wheres[0].clone(), vec![1.0; steps]);
    let scheduled = stated.is_some() || ["cos", "linear", "where"].iter().any(|word| text.contains(word));
    if !scheduled {
        all.push(constant.clone());
    }
    let linear = text.contains("linear") && !text.contains("cos");
    for at in &wheres {
        for &end in &ends {
            let cosine = Cosine { lr: 1.0, min_lr: end, warmup_epochs: 0.0, epochs: 1.0 };
            let factor = |x: f64| if linear { 1.0 + (end - 1.0) * x } else { cosine.at(x) };
            all.push((at.clone(), at.iter().map(|x| factor(*x)).collect()));
        }
    }
    all.push(constant);
    all
}

/// The reading that gives the rates of the file; the rates themselves if none does, which is said where something
/// differs.
fn nearest(readings: Vec<Reading>, lrs: &crate::reader::Stored, report: &mut Report) -> Reading {
    let (steps, n) = (readings[0].1.len(), lrs.values.len());
    let columns = (n / steps).max(1);
    let by_step = lrs.shape.first() == Some(&steps);
    let at = |step: usize| lrs.values.get(if by_step { step * columns } else { step }).copied().unwrap_or(f64::NAN);
    let truth: Vec<f64> = (0..steps).map(|step| at(step) / at(0)).collect();
    let far =
        |(_, factors): &Reading| factors.iter().zip(&truth).fold(0.0f64, |m, (f, t)| m.max((f / factors[0] - t).abs()));
    let best = readings.iter().min_by(|a, b| far(a).total_cmp(&far(b)));
    match best {
        Some(best) if far(best) < 1e-5 => best.clone(),
        _ => {
            report.hint("the schedule, taken from output.lr".into());
            (readings[0].0.clone(), truth.iter().map(|f| f * readings[0].1[0]).collect())
        }
    }
}
