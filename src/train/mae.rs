//! Runs of the masked autoencoder from their configuration to the finished weights.

use std::sync::Arc;

use super::begin::{Found, check_dtype, find, state, train};
use super::{Clock, Outcome, Plan, RunDir};
use crate::checkpoint::{self, HfConfig};
use crate::data::augment::{CropRange, Normalise, evaluation_crop};
use crate::data::rand_augment::RandAugment;
use crate::data::random_erase::RandomErase;
use crate::data::{Folder, Image, Source, transforms};
use crate::nn::Builder;
use crate::ops::adamw::Hyper;
use crate::optim::schedule::Cosine;
use crate::optim::{AdamW, Rules};
use crate::recipes::Task;
use crate::recipes::mae::finetune::classes_of;
use crate::recipes::mae::score::Score;
use crate::recipes::mae::{Classifier, Config, Finetune, FinetuneConfig, Pretrain, Sizes, load};
use crate::{DType, Device, Result};

/// Images in the picture that is drawn with every checkpoint.
const PICTURES: usize = 8;
/// Decoded images kept in memory, in bytes: small data sets are read from disk once.
const CACHE: usize = 1 << 30;

/// The plan in a configuration; those of all recipes name its numbers alike.
macro_rules! plan {
    ($config:expr) => {
        Plan {
            epochs: $config.epochs,
            accum_iter: $config.accum_iter,
            batch_size: $config.batch_size,
            unit: "images",
            schedule: Cosine {
                lr: $config.learning_rate(),
                min_lr: $config.min_lr,
                warmup_epochs: $config.warmup(),
                epochs: $config.epochs as f64,
            },
            clock: Clock::Epochs,
            clip_grad: $config.clip_grad,
            skip_non_finite: 0,
            save_every: $config.save_every,
            log_every: $config.log_every,
            seed: $config.seed,
            strict: $config.strict,
        }
    };
}

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
    let data = Arc::new(Folder::open(&config.data)?.with_cache(CACHE));
    if let Some(test) = &config.knn {
        classes_of(&Folder::labelled(&config.data)?, &Folder::labelled(test)?)?; // used after the last epoch
    }
    let found = find(resume, || RunDir::resume(&config.out, config, data.identity(), config.keep))?;
    let init = match &config.init {
        Some(path) if state(&found).is_none() => Some(load::weights(path)?),
        _ => None,
    };
    let mut sizes = sizes_of(&found)?.unwrap_or_else(|| config.sizes());
    if let Some(init) = &init {
        sizes.eps = init.sizes.eps; // the weights were trained with it
    }
    let range = CropRange { scale: (config.crop_min, 1.0), mirror: config.mirror, ..CropRange::PRETRAIN };
    let transform = transforms::pretrain(sizes.image_size, range)?;
    let plan = plan!(config);
    plan.check(data.len())?;
    let samples = samples(&data, sizes.image_size, config.strict)?;
    let mut task = Pretrain::new(config, sizes.clone(), device, dtype, samples)?;
    if let Some(init) = &init {
        load::initialise(&mut task.model, &sizes, init)?;
    }
    let hyper = Hyper { beta1: config.beta1, beta2: config.beta2, eps: 1e-8 };
    let mut optimizer = AdamW::new(hyper, Rules::pretraining(config.weight_decay));
    let create = || RunDir::create(&config.out, config, data.identity(), config.keep);
    let mut nothing = |_: &mut Pretrain, _| Ok(vec![]);
    let (outcome, run) = train(&mut task, &mut optimizer, data.clone(), transform, &plan, found, create, &mut nothing)?;
    if outcome == Outcome::Finished {
        upstream(&run, &task)?;
        checkpoint::hf::save(run.path(), &hf_config(config, &sizes), &task.weights()?)?;
    }
    Ok((outcome, task))
}

/// Fine-tunes (or continues) the run that `config` describes.
///
/// # Errors
/// Everything a run can meet: see [`Error`](crate::Error).
pub fn finetune(config: &FinetuneConfig, device: &Device, dtype: DType, resume: bool) -> Result<(Outcome, Finetune)> {
    config.check()?;
    check_dtype(dtype)?;
    if !resume {
        RunDir::require_free(&config.out)?;
    }
    let data = Arc::new(Folder::labelled(&config.train)?.with_cache(CACHE));
    let val = Arc::new(Folder::labelled(&config.val)?.with_cache(CACHE));
    let classes = classes_of(&data, &val)?;
    let plan = plan!(config);
    plan.check(data.len())?;
    let settings = transforms::Finetune {
        rand_augment: match config.rand_augment.as_str() {
            "none" => None,
            text => Some(RandAugment::parse(text)?),
        },
        random_erase: (config.random_erase > 0.0)
            .then(|| RandomErase { probability: config.random_erase, ..RandomErase::default() }),
    };
    let found = find(resume, || RunDir::resume(&config.out, config, data.identity(), config.keep))?;
    let builder = Builder::new(device, dtype, config.seed);
    let (model, sizes) = match sizes_of(&found)? {
        // The pre-trained file is not needed any more.
        Some(sizes) => (Classifier::new(&builder, &sizes, classes, config.pool)?, sizes),
        None => load::classifier(&config.model, &builder, classes, Some(config.pool), config.image_size)?,
    };
    let range = CropRange { scale: (config.crop_min, 1.0), mirror: config.mirror, ..CropRange::SUPERVISED };
    let transform = transforms::finetune(sizes.image_size, range, settings, Normalise::imagenet())?;
    let hyper = Hyper { beta1: 0.9, beta2: 0.999, eps: 1e-8 };
    let mut optimizer = AdamW::new(hyper, Rules::finetuning(config.weight_decay, config.layer_decay, sizes.depth));
    let mut task = Finetune::new(config, model, sizes, classes, val)?;
    let create = || RunDir::create(&config.out, config, data.identity(), config.keep);
    let mut validate = |task: &mut Finetune, _| {
        let Score { top1, top5, loss } = task.validation()?;
        Ok(vec![("val_top1", top1), ("val_top5", top5), ("val_loss", loss)])
    };
    let (outcome, run) =
        train(&mut task, &mut optimizer, data.clone(), transform, &plan, found, create, &mut validate)?;
    if outcome == Outcome::Finished {
        upstream(&run, &task)?;
    }
    Ok((outcome, task))
}

fn sizes_of(found: &Found) -> Result<Option<Sizes>> {
    state(found).map_or(Ok(None), |state| load::marked(&state.model))
}

/// Writes `upstream.safetensors`: the weights under the official names.
fn upstream(run: &RunDir, task: &impl Task) -> Result<()> {
    checkpoint::safetensors::write(run.path().join("upstream.safetensors"), &task.weights()?)
}

/// The first readable images of the data set, cropped as in evaluation.
fn samples(data: &Folder, size: [usize; 2], strict: bool) -> Result<Vec<Image>> {
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

/// The sizes of a run as a Hugging Face config.json.
fn hf_config(config: &Config, sizes: &Sizes) -> HfConfig {
    HfConfig {
        image_size: sizes.image_size,
        patch_size: sizes.patch_size,
        num_channels: sizes.in_chans,
        // The shortest decimal of the f32: 1e-6, not 9.999999974752427e-7.
        layer_norm_eps: sizes.eps.to_string().parse().unwrap_or(f64::from(sizes.eps)),
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
