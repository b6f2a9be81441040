//! Runs of image-text pre-training from their configuration to the finished weights.

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::begin::{check_dtype, find, state, train};
use super::{Clock, Outcome, Plan, RunDir};
use crate::data::augment::CropRange;
use crate::data::text::Tokenizer;
use crate::data::{Folder, Image, Pairs, Source, Stream, pairs, transforms};
use crate::eval::image_text::{self, Embedder, Recall};
use crate::eval::{ClassNames, zero_shot};
use crate::nn::Builder;
use crate::ops::{adafactor, adamw, lion};
use crate::optim::schedule::Cosine;
use crate::optim::{Adafactor, AdamW, Lion, Optimizer};
use crate::recipes::Numbers;
use crate::recipes::siglip::flags::{self, Config};
use crate::recipes::siglip::init::ImageWeights;
use crate::recipes::siglip::{Pretrain, Siglip, Sizes, factor, freeze, freeze_marked, load};
use crate::{DType, Device, Error, Result};

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
    let data = Arc::new(Pairs::open(&config.data, &reading(config, config.images.clone()))?);
    let plan = plan(config, data.len())?;
    let found = find(resume, || RunDir::resume(&config.out, config, data.identity(), config.keep))?;
    let builder = Builder::new(device, dtype, config.seed);
    let (model, sizes, tokenizer) = match state(&found) {
        // The files that it began with are not needed any more.
        Some(state) => {
            let unmarked = || Error::checkpoint(&state.model.origin, "does not state its sizes, as a run's does");
            let sizes = load::marked(&state.model)?.ok_or_else(unmarked)?;
            let mut model = Siglip::new(&builder, &sizes)?;
            freeze_marked(&mut model, &state.model);
            let tokenizer = tokenizer(config, resume, sizes.context_len)?;
            (model, sizes, tokenizer)
        }
        None => begin(config, &builder, resume)?,
    };
    let mut optimizer = optimizer(config, &sizes);
    let image_size = sizes.image_size;
    let mut task = Pretrain::new(config, model, sizes, tokenizer)?;
    let travels = task.tokenizer().clone();
    let create = || {
        travels.save(&config.out)?; // before config.toml: a run that can be continued has it
        RunDir::create(&config.out, config, data.identity(), config.keep)
    };
    let transform = transform(config, image_size)?;
    let checks = Checks::open(config)?;
    let mut evaluate = |task: &mut Pretrain, _| checks.run(config, task);
    let (outcome, run) =
        train(&mut task, optimizer.as_mut(), data.clone(), transform, &plan, found, create, &mut evaluate)?;
    if outcome == Outcome::Finished {
        load::save(run.path(), &task.model, &task.sizes)?;
    }
    Ok((outcome, task))
}

/// What is measured at the end of each epoch.
struct Checks {
    zero_shot: Option<(Arc<Folder>, ClassNames)>,
    retrieval: Option<Arc<Pairs>>,
}

impl Checks {
    /// What an evaluation would stumble over is found here, not after the first epoch.
    fn open(config: &Config) -> Result<Self> {
        let readable = |path: &PathBuf, source: &dyn Source| match (0..source.len()).any(|i| source.load(i).is_ok()) {
            true => Ok(()),
            false => Err(Error::Dataset { path: path.clone(), cause: "no readable image".into() }),
        };
        let classes = |path: &PathBuf| -> Result<_> {
            let folder = Folder::labelled(path)?;
            let names = ClassNames::new(&folder, config.classes.as_deref())?;
            zero_shot::Prompts::new(&names.names, &zero_shot::TEMPLATES)?;
            readable(path, &folder)?;
            Ok((Arc::new(folder), names))
        };
        let pairs = |path: &PathBuf| -> Result<_> {
            let pairs = Pairs::open(path, &reading(config, None))?;
            readable(path, &pairs)?;
            Ok(Arc::new(pairs))
        };
        Ok(Self {
            zero_shot: config.zero_shot.as_ref().map(classes).transpose()?,
            retrieval: config.retrieval.as_ref().map(pairs).transpose()?,
        })
    }

    fn run(&self, config: &Config, task: &Pretrain) -> Result<Numbers> {
        let embedder = Embedder {
            model: &task.model,
            sizes: &task.sizes,
            tokenizer: task.tokenizer(),
            interpolation: config.interpolation,
            crop: false,
            batch: config.batch_size,
        };
        let mut numbers = vec![];
        if let Some((folder, names)) = &self.zero_shot {
            let found = embedder.zero_shot(folder.clone(), names, &zero_shot::TEMPLATES, || ())?;
            numbers.push(("zero_shot_top1", found.correct.accuracy()));
        }
        if let Some(pairs) = &self.retrieval {
            let Recall { found, .. } = embedder.retrieval(pairs.clone(), &[1], || ())?;
            numbers.push(("image_to_text_recall1", found.image_to_text[0]));
            numbers.push(("text_to_image_recall1", found.text_to_image[0]));
        }
        Ok(numbers)
    }
}

/// How pairs are read; `images`: the folder from which their paths count.
fn reading(config: &Config, images: Option<PathBuf>) -> pairs::Options {
    pairs::Options { columns: pairs::Columns { images, ..config.columns() }, strict: config.strict }
}

/// The numbers of the run. Its schedule is by updates, the first of which has a rate of 0, as big_vision has it.
fn plan(config: &Config, pairs: usize) -> Result<Plan> {
    let mut plan = Plan {
        epochs: config.epochs,
        accum_iter: config.accum_iter,
        batch_size: config.batch_size,
        unit: "pairs",
        schedule: Cosine { lr: config.learning_rate(), min_lr: config.min_lr, warmup_epochs: 0.0, epochs: 0.0 },
        clock: Clock::Updates,
        clip_grad: Some(config.clip_grad).filter(|clip| clip.is_finite()),
        skip_non_finite: 0,
        save_every: config.save_every,
        log_every: config.log_every,
        seed: config.seed,
        strict: config.strict,
    };
    let total = plan.check(pairs)? * config.epochs;
    plan.schedule.warmup_epochs = config.warmup(total) as f64;
    plan.schedule.epochs = total as f64;
    Ok(plan)
}

/// The tokenizer of a new run, for texts of `len` ids, or the one that a run to be continued keeps.
fn tokenizer(config: &Config, resume: bool, len: usize) -> Result<Tokenizer> {
    match resume {
        true => Tokenizer::beside(&config.out, None, config.text(len)),
        false => Tokenizer::open(&config.tokenizer, config.text(len)),
    }
}

/// The same of a run that starts from weights, which were trained with what they say happens to texts.
fn tokenizer_of(init: &Path, config: &Config, resume: bool, sizes: &Sizes) -> Result<Tokenizer> {
    match resume {
        true => image_text::tokenizer(&config.out, None, sizes),
        false => image_text::tokenizer(init, Some(&config.tokenizer), sizes),
    }
}

/// A model before its first step, from the weights that it is to start from.
fn begin(config: &Config, builder: &Builder, resume: bool) -> Result<(Siglip, Sizes, Tokenizer)> {
    if let Some(path) = &config.init {
        let w = load::weights(path)?;
        let sizes = Sizes { image_size: config.image_size.unwrap_or(w.sizes.image_size), ..w.sizes.clone() };
        sizes.check()?;
        load::to_hf(&sizes)?; // how the weights are written at the end
        let tokenizer = tokenizer_of(path, config, resume, &sizes)?;
        let mut model = Siglip::new(builder, &sizes)?;
        load::initialise(&mut model, &sizes, &w)?;
        if config.freeze_image {
            freeze(&mut model, |_| true);
        }
        return Ok((model, sizes, tokenizer));
    }
    let tokenizer = tokenizer(config, resume, config.sizes(1).context_len)?;
    let mut sizes = config.sizes(tokenizer.vocab());
    let image = config.init_image.as_deref().map(ImageWeights::read).transpose()?;
    if let Some(image) = &image {
        sizes = image.fit(&sizes)?;
    }
    let (scale, bias) = (config.scale().ln() as f32, config.bias_init.value(config.effective_batch()) as f32);
    let mut model = Siglip::starting_at(builder, &sizes, scale, bias)?;
    if let Some(image) = &image {
        image.put(&mut model, &sizes)?;
        if config.freeze_image {
            freeze(&mut model, |name| image.has(name));
        }
    }
    Ok((model, sizes, tokenizer))
}

fn optimizer(config: &Config, sizes: &Sizes) -> Box<dyn Optimizer> {
    let rules = config.rules();
    match config.optimizer {
        flags::Optimizer::AdamW => {
            let hyper = adamw::Hyper { beta1: config.beta1, beta2: config.beta2(), eps: 1e-8 };
            Box::new(AdamW::new(hyper, rules))
        }
        flags::Optimizer::Adafactor => {
            let usual = adafactor::Hyper::scaling_vit();
            let hyper = adafactor::Hyper { momentum: config.beta1, cap: config.beta2(), ..usual };
            Box::new(Adafactor::new(hyper, rules, factor::views(sizes)))
        }
        flags::Optimizer::Lion => {
            Box::new(Lion::new(lion::Hyper { beta1: config.beta1, beta2: config.beta2() }, rules))
        }
    }
}

type Transform = Box<dyn Fn(&Image, &mut Stream) -> Result<Vec<u8>> + Send + Sync>;

/// The whole image, or a crop of it.
fn transform(config: &Config, size: [usize; 2]) -> Result<Transform> {
    Ok(match config.crop_min {
        None => Box::new(transforms::squash(size, config.interpolation)?),
        Some(least) => {
            let range = CropRange { scale: (least, 1.0), mirror: config.mirror, ..CropRange::PRETRAIN };
            Box::new(transforms::pretrain(size, range)?)
        }
    })
}
