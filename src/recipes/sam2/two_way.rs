//! The decoder's transformer: tokens and image attend to each other, both ways.
//!
//! Source: Kirillov et al. 2023, arXiv 2304.02643, appendix A; `sam2/modeling/sam/transformer.py`, `TwoWayTransformer`.

use super::attention::{Attention, AttentionSizes};
use crate::nn::{Activation, Builder, LayerNorm, Perceptron};
use crate::ops::add::add;
use crate::{Result, Tape, Var, module};

/// Sizes of the transformer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TwoWaySizes {
    /// Blocks.
    pub depth: usize,
    /// Channels.
    pub dim: usize,
    /// Heads.
    pub heads: usize,
    /// Hidden units of the MLP.
    pub mlp_dim: usize,
    /// By how much attention between tokens and image is narrower.
    pub downsample: usize,
}

impl TwoWaySizes {
    fn attention(self, downsample: usize) -> AttentionSizes {
        AttentionSizes { dim: self.dim, kv_dim: self.dim, inner: self.dim / downsample, heads: self.heads }
    }
}

/// Self-attention of the tokens, tokens to image, MLP, image to tokens; a norm after each.
#[derive(Clone, Debug)]
pub struct TwoWayBlock {
    /// Of the tokens.
    pub self_attn: Attention,
    /// After it.
    pub norm1: LayerNorm,
    /// Tokens attend to the image.
    pub cross_attn_token_to_image: Attention,
    /// After it.
    pub norm2: LayerNorm,
    /// Of the tokens.
    pub mlp: Perceptron,
    /// After it.
    pub norm3: LayerNorm,
    /// After the image's attention.
    pub norm4: LayerNorm,
    /// The image attends to the tokens.
    pub cross_attn_image_to_token: Attention,
    first: bool,
}
module!(TwoWayBlock {
    self_attn,
    norm1,
    cross_attn_token_to_image,
    norm2,
    mlp,
    norm3,
    norm4,
    cross_attn_image_to_token
});

impl TwoWayBlock {
    fn new(b: &Builder, sizes: TwoWaySizes, first: bool) -> Result<Self> {
        let norm = |name: &str| LayerNorm::new(&b.pp(name), sizes.dim, 1e-5);
        let cross = |name: &str| Attention::new(&b.pp(name), sizes.attention(sizes.downsample));
        Ok(Self {
            self_attn: Attention::new(&b.pp("self_attn"), sizes.attention(1))?,
            norm1: norm("norm1")?,
            cross_attn_token_to_image: cross("cross_attn_token_to_image")?,
            norm2: norm("norm2")?,
            mlp: Perceptron::new(&b.pp("mlp"), &[sizes.dim, sizes.mlp_dim, sizes.dim], Activation::Relu)?,
            norm3: norm("norm3")?,
            norm4: norm("norm4")?,
            cross_attn_image_to_token: cross("cross_attn_image_to_token")?,
            first,
        })
    }

    /// Tokens and image after the block. `token_pe` are the tokens that the transformer began with, `image_pe` is `[N, C]`.
    fn forward(&self, tape: &Tape, tokens: &Var, image: &Var, token_pe: &Var, image_pe: &Var) -> Result<(Var, Var)> {
        // The first block has neither positions nor a residual here: its result takes the tokens' place.
        let tokens = if self.first {
            let y = self.self_attn.forward(tape, tokens, tokens, tokens, None)?;
            self.norm1.forward(tape, &y)?
        } else {
            let q = add(tape, tokens, token_pe)?;
            let y = self.self_attn.forward(tape, &q, &q, tokens, None)?;
            normed_sum(&self.norm1, tape, tokens, &y)?
        };
        let (q, k) = (add(tape, &tokens, token_pe)?, add(tape, image, image_pe)?);
        let y = self.cross_attn_token_to_image.forward(tape, &q, &k, image, None)?;
        let tokens = normed_sum(&self.norm2, tape, &tokens, &y)?;
        let tokens = self.norm3.forward(tape, &self.mlp.forward(tape, &tokens, Some(&tokens))?)?;
        let q = add(tape, &tokens, token_pe)?;
        let y = self.cross_attn_image_to_token.forward(tape, &k, &q, &tokens, None)?;
        let image = normed_sum(&self.norm4, tape, image, &y)?;
        Ok((tokens, image))
    }
}

/// `norm(x + branch)` in one pass.
fn normed_sum(norm: &LayerNorm, tape: &Tape, x: &Var, branch: &Var) -> Result<Var> {
    Ok(norm.forward_sum(tape, x, branch)?.1)
}

/// The blocks and a last attention of the tokens to the image.
#[derive(Clone, Debug)]
pub struct TwoWayTransformer {
    /// In order.
    pub layers: Vec<TwoWayBlock>,
    /// Tokens attend to the image once more.
    pub final_attn_token_to_image: Attention,
    /// After it.
    pub norm_final_attn: LayerNorm,
}
module!(TwoWayTransformer { layers, final_attn_token_to_image, norm_final_attn });

impl TwoWayTransformer {
    /// A transformer below `b`.
    ///
    /// # Errors
    /// When the heads do not divide the widths.
    pub fn new(b: &Builder, sizes: TwoWaySizes) -> Result<Self> {
        let layer = |i: usize| TwoWayBlock::new(&b.pp("layers").pp(i), sizes, i == 0);
        let last = sizes.attention(sizes.downsample);
        Ok(Self {
            layers: (0..sizes.depth).map(layer).collect::<Result<_>>()?,
            final_attn_token_to_image: Attention::new(&b.pp("final_attn_token_to_image"), last)?,
            norm_final_attn: LayerNorm::new(&b.pp("norm_final_attn"), sizes.dim, 1e-5)?,
        })
    }

    /// On an image `[B, N, C]` with positions `[N, C]` and tokens `[B, T, C]`; returns tokens and image.
    pub fn forward(&self, tape: &Tape, image: &Var, image_pe: &Var, tokens: &Var) -> Result<(Var, Var)> {
        let (token_pe, mut tokens, mut image) = (tokens, tokens.clone(), image.clone());
        for layer in &self.layers {
            (tokens, image) = layer.forward(tape, &tokens, &image, token_pe, image_pe)?;
        }
        let (q, k) = (add(tape, &tokens, token_pe)?, add(tape, &image, image_pe)?);
        let y = self.final_attn_token_to_image.forward(tape, &q, &k, &image, None)?;
        Ok((normed_sum(&self.norm_final_attn, tape, &tokens, &y)?, image))
    }
}
