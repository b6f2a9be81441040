//! One pre-training step: masks from the batch's position, loss, gradient.

use super::{Config, Mae, MaskIds, Sizes, load, picture};
use crate::checkpoint::StateDict;
use crate::data::augment::{IMAGENET_MEAN, IMAGENET_STD};
use crate::data::masks::random_masking;
use crate::data::{Batch, Image, Purpose, Stream};
use crate::nn::{Builder, Module};
use crate::recipes::{Found, Inputs, Task};
use crate::{DType, Device, Grads, Result, Tape, Tensor, Var};

/// Pre-training of one model.
pub struct Pretrain {
    /// The model.
    pub model: Mae,
    sizes: Sizes,
    /// `[2, 3]` f32: mean and standard deviation of the colour channels.
    norm: Tensor,
    mask_ratio: f64,
    seed: u64,
    samples: Vec<Image>,
}

/// Mean and standard deviation of ImageNet's colour channels as `[2, 3]` on a device.
pub fn imagenet_norm(device: &Device) -> Result<Tensor> {
    let values: Vec<f32> = IMAGENET_MEAN.iter().chain(&IMAGENET_STD).map(|&x| x as f32).collect();
    Tensor::from_slice(&values, [2, 3], device)
}

impl Pretrain {
    /// A model of `sizes` with initial weights; `samples` are those it draws.
    pub fn new(config: &Config, sizes: Sizes, device: &Device, dtype: DType, samples: Vec<Image>) -> Result<Self> {
        config.check()?;
        let mut model = Mae::new(&Builder::new(device, dtype, config.seed), &sizes, !config.raw_pixels)?;
        model.encoder.recompute = config.recompute;
        let norm = imagenet_norm(device)?;
        Ok(Self { model, sizes, norm, mask_ratio: config.mask_ratio, seed: config.seed, samples })
    }

    /// Masks of the batch at a position: the same whatever came before.
    fn masks(&self, epoch: u64, step_in_epoch: u64, batch: usize) -> Result<MaskIds> {
        let len = self.model.encoder.config.patches()?;
        let mut rng = Stream::new(self.seed, Purpose::MASK, epoch, step_in_epoch);
        let noise: Vec<f32> = (0..batch * len).map(|_| rng.unit_f32()).collect();
        MaskIds::new(&random_masking(&noise, batch, len, self.mask_ratio)?, batch, self.norm.device())
    }
}

/// Images and their masks.
pub struct PretrainInputs {
    images: Tensor,
    ids: MaskIds,
}

impl Inputs for PretrainInputs {
    fn tensors(&mut self) -> Vec<&mut Tensor> {
        let MaskIds { kept, masked, rows } = &mut self.ids;
        vec![&mut self.images, &mut kept.keep, &mut kept.restore, masked, rows]
    }
}

impl Task for Pretrain {
    type Value = u8;
    type Inputs = PretrainInputs;

    fn module(&mut self) -> &mut dyn Module {
        &mut self.model
    }

    fn weights(&self) -> Result<StateDict> {
        let mut weights = StateDict::from_params(self.model.params())?;
        load::mark(&mut weights, &self.sizes, Some(self.model.norm_pix_loss))?;
        Ok(weights)
    }

    fn inputs(&mut self, batch: &Batch<u8>) -> Result<PretrainInputs> {
        let count = batch.labels.len();
        let shape = self.model.encoder.config.images(count);
        let images = Tensor::from_slice(&batch.images, shape, self.norm.device())?;
        Ok(PretrainInputs { images, ids: self.masks(batch.epoch, batch.step_in_epoch, count)? })
    }

    fn micro_step(&mut self, inputs: &PretrainInputs, scale: f64, grads: &mut Grads) -> Result<Found> {
        let tape = Tape::new();
        let images = Var::constant(inputs.images.clone());
        let loss = self.model.loss(&tape, &images, Some(&self.norm), &inputs.ids)?;
        tape.backward_scaled(&loss, scale, grads)?;
        Ok(loss.value().clone().into())
    }

    fn picture(&self) -> Result<Option<(&'static str, Image)>> {
        if self.samples.is_empty() {
            return Ok(None);
        }
        let pictures = picture::draw(&self.model, &self.samples, self.mask_ratio, self.seed)?;
        let name = if self.model.norm_pix_loss { "reconstruction_denormalised" } else { "reconstruction" };
        Ok(Some((name, picture::grid(&pictures)?)))
    }
}
