//! Runs of the masked autoencoder from their configuration to the finished weights.

use std::path::Path;
use std::sync::Arc;

use super::{Outcome, Plan, RunDir};
use crate::checkpoint::run_state::RunState;
use crate::checkpoint::{self, HfConfig, LoadOptions, StateDict, load_into, to_upstream};
use crate::data::augment::{CropRange, Normalise, evaluation_crop};
use crate::data::loader::{Options, Position, Unreadable};
use crate::data::rand_augment::RandAugment;
use crate::data::random_erase::RandomErase;
use crate::data::{Folder, Image, Loader, Source, transforms};
use crate::nn::{Builder, Module};
use crate::ops::adamw::Hyper;
use crate::optim::schedule::Cosine;
use crate::optim::{AdamW, Rules};
use crate::recipes::Task;
use crate::recipes::mae::finetune::classes_of;
use crate::recipes::mae::{Config, Finetune, FinetuneConfig, Pretrain, load};
use crate::{DType, Device, Error, Result};

/// Images in the picture that a run draws at its end.
const PICTURES: usize = 8;
/// Decoded images kept in memory, in bytes: small data sets are read from disk once.
const CACHE: usize = 1 << 30;

/// Trains (or continues, with `resume`) the run that `config` describes; returns the trained task.
///
/// Whatever can be checked is checked before the run's folder is made.
///
/// # Errors
/// Everything a run can meet: see [`Error`].
pub fn pretrain(config: &Config, device: &Device, dtype: DType, resume: bool) -> Result<(Outcome, Pretrain)> {
    config.check()?;
    if !resume {
        RunDir::require_free(&config.out)?;
    }
    let data = Arc::new(Folder::open(&config.data)?.with_cache(CACHE));
    if let Some(test) = &config.knn {
        classes_of(&Folder::labelled(&config.data)?, &Folder::labelled(test)?)?; // used after the last epoch
    }
    let plan = Plan {
        epochs: config.epochs,
        accum_iter: config.accum_iter,
        batch_size: config.batch_size,
        schedule: Cosine {
            lr: config.learning_rate(),
            min_lr: config.min_lr,
            warmup_epochs: config.warmup(),
            epochs: config.epochs as f64,
        },
        clip_grad: config.clip_grad,
        save_every: config.save_every,
        log_every: config.log_every,
    };
    let per_epoch = steps_per_epoch(&plan, data.len())?;
    let [size, _] = config.sizes().image_size;
    let range = CropRange { scale: (config.crop_min, 1.0), mirror: config.mirror, ..CropRange::PRETRAIN };
    let transform = transforms::pretrain(size, range)?;
    let samples = samples(&data, size, config.strict)?;
    let mut task = Pretrain::new(config, device, dtype, samples)?;
    let hyper = Hyper { beta1: config.beta1, beta2: config.beta2, eps: 1e-8 };
    let mut optimizer = AdamW::new(hyper, Rules::pretraining(config.weight_decay));
    let (run, start) = if resume {
        let (run, state) = RunDir::resume(&config.out, config, config.seed, config.keep)?;
        let start = state.map_or(Ok(0), |state| restore(&mut task, &mut optimizer, &state))?;
        (run, start)
    } else {
        if let Some(path) = &config.init {
            initialise(&mut task, path)?;
        }
        (RunDir::create(&config.out, config, config.seed, config.keep)?, 0)
    };
    tracing::info!(
        "{} parameters on {device} in {dtype}, {} images, effective batch {}, learning rate {:.3e}",
        task.model.trainable(),
        data.len(),
        config.batch_size as u64 * config.accum_iter,
        plan.schedule.lr
    );
    let options = options(&plan, config.seed, config.strict, start, per_epoch);
    let outcome = Loader::new(data, transform, options).and_then(|mut loader| {
        let outcome = super::run(&mut task, &mut optimizer, &mut loader, &plan, &run, start);
        report_failures(&loader);
        outcome
    });
    let outcome = run.settle(outcome)?;
    if outcome == Outcome::Finished {
        export(&mut task, config, run.path())?;
    }
    Ok((outcome, task))
}

/// Updates per epoch; refuses batches that the data set cannot fill.
fn steps_per_epoch(plan: &Plan, images: usize) -> Result<u64> {
    if plan.batch_size > images {
        let expected = format!("at most the {images} images of the data set");
        return Err(Error::config("batch_size", plan.batch_size, expected));
    }
    plan.steps_per_epoch((images / plan.batch_size) as u64)
}

/// The loader of a run from update `start`.
fn options(plan: &Plan, seed: u64, strict: bool, start: u64, per_epoch: u64) -> Options {
    Options {
        unreadable: if strict { Unreadable::Fail } else { Unreadable::Replace },
        start: Position { epoch: start / per_epoch, step: start % per_epoch * plan.accum_iter },
        ..Options::training(plan.batch_size, seed)
    }
}

fn report_failures<T: Copy + Send + 'static>(loader: &Loader<T>) {
    let failures = loader.failures();
    if !failures.is_empty() {
        tracing::warn!("{} unreadable images were skipped; they are named above", failures.len());
    }
}

/// The first readable images of the data set, cropped as in evaluation.
fn samples(data: &Folder, size: usize, strict: bool) -> Result<Vec<Image>> {
    let stride = (data.len() / PICTURES).max(1); // spread over the classes
    let mut images = Vec::new();
    for index in (0..data.len()).step_by(stride).take(PICTURES) {
        match data.load(index) {
            Ok(image) => images.push(evaluation_crop(&image, size)?),
            Err(e) if strict => return Err(e),
            Err(_) => {} // the loader counts and names it
        }
    }
    Ok(images)
}

fn restore<T: Task>(task: &mut T, optimizer: &mut AdamW, state: &RunState) -> Result<u64> {
    let report = load_into(&mut task.module().params_mut(), &state.model, &LoadOptions::default())?;
    report.require(|_| true)?;
    optimizer.load_state(state.optimizer.iter().map(|(name, t)| (name.to_string(), t.clone())))?;
    Ok(state.progress.step)
}

fn initialise(task: &mut Pretrain, path: &Path) -> Result<()> {
    let dict = to_upstream(checkpoint::read(path)?)?;
    let report = load_into(&mut task.model.params_mut(), &dict, &LoadOptions::default())?;
    report.require(|name| !load::only_in_pretraining(name))?; // anything else would be training from scratch unawares
    if !report.missing.is_empty() {
        tracing::warn!("{}: not in the file, left at initial values: {}", path.display(), report.missing.join(", "));
    }
    Ok(())
}

/// Writes `model.safetensors` under the names of Hugging Face and `config.json`, and `upstream.safetensors` under the
/// official names.
fn export(task: &mut Pretrain, config: &Config, folder: &Path) -> Result<()> {
    let mut weights = StateDict::from_params(task.module().params())?;
    load::mark(&mut weights, &config.sizes(), !config.raw_pixels)?;
    checkpoint::safetensors::write(folder.join("upstream.safetensors"), &weights)?;
    checkpoint::hf::save(folder, &hf_config(config), &weights)
}

/// The sizes of a run as a Hugging Face config.json.
fn hf_config(config: &Config) -> HfConfig {
    let sizes = config.sizes();
    HfConfig {
        image_size: sizes.image_size,
        patch_size: sizes.patch_size,
        num_channels: sizes.in_chans,
        layer_norm_eps: f64::from(sizes.eps),
        hidden_size: sizes.embed_dim,
        num_hidden_layers: sizes.depth,
        num_attention_heads: sizes.num_heads,
        intermediate_size: sizes.hidden,
        decoder_hidden_size: sizes.decoder_embed_dim,
        decoder_num_hidden_layers: sizes.decoder_depth,
        decoder_num_attention_heads: sizes.decoder_num_heads,
        decoder_intermediate_size: sizes.decoder_hidden,
        mask_ratio: config.mask_ratio,
        norm_pix_loss: !config.raw_pixels,
        ..HfConfig::default()
    }
}

/// Fine-tunes (or continues) the run that `config` describes; the best reading of its end is the logged `val_top1`.
pub fn finetune(config: &FinetuneConfig, device: &Device, dtype: DType, resume: bool) -> Result<(Outcome, Finetune)> {
    config.check()?;
    if !resume {
        RunDir::require_free(&config.out)?;
    }
    let train = Arc::new(Folder::labelled(&config.train)?.with_cache(CACHE));
    let val = Arc::new(Folder::labelled(&config.val)?.with_cache(CACHE));
    let classes = classes_of(&train, &val)?;
    let plan = Plan {
        epochs: config.epochs,
        accum_iter: config.accum_iter,
        batch_size: config.batch_size,
        schedule: Cosine {
            lr: config.learning_rate(),
            min_lr: config.min_lr,
            warmup_epochs: config.warmup(),
            epochs: config.epochs as f64,
        },
        clip_grad: config.clip_grad,
        save_every: config.save_every,
        log_every: config.log_every,
    };
    let per_epoch = steps_per_epoch(&plan, train.len())?;
    let settings = transforms::Finetune {
        rand_augment: match config.rand_augment.as_str() {
            "none" => None,
            text => Some(RandAugment::parse(text)?),
        },
        random_erase: (config.random_erase > 0.0)
            .then(|| RandomErase { probability: config.random_erase, ..RandomErase::default() }),
    };
    let builder = Builder::new(device, dtype, config.seed);
    let (model, sizes) = load::classifier(&config.model, &builder, classes, config.pool, config.image_size)?;
    let range = CropRange { scale: (config.crop_min, 1.0), mirror: config.mirror, ..CropRange::SUPERVISED };
    let transform = transforms::finetune(sizes.image_size[0], range, settings, Normalise::imagenet())?;
    let mut task = Finetune::new(config, model, classes, val)?;
    let hyper = Hyper { beta1: 0.9, beta2: 0.999, eps: 1e-8 };
    let mut optimizer = AdamW::new(hyper, Rules::finetuning(config.weight_decay, config.layer_decay, sizes.depth));
    let (run, start) = if resume {
        let (run, state) = RunDir::resume(&config.out, config, config.seed, config.keep)?;
        let start = state.map_or(Ok(0), |state| restore(&mut task, &mut optimizer, &state))?;
        (run, start)
    } else {
        (RunDir::create(&config.out, config, config.seed, config.keep)?, 0)
    };
    let options = options(&plan, config.seed, config.strict, start, per_epoch);
    let outcome = Loader::new(train, transform, options).and_then(|mut loader| {
        let outcome = super::run(&mut task, &mut optimizer, &mut loader, &plan, &run, start);
        report_failures(&loader);
        outcome
    });
    let outcome = run.settle(outcome)?;
    if outcome == Outcome::Finished {
        let mut weights = StateDict::from_params(task.model.params())?;
        load::mark(&mut weights, &sizes, false)?;
        checkpoint::safetensors::write(run.path().join("upstream.safetensors"), &weights)?;
    }
    Ok((outcome, task))
}
