//! The linear probe: batch norm and a linear layer on frozen features, trained by LARS unless told otherwise (He et al. 2021, appendix A.1).

use std::path::PathBuf;
use std::sync::Arc;

use crate::data::augment::CropRange;
use crate::data::loader::{Options, Unreadable};
use crate::data::{Batch, Folder, Loader, transforms};
use crate::nn::{Builder, Module};
use crate::ops::cross_entropy::{Targets, cross_entropy};
use crate::ops::{adamw, lars};
use crate::optim::schedule::{Cosine, scaled_lr};
use crate::optim::{AdamW, Lars, Optimizer as _, Rates, Rules, StepStats};
use crate::recipes::Encoder;
use crate::recipes::mae::Pool;
use crate::recipes::mae::config::{check_positive, check_ranges};
use crate::recipes::mae::finetune::classes_of;
use crate::recipes::mae::probe::ProbeHead;
use crate::recipes::mae::score::{Score, score};
use crate::{DType, Grads, Result, Tape, Tensor, Var};

/// What trains the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Optimizer {
    /// LARS with momentum 0.9 and trust 0.001, as upstream.
    Lars,
    /// Gradient descent with momentum 0.9.
    Sgd,
    /// AdamW with betas 0.9 and 0.999.
    #[value(name = "adamw")]
    AdamW,
}

/// Every knob of the probe: the flags of `ocellus eval linear`.
#[derive(Clone, Debug, clap::Args)]
pub struct Probe {
    /// Weights: a run folder, a Hugging Face folder, .safetensors or .pth
    pub model: PathBuf,
    /// Class folder of training images
    pub train: PathBuf,
    /// Class folder of test images
    pub test: PathBuf,
    /// Passes over the data [default: 90, with --protocol dinov2 as many as make 12500 updates]
    #[arg(long)]
    pub epochs: Option<u64>,
    /// Epochs of linear warm-up [default: 10, at most a fifth of the epochs]
    #[arg(long)]
    pub warmup_epochs: Option<f64>,
    /// Images per update [default: 512 where upstream uses 16384, with --protocol dinov2 128]
    #[arg(long)]
    pub batch_size: Option<usize>,
    /// What trains the head: gradient descent with momentum, AdamW [default: lars, as upstream]
    #[arg(long, value_enum)]
    pub optimizer: Option<Optimizer>,
    /// Learning rate per 256 images [default: 0.1, with adamw 0.001]
    #[arg(long)]
    pub blr: Option<f64>,
    /// Weight decay [default: 0]
    #[arg(long)]
    pub weight_decay: Option<f64>,
    /// Feature: class token or mean of the patches [default: cls, for a fine-tuned file its own]
    #[arg(long, value_enum)]
    pub pool: Option<Pool>,
    /// File to write: the trained head, .safetensors; with --protocol dinov2 the table of all heads, .tsv
    #[arg(long, short)]
    pub out: Option<PathBuf>,
    /// Seed of order, crops and the head
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Stop at the first unreadable image
    #[arg(long)]
    pub strict: bool,
}

impl Probe {
    /// Passes over the data.
    fn epochs(&self) -> u64 {
        self.epochs.unwrap_or(90)
    }

    /// Images per update.
    pub fn batch(&self) -> usize {
        self.batch_size.unwrap_or(512)
    }

    /// Learning rate per 256 images.
    fn base_rate(&self) -> f64 {
        self.blr.unwrap_or(if self.optimizer == Some(Optimizer::AdamW) { 1e-3 } else { 0.1 })
    }

    /// Warm-up in epochs.
    fn warmup(&self) -> f64 {
        self.warmup_epochs.unwrap_or((self.epochs() as f64 / 5.0).min(10.0))
    }

    /// Refuses values no probe can use.
    pub fn check(&self) -> Result<()> {
        check_positive(&[("epochs", self.epochs())])?;
        check_ranges(&[
            ("batch_size", self.batch() as f64, 2.0..=f64::from(u32::MAX)), // batch norm needs a variance
            ("blr", self.base_rate(), 0.0..=1e3),
            ("weight_decay", self.weight_decay.unwrap_or(0.0), 0.0..=1e3),
            ("warmup_epochs", self.warmup(), 0.0..=self.epochs() as f64),
        ])
    }
}

/// Trains a head on `model`'s features of `train` and scores it on `test`. `each` hears step, steps and loss.
pub fn linear_probe(
    config: &Probe,
    model: &dyn Encoder,
    train: Arc<Folder>,
    test: Arc<Folder>,
    mut each: impl FnMut(u64, u64, f64),
) -> Result<(ProbeHead, Score)> {
    config.check()?;
    let classes = classes_of(&train, &test)?;
    let (size, device) = (model.image_size(), model.device());
    let features = |batch: &Batch<u8>| {
        model.features(&Tensor::from_slice(&batch.images, [batch.labels.len(), 3, size[0], size[1]], device)?)
    };
    let mut head = ProbeHead::new(&Builder::new(device, DType::F32, config.seed), model.dim(), classes)?;
    let mut update = config.update();
    let options = Options {
        epochs: Some(config.epochs()),
        unreadable: if config.strict { Unreadable::Fail } else { Unreadable::Replace },
        ..Options::training(config.batch(), config.seed)
    };
    let mut loader = Loader::new(train, transforms::probe(size, CropRange::SUPERVISED)?, options)?;
    let per_epoch = loader.steps_per_epoch();
    let schedule = Cosine {
        lr: scaled_lr(config.base_rate(), config.batch()),
        min_lr: 0.0,
        warmup_epochs: config.warmup(),
        epochs: config.epochs() as f64,
    };
    let (total, mut step, mut grads) = (per_epoch * config.epochs(), 0, Grads::new());
    for batch in &mut loader {
        let batch = batch?;
        let labels = Tensor::from_slice(&batch.labels, [batch.labels.len()], device)?;
        let tape = Tape::new();
        grads.clear();
        let logits = head.train(&tape, &Var::constant(features(&batch)?))?;
        let loss = cross_entropy(&tape, &logits, Targets::Classes(&labels), 0.0)?;
        let value = loss.value().item()?;
        tape.backward_scaled(&loss, 1.0, &mut grads)?;
        update(&mut head, &grads, schedule.at(step as f64 / per_epoch as f64))?;
        step += 1;
        each(step, total, value);
    }
    let score = score(test, size, 256, |batch| head.eval(&features(batch)?))?;
    Ok((head, score))
}

type Update = Box<dyn FnMut(&mut ProbeHead, &Grads, f64) -> Result<StepStats>>;

impl Probe {
    /// One step of the optimizer at a learning rate.
    fn update(&self) -> Update {
        let rules = Rules::pretraining(self.weight_decay.unwrap_or(0.0));
        if self.optimizer == Some(Optimizer::AdamW) {
            let mut adamw = AdamW::new(adamw::Hyper { beta1: 0.9, beta2: 0.999, eps: 1e-8 }, rules);
            return Box::new(move |head, grads, lr| adamw.step(&mut head.params_mut(), grads, &Rates::new(lr), None));
        }
        let trust = (self.optimizer != Some(Optimizer::Sgd)).then_some(0.001);
        let mut lars = Lars::new(lars::Hyper { momentum: 0.9, trust }, rules);
        Box::new(move |head, grads, lr| lars.step(&mut head.params_mut(), grads, &Rates::new(lr), None))
    }
}
