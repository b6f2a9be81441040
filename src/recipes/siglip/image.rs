//! The image tower.

use super::head::Queries;
use super::{MapHead, Shapes, Sizes};
use crate::nn::vit::PatchIds;
use crate::nn::{Block, Builder, Init, LayerNorm, Linear, PerSize, Sequences};
use crate::ops::embedding::{Lookup, embedding};
use crate::ops::masked_gather::masked_gather;
use crate::{Device, Error, Param, Result, Tape, Tensor, Var, module};

/// A ViT without class token, pooled by attention. Parameter names are those of `transformers`, with `q`, `k` and `v` of a
/// block stacked as `qkv_proj`, and `in_proj` of the head cut into `q_proj` and `kv_proj`.
#[derive(Clone, Debug)]
pub struct ImageTower {
    /// `[width, C, p, p]`: a convolution kernel.
    pub patch_embedding: Linear,
    /// `[patches, width]`.
    pub position_embedding: Param,
    /// The transformer.
    pub layers: Vec<Block>,
    /// After the transformer.
    pub post_layernorm: LayerNorm,
    /// Makes one vector of the tokens.
    pub head: MapHead,
    /// To the width of the embeddings, where that is not the tower's.
    pub projection: Option<Linear>,
    /// Whether blocks keep only their input and compute the rest again in the backward sweep.
    pub recompute: bool,
    sizes: Sizes,
    layout: PerSize<Layout>,
}
module!(ImageTower { patch_embedding, position_embedding, layers, post_layernorm, head, projection });

/// What follows from the number of images.
#[derive(Clone, Debug)]
struct Layout {
    patches: PatchIds,
    positions: Lookup,
    seqs: Sequences,
    queries: Queries,
}

impl Layout {
    fn new(batch: usize, patches: usize, device: &Device) -> Result<Self> {
        let ids: Vec<i32> = (0..batch).flat_map(|_| 0..patches as i32).collect();
        Ok(Self {
            patches: PatchIds::all(batch, patches, device)?,
            positions: Lookup::new(&ids, patches, device)?,
            seqs: Sequences::uniform(batch, patches, device)?,
            queries: Queries::new(batch, device)?,
        })
    }
}

impl ImageTower {
    /// With big_vision's initial values.
    ///
    /// # Errors
    /// For sizes that no model can have.
    pub fn new(b: &Builder, sizes: &Sizes) -> Result<Self> {
        sizes.check()?;
        let ([rows, columns], tower) = (sizes.grid()?, &sizes.vision);
        let (width, channels, patch) = (tower.width, sizes.in_chans, sizes.patch_size);
        let (model, style) = (b.pp("vision_model"), tower.style());
        let embeddings = model.pp("embeddings");
        let kernel = embeddings.pp("patch_embedding");
        let fan_in = channels * patch * patch;
        let layer = |i| {
            let path = model.pp("encoder.layers").pp(i);
            Block::new(&path, width, tower.heads, tower.hidden, sizes.eps, &style)
        };
        let positions = Init::Normal((width as f64).powf(-0.5));
        let projection = || {
            let weight = Init::Lecun { fan_in: width };
            Linear::with(&b.pp("visual_projection"), width, sizes.embed_dim, weight, Init::Zeros)
        };
        Ok(Self {
            patch_embedding: Linear {
                weight: kernel.param("weight", [width, channels, patch, patch], Init::Lecun { fan_in })?,
                bias: Some(kernel.param("bias", [width], Init::Zeros)?),
            },
            position_embedding: embeddings.param("position_embedding.weight", [rows * columns, width], positions)?,
            layers: (0..tower.depth).map(layer).collect::<Result<_>>()?,
            post_layernorm: LayerNorm::new(&model.pp("post_layernorm"), width, sizes.eps)?,
            head: MapHead::new(&model.pp("head"), tower, sizes.eps)?,
            projection: sizes.vision_head.then(projection).transpose()?,
            recompute: false,
            sizes: sizes.clone(),
            layout: PerSize::default(),
        })
    }

    /// Embeddings of images, not normalised: `[B, embed_dim]`.
    ///
    /// `images`: `[B, C, H, W]` u8 or float; `norm`: `[2, C]` mean and std (see [`masked_gather`]).
    ///
    /// # Errors
    /// When the images have another size or number of channels than the tower: their patches would get the positions of
    /// others.
    pub fn forward(&self, tape: &Tape, images: &Var, norm: Option<&Tensor>) -> Result<Var> {
        let tokens = self.encode(tape, images, norm)?;
        self.pool(tape, &tokens)
    }

    /// Tokens after the last norm: `[B · patches, width]`.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn encode(&self, tape: &Tape, images: &Var, norm: Option<&Tensor>) -> Result<Var> {
        let [batch, _, _, _] = images.value().dims("image_tower", "images")?;
        let expected = self.sizes.images(batch);
        if **images.value().shape() != expected {
            return Err(Error::shape("image_tower", "images", images.value().shape(), format!("{expected:?}")));
        }
        let layout = self.layout(batch, images.value().device())?;
        let dtype = self.patch_embedding.weight.value().dtype();
        let x = masked_gather(tape, images, &layout.patches.keep, self.sizes.patch_size, norm, dtype)?;
        let x = self.patch_embedding.forward(tape, &x, None)?;
        let x = embedding(tape, &tape.param(&self.position_embedding), &layout.positions, Some(&x))?;
        self.run(tape, x, &layout.seqs)
    }

    fn run(&self, tape: &Tape, x: Var, seqs: &Sequences) -> Result<Var> {
        let x = Block::run(&self.layers, tape, x, seqs, &[], self.recompute)?;
        self.post_layernorm.forward(tape, &x)
    }

    /// Embeddings of images of different shapes, not normalised: `[B, embed_dim]`.
    ///
    /// `patches`: `[all patches, C · p · p]` normalised pixels in the order `(c, py, px)` of a convolution kernel. It runs
    /// launch by launch: a recorded step would need the same shapes again.
    ///
    /// # Errors
    /// When there are other patches than the shapes say, or the shapes were made for another table.
    pub fn forward_shapes(&self, tape: &Tape, patches: &Var, shapes: &Shapes) -> Result<Var> {
        let x = self.patch_embedding.forward(tape, patches, None)?;
        let x = shapes.add_positions(tape, &tape.param(&self.position_embedding), x)?;
        let x = self.run(tape, x, &shapes.seqs)?;
        self.embed(tape, &x, &shapes.seqs, &shapes.queries)
    }

    /// Embeddings from the tokens that [`encode`](Self::encode) gave: `[B, embed_dim]`.
    pub fn pool(&self, tape: &Tape, tokens: &Var) -> Result<Var> {
        let patches = self.position_embedding.value().shape()[0];
        let layout = self.layout(tokens.value().shape().rows_cols().0 / patches, tokens.value().device())?;
        self.embed(tape, tokens, &layout.seqs, &layout.queries)
    }

    fn embed(&self, tape: &Tape, tokens: &Var, seqs: &Sequences, queries: &Queries) -> Result<Var> {
        let x = self.head.forward(tape, tokens, seqs, queries)?;
        match &self.projection {
            Some(projection) => projection.forward(tape, &x, None),
            None => Ok(x),
        }
    }

    fn layout(&self, batch: usize, device: &Device) -> Result<Layout> {
        let patches = self.position_embedding.value().shape()[0];
        self.layout.get(batch, patches, device, || Layout::new(batch, patches, device))
    }
}
