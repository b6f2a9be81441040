//! The linear probe: batch norm and a linear layer on frozen features, trained by LARS (He et al. 2021, appendix A.1).

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::data::augment::CropRange;
use crate::data::loader::{Options, Unreadable};
use crate::data::{Folder, Loader, transforms};
use crate::nn::{Builder, Module};
use crate::ops::cross_entropy::{Targets, cross_entropy};
use crate::ops::lars::Hyper;
use crate::optim::schedule::{Cosine, scaled_lr};
use crate::optim::{Lars, Rules};
use crate::recipes::mae::finetune::{classes_of, correct};
use crate::recipes::mae::probe::ProbeHead;
use crate::recipes::mae::{Classifier, Pool, imagenet_norm};
use crate::{DType, Grads, Result, Tape, Tensor, Var};

/// Every knob of the probe: the flags of `ocellus eval linear`.
#[derive(Clone, Debug, clap::Args, Serialize, Deserialize)]
pub struct Probe {
    /// Weights: a run folder, a Hugging Face folder, .safetensors or .pth
    pub model: PathBuf,
    /// Class folder of training images
    pub train: PathBuf,
    /// Class folder of test images
    pub test: PathBuf,
    /// Passes over the data
    #[arg(long, default_value_t = 90)]
    pub epochs: u64,
    /// Epochs of linear warm-up [default: a ninth of the epochs]
    #[arg(long)]
    pub warmup_epochs: Option<f64>,
    /// Images per update; upstream uses 16384
    #[arg(long, default_value_t = 512)]
    pub batch_size: usize,
    /// Learning rate per 256 images
    #[arg(long, default_value_t = 0.1)]
    pub blr: f64,
    /// Weight decay
    #[arg(long, default_value_t = 0.0)]
    pub weight_decay: f64,
    /// Plain SGD with momentum 0.9 instead of LARS
    #[arg(long)]
    pub sgd: bool,
    /// Feature: class token or mean of the patches
    #[arg(long, value_enum, default_value_t = Pool::Cls)]
    pub pool: Pool,
    /// Seed of order, crops and the head
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Stop at the first unreadable image
    #[arg(long)]
    pub strict: bool,
}

/// Trains a head on `model`'s features of `train` and returns its accuracy on `test`. `each` hears step, steps and loss.
pub fn linear_probe(
    config: &Probe,
    model: &Classifier,
    train: Arc<Folder>,
    test: Arc<Folder>,
    mut each: impl FnMut(u64, u64, f64),
) -> Result<f64> {
    let classes = classes_of(&train, &test)?;
    let (device, [side, _]) = (model.norm.weight.master.device().clone(), model.trunk.config.image);
    let mut head = ProbeHead::new(&Builder::new(&device, DType::F32, config.seed), model.trunk.config.dim, classes)?;
    let mut optimizer = Lars::new(
        Hyper { momentum: 0.9, trust: (!config.sgd).then_some(0.001) },
        Rules::pretraining(config.weight_decay),
    );
    let options = Options {
        epochs: Some(config.epochs),
        unreadable: if config.strict { Unreadable::Fail } else { Unreadable::Replace },
        ..Options::training(config.batch_size, config.seed)
    };
    let mut loader = Loader::new(train, transforms::probe(side, CropRange::SUPERVISED)?, options)?;
    let per_epoch = loader.steps_per_epoch();
    let epochs = config.epochs as f64;
    let schedule = Cosine {
        lr: scaled_lr(config.blr, config.batch_size),
        min_lr: 0.0,
        warmup_epochs: config.warmup_epochs.unwrap_or(epochs / 9.0),
        epochs,
    };
    let (total, mut step, mut grads) = (per_epoch * config.epochs, 0, Grads::new());
    for batch in &mut loader {
        let batch = batch?;
        let features = features(model, &batch.images, batch.labels.len(), side)?;
        let labels = Tensor::from_slice(&batch.labels, [batch.labels.len()], &device)?;
        let tape = Tape::new();
        grads.clear();
        let logits = head.train(&tape, &Var::constant(features))?;
        let loss = cross_entropy(&tape, &logits, Targets::Classes(&labels), 0.0)?;
        let value = loss.value().item()?;
        tape.backward_scaled(&loss, 1.0, &mut grads)?;
        let rate = schedule.at(step as f64 / per_epoch as f64);
        optimizer.step(&mut head.params_mut(), &grads, rate, None)?;
        step += 1;
        each(step, total, value);
    }
    accuracy(model, &head, test, side)
}

fn features(model: &Classifier, images: &[u8], count: usize, side: usize) -> Result<Tensor> {
    let device = model.norm.weight.master.device();
    let images = Var::constant(Tensor::from_slice(images, [count, 3, side, side], device)?);
    let y = model.features(&Tape::no_grad(), &images, Some(&imagenet_norm(device)?), &[])?;
    y.value().cast(DType::F32)
}

fn accuracy(model: &Classifier, head: &ProbeHead, test: Arc<Folder>, side: usize) -> Result<f64> {
    let (mut right, mut seen) = (0, 0);
    for batch in Loader::new(test, transforms::evaluate(side)?, Options::evaluation(256))? {
        let batch = batch?;
        if batch.labels.is_empty() {
            continue;
        }
        let logits = head.eval(&features(model, &batch.images, batch.labels.len(), side)?)?;
        right += correct(&logits.to_f64()?, logits.shape()[1], &batch.labels);
        seen += batch.labels.len();
    }
    Ok(right as f64 / seen.max(1) as f64)
}
