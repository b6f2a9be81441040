//! DINOv2's training step: losses, gradients, clipping, AdamW, the teacher and its centre.

use ocellus::checkpoint::dinov2::plain;
use ocellus::nn::{Builder, Module};
use ocellus::ops::adamw::Hyper;
use ocellus::optim::{AdamW, Optimizer, Rates, Rules, StepStats};
use ocellus::recipes::dinov2::model::Found;
use ocellus::recipes::dinov2::{Drops, HeadSizes, Kept, LossSettings, Masks, Network, Ssl, Start, Targets, Views};
use ocellus::{DType, Device, Grads, Tape, Tensor, Var};

use crate::dinov2_model::sizes;
use crate::reader::{Golden, Outcome, Report, load, value};

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// Names of the file to ours.
fn ours(name: &str) -> String {
    match name {
        _ if name.starts_with("backbone.") => format!("student.backbone.{}", plain(name)),
        _ if name.starts_with("dino_head.") || name.starts_with("ibot_head.") => format!("student.{name}"),
        _ => plain(name),
    }
}

fn number(g: &Golden, key: &str, default: f64) -> f64 {
    g.config[key].as_f64().unwrap_or(default)
}

fn model(g: &Golden, device: &Device) -> Fallible<Ssl> {
    let head = |what: &str| HeadSizes {
        hidden: g.usize("head_hidden"),
        bottleneck: g.usize(&format!("{what}_bottleneck")),
        prototypes: g.usize(&format!("{what}_protos")),
        layers: number(g, "head_nlayers", 3.0) as usize,
    };
    let ibot = g.bool("separate_head").then(|| head("ibot"));
    let make = |name: &str| {
        let b = Builder::new(device, DType::F32, 0).pp(name);
        Network::new(&b, &sizes(g), &Start::OFFICIAL, &head("dino"), ibot.as_ref())
    };
    let targets = match g.config["centering"].as_str() {
        Some("centering") => Targets::Centering,
        _ => Targets::Sinkhorn,
    };
    let settings = LossSettings {
        targets,
        dino: number(g, "dino_weight", 1.0),
        koleo: number(g, "koleo_weight", 0.1),
        ibot: number(g, "ibot_weight", 1.0),
        student_temp: number(g, "student_temp", 0.1),
    };
    let (mut student, mut teacher) = (make("student")?, make("teacher")?);
    let mut dict = ocellus::checkpoint::StateDict::default();
    for (name, tensor) in g.dict("param").iter() {
        dict.insert(ours(name), tensor.clone())?;
    }
    // A teacher that the file does not have begins as the student.
    let missing: Vec<String> =
        teacher.params().iter().map(|p| p.name().to_string()).filter(|n| !dict.contains(n)).collect();
    for name in missing {
        let copied = dict.require(&name.replacen("teacher.", "student.", 1))?.clone();
        dict.insert(name, copied)?;
    }
    load(&mut student, &dict)?;
    load(&mut teacher, &dict)?;
    Ok(Ssl::new(student, teacher, None, settings)?)
}

/// Crops, masks and kept sequences below `input.` or `input.step<k>.`.
fn views(g: &Golden, at: &str, model: &Ssl, temp: f64, device: &Device) -> Fallible<Views> {
    let name = |what: &str| format!("input.{at}{what}");
    let shape = |what: &str| g.tensors.get(&name(what)).map(|t| [t.shape[0], t.shape[2], t.shape[3]]);
    let shapes: Vec<[usize; 3]> = ["global_crops", "local_crops"].into_iter().filter_map(shape).collect();
    let layout = model.student.backbone.layout(&shapes)?;
    let rows: Vec<i32> = g.ints(&name("mask_indices")).into_iter().map(|i| layout.patch_row(0, i as usize)).collect();
    let weights = g.floats(&name("masks_weight"));
    let kept = |block: usize, branch: &str| -> ocellus::Result<Option<Kept>> {
        let list = |what: &str| name(&format!("keep.blk{block}.{branch}.{what}"));
        if !g.tensors.contains_key(&list("global")) {
            return Ok(None);
        }
        let of = |what: &str| g.ints(&list(what)).into_iter().map(|i| i as usize).collect::<Vec<_>>();
        let lists: Vec<Vec<usize>> = ["global", "local"].into_iter().take(shapes.len()).map(of).collect();
        Kept::new(&layout.cu_seqlens, &layout.lists, &lists, device).map(Some)
    };
    let drops = (0..g.usize("depth")).map(|i| Ok(Drops { attn: kept(i, "attn")?, ffn: kept(i, "ffn")? }));
    Ok(Views {
        global: g.tensor(&name("global_crops"), device),
        local: (shapes.len() > 1).then(|| g.tensor(&name("local_crops"), device)),
        masks: Some(Masks {
            hidden: Some(g.indices(&name("masks"), device)),
            rows: Tensor::from_slice(&rows, [rows.len()], device)?,
            teacher_rows: None,
            weights: Tensor::from_slice(&weights, [weights.len()], device)?,
            count: None,
        }),
        teacher_temp: Tensor::full([1], temp as f32, device)?,
        drops: drops.collect::<ocellus::Result<_>>()?,
    })
}

fn optimizer(g: &Golden) -> AdamW {
    let decay = number(g, "layer_decay", 1.0);
    let rules = Rules::self_supervised(1.0, decay, g.usize("depth"), number(g, "patch_embed_lr_mult", 0.2));
    AdamW::new(Hyper { beta1: 0.9, beta2: 0.999, eps: 1e-8 }, rules)
}

struct Step {
    loss: f64,
    found: Found,
    stats: StepStats,
}

fn step(
    g: &Golden,
    model: &mut Ssl,
    views: &Views,
    optimizer: &mut AdamW,
    rates: &Rates,
    grads: &mut Grads,
) -> Fallible<Step> {
    let tape = Tape::new();
    let (loss, found) = model.loss(&tape, views, None, true)?;
    let value = loss.value().item()?;
    tape.backward_scaled(&loss, 1.0, grads)?;
    let stats = optimizer.step(&mut model.params_mut(), grads, rates, Some(number(g, "clip", 3.0)))?;
    Ok(Step { loss: value, found, stats })
}

/// Losses as upstream displays them, and norms of the gradients.
fn displayed(step: &Step) -> Vec<(&'static str, f64)> {
    let [local, global, koleo, ibot] =
        [0, 1, 2, 3].map(|i| step.found.terms[i].as_ref().map_or(0.0, |t| t.item().unwrap()));
    let mut all = vec![
        ("loss", step.loss),
        ("logged_dino_local_crops_loss", local),
        ("logged_dino_global_crops_loss", global),
        ("logged_koleo_loss", koleo / 2.0),
        ("logged_ibot_loss", ibot / 2.0),
    ];
    all.extend(step.stats.groups.iter().copied());
    all
}

fn after(g: &Golden, model: &Ssl, report: &mut Report) {
    let names: Vec<String> = g.tensors.keys().filter(|n| n.starts_with("after.")).cloned().collect();
    if names.iter().any(|n| !n.ends_with("_center")) {
        let mut of = value(model);
        report.params(g, "after", |name| match name {
            "dino_center" | "ibot_center" => {
                let centers = model.centers.as_ref()?;
                centers[usize::from(name == "ibot_center")].center.master.to_f64().ok()
            }
            _ => of(&ours(name)),
        });
    }
}

pub fn ssl_step(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let mut model = model(g, device)?;
    let scheduled = g.floats("state.schedule_values"); // lr, wd, momentum, teacher_temp, last_layer_lr
    let [lr, decay, momentum] = [0, 1, 2].map(|i| f64::from(scheduled[i]));
    let temp = number(g, "teacher_temp", f64::from(scheduled[3]));
    let rates = Rates { lr, decay, momentum, freeze_last_layer: scheduled[4] == 0.0 };
    let views = views(g, "", &model, temp, device)?;
    let (mut optimizer, mut grads) = (optimizer(g), Grads::new());

    // What the head makes of the rows that pad the buffer of a shared head.
    let (upper, masked) = (g.ints("input.upperbound")[0] as usize, g.get("input.mask_indices").shape[0]);
    let zeros = Var::constant(Tensor::zeros([upper - masked, g.usize("dim")], DType::F32, device)?);
    let plain = Tape::no_grad();
    let head = &model.student.dino_head;
    let padding = match upper > masked {
        true => head.forward(&plain, &zeros, &head.prototypes(&plain)?)?.value().to_f64()?,
        false => vec![],
    };

    let step = step(g, &mut model, &views, &mut optimizer, &rates, &mut grads)?;
    for (name, value) in displayed(&step) {
        report.compare(g, &format!("output.{name}"), &[value]);
    }
    let probs = step.found.classes.probabilities()?.to_f64()?;
    let (first, second) = probs.split_at(probs.len() / 2);
    report.compare(g, "output.teacher_cls_probs", &[second, first].concat());
    if let Some(patches) = &step.found.patches {
        report.tensor(g, "output.teacher_patch_probs", &patches.probabilities()?);
    }
    let logits = step.found.logits.as_ref().ok_or("no logits")?;
    let of = |i: usize| logits[i].as_ref().map_or(vec![], |t| t.to_f64().unwrap());
    let mut packed = [of(0), of(1)].concat();
    if !g.bool("separate_head") {
        packed.extend(of(2));
        packed.extend(padding);
    }
    report.compare(g, "output.student_dino_head_out_packed", &packed);
    report.compare(g, "output.student_masked_patch_logits", &of(2));
    {
        let params = model.params();
        report.params(g, "grad", |name| {
            let p = params.iter().find(|p| p.name() == ours(name))?;
            grads.get(p)?.to_f64().ok()
        });
    }
    model.centers.iter_mut().flatten().try_for_each(|c| c.update())?;
    after(g, &model, report);
    Ok(())
}

pub fn trajectory(g: &Golden, device: &Device, report: &mut Report) -> Outcome {
    let mut model = model(g, device)?;
    let mut optimizer = optimizer(g);
    let schedule = |what: &str| g.floats(&format!("output.sched_{what}"));
    let (lr, wd, momentum) = (schedule("lr"), schedule("wd"), schedule("momentum"));
    let (temp, last) = (schedule("teacher_temp"), schedule("last_layer_lr"));
    let mut series: std::collections::BTreeMap<&str, Vec<f64>> = Default::default();
    for k in 0..g.usize("steps") {
        let temp = number(g, "teacher_temp", f64::from(temp[k]));
        let views = views(g, &format!("step{k}."), &model, temp, device)?;
        let rates = Rates {
            lr: f64::from(lr[k]),
            decay: f64::from(wd[k]),
            momentum: f64::from(momentum[k]),
            freeze_last_layer: last[k] == 0.0,
        };
        let step = step(g, &mut model, &views, &mut optimizer, &rates, &mut Grads::new())?;
        for (name, value) in displayed(&step) {
            series.entry(name).or_default().push(value);
        }
    }
    for (name, values) in series {
        report.compare(g, &format!("output.{name}"), &values);
    }
    // Inputs of the steps here; the kind dinov2/schedules pins them.
    ["lr", "wd", "momentum", "teacher_temp", "last_layer_lr"]
        .iter()
        .for_each(|what| report.note(&format!("output.sched_{what}")));
    model.centers.iter_mut().flatten().try_for_each(|c| c.update())?;
    after(g, &model, report);
    Ok(())
}
