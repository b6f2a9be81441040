//! The Vision Transformer trunk: patch embedding, class token, position table, pre-norm blocks.

use super::{Block, Builder, Drops, Init, Linear, Sequences, Style};
use crate::nn::pos_embed::sincos_2d;
use crate::{Device, Error, Param, Result, Tape, Tensor, Var, module, ops};

/// Sizes of a [`Vit`].
#[derive(Clone, Debug, PartialEq)]
pub struct VitConfig {
    /// Image height and width in pixels.
    pub image: [usize; 2],
    /// Patch side in pixels.
    pub patch: usize,
    /// Image channels.
    pub channels: usize,
    /// Width.
    pub dim: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads.
    pub heads: usize,
    /// Hidden units of the MLPs.
    pub hidden: usize,
    /// LayerNorm eps.
    pub eps: f32,
}

impl VitConfig {
    /// Patch rows and columns.
    ///
    /// # Errors
    /// When a side is not a multiple of the patch or a size is zero.
    pub fn grid(&self) -> Result<[usize; 2]> {
        let [h, w] = self.image;
        if self.patch == 0 || h == 0 || w == 0 || !h.is_multiple_of(self.patch) || !w.is_multiple_of(self.patch) {
            let expected = format!("multiples of the patch size {}", self.patch);
            return Err(Error::config("image_size", format!("{h}x{w}"), expected));
        }
        if !self.dim.is_multiple_of(4) || self.dim == 0 {
            return Err(Error::config("embed_dim", self.dim, "a multiple of 4 (sin-cos position table)"));
        }
        Ok([h / self.patch, w / self.patch])
    }

    /// Number of patches.
    pub fn patches(&self) -> Result<usize> {
        self.grid().map(|[h, w]| h * w)
    }

    /// Shape of `count` images, `[B, C, H, W]`.
    pub fn images(&self, count: usize) -> [usize; 4] {
        [count, self.channels, self.image[0], self.image[1]]
    }
}

/// Which patches of each image are kept, on the device.
#[derive(Clone, Debug)]
pub struct PatchIds {
    /// `[B, K]` i32, in the order the tokens have.
    pub keep: Tensor,
    /// `[B, L]` i32: rank of each patch; ranks below K are kept.
    pub restore: Tensor,
}

impl PatchIds {
    /// Every patch, in raster order.
    pub fn all(batch: usize, patches: usize, device: &Device) -> Result<Self> {
        let ids: Vec<i32> = (0..batch).flat_map(|_| 0..patches as i32).collect();
        let ids = Tensor::from_slice(&ids, [batch, patches], device)?;
        Ok(Self { keep: ids.clone(), restore: ids })
    }
}

/// The trunk. Parameter names: `cls_token`, `pos_embed`, `patch_embed.proj.*`, `blocks.N.*`.
#[derive(Clone, Debug)]
pub struct Vit {
    /// `[1, 1, dim]`.
    pub cls_token: Param,
    /// `[1, L + 1, dim]`, row 0 is the class token's.
    pub pos_embed: Param,
    /// `[dim, C, p, p]`: a convolution kernel.
    pub patch_embed: Linear,
    /// The transformer.
    pub blocks: Vec<Block>,
    /// Sizes.
    pub config: VitConfig,
    /// Whether blocks keep only their input and compute the rest again in the backward sweep.
    pub recompute: bool,
}
module!(Vit { cls_token, pos_embed, patch_embed, blocks });

impl Vit {
    /// A trunk with MAE's initial values and the fixed sin-cos table (not trainable until the caller says so).
    pub fn new(b: &Builder, config: &VitConfig) -> Result<Self> {
        let [gh, gw] = config.grid()?;
        let &VitConfig { patch, channels, dim, .. } = config;
        let proj = b.pp("patch_embed.proj");
        let fan_in = channels * patch * patch;
        let patch_embed = Linear {
            weight: proj.param("weight", [dim, channels, patch, patch], Init::Xavier { fan_in, fan_out: dim })?,
            // torch's convolution default, which upstream leaves in place
            bias: Some(proj.param("bias", [dim], Init::Uniform((fan_in as f64).powf(-0.5)))?),
        };
        let table = Init::Values(sincos_2d(dim, gh, gw, true)?);
        let blocks = (0..config.depth)
            .map(|i| Block::new(&b.pp("blocks").pp(i), dim, config.heads, config.hidden, config.eps, &Style::VIT))
            .collect::<Result<_>>()?;
        Ok(Self {
            cls_token: b.param("cls_token", [1, 1, dim], Init::Normal(0.02))?,
            pos_embed: b.frozen("pos_embed", [1, gh * gw + 1, dim], table)?,
            patch_embed,
            blocks,
            config: config.clone(),
            recompute: false,
        })
    }

    /// Tokens of the kept patches with positions, the class token first: `[B (K + 1), dim]`.
    ///
    /// `images`: `[B, C, H, W]` u8 or float; `norm`: `[2, C]` mean and std (see
    /// [`masked_gather`](ops::masked_gather::masked_gather)).
    ///
    /// # Errors
    /// When the images have another size or number of channels than the trunk: their patches would get the positions of
    /// others.
    pub fn embed(&self, tape: &Tape, images: &Var, norm: Option<&Tensor>, ids: &PatchIds) -> Result<Var> {
        let dtype = self.patch_embed.weight.value().dtype();
        let [batch, _, _, _] = images.value().dims("embed", "images")?;
        let expected = self.config.images(batch);
        if **images.value().shape() != expected {
            return Err(Error::shape("embed", "images", images.value().shape(), format!("{expected:?}")));
        }
        let patches = ops::masked_gather::masked_gather(tape, images, &ids.keep, self.config.patch, norm, dtype)?;
        let patches = self.patch_embed.forward(tape, &patches, None)?;
        let (cls, pos) = (tape.param(&self.cls_token), tape.param(&self.pos_embed));
        ops::assemble_tokens::assemble_tokens(tape, &patches, &cls, &pos, &ids.keep, &ids.restore)
    }

    /// The blocks on `[tokens, dim]`. `drops`: stochastic depth, one entry per block, or empty.
    pub fn run(&self, tape: &Tape, x: Var, seqs: &Sequences, drops: &[Drops]) -> Result<Var> {
        Block::run(&self.blocks, tape, x, seqs, drops, self.recompute)
    }
}
