//! Fine-tuning of the encoder as a classifier: configuration and step.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::classifier::{Classifier, Pool, drop_rates, drops};
use super::config::{check_positive, check_ranges, parse_size};
use super::score::{Score, score};
use super::{Sizes, load};
use crate::checkpoint::StateDict;
use crate::data::mixup::{Mix, Mixing, mix, soft_targets};
use crate::data::{Batch, Folder, Purpose, Source, Stream};
use crate::nn::{Drops, Module};
use crate::ops::cross_entropy::{Targets, cross_entropy};
use crate::optim::schedule::scaled_lr;
use crate::recipes::{Found, Inputs, Task};
use crate::{Error, Grads, Result, Tape, Tensor, Var};

/// Everything a fine-tuning run depends on: the flags of `ocellus finetune`. Defaults are those of ViT-B in the paper.
#[derive(Clone, Debug, clap::Args, Serialize, Deserialize)]
pub struct FinetuneConfig {
    /// Pre-trained weights: a run folder, a Hugging Face folder, .safetensors or .pth
    #[arg(required = false, required_unless_present = "resume")]
    pub model: PathBuf,
    /// Class folder of training images
    #[arg(required = false, required_unless_present = "resume")]
    pub train: PathBuf,
    /// Class folder of validation images
    #[arg(required = false, required_unless_present = "resume")]
    pub val: PathBuf,
    /// Run folder to create
    #[arg(long, short, default_value = "runs/finetune")]
    pub out: PathBuf,
    /// Image side in pixels, or height x width as in 64x32; the position table is resized [default: the weights']
    #[arg(long, value_parser = parse_size)]
    pub image_size: Option<[usize; 2]>,
    /// Feature the head sees: mean of the patches or class token
    #[arg(long, value_enum, default_value_t = Pool::Mean)]
    pub pool: Pool,
    /// Passes over the data (paper: 100 for ViT-B, 50 for ViT-L and ViT-H)
    #[arg(long, default_value_t = 100)]
    pub epochs: u64,
    /// Epochs of linear warm-up [default: 5, at most a tenth of the epochs]
    #[arg(long)]
    pub warmup_epochs: Option<f64>,
    /// Images per forward pass
    #[arg(long, default_value_t = 64)]
    pub batch_size: usize,
    /// Forward passes per update
    #[arg(long, default_value_t = 1)]
    pub accum_iter: u64,
    /// Learning rate per 256 images (paper: 5e-4 for ViT-B, 1e-3 for ViT-L and ViT-H)
    #[arg(long, default_value_t = 5e-4)]
    pub blr: f64,
    /// Learning rate itself, instead of blr
    #[arg(long)]
    pub lr: Option<f64>,
    /// Where the cosine ends
    #[arg(long, default_value_t = 1e-6)]
    pub min_lr: f64,
    /// Weight decay of matrices
    #[arg(long, default_value_t = 0.05)]
    pub weight_decay: f64,
    /// Factor of the learning rate from one layer to the one before it (paper: 0.65 for ViT-B, 0.75 for larger)
    #[arg(long, default_value_t = 0.65)]
    pub layer_decay: f64,
    /// Largest rate of stochastic depth (paper: 0.1 ViT-B, 0.2 ViT-L, 0.3 ViT-H)
    #[arg(long, default_value_t = 0.1)]
    pub drop_path: f64,
    /// Label smoothing
    #[arg(long, default_value_t = 0.1)]
    pub smoothing: f64,
    /// Mixup's alpha; 0 for none
    #[arg(long, default_value_t = 0.8)]
    pub mixup: f64,
    /// CutMix's alpha; 0 for none
    #[arg(long, default_value_t = 1.0)]
    pub cutmix: f64,
    /// RandAugment as in timm; `none` for none
    #[arg(long, default_value = "rand-m9-mstd0.5-inc1")]
    pub rand_augment: String,
    /// Probability that a box of an image is erased
    #[arg(long, default_value_t = 0.25)]
    pub random_erase: f64,
    /// Smallest share of the image's area in a random crop
    #[arg(long, default_value_t = 0.08)]
    pub crop_min: f64,
    /// Probability of a mirrored crop
    #[arg(long, default_value_t = 0.5)]
    pub mirror: f64,
    /// Largest global gradient norm [default: no limit]
    #[arg(long)]
    pub clip_grad: Option<f64>,
    /// Seed of the head, order, augmentation and drops
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Stop at the first unreadable image instead of counting and naming them
    #[arg(long)]
    pub strict: bool,
    /// Keep only block inputs and compute the rest again in the backward pass
    #[arg(long)]
    pub recompute: bool,
    /// Steps between checkpoints
    #[arg(long, default_value_t = 500)]
    pub save_every: u64,
    /// Checkpoints kept
    #[arg(long, default_value_t = 2)]
    pub keep: usize,
    /// Steps between lines of metrics.jsonl
    #[arg(long, default_value_t = 10)]
    pub log_every: u64,
    /// Type kernels compute in: what `--dtype` was when the run began, for the runs that continue it.
    #[arg(skip)]
    pub dtype: Option<String>,
}

impl FinetuneConfig {
    /// The learning rate used.
    pub fn learning_rate(&self) -> f64 {
        self.lr.unwrap_or_else(|| scaled_lr(self.blr, self.batch_size * self.accum_iter as usize))
    }

    /// Warm-up in epochs.
    pub fn warmup(&self) -> f64 {
        self.warmup_epochs.unwrap_or((self.epochs as f64 / 10.0).min(5.0))
    }

    /// How batches are mixed.
    pub fn mixing(&self) -> Mixing {
        Mixing {
            mixup_alpha: self.mixup,
            cutmix_alpha: self.cutmix,
            probability: if self.mixup == 0.0 && self.cutmix == 0.0 { 0.0 } else { 1.0 },
            smoothing: self.smoothing,
            ..Mixing::default()
        }
    }

    /// Refuses values no run can use.
    pub fn check(&self) -> Result<()> {
        check_positive(&[
            ("epochs", self.epochs),
            ("batch_size", self.batch_size as u64),
            ("accum_iter", self.accum_iter),
            ("save_every", self.save_every),
            ("log_every", self.log_every),
        ])?;
        check_ranges(&[
            ("layer_decay", self.layer_decay, 1e-6..=1.0),
            ("drop_path", self.drop_path, 0.0..=0.99),
            ("smoothing", self.smoothing, 0.0..=0.99),
            ("lr", self.learning_rate(), 0.0..=1e3),
            ("warmup_epochs", self.warmup(), 0.0..=self.epochs as f64),
            ("min_lr", self.min_lr, 0.0..=1e3),
            ("weight_decay", self.weight_decay, 0.0..=1e3),
            ("random_erase", self.random_erase, 0.0..=1.0),
            ("crop_min", self.crop_min, 1e-3..=1.0),
            ("mirror", self.mirror, 0.0..=1.0),
            ("clip_grad", self.clip_grad.unwrap_or(1.0), 1e-12..=f64::MAX),
        ])?;
        self.mixing().check()
    }
}

/// Fine-tuning of one classifier.
pub struct Finetune {
    /// The model.
    pub model: Classifier,
    classes: usize,
    mixing: Mixing,
    rates: Vec<f64>,
    seed: u64,
    val: Arc<Folder>,
    norm: Tensor,
    sizes: Sizes,
    batch_size: usize,
    score: Option<Score>,
}

impl Finetune {
    /// A classifier ready to train; `val` is evaluated after every epoch.
    pub fn new(
        config: &FinetuneConfig,
        mut model: Classifier,
        sizes: Sizes,
        classes: usize,
        val: Arc<Folder>,
    ) -> Result<Self> {
        config.check()?;
        model.trunk.recompute = config.recompute;
        let rates = drop_rates(config.drop_path, model.trunk.config.depth);
        let norm = super::imagenet_norm(model.norm.weight.master.device())?;
        let (mixing, seed, batch_size) = (config.mixing(), config.seed, config.batch_size);
        Ok(Self { model, classes, mixing, rates, seed, val, norm, sizes, batch_size, score: None })
    }

    /// Accuracy and loss on the validation images; measured once for the same weights.
    pub fn validation(&mut self) -> Result<Score> {
        if let Some(score) = self.score {
            return Ok(score);
        }
        let (trunk, device) = (&self.model.trunk.config, self.norm.device());
        let score = score(self.val.clone(), trunk.image, self.batch_size, |batch| {
            let images = Tensor::from_slice(&batch.images, trunk.images(batch.labels.len()), device)?;
            let logits = self.model.forward(&Tape::no_grad(), &Var::constant(images), Some(&self.norm), &[])?;
            Ok(logits.value().clone())
        })?;
        self.score = Some(score);
        Ok(score)
    }
}

/// Mixed images, their targets, and what stochastic depth drops.
pub struct FinetuneInputs {
    images: Tensor,
    targets: Tensor,
    drops: Vec<Drops>,
}

impl Inputs for FinetuneInputs {
    fn tensors(&mut self) -> Vec<&mut Tensor> {
        let drops = self.drops.iter_mut().flat_map(|d| [&mut d.attn, &mut d.mlp]).flatten();
        [&mut self.images, &mut self.targets].into_iter().chain(drops).collect()
    }
}

impl Task for Finetune {
    type Value = f32;
    type Inputs = FinetuneInputs;

    fn module(&mut self) -> &mut dyn Module {
        &mut self.model
    }

    fn weights(&self) -> Result<StateDict> {
        let mut weights = StateDict::from_params(self.model.params())?;
        load::mark(&mut weights, &self.sizes, None)?;
        Ok(weights)
    }

    fn inputs(&mut self, batch: &Batch<f32>) -> Result<FinetuneInputs> {
        self.score = None; // the weights are about to change
        let (count, device) = (batch.labels.len(), self.norm.device());
        let shape @ [_, _, height, width] = self.model.trunk.config.images(count);
        let mut values = batch.images.clone();
        let mut rng = Stream::new(self.seed, Purpose::MIX, batch.epoch, batch.step_in_epoch);
        let how = if self.mixing.probability > 0.0 { self.mixing.draw(&mut rng, width, height) } else { Mix::NONE };
        mix(&mut values, count, width, height, &how)?;
        let targets = soft_targets(&batch.labels, self.classes, self.mixing.smoothing, how.lam)?;
        let mut rng = Stream::new(self.seed, Purpose::DROP, batch.epoch, batch.step_in_epoch);
        Ok(FinetuneInputs {
            images: Tensor::from_slice(&values, shape, device)?,
            targets: Tensor::from_slice(&targets, [count, self.classes], device)?,
            drops: drops(&self.rates, device, |_, _| (0..count).map(|_| rng.unit_f32()).collect())?,
        })
    }

    fn micro_step(&mut self, inputs: &FinetuneInputs, scale: f64, grads: &mut Grads) -> Result<Found> {
        let tape = Tape::new();
        let logits = self.model.forward(&tape, &Var::constant(inputs.images.clone()), None, &inputs.drops)?;
        let loss = cross_entropy(&tape, &logits, Targets::Soft(&inputs.targets), 0.0)?;
        tape.backward_scaled(&loss, scale, grads)?;
        Ok(loss.value().clone().into())
    }
}

/// Checks that both folders have the same two or more classes; returns their number.
pub fn classes_of(train: &Folder, val: &Folder) -> Result<usize> {
    let (classes, others) = (train.classes(), val.classes());
    if classes.len() < 2 {
        let cause = format!("has {} class folders, expected at least 2", classes.len());
        return Err(Error::Dataset { path: train.root().into(), cause });
    }
    if classes != others {
        let cause =
            format!("has classes {others:?}, expected those of the {} training images {classes:?}", train.len());
        return Err(Error::Dataset { path: val.root().into(), cause });
    }
    Ok(classes.len())
}
