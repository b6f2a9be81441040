//! One pre-training step: a batch's pairs, the loss over all of them, its gradient; of batches that do not fit into memory, in
//! parts.

#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeSet;

use super::flags::{Config, Loss};
use super::{Siglip, Sizes, TokenIds, load};
use crate::checkpoint::StateDict;
use crate::data::Batch;
use crate::data::text::Tokenizer;
use crate::nn::Module;
use crate::ops::l2_normalize::l2_normalize;
use crate::ops::sigmoid_pair_loss::{Block, sigmoid_pair_loss};
use crate::ops::softmax_pair_loss::{Sides, softmax_pair_loss};
use crate::recipes::{Found, Inputs, Joint, Numbers, Task};
use crate::{Device, Error, Grads, Param, Result, Tape, Tensor, Var};

/// Mean and standard deviation of the colour channels, 1/2 each, as `[2, 3]` on a device: values are in [-1, 1].
pub fn norm(device: &Device) -> Result<Tensor> {
    Tensor::from_slice(&[0.5f32; 6], [2, 3], device)
}

/// Where CLIP keeps the logarithm of its scale (Radford et al. 2021, arXiv 2103.00020, section 2.5: at most 100; open_clip: at
/// least 1).
const CLIP_LOG_SCALE: std::ops::RangeInclusive<f64> = 0.0..=4.605_170_185_988_092;

/// Metadata key of the names of what a run does not train.
const FROZEN: &str = "ocellus.siglip.frozen";

/// Leaves the image tower's parameters of these names as they are.
pub fn freeze(model: &mut Siglip, frozen: impl Fn(&str) -> bool) {
    for p in model.vision.params_mut() {
        p.trainable &= !frozen(p.name());
    }
}

/// [`freeze`] what the run that wrote these weights did not train.
pub fn freeze_marked(model: &mut Siglip, weights: &StateDict) {
    let names: BTreeSet<&str> = weights.metadata.get(FROZEN).map_or("", String::as_str).split(',').collect();
    freeze(model, |name| names.contains(name));
}

/// Whether anything of it is.
fn is_trained(module: &dyn Module) -> bool {
    module.params().iter().any(|p| p.trainable)
}

/// Pre-training of one model.
pub struct Pretrain {
    /// The model.
    pub model: Siglip,
    /// Its sizes.
    pub sizes: Sizes,
    tokenizer: Tokenizer,
    /// `[2, 3]`
    norm: Tensor,
    loss: Loss,
    /// Of the update under way, if it has several micro-batches.
    shares: Vec<Option<Share>>,
}

impl Pretrain {
    /// Training of `model`, whose texts `tokenizer` reads.
    ///
    /// # Errors
    /// When the tokenizer has not as many ids as the model, or gives longer texts.
    pub fn new(config: &Config, mut model: Siglip, sizes: Sizes, tokenizer: Tokenizer) -> Result<Self> {
        tokenizer.check_vocab(sizes.vocab_size)?;
        model.set_recompute(config.recompute);
        model.vision.recompute &= is_trained(&model.vision); // else nothing is kept, and nothing is to be computed again
        // The softmax loss has no bias; what nothing trains must not wait for a gradient.
        model.logit_bias.trainable &= config.loss == Loss::Sigmoid;
        let norm = norm(model.logit_scale.master.device())?;
        Ok(Self { model, sizes, tokenizer, norm, loss: config.loss, shares: vec![] })
    }

    /// What reads its texts.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Embeddings of length 1 of the images and of the texts of a micro-batch.
    fn images(&self, tape: &Tape, inputs: &PairInputs) -> Result<Var> {
        let images = Var::constant(inputs.images.clone());
        l2_normalize(tape, &self.model.vision.forward(tape, &images, Some(&self.norm))?)
    }

    fn texts(&self, tape: &Tape, inputs: &PairInputs) -> Result<Var> {
        l2_normalize(tape, &self.model.text.forward(tape, &inputs.ids)?)
    }

    /// The loss of all pairs of some embeddings, and the statistics of their logits.
    fn pairs(&self, tape: &Tape, x: &Var, y: &Var, log_scale: &Var, bias: &Var) -> Result<(Var, Tensor)> {
        let block = Block::whole(x.value().shape()[0]);
        match self.loss {
            Loss::Sigmoid => sigmoid_pair_loss(tape, x, y, log_scale, bias, block),
            Loss::Softmax => softmax_pair_loss(tape, x, y, log_scale, block, Sides::Both),
        }
    }

    /// Log scale and bias: what a share has the gradients of.
    fn numbers(&self) -> [&Param; 2] {
        [&self.model.logit_scale, &self.model.logit_bias]
    }
}

/// Images and captions, and, of a micro-batch among several, the gradient by its embeddings.
pub struct PairInputs {
    /// `[B, 3, H, W]` u8
    images: Tensor,
    ids: TokenIds,
    share: Option<Share>,
}

impl Inputs for PairInputs {
    fn tensors(&mut self) -> Vec<&mut Tensor> {
        let share = self.share.iter_mut().flat_map(|share| {
            let Share { by_image, by_text, numbers, loss, statistics } = share;
            [by_image, by_text, loss, statistics].into_iter().chain(numbers.iter_mut())
        });
        [&mut self.images].into_iter().chain(self.ids.tensors()).chain(share).collect()
    }
}

/// A micro-batch's part of the gradient of the loss over all pairs of an update.
struct Share {
    /// `[B, d]`: by the embeddings of its images.
    by_image: Tensor,
    /// `[B, d]`: by those of its texts.
    by_text: Tensor,
    /// `[1]` each: by log scale and bias, which are no micro-batch's: all of it in the first share, 0 in the others.
    numbers: [Tensor; 2],
    /// `[1]` of the whole update.
    loss: Tensor,
    /// `[3]` of the whole update.
    statistics: Tensor,
}

impl Task for Pretrain {
    type Value = u8;
    type Inputs = PairInputs;

    fn module(&mut self) -> &mut dyn Module {
        &mut self.model
    }

    fn weights(&self) -> Result<StateDict> {
        let mut weights = StateDict::from_params(self.model.params())?;
        load::mark(&mut weights, &self.sizes)?;
        let frozen: Vec<&str> = self.model.vision.params().iter().filter(|p| !p.trainable).map(|p| p.name()).collect();
        weights.metadata.insert(FROZEN.into(), frozen.join(","));
        Ok(weights)
    }

    fn inputs(&mut self, batch: &Batch<u8>) -> Result<PairInputs> {
        let device = self.norm.device();
        let ids = self.tokenizer.batch(&batch.captions)?;
        Ok(PairInputs {
            images: Tensor::from_slice(&batch.images, self.sizes.images(batch.labels.len()), device)?,
            ids: TokenIds::new(&ids, self.tokenizer.settings().max_len, self.sizes.vocab_size, device)?,
            share: None,
        })
    }

    fn micro_step(&mut self, inputs: &PairInputs, scale: f64, grads: &mut Grads) -> Result<Found> {
        let Some(share) = &inputs.share else {
            let tape = Tape::new();
            let (x, y) = (self.images(&tape, inputs)?, self.texts(&tape, inputs)?);
            let [log_scale, bias] = self.numbers().map(|p| tape.param(p));
            let (loss, statistics) = self.pairs(&tape, &x, &y, &log_scale, &bias)?;
            tape.backward_scaled(&loss, scale, grads)?;
            return Ok(Found { loss: loss.value().clone(), statistics: Some(statistics) });
        };
        // The towers meet in nothing but the loss: one after the other, so that only one holds its activations.
        if is_trained(&self.model.vision) {
            let tape = Tape::new();
            let x = self.images(&tape, inputs)?;
            tape.backward(&x, share.by_image.clone(), grads)?;
        }
        let tape = Tape::new();
        let y = self.texts(&tape, inputs)?;
        tape.backward(&y, share.by_text.clone(), grads)?;
        let tape = Tape::new();
        for (param, gradient) in self.numbers().into_iter().zip(&share.numbers) {
            grads.add(tape.param(param).slot(), gradient.deep_clone()?)?;
        }
        Ok(Found { loss: share.loss.deep_clone()?, statistics: Some(share.statistics.deep_clone()?) })
    }

    fn joint(&mut self) -> Option<&mut dyn Joint<Value = u8, Inputs = PairInputs>> {
        Some(self)
    }

    /// SigLIP's scale is free: it learns beyond 100.
    fn updated(&mut self) -> Result<()> {
        let (scale, (low, high)) = (&mut self.model.logit_scale.master, CLIP_LOG_SCALE.into_inner());
        let value = scale.item()?;
        if self.loss == Loss::Softmax && !(low..=high).contains(&value) {
            let kept = Tensor::from_slice(&[value.clamp(low, high)], [1], &Device::Cpu)?.cast(scale.dtype())?;
            scale.copy_from(&kept)?; // recorded steps read it where it is
        }
        Ok(())
    }

    fn notes(&mut self, statistics: &[f64]) -> Result<Numbers> {
        let names = ["positive_logit", "negative_logit", "largest_negative_logit"];
        let [log_scale, bias] = self.numbers();
        let mut notes: Numbers =
            names.into_iter().zip(statistics.iter().copied()).filter(|n| n.1.is_finite()).collect();
        notes.push(("logit_scale", log_scale.master.item()?.exp()));
        if self.loss == Loss::Sigmoid {
            notes.push(("logit_bias", bias.master.item()?));
        }
        Ok(notes)
    }
}

impl Joint for Pretrain {
    type Value = u8;
    type Inputs = PairInputs;

    fn measure(&mut self, batches: &[Batch<u8>]) -> Result<Found> {
        let tape = Tape::no_grad();
        let (mut x, mut y) = (Vec::new(), Vec::new());
        for batch in batches {
            let inputs = self.inputs(batch)?;
            x.push(self.images(&tape, &inputs)?.value().clone());
            y.push(self.texts(&tape, &inputs)?.value().clone());
        }
        let tape = Tape::new();
        let (x, y) = (tape.leaf(joined(&x)?), tape.leaf(joined(&y)?));
        let numbers = self.numbers().map(|p| tape.leaf(p.master.clone()));
        let (loss, statistics) = self.pairs(&tape, &x, &y, &numbers[0], &numbers[1])?;
        let mut grads = Grads::new();
        tape.backward_scaled(&loss, 1.0, &mut grads)?;
        let loss = loss.value().clone();
        let zero = || Tensor::zeros([1], loss.dtype(), loss.device());
        let mut by = |var: &Var| grads.take(var);
        let rows: Vec<usize> = batches.iter().map(|batch| batch.labels.len()).collect();
        let gradient = |by: Option<Tensor>, of: &Var| match by {
            Some(gradient) => cut(&gradient, &rows),
            None => cut(&Tensor::zeros(of.value().shape().clone(), of.value().dtype(), of.value().device())?, &rows),
        };
        let (by_image, by_text) = (gradient(by(&x), &x)?, gradient(by(&y), &y)?);
        let mut numbers = [by(&numbers[0]), by(&numbers[1])];
        // Nothing of a share is held elsewhere: a recorded step writes the next one over it.
        let share = |(by_image, by_text)| -> Result<Option<Share>> {
            let [log_scale, bias] = numbers.each_mut().map(Option::take); // the first share's
            Ok(Some(Share {
                by_image,
                by_text,
                numbers: [log_scale.map_or_else(zero, Ok)?, bias.map_or_else(zero, Ok)?],
                loss: loss.deep_clone()?,
                statistics: statistics.deep_clone()?,
            }))
        };
        self.shares = by_image.into_iter().zip(by_text).map(share).collect::<Result<_>>()?;
        Ok(Found { loss, statistics: Some(statistics) })
    }

    fn share(&mut self, batch: &Batch<u8>, index: usize) -> Result<PairInputs> {
        let share = self.shares.get_mut(index).and_then(Option::take);
        let given = || format!("micro-batch {index} of {}", self.shares.len());
        let share = share.ok_or_else(|| Error::value("share", "index", given(), "one that was measured, once"))?;
        Ok(PairInputs { share: Some(share), ..self.inputs(batch)? })
    }
}

/// Rows of tensors, one after the other. Through the host: embeddings are small beside what made them.
fn joined(parts: &[Tensor]) -> Result<Tensor> {
    let (mut bytes, mut rows) = (Vec::new(), 0);
    for part in parts {
        let from = bytes.len();
        bytes.resize(from + part.bytes(), 0);
        part.storage().download(&mut bytes[from..])?;
        rows += part.shape()[0];
    }
    let first = &parts[0]; // an update has at least one micro-batch
    Tensor::from_bytes(&bytes, [rows, first.shape()[1]], first.dtype(), first.device())
}

/// So many rows of a tensor for each part.
fn cut(x: &Tensor, rows: &[usize]) -> Result<Vec<Tensor>> {
    let mut bytes = vec![0; x.bytes()];
    x.storage().download(&mut bytes)?;
    let (width, mut rest) = (x.shape()[1], &bytes[..]);
    rows.iter()
        .map(|&rows| {
            let (part, after) = rest.split_at(rows * width * x.dtype().size());
            rest = after;
            Tensor::from_bytes(part, [rows, width], x.dtype(), x.device())
        })
        .collect()
}
