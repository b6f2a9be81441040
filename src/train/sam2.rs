//! Runs of SAM-2 from their configuration to the finished weights.

use std::sync::Arc;

use super::begin::{check_dtype, find, state, train};
use super::{Clock, Outcome, Plan, RunDir};
use crate::checkpoint;
use crate::data::Image;
use crate::data::binary_mask::BinaryMask;
use crate::data::contact;
use crate::data::videos::{Clips, Videos};
use crate::eval::video_objects::{Start, follow};
use crate::ops::adamw::Hyper;
use crate::optim::AdamW;
use crate::optim::schedule::Cosine;
use crate::recipes::Task;
use crate::recipes::mae::load::read;
use crate::recipes::sam2::{Config, Draw, Pretrain, Sam2, load, picture};
use crate::{DType, Device, Result};

/// Frames in the picture that is drawn with every checkpoint.
const PICTURES: usize = 6;

/// Trains (or continues, with `resume`) the run that `config` describes; returns the trained task.
///
/// Whatever can be checked is checked before the run's folder is made.
///
/// # Errors
/// Everything a run can meet: see [`Error`](crate::Error).
pub fn pretrain(config: &Config, device: &Device, dtype: DType, resume: bool) -> Result<(Outcome, Pretrain)> {
    config.check()?;
    check_dtype(dtype)?;
    if !resume {
        RunDir::require_free(&config.out)?;
    }
    let videos = Videos::open(&config.data, config.strict)?;
    let samples = samples(&videos);
    let data = Arc::new(Clips::new(videos, config.frames, config.max_objects, config.reverse)?);
    if let Some(val) = &config.val {
        Videos::open(val, true)?; // used after the last epoch
    }
    let plan = Plan {
        epochs: config.epochs,
        accum_iter: config.accum_iter,
        batch_size: 1,
        unit: "videos",
        schedule: Cosine {
            lr: config.lr,
            min_lr: config.lr * config.min_lr_ratio,
            warmup_epochs: config.warmup(),
            epochs: config.epochs as f64,
        },
        clock: Clock::Epochs,
        clip_grad: Some(config.clip_grad),
        skip_non_finite: 0,
        save_every: config.save_every,
        log_every: config.log_every,
        seed: config.seed,
        strict: config.strict,
    };
    plan.check(crate::data::Source::len(&*data))?;
    let found = find(resume, || RunDir::resume(&config.out, config, data.identity(), config.keep))?;
    let pictures = samples.map(|samples| Box::new(move |model: &Sam2| draw(model, &samples)) as Draw);
    let mut task = Pretrain::new(config, device, dtype, pictures)?;
    if let (Some(init), None) = (&config.init, state(&found)) {
        load::initialise(&mut task.model, &read(init)?)?;
    }
    let mut optimizer = AdamW::new(Hyper { beta1: 0.9, beta2: 0.999, eps: 1e-8 }, config.rules());
    let create = || RunDir::create(&config.out, config, data.identity(), config.keep);
    let augment = config.augment();
    let transform = move |clip: &Image, rng: &mut crate::data::Stream| augment.apply(clip, rng);
    let mut nothing = |_: &mut Pretrain, _| Ok(vec![]);
    let (outcome, run) = train(&mut task, &mut optimizer, data.clone(), transform, &plan, found, create, &mut nothing)?;
    if outcome == Outcome::Finished {
        let weights = task.weights()?;
        checkpoint::safetensors::write(run.path().join("upstream.safetensors"), &weights)?;
        load::save(run.path(), &task.model)?;
    }
    Ok((outcome, task))
}

/// Frames of the first video that can be read and shows an object in its first frame; none where there is no such.
fn samples(videos: &Videos) -> Option<Start> {
    videos.videos.iter().find_map(|video| {
        let frames: Vec<usize> = video.masks().ok()?.annotated().iter().copied().take(PICTURES).collect();
        Start::new(video, &frames).ok()
    })
}

/// The given masks on the first frame and those that the model finds on the others, side by side.
fn draw(model: &Sam2, start: &Start) -> Result<Image> {
    fn numbered(masks: &[BinaryMask]) -> Vec<(usize, &BinaryMask)> {
        masks.iter().enumerate().collect()
    }
    let mut pictures = vec![picture::overlay(&start.frames[0], &numbered(&start.masks))];
    let found = follow(model, start)?;
    pictures
        .extend(start.frames[1..].iter().zip(&found).map(|(frame, masks)| picture::overlay(frame, &numbered(masks))));
    contact::grid(&pictures, PICTURES, 2)
}
