//! One pre-training step: masks from the batch's position, loss, gradient.

use std::path::{Path, PathBuf};

use super::picture::{self, Picture};
use super::{Config, Mae, MaskIds};
use crate::data::augment::{IMAGENET_MEAN, IMAGENET_STD};
use crate::data::masks::random_masking;
use crate::data::{Batch, Image, Purpose, Stream};
use crate::nn::{Builder, Module};
use crate::recipes::Task;
use crate::{DType, Device, Error, Grads, Result, Tape, Tensor, Var};

/// Pre-training of one model.
pub struct Pretrain {
    /// The model.
    pub model: Mae,
    /// `[2, 3]` f32: mean and standard deviation of the colour channels.
    norm: Tensor,
    mask_ratio: f64,
    seed: u64,
    samples: Vec<Image>, // drawn at the end
}

/// Mean and standard deviation of ImageNet's colour channels as `[2, 3]` on a device.
pub fn imagenet_norm(device: &Device) -> Result<Tensor> {
    let values: Vec<f32> = IMAGENET_MEAN.iter().chain(&IMAGENET_STD).map(|&x| x as f32).collect();
    Tensor::from_slice(&values, [2, 3], device)
}

impl Pretrain {
    /// A model with initial weights; `samples` are drawn as pictures at the end.
    pub fn new(config: &Config, device: &Device, dtype: DType, samples: Vec<Image>) -> Result<Self> {
        config.check()?;
        let mut model = Mae::new(&Builder::new(device, dtype, config.seed), &config.sizes(), !config.raw_pixels)?;
        model.encoder.recompute = config.recompute;
        let norm = imagenet_norm(device)?;
        Ok(Self { model, norm, mask_ratio: config.mask_ratio, seed: config.seed, samples })
    }

    /// Masks of the batch at a position: the same whatever came before.
    fn masks(&self, epoch: u64, step_in_epoch: u64, batch: usize) -> Result<MaskIds> {
        let len = self.model.encoder.config.patches()?;
        let mut rng = Stream::new(self.seed, Purpose::MASK, epoch, step_in_epoch);
        let noise: Vec<f32> = (0..batch * len).map(|_| rng.unit_f32()).collect();
        MaskIds::new(&random_masking(&noise, batch, len, self.mask_ratio)?, batch, self.norm.device())
    }
}

impl Task for Pretrain {
    type Value = u8;

    fn module(&mut self) -> &mut dyn Module {
        &mut self.model
    }

    fn micro_step(&mut self, batch: &Batch<u8>, scale: f64, grads: &mut Grads) -> Result<f64> {
        let count = batch.labels.len();
        let [h, w] = self.model.encoder.config.image;
        let images = Tensor::from_slice(&batch.images, [count, 3, h, w], self.norm.device())?;
        let ids = self.masks(batch.epoch, batch.step_in_epoch, count)?;
        let tape = Tape::new();
        let loss = self.model.loss(&tape, &Var::constant(images), Some(&self.norm), &ids)?;
        let value = loss.value().item()?;
        if !value.is_finite() {
            return Ok(value); // the loop stops with an explanation; a backward pass would only hide the cause
        }
        tape.backward_scaled(&loss, scale, grads)?;
        Ok(value)
    }

    fn pictures(&mut self, folder: &Path, name: &str) -> Result<Vec<PathBuf>> {
        if self.samples.is_empty() {
            return Ok(vec![]);
        }
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let pictures: Vec<Picture> = picture::draw(&self.model, &self.samples, self.mask_ratio, self.seed)?;
        let path = folder.join(format!("{name}.png"));
        picture::grid(&pictures)?.save_png(&path)?;
        Ok(vec![path])
    }
}
