//! Runs of self-distillation, and of the distillation of a trained teacher, from their configuration to the finished weights.

use std::sync::Arc;

use super::begin::{check_dtype, find, state, train};
use super::{Clock, Outcome, Plan, RunDir};
use crate::checkpoint::StateDict;
use crate::data::{Folder, Image, Source, Stream};
use crate::eval::pictures;
use crate::nn::{Builder, Module};
use crate::optim::AdamW;
use crate::optim::schedule::Cosine;
use crate::recipes::dinov2::load::{self, NetworkSizes, Weights};
use crate::recipes::dinov2::{Config, Features, Network, Pretrain, Sizes, Ssl};
use crate::recipes::mae::finetune::classes_of;
use crate::{DType, Device, Error, Result};

/// Images in the picture of a finished run.
const PICTURES: usize = 8;
/// Decoded images kept in memory, in bytes: small data sets are read from disk once.
const CACHE: usize = 1 << 30;

/// Trains (or continues, with `resume`) the run that `config` describes; returns the trained task.
///
/// Whatever can be checked is checked before the run's folder is made.
///
/// # Errors
/// Everything a run can meet: see [`Error`](crate::Error).
pub fn pretrain(config: &Config, device: &Device, dtype: DType, resume: bool) -> Result<(Outcome, Pretrain)> {
    let init = config.init.as_deref().filter(|_| !resume).map(load::weights).transpose()?;
    let adopted = init.as_ref().map(|weights| adopt(config, weights)).transpose()?;
    let config = adopted.as_ref().unwrap_or(config);
    config.check()?;
    check_dtype(dtype)?;
    if !resume {
        RunDir::require_free(&config.out)?;
    }
    let data = Arc::new(Folder::open(&config.data)?.with_cache(CACHE));
    if let Some(test) = &config.knn {
        classes_of(&Folder::labelled(&config.data)?, &Folder::labelled(test)?)?; // used after the last epoch
    }
    let plan = plan(config);
    let per_epoch = plan.check(data.len())?;
    let found = find(resume, || RunDir::resume(&config.out, config, data.identity(), config.keep))?;
    let builder = Builder::new(device, dtype, config.seed);
    let model = match state(&found) {
        // The files that it began with are not needed any more.
        Some(state) => continued(config, &builder, &state.model)?,
        None => begin(config, init, &builder)?,
    };
    let prototypes = model.student.dino_head.count();
    config.advice(data.len(), prototypes).iter().for_each(|advice| tracing::warn!("{advice}"));
    let mut optimizer = AdamW::new(config.hyper(), config.rules(model.student.backbone.blocks.len()));
    let mut task = Pretrain::new(config, model, per_epoch * config.epochs, per_epoch)?;
    let create = || RunDir::create(&config.out, config, data.identity(), config.keep);
    let views = config.multi_crop();
    let transform = move |image: &Image, rng: &mut Stream| views.apply(image, rng);
    let mut nothing = |_: &mut Pretrain, _| Ok(vec![]);
    let (outcome, run) = train(&mut task, &mut optimizer, data.clone(), transform, &plan, found, create, &mut nothing)?;
    if outcome == Outcome::Finished {
        load::save(run.path(), &task.model)?;
        // The weights are there by now: a picture that cannot be drawn is no reason to fail.
        draw(&run, &task, &data).unwrap_or_else(|e| tracing::warn!("no picture: {e}"));
    }
    Ok((outcome, task))
}

/// Patch features of some images as colours.
fn draw(run: &RunDir, task: &Pretrain, data: &Folder) -> Result<()> {
    let encoder = Features::new(task.model.result().backbone.clone(), None)?;
    let images = pictures::spread(data, PICTURES, encoder.image_size)?;
    let images: Vec<Image> = images.into_iter().map(|(_, image)| image).collect();
    pictures::components::sheet(&encoder, &images, None, true, || ())?.save_png(run.picture("features")?)
}

/// The numbers of the run; its schedules are the task's.
fn plan(config: &Config) -> Plan {
    let lr = config.learning_rate();
    Plan {
        epochs: config.epochs,
        accum_iter: 1, // the loss is over all images of an update
        batch_size: config.batch_size,
        unit: "images",
        schedule: Cosine { lr, min_lr: config.min_lr, warmup_epochs: 0.0, epochs: config.epochs as f64 },
        clock: Clock::Epochs,
        clip_grad: Some(config.clip_grad).filter(|clip| clip.is_finite()),
        skip_non_finite: config.skip_non_finite,
        save_every: config.save_every,
        log_every: config.log_every,
        seed: config.seed,
        strict: config.strict,
    }
}

/// The model of a saved state, its weights still to be filled in.
fn continued(config: &Config, builder: &Builder, state: &StateDict) -> Result<Ssl> {
    let unmarked = || Error::checkpoint(&state.origin, "does not state its sizes, as a run's does");
    let sizes = load::marked(state)?.ok_or_else(unmarked)?;
    let make = |sizes: &NetworkSizes, name: &str| sizes.network(&builder.pp(name), &config.start());
    let average = config.teacher.is_some().then(|| make(&sizes.student, "average")).transpose()?;
    assemble(config, make(&sizes.student, "student")?, make(&sizes.teacher, "teacher")?, average)
}

fn assemble(config: &Config, mut student: Network, teacher: Network, average: Option<Network>) -> Result<Ssl> {
    student.backbone.recompute = config.recompute;
    Ssl::new(student, teacher, average, config.loss())
}

/// The configuration of a run that begins with these weights: what they decide, and the sizes of their heads unless set.
fn adopt(config: &Config, weights: &Weights) -> Result<Config> {
    let theirs = &weights.sizes;
    let registers = Some(config.registers).filter(|registers| *registers > 0);
    for (key, ours, theirs) in
        [("patch_size", config.patch_size, theirs.patch_size), ("registers", registers, theirs.registers)]
    {
        if let Some(ours) = ours.filter(|ours| *ours != theirs) {
            return Err(Error::config(key, ours, format!("{theirs}, as {} has", weights.dict.origin.display())));
        }
    }
    let mut config = Config { patch_size: Some(theirs.patch_size), registers: theirs.registers, ..config.clone() };
    if let Some(network) = &weights.network {
        let head = &network.dino_head;
        // In distillation they are the teacher's.
        config.prototypes = config.prototypes.or(Some(head.prototypes).filter(|_| config.teacher.is_none()));
        config.head_layers = config.head_layers.or(Some(head.layers));
        config.head_hidden = config.head_hidden.or(Some(head.hidden));
        let patches = network.ibot_head.as_ref().map(|head| head.bottleneck);
        config.ibot_bottleneck = config.ibot_bottleneck.or(patches.filter(|_| config.bottleneck.is_none()));
        config.bottleneck = config.bottleneck.or(Some(head.bottleneck));
    }
    Ok(config)
}

/// A model before its first step.
fn begin(config: &Config, init: Option<Weights>, builder: &Builder) -> Result<Ssl> {
    let (dino_head, ibot_head) = config.heads();
    let mut sizes = NetworkSizes { backbone: config.sizes(), dino_head, ibot_head };
    if let Some(weights) = &init {
        sizes.backbone = Sizes { image_size: sizes.backbone.image_size, ..weights.sizes.clone() };
    }
    let teacher = config.teacher.as_deref().map(load::weights).transpose()?;
    if let Some(weights) = &teacher {
        let Some(theirs) = &weights.network else {
            let cause = "has a backbone without heads, whose prototypes are what is distilled: runs of pretrain dinov2 have them, and \
                         teacher checkpoints of upstream";
            return Err(Error::checkpoint(&weights.dict.origin, cause));
        };
        // What is compared has to be the same; the backbone and the rest of the heads may differ.
        sizes.dino_head.prototypes = theirs.dino_head.prototypes;
        let patches = theirs.ibot_head.as_ref().filter(|_| config.ibot_weight > 0.0);
        let own = sizes.ibot_head.unwrap_or(sizes.dino_head);
        sizes.ibot_head = patches.map(|head| load::HeadSizes { prototypes: head.prototypes, ..own });
    }
    let mut student = sizes.network(&builder.pp("student"), &config.start())?;
    if let Some(weights) = init {
        // Heads of other sizes, and those that a file does not have, begin anew.
        let theirs = weights.network.as_ref().map(|n| (n.dino_head, n.ibot_head));
        let mut parts = vec!["backbone."];
        let heads = [
            ("dino_head.", Some(sizes.dino_head), theirs.map(|(dino, _)| dino)),
            ("ibot_head.", sizes.ibot_head, theirs.and_then(|(_, ibot)| ibot)),
        ];
        for (name, ours, theirs) in heads.into_iter().filter(|(_, ours, _)| ours.is_some()) {
            if ours == theirs {
                parts.push(name);
            } else {
                tracing::warn!(
                    "{} has no {} of these sizes: it begins anew, and features get worse before they get better",
                    weights.dict.origin.display(),
                    name.trim_end_matches('.')
                );
            }
        }
        let weights = Weights { dict: load::parts_of(&weights.dict, &parts)?, ..weights };
        let report = load::fill(student.params_mut(), "student.", &weights, &sizes.backbone, |name| {
            let name = name.trim_start_matches("student.");
            parts.iter().any(|part| name.starts_with(part)) && !name.ends_with("mask_token")
        })?;
        tracing::info!("{report}");
    }
    let copy = |name: &str| -> Result<Network> {
        let mut copy = sizes.network(&builder.pp(name), &config.start())?;
        for (to, from) in copy.params_mut().into_iter().zip(student.params()) {
            to.set(&from.master)?;
        }
        Ok(copy)
    };
    let Some(weights) = teacher else {
        let teacher = copy("teacher")?;
        return assemble(config, student, teacher, None);
    };
    let average = copy("average")?;
    let theirs = weights.network.clone().unwrap_or(sizes);
    let mut teacher = theirs.network(&builder.pp("teacher"), &config.start())?;
    load::fill(teacher.params_mut(), "teacher.", &weights, &theirs.backbone, |_| true)?;
    if config.ibot_weight == 0.0 {
        teacher.ibot_head = None;
    }
    assemble(config, student, teacher, Some(average))
}

#[cfg(test)]
mod tests;
