//! One training step: views from the batch, masks and stochastic depth from its position, loss, gradient.

use super::block::{Drops, Kept};
use super::guard::{Guard, Health};
use super::model::{Found, GLOBALS, Masks, Ssl, Views};
use super::{Config, Layout, Schedules, load};
use crate::checkpoint::StateDict;
use crate::data::{Batch, Purpose, Stream};
use crate::nn::Module;
use crate::optim::Rates;
use crate::recipes::mae::imagenet_norm;
use crate::recipes::{self, Inputs, Numbers, Task};
use crate::{Device, Error, Grads, Result, Tape, Tensor};

/// Pre-training or distillation of one model.
pub struct Pretrain {
    /// Student, teacher and what else is saved.
    pub model: Ssl,
    config: Config,
    schedules: Schedules,
    /// Updates in an epoch.
    per_epoch: u64,
    /// `[2, 3]` f32: mean and standard deviation of the colour channels.
    norm: Tensor,
    /// What the last step found.
    last: Option<Found>,
    guard: Guard,
    /// Updates done.
    step: u64,
}

/// A batch's views.
pub struct PretrainInputs {
    views: Views,
}

impl Inputs for PretrainInputs {
    fn tensors(&mut self) -> Vec<&mut Tensor> {
        let Views { global, local, masks, teacher_temp, drops } = &mut self.views;
        let mut all = vec![global, teacher_temp];
        all.extend(local.as_mut());
        if let Some(Masks { hidden, rows, teacher_rows, weights, count }) = masks {
            all.extend(hidden.as_mut().into_iter().chain(teacher_rows).chain(count));
            all.extend([rows, weights]);
        }
        for Drops { attn, ffn } in drops {
            all.extend(attn.iter_mut().chain(ffn).flat_map(Kept::tensors));
        }
        all
    }
}

impl Pretrain {
    /// A task of `total` updates, `per_epoch` in each epoch.
    ///
    /// # Errors
    /// As [`Config::check`].
    pub fn new(config: &Config, mut model: Ssl, total: u64, per_epoch: u64) -> Result<Self> {
        config.check()?;
        model.student.backbone.mask_token.trainable = config.masks(); // without masks nothing would reach it
        let norm = imagenet_norm(model.student.backbone.cls_token.master.device())?;
        // At the start all features are nearly the same, as LayerScale begins near 0; that they are still in a later part is a
        // collapse.
        let guard = Guard::new((total / 5).max(20), config.collapse_patience);
        let schedules = config.schedules(total);
        Ok(Self { model, config: config.clone(), schedules, per_epoch, norm, last: None, guard, step: 0 })
    }

    /// Sequences that each branch of each block is computed for.
    fn drops(&self, epoch: u64, step_in_epoch: u64, shapes: &[[usize; 3]]) -> Result<Vec<Drops>> {
        let rate = self.config.drop_path();
        if rate == 0.0 {
            return Ok(vec![]);
        }
        let backbone = &self.model.student.backbone;
        let layout = backbone.layout(shapes)?;
        let mut rng = Stream::new(self.config.seed, Purpose::DROP, epoch, step_in_epoch);
        let mut kept = || {
            let lists: Vec<Vec<usize>> = layout
                .lists
                .iter()
                .map(|&count| {
                    let mut order: Vec<usize> = (0..count).collect();
                    rng.shuffle(&mut order);
                    order.truncate(Kept::count(count, rate));
                    order
                })
                .collect();
            Kept::new(&layout.cu_seqlens, &layout.lists, &lists, self.norm.device()).map(Some)
        };
        (0..backbone.blocks.len()).map(|_| Ok(Drops { attn: kept()?, ffn: kept()? })).collect()
    }

    /// Predicted patches: those hidden by blocks; in distillation all of them, none hidden.
    ///
    /// How many are hidden changes from batch to batch. Where steps are recorded, their lists are filled up to what the batch
    /// size allows at most; where they are not, nothing is computed in vain.
    fn masks(&self, epoch: u64, step_in_epoch: u64, shapes: &[[usize; 3]], device: &Device) -> Result<Option<Masks>> {
        if self.config.ibot_weight == 0.0 {
            return Ok(None);
        }
        let Ssl { student, teacher, .. } = &self.model;
        let layout = student.backbone.layout(shapes)?;
        let (crops, len) = (layout.lists[0], layout.patches(0));
        let among = |layout: &Layout, at: &[usize]| -> Result<Tensor> {
            let rows: Vec<i32> = at.iter().map(|&flat| layout.patch_row(0, flat)).collect();
            Tensor::from_slice(&rows, [rows.len()], device)
        };
        let others = student.backbone.sizes.registers != teacher.backbone.sizes.registers;
        let theirs = others.then(|| teacher.backbone.layout(&shapes[..1])).transpose()?;
        let masks = |hidden: Option<Tensor>, at: &[usize], weights: Tensor, count: Option<Tensor>| {
            let teacher_rows = theirs.as_ref().map(|layout| among(layout, at)).transpose()?;
            Ok(Some(Masks { hidden, rows: among(&layout, at)?, teacher_rows, weights, count }))
        };
        if !self.config.masks() {
            let all: Vec<usize> = (0..crops * len).collect();
            return masks(None, &all, Tensor::full([crops * len], 1.0 / len as f32, device)?, None);
        }
        let mut rng = Stream::new(self.config.seed, Purpose::BLOCKS, epoch, step_in_epoch);
        let Config { mask_probability, mask_min, mask_max, .. } = self.config;
        let drawn = self.config.masking()?.batch(crops, mask_probability, (mask_min, mask_max), &mut rng)?;
        let hidden: Vec<i32> = drawn.masks.iter().map(|&m| i32::from(m)).collect();
        let mut at: Vec<usize> = drawn.mask_indices.iter().map(|&i| i as usize).collect();
        let (mut weights, mut count) = (drawn.masks_weight.clone(), None);
        if device.records() {
            count = Some(Tensor::full([1], at.len() as i32, device)?);
            at.extend(drawn.padding().map(|i| i as usize));
            weights.resize(at.len(), 0.0);
        }
        let weights = Tensor::from_slice(&weights, [weights.len()], device)?;
        masks(Some(Tensor::from_slice(&hidden, [crops, len], device)?), &at, weights, count)
    }
}

/// Views of samples, each with its crops one after the other, as crops each of which has all samples.
fn by_crop(images: &[u8], samples: usize, crops: usize, bytes: usize, from: usize) -> Vec<u8> {
    let sample = images.len() / samples.max(1);
    let crop = |c: usize| (0..samples).flat_map(move |s| &images[s * sample + from + c * bytes..][..bytes]);
    (0..crops).flat_map(crop).copied().collect()
}

impl Task for Pretrain {
    type Value = u8;
    type Inputs = PretrainInputs;

    fn module(&mut self) -> &mut dyn Module {
        &mut self.model
    }

    fn weights(&self) -> Result<StateDict> {
        let mut weights = StateDict::from_params(self.model.params())?;
        load::mark(&mut weights, &self.model)?;
        Ok(weights)
    }

    fn rates(&self, step: u64, _: f64) -> Rates {
        self.schedules.rates(step)
    }

    fn inputs(&mut self, batch: &Batch<u8>) -> Result<PretrainInputs> {
        let (count, crops, device) = (batch.labels.len(), self.config.multi_crop(), self.norm.device().clone());
        let (large, small, locals) = (crops.global_size, crops.local_size, crops.locals);
        if batch.images.len() != count * crops.bytes() {
            let expected = format!("{count} samples of {} bytes", crops.bytes());
            return Err(Error::argument("dinov2", "batch", "length", batch.images.len().to_string(), expected));
        }
        let bytes = |side: usize| 3 * side * side;
        let global = by_crop(&batch.images, count, GLOBALS, bytes(large), 0);
        let local = by_crop(&batch.images, count, locals, bytes(small), GLOBALS * bytes(large));
        let mut shapes = vec![[GLOBALS * count, large, large]];
        shapes.extend((locals > 0).then_some([locals * count, small, small]));
        let (epoch, at) = (batch.epoch, batch.step_in_epoch);
        let step = epoch * self.per_epoch + at;
        let views = Views {
            global: Tensor::from_slice(&global, [GLOBALS * count, 3, large, large], &device)?,
            local: (locals > 0)
                .then(|| Tensor::from_slice(&local, [locals * count, 3, small, small], &device))
                .transpose()?,
            masks: self.masks(epoch, at, &shapes, &device)?,
            teacher_temp: Tensor::full([1], self.schedules.teacher_temp.at(step) as f32, &device)?,
            drops: self.drops(epoch, at, &shapes)?,
        };
        self.step = step + 1; // not where the loss is computed: that may be recorded and run again
        Ok(PretrainInputs { views })
    }

    fn micro_step(&mut self, inputs: &PretrainInputs, scale: f64, grads: &mut Grads) -> Result<recipes::Found> {
        self.last = None; // its memory is free for this step
        let tape = Tape::new();
        let (loss, mut found) = self.model.loss(&tape, &inputs.views, Some(&self.norm), false)?;
        // Inputs have one owner: the next batch is copied over them.
        found.classes.temp = found.classes.temp.deep_clone()?;
        found.patches = None; // nobody looks at their logits
        tape.backward_scaled(&loss, scale, grads)?;
        self.last = Some(found);
        Ok(loss.value().clone().into())
    }

    /// The terms of the loss and the health of the run.
    fn notes(&mut self, _: &[f64]) -> Result<Numbers> {
        let Some(found) = &self.last else { return Ok(vec![]) };
        let mut numbers = vec![];
        for (name, term) in ["local_loss", "global_loss", "koleo_loss", "ibot_loss"].into_iter().zip(&found.terms) {
            if let Some(term) = term {
                numbers.push((name, term.item()?));
            }
        }
        let rates = self.schedules.rates(self.step.saturating_sub(1));
        numbers.push(("teacher_temp", self.schedules.teacher_temp.at(self.step.saturating_sub(1))));
        numbers.push(("momentum", rates.momentum));
        numbers.push(("weight_decay", rates.decay));
        let health = Health::of(found)?;
        numbers.extend(health.numbers());
        numbers.push(("prototype_length", self.model.student.dino_head.largest()?));
        if self.config.collapse_patience > 0 {
            self.guard.look(self.step, found.features.shape()[0] / GLOBALS, &health)?;
        }
        Ok(numbers)
    }

    fn healthy(&self) -> bool {
        self.guard.healthy()
    }
}
