//! The encoder as a classifier: fine-tuning, linear probe, features.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Sizes, imagenet_norm};
use crate::nn::vit::{PatchIds, Vit};
use crate::nn::{Builder, Drops, Init, LayerNorm, Linear, Sequences};
use crate::recipes::encoder::{self, Encoder};
use crate::{DType, Device, Error, Result, Tape, Tensor, Var, module, ops};

/// What becomes of the tokens after the last block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pool {
    /// Mean of the patch tokens, then LayerNorm `fc_norm`.
    Mean,
    /// LayerNorm `norm`, then the class token.
    Cls,
}

/// Indices of unmasked images, which depend on the batch size alone.
#[derive(Debug)]
struct Layout {
    ids: PatchIds,
    seqs: Sequences,
    class_rows: Tensor,
}

/// The layout of the last batch, kept while batches have its size: nothing is uploaded for the next one.
#[derive(Clone, Debug, Default)]
struct WholeImages(Arc<Mutex<Option<Arc<Layout>>>>);

impl WholeImages {
    fn get(&self, batch: usize, patches: usize, device: &Device) -> Result<Arc<Layout>> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(layout) = &*held {
            let keep = &layout.ids.keep;
            if **keep.shape() == [batch, patches] && keep.device() == device {
                return Ok(layout.clone());
            }
        }
        let class_rows: Vec<i32> = (0..batch).map(|i| (i * (patches + 1)) as i32).collect();
        let layout = Layout {
            ids: PatchIds::all(batch, patches, device)?,
            seqs: Sequences::uniform(batch, patches + 1, device)?,
            class_rows: Tensor::from_slice(&class_rows, [batch], device)?,
        };
        Ok(held.insert(Arc::new(layout)).clone())
    }
}

/// Trunk, norm and linear head. Parameter names are those of upstream's fine-tuned files.
#[derive(Clone, Debug)]
pub struct Classifier {
    /// The trunk; class token and position table are trained here.
    pub trunk: Vit,
    /// `fc_norm` (mean) or `norm` (class token).
    pub norm: LayerNorm,
    /// `[classes, embed_dim]`.
    pub head: Linear,
    /// How tokens are pooled.
    pub pool: Pool,
    whole: WholeImages,
}
module!(Classifier { trunk, norm, head });

impl Classifier {
    /// A classifier with MAE's initial values: head weight N(0, 2e-5²), bias 0.
    pub fn new(b: &Builder, sizes: &Sizes, classes: usize, pool: Pool) -> Result<Self> {
        let mut trunk = Vit::new(b, &sizes.vit())?;
        trunk.pos_embed.trainable = true;
        let head = b.pp("head");
        Ok(Self {
            trunk,
            norm: LayerNorm::new(
                &b.pp(if pool == Pool::Mean { "fc_norm" } else { "norm" }),
                sizes.embed_dim,
                sizes.eps,
            )?,
            head: Linear {
                weight: head.param("weight", [classes, sizes.embed_dim], Init::Normal(2e-5))?,
                bias: Some(head.param("bias", [classes], Init::Zeros)?),
            },
            pool,
            whole: WholeImages::default(),
        })
    }

    /// Every token after the last block, the class token first, patches in raster order: `[B (L + 1), embed_dim]`.
    fn encode(&self, tape: &Tape, images: &Var, norm: Option<&Tensor>, drops: &[Drops]) -> Result<Var> {
        let [batch, ..] = images.value().dims::<4>("encode", "images")?;
        let (patches, device) = (self.trunk.config.patches()?, images.value().device());
        let layout = self.whole.get(batch, patches, device)?;
        let x = self.trunk.embed(tape, images, norm, &layout.ids)?;
        self.trunk.run(tape, x, &layout.seqs, drops)
    }

    /// What the last `n` blocks give, oldest first; what the first gets counts as given by one before it.
    fn states(&self, tape: &Tape, images: &Tensor, n: usize) -> Result<Vec<Var>> {
        let (images, norm) = (Var::constant(images.clone()), imagenet_norm(images.device())?);
        let layout =
            self.whole.get(images.value().shape()[0], self.trunk.config.patches()?, images.value().device())?;
        let mut x = self.trunk.embed(tape, &images, Some(&norm), &layout.ids)?;
        let mut states = VecDeque::from([x.clone()]);
        for block in &self.trunk.blocks {
            x = block.forward(tape, &x, &layout.seqs, &Drops::default())?;
            states.push_back(x.clone());
            states.drain(..states.len().saturating_sub(n));
        }
        Ok(states.into())
    }

    /// What the head sees: `[B, embed_dim]`. `drops`: stochastic depth, one entry per block, or empty.
    pub fn features(&self, tape: &Tape, images: &Var, norm: Option<&Tensor>, drops: &[Drops]) -> Result<Var> {
        let x = self.encode(tape, images, norm, drops)?;
        let (batch, rows) = (images.value().shape()[0], self.trunk.config.patches()? + 1);
        match self.pool {
            Pool::Mean => self.norm.forward(tape, &ops::mean_pool::mean_pool(tape, &x, rows, 1)?),
            Pool::Cls => {
                // Only the class rows go through the norm: the others would be thrown away.
                let layout = self.whole.get(batch, rows - 1, images.value().device())?;
                self.norm.forward(tape, &ops::gather_rows::gather_rows(tape, &x, &layout.class_rows)?)
            }
        }
    }

    /// Logits `[B, classes]`.
    pub fn forward(&self, tape: &Tape, images: &Var, norm: Option<&Tensor>, drops: &[Drops]) -> Result<Var> {
        self.head.forward(tape, &self.features(tape, images, norm, drops)?, None)
    }
}

impl Encoder for Classifier {
    fn image_size(&self) -> [usize; 2] {
        self.trunk.config.image
    }

    fn patch_size(&self) -> usize {
        self.trunk.config.patch
    }

    fn dim(&self) -> usize {
        self.trunk.config.dim
    }

    fn depth(&self) -> usize {
        self.trunk.blocks.len()
    }

    fn device(&self) -> &Device {
        self.norm.weight.master.device()
    }

    fn features(&self, images: &Tensor) -> Result<Tensor> {
        let (images, norm) = (Var::constant(images.clone()), imagenet_norm(Encoder::device(self))?);
        let y = Self::features(self, &Tape::no_grad(), &images, Some(&norm), &[])?;
        y.value().cast(DType::F32)
    }

    /// Those of the class-token classifier go through its norm; mean pooling has a norm for the mean only.
    fn layers(&self, images: &Tensor, n: usize) -> Result<Vec<Tensor>> {
        encoder::check_layers(n, self.depth())?;
        let (tape, shape) = (Tape::no_grad(), [images.shape()[0], self.trunk.config.patches()? + 1, self.dim()]);
        let tokens = |x: Var| {
            let x = if self.pool == Pool::Cls { self.norm.forward(&tape, &x)? } else { x };
            x.value().cast(DType::F32)?.reshape(shape)
        };
        self.states(&tape, images, n)?.into_iter().map(tokens).collect()
    }

    fn attention(&self, images: &Tensor) -> Result<Tensor> {
        encoder::check_layers(1, self.depth())?;
        let tape = Tape::no_grad();
        let input = self.states(&tape, images, 2)?.swap_remove(0);
        let layout = self.whole.get(images.shape()[0], self.trunk.config.patches()?, images.device())?;
        let last = &self.trunk.blocks[self.trunk.blocks.len() - 1];
        let normed = last.norm1.forward(&tape, &input)?;
        encoder::class_attention(&last.attn.probabilities(normed.value(), &layout.seqs)?, 1)
    }
}

/// Stochastic depth as factors: `floor(keep_prob + u) / keep_prob` per sample and branch, `keep_prob = 1 - rate`.
///
/// `uniform(block, branch)` gives the `[B]` uniform numbers of a branch (0 attention, 1 MLP); blocks of rate 0 draw none.
pub fn drops(rates: &[f64], device: &Device, mut uniform: impl FnMut(usize, usize) -> Vec<f32>) -> Result<Vec<Drops>> {
    let mut factors = |block: usize, branch: usize, rate: f64| {
        if rate == 0.0 {
            return Ok(None);
        }
        if !(0.0..1.0).contains(&rate) {
            return Err(Error::config("drop_path", rate, "0 to below 1"));
        }
        let keep = (1.0 - rate) as f32;
        let values: Vec<f32> = uniform(block, branch).iter().map(|u| (keep + u).floor() / keep).collect();
        Tensor::from_slice(&values, [values.len()], device).map(Some)
    };
    let each = |(i, &rate): (usize, &f64)| Ok(Drops { attn: factors(i, 0, rate)?, mlp: factors(i, 1, rate)? });
    rates.iter().enumerate().map(each).collect()
}

/// Rate of each block: `rate · i / (depth - 1)`.
pub fn drop_rates(rate: f64, depth: usize) -> Vec<f64> {
    (0..depth).map(|i| rate * i as f64 / (depth.max(2) - 1) as f64).collect()
}
