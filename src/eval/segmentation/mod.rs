//! The linear probe for dense labels: a linear layer on each patch token of the last layer, batch norm before it, its logits
//! blended bilinearly at every pixel.
//!
//! Source: Oquab et al. 2023, arXiv 2304.07193, section 7.4, "lin.". Images are resized to the encoder's size whatever their
//! aspect ratio, so that every pixel is seen; labels keep their own size.

mod confusion;
mod loss;
mod scenes;

use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;

pub use confusion::{Confusion, IGNORED};
pub use loss::{Loss, loss, predict};
pub use scenes::Scenes;

use super::rows::Order;
use crate::data::label_map::LabelMap;
use crate::data::loader::{Options, Unreadable};
use crate::data::resize::{Filter, resize};
use crate::data::{Batch, Image, Loader, Purpose, Source, Stream};
use crate::nn::{Builder, Module};
use crate::ops::{adamw, gather_rows, lars};
use crate::optim::schedule::Cosine;
use crate::optim::{AdamW, Lars, Optimizer, Rates, Rules};
use crate::recipes::Encoder;
use crate::recipes::mae::probe::ProbeHead;
use crate::{DType, Error, Grads, Result, Tape, Tensor, Var};

/// What trains the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Method {
    /// AdamW with betas 0.9 and 0.999.
    #[value(name = "adamw")]
    AdamW,
    /// Gradient descent with momentum 0.9.
    Sgd,
}

/// Every knob of the probe.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// Passes over the training images
    #[arg(long, default_value_t = 20)]
    pub epochs: u64,
    /// Images per update
    #[arg(long, default_value_t = 16)]
    pub batch_size: usize,
    /// What trains the head
    #[arg(long, value_enum, default_value_t = Method::AdamW)]
    pub optimizer: Method,
    /// Learning rate at its highest: up over the first twentieth, then a cosine to 0 [default: adamw 0.01, sgd 0.1]
    #[arg(long)]
    pub lr: Option<f64>,
    /// Weight decay
    #[arg(long, default_value_t = 1e-4)]
    pub weight_decay: f64,
    /// Do not mirror images at random: tokens are computed once and kept, images x patches x width x 4 bytes
    #[arg(long)]
    pub no_augment: bool,
    /// Decides order, mirrors and the first weights
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

impl Config {
    /// Refuses values that no probe can use.
    ///
    /// # Errors
    /// The first of them by name.
    pub fn check(&self) -> Result<()> {
        for (key, given) in [("epochs", self.epochs), ("batch_size", self.batch_size as u64)] {
            if given == 0 {
                return Err(Error::config(key, 0, "at least 1"));
            }
        }
        for (key, given) in [("lr", self.rate()), ("weight_decay", self.weight_decay)] {
            if !(0.0..=1e3).contains(&given) {
                return Err(Error::config(key, given, "0 to 1000"));
            }
        }
        Ok(())
    }

    fn rate(&self) -> f64 {
        self.lr.unwrap_or(if self.optimizer == Method::AdamW { 1e-2 } else { 0.1 })
    }

    fn optimizer(&self) -> Box<dyn Optimizer> {
        let rules = Rules::pretraining(self.weight_decay);
        match self.optimizer {
            Method::AdamW => Box::new(AdamW::new(adamw::Hyper { beta1: 0.9, beta2: 0.999, eps: 1e-8 }, rules)),
            Method::Sgd => Box::new(Lars::new(lars::Hyper { momentum: 0.9, trust: None }, rules)),
        }
    }

    /// Trains a head of `classes` outputs on `model`'s patch tokens of `train`. `each` hears what is done, steps done, steps in
    /// all, and the loss.
    ///
    /// # Errors
    /// As [`check`](Self::check); no readable image.
    pub fn train(
        &self,
        model: &dyn Encoder,
        train: &Arc<Scenes>,
        classes: usize,
        mut each: impl FnMut(&'static str, u64, u64, Option<f64>),
    ) -> Result<ProbeHead> {
        self.check()?;
        let mut head = ProbeHead::new(&Builder::new(model.device(), DType::F32, self.seed), model.dim(), classes)?;
        let (grid, mut grads, mut optimizer) = (model.grid(), Grads::new(), self.optimizer());
        let schedule = |total: u64| Cosine {
            lr: self.rate(),
            min_lr: 0.0,
            warmup_epochs: total as f64 / 20.0,
            epochs: total as f64,
        };
        let mut update = |step: u64, total: u64, tokens: Tensor, maps: &[LabelMap]| {
            let tape = Tape::new();
            let logits = head.train(&tape, &Var::constant(tokens))?;
            let Some(found) = loss(logits.value(), grid, maps)? else { return Ok(None) };
            grads.clear();
            tape.backward(&logits, found.gradient, &mut grads)?;
            optimizer.step(&mut head.params_mut(), &grads, &Rates::new(schedule(total).at((step + 1) as f64)), None)?;
            Ok::<_, Error>(Some(found.value))
        };
        if self.no_augment {
            let (tokens, maps) = kept(model, train, |done, all| each("tokens", done, all, None))?;
            let mut order = Order::new(maps.len(), self.batch_size.min(maps.len()), self.seed)?;
            let (total, row) = (self.epochs * order.steps(), tokens.len() / maps.len());
            for step in 0..total {
                let chosen = order.at(step);
                let of = |&i: &usize| &tokens[i * row..(i + 1) * row];
                let values: Vec<f32> = chosen.iter().flat_map(of).copied().collect();
                let rows = [values.len() / model.dim(), model.dim()];
                let maps: Vec<LabelMap> = chosen.iter().map(|&i| maps[i].clone()).collect();
                let value = update(step, total, Tensor::from_slice(&values, rows, model.device())?, &maps)?;
                each("head", step + 1, total, value);
            }
        } else {
            let size = model.image_size();
            let options = Options {
                epochs: Some(self.epochs),
                unreadable: Unreadable::Omit, // a substitute would be mirrored as what it stands for
                ..Options::training(self.batch_size.min(train.len()), self.seed)
            };
            let transform = move |image: &Image, rng: &mut Stream| {
                let image = squashed(image, size)?;
                Ok(if mirrored(rng) { image.mirrored() } else { image }.to_planes())
            };
            let mut loader = Loader::new(train.clone(), transform, options)?;
            let total = self.epochs * loader.steps_per_epoch();
            for (step, batch) in (0..).zip(&mut loader) {
                let batch = batch?;
                if batch.indices.is_empty() {
                    continue; // every image of the batch was unreadable
                }
                let map = |&index: &u32| {
                    let map = train.map(index as usize)?;
                    let mut rng = Stream::new(self.seed, Purpose::AUGMENT, batch.epoch, index.into());
                    Ok(if mirrored(&mut rng) { mirror(&map) } else { map })
                };
                let maps = batch.indices.par_iter().map(map).collect::<Result<Vec<_>>>()?;
                let value = update(step, total, patch_tokens(model, &batch)?, &maps)?;
                each("head", step + 1, total, value);
            }
        }
        Ok(head)
    }
}

/// Whether an image is mirrored: what its stream draws first.
fn mirrored(rng: &mut Stream) -> bool {
    rng.chance(0.5)
}

fn mirror(map: &LabelMap) -> LabelMap {
    let ids = map.ids.chunks_exact(map.width.max(1)).flat_map(|row| row.iter().rev()).copied().collect();
    LabelMap { ids, ..*map }
}

fn squashed(image: &Image, [height, width]: [usize; 2]) -> Result<Image> {
    resize(image, image.rect(), width, height, Filter::Bicubic)
}

/// Patch tokens of the last layer, `[B L, dim]` f32.
fn patch_tokens(model: &dyn Encoder, batch: &Batch<u8>) -> Result<Tensor> {
    let ([height, width], device) = (model.image_size(), model.device());
    let images = Tensor::from_slice(&batch.images, [batch.indices.len(), 3, height, width], device)?;
    let tokens = model.layers(&images, 1)?.swap_remove(0);
    let [images, rows, dim] = tokens.dims("segmentation", "tokens")?;
    let patch = |image: usize| (1..rows).map(move |row| (image * rows + row) as i32); // row 0 is the class token
    let patches: Vec<i32> = (0..images).flat_map(patch).collect();
    let patches = Tensor::from_slice(&patches, [patches.len()], device)?;
    gather_rows::forward(&tokens.reshape([images * rows, dim])?, &patches)
}

fn evaluation(scenes: &Arc<Scenes>, size: [usize; 2]) -> Result<Loader<u8>> {
    let transform = move |image: &Image, _: &mut Stream| Ok(squashed(image, size)?.to_planes());
    Loader::new(scenes.clone(), transform, Options::evaluation(16))
}

/// Patch tokens and labels of all readable images.
fn kept(
    model: &dyn Encoder,
    scenes: &Arc<Scenes>,
    mut each: impl FnMut(u64, u64),
) -> Result<(Vec<f32>, Vec<LabelMap>)> {
    let (mut tokens, mut maps) = (Vec::new(), Vec::new());
    let mut loader = evaluation(scenes, model.image_size())?;
    let total = loader.steps_per_epoch();
    for (step, batch) in (1..).zip(&mut loader) {
        let batch = batch?;
        if !batch.indices.is_empty() {
            tokens.extend(patch_tokens(model, &batch)?.to_vec::<f32>()?);
            maps.extend(batch.indices.par_iter().map(|&i| scenes.map(i as usize)).collect::<Result<Vec<_>>>()?);
        }
        each(step, total);
    }
    if maps.is_empty() {
        return Err(Error::Dataset { path: scenes.root().into(), cause: "no readable image".into() });
    }
    Ok((tokens, maps))
}

/// How well `head` labels the pixels of all readable images. Predicted label maps are written below `predictions`, under the
/// names of the masks. `each` hears steps done and steps in all.
///
/// # Errors
/// No readable image; a label beyond the head's classes; a folder that cannot be written.
pub fn evaluate(
    model: &dyn Encoder,
    head: &ProbeHead,
    scenes: &Arc<Scenes>,
    predictions: Option<&Path>,
    mut each: impl FnMut(u64, u64),
) -> Result<Confusion> {
    let (classes, grid) = (head.linear.weight.master.shape()[0], model.grid());
    if scenes.classes() > classes {
        let cause = format!("labels up to {}, expected below {classes}, as in training", scenes.classes() - 1);
        return Err(Error::Dataset { path: scenes.root().into(), cause });
    }
    let mut all = Confusion::new(classes);
    let mut loader = evaluation(scenes, model.image_size())?;
    let total = loader.steps_per_epoch();
    for (step, batch) in (1..).zip(&mut loader) {
        let batch = batch?;
        if !batch.indices.is_empty() {
            let logits = head.eval(&patch_tokens(model, &batch)?)?.to_vec::<f32>()?;
            let one = |(&index, logits): (&u32, &[f32])| {
                let map = scenes.map(index as usize)?;
                let ids = predict(logits, grid, [map.height, map.width], classes);
                let predicted = LabelMap { ids, ..map };
                if let Some(folder) = predictions {
                    let path = folder.join(scenes.mask_name(index as usize));
                    let parent = path.parent().unwrap_or(folder);
                    std::fs::create_dir_all(parent).map_err(Error::io(parent))?;
                    predicted.save(&path)?;
                }
                Ok((map.ids, predicted.ids))
            };
            let images = batch.indices.par_iter().zip(logits.par_chunks_exact(grid[0] * grid[1] * classes));
            for (labels, predicted) in images.map(one).collect::<Result<Vec<_>>>()? {
                all.add(&labels, &predicted);
            }
        }
        each(step, total);
    }
    match all.pixels() {
        0 => Err(Error::Dataset { path: scenes.root().into(), cause: "no readable image with labels".into() }),
        _ => Ok(all),
    }
}

#[cfg(test)]
mod tests;
