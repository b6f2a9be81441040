//! Hiera: a transformer on maps that grow coarser and wider from stage to stage.
//!
//! Maps are `[B, H, W, C]`. A block attends within windows or over the whole map; the first of a stage pools its queries, so that
//! its result has half as many rows and columns.
//!
//! Source: Ryali et al. 2023, arXiv 2306.00989, sections 3 and 4; windows and positions as in Ravi et al. 2024, arXiv 2408.00714,
//! section 4, and the `hieradet.py` of its code.

use super::{Activation, Builder, Conv2d, Drops, Init, LayerNorm, Linear, PerSize, Perceptron, UniformSequences};
use crate::ops::attention::{KeyValues, Packing, attention, cross_attention};
use crate::ops::concat::slice;
use crate::ops::max_pool2d::max_pool2d;
use crate::ops::resample::{Plan, resample};
use crate::ops::unfold::Window;
use crate::ops::window_partition::{window_partition, window_unpartition};
use crate::ops::{add, linear, residual};
use crate::{Device, Error, Param, Result, Tape, Tensor, Var, module};

/// Sizes of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    /// Channels of the input.
    pub dim: usize,
    /// Channels of the output, and of queries, keys and values.
    pub dim_out: usize,
    /// Attention heads.
    pub heads: usize,
    /// Rows and columns of a window; 0 attends over the whole map.
    pub window: usize,
    /// Whether queries are pooled to half the rows and columns.
    pub pool: bool,
    /// Hidden units of the MLP per channel of the output.
    pub mlp_ratio: usize,
}

/// Queries, keys and values of a block.
#[derive(Clone, Debug)]
pub struct HieraAttention {
    /// `[3 dim_out, dim]`.
    pub qkv: Linear,
    /// `[dim_out, dim_out]`.
    pub proj: Linear,
}
module!(HieraAttention { qkv, proj });

/// `h = norm1(x)`; `x = shortcut + attention(h)`; `x += mlp(norm2(x))`. The shortcut is `x`, or, where the width changes,
/// `pool(proj(h))`.
#[derive(Clone, Debug)]
pub struct HieraBlock {
    /// Before attention.
    pub norm1: LayerNorm,
    /// Attention.
    pub attn: HieraAttention,
    /// Before the MLP.
    pub norm2: LayerNorm,
    /// Two layers with GELU.
    pub mlp: Perceptron,
    /// Of the shortcut, where the width changes.
    pub proj: Option<Linear>,
    sizes: BlockSizes,
    queries: UniformSequences,
    keys: UniformSequences,
}
module!(HieraBlock { norm1, attn, norm2, mlp, proj });

impl HieraBlock {
    /// A block below `b`.
    ///
    /// # Errors
    /// When heads do not divide the width, or queries are pooled over an odd window or a whole map.
    pub fn new(b: &Builder, sizes: BlockSizes) -> Result<Self> {
        let BlockSizes { dim, dim_out, heads, window, pool, mlp_ratio } = sizes;
        if heads == 0 || !dim_out.is_multiple_of(heads) {
            return Err(Error::config("num_heads", heads, format!("a divisor of the width {dim_out}")));
        }
        if pool && (window == 0 || window % 2 != 0) {
            return Err(Error::config("window_spec", window, "an even window where queries are pooled"));
        }
        let attn = HieraAttention {
            qkv: Linear::torch(&b.pp("attn").pp("qkv"), dim, 3 * dim_out)?,
            proj: Linear::torch(&b.pp("attn").pp("proj"), dim_out, dim_out)?,
        };
        let proj = (dim != dim_out).then(|| Linear::torch(&b.pp("proj"), dim, dim_out)).transpose()?;
        Ok(Self {
            norm1: LayerNorm::new(&b.pp("norm1"), dim, 1e-6)?,
            attn,
            norm2: LayerNorm::new(&b.pp("norm2"), dim_out, 1e-6)?,
            mlp: Perceptron::new(&b.pp("mlp"), &[dim_out, mlp_ratio * dim_out, dim_out], Activation::Gelu)?,
            proj,
            sizes,
            queries: UniformSequences::default(),
            keys: UniformSequences::default(),
        })
    }

    /// On `x: [B, H, W, dim]`; returns `[B, H, W, dim_out]`, or half the rows and columns. `drops`: one factor per map and branch.
    ///
    /// What is appended to fill the last windows is zero after the norm and not masked: its queries, keys and values are the
    /// biases, as in the upstream code.
    pub fn forward(&self, tape: &Tape, x: &Var, drops: &Drops) -> Result<Var> {
        self.around(tape, x, drops, |normed, size| {
            if self.sizes.window == 0 {
                return self.attend(tape, normed, 1);
            }
            let windows = window_partition(tape, normed, self.sizes.window)?;
            window_unpartition(tape, &self.attend(tape, &windows, 1)?, size)
        })
    }

    /// On maps `x: [N, H, W, dim]` that are pieces of images, `pieces` of which attend to each other.
    pub fn forward_pieces(&self, tape: &Tape, x: &Var, pieces: usize, drops: &Drops) -> Result<Var> {
        self.around(tape, x, drops, |normed, _| self.attend(tape, normed, pieces))
    }

    /// The block around its attention, which gets the normed map and the size of its result.
    fn around(
        &self,
        tape: &Tape,
        x: &Var,
        drops: &Drops,
        attend: impl FnOnce(&Var, [usize; 2]) -> Result<Var>,
    ) -> Result<Var> {
        let BlockSizes { dim_out, pool, .. } = self.sizes;
        let normed = self.norm1.forward(tape, x)?;
        let shortcut = match &self.proj {
            None => x.clone(),
            Some(proj) => {
                let y = proj.forward(tape, &normed, None)?;
                if pool { max_pool2d(tape, &y)? } else { y }
            }
        };
        let [maps, h, w, _] = shortcut.value().dims("hiera", "shortcut")?;
        let y = attend(&normed, [h, w])?;
        let rows = [maps * h * w, dim_out];
        let (shortcut, y) = (shortcut.reshape(rows)?, y.reshape(rows)?);
        let (x, normed) = match &drops.attn {
            None => self.norm2.forward_sum(tape, &shortcut, &y)?,
            scale => {
                let sum = residual::residual(tape, &shortcut, &y, scale.as_ref())?;
                let normed = self.norm2.forward(tape, &sum)?;
                (sum, normed)
            }
        };
        let x = match &drops.mlp {
            None => self.mlp.forward(tape, &normed, Some(&x))?,
            scale => residual::residual(tape, &x, &self.mlp.forward(tape, &normed, None)?, scale.as_ref())?,
        };
        x.reshape([maps, h, w, dim_out])
    }

    /// Attention within each `pieces` of the maps `x: [N, H, W, dim]`, after pooling the queries if the block does.
    fn attend(&self, tape: &Tape, x: &Var, pieces: usize) -> Result<Var> {
        let BlockSizes { dim_out, heads, pool, .. } = self.sizes;
        let [maps, h, w, _] = x.value().dims("hiera", "x")?;
        if pieces == 0 || maps % pieces != 0 {
            return Err(Error::value("hiera", "pieces", pieces, format!("a divisor of {maps}, the number of maps")));
        }
        let (tokens, head, device) = (maps * h * w, dim_out / heads, x.value().device().clone());
        let scale = (head as f32).powf(-0.5);
        let qkv = self.attn.qkv.forward(tape, x, None)?;
        let keys = self.keys.get(maps / pieces, pieces * h * w, &device)?;
        if !pool {
            let qkv = qkv.reshape([tokens, 3, heads, head])?;
            let y = attention(tape, &qkv, &keys.cu_seqlens, keys.max, scale)?;
            return self.attn.proj.forward(tape, &y, None)?.reshape([maps, h, w, dim_out]);
        }
        let qkv = qkv.reshape([tokens, 3, dim_out])?;
        let q = slice(tape, &qkv, 1, 0..1)?.reshape([maps, h, w, dim_out])?;
        let kv = slice(tape, &qkv, 1, 1..3)?.reshape([tokens, 2, heads, head])?;
        let q = max_pool2d(tape, &q)?;
        let [_, h, w, _] = q.value().dims("hiera", "q")?;
        let q = q.reshape([maps * h * w, heads, head])?;
        let queries = self.queries.get(maps / pieces, pieces * h * w, &device)?;
        let of_q = Packing { cu_seqlens: &queries.cu_seqlens, max_seqlen: queries.max };
        let of_k = Packing { cu_seqlens: &keys.cu_seqlens, max_seqlen: keys.max };
        let y = cross_attention(tape, &q, KeyValues::Packed(&kv), of_q, of_k, scale)?;
        self.attn.proj.forward(tape, &y, None)?.reshape([maps, h, w, dim_out])
    }
}

/// Sizes of a trunk, under the names of the upstream configuration.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HieraSizes {
    /// Channels of the first stage; each further stage has twice as many, and twice as many heads.
    pub embed_dim: usize,
    /// Heads of the first stage.
    pub num_heads: usize,
    /// Blocks of each stage.
    pub stages: Vec<usize>,
    /// Window of each stage. The first block of a stage still has the window of the one before.
    pub window_spec: Vec<usize>,
    /// Stages, after the first, that begin with pooling.
    pub q_pool: usize,
    /// Blocks that attend over the whole map.
    pub global_att_blocks: Vec<usize>,
    /// Rows and columns of the position table that is resized to the map.
    pub window_pos_embed_bkg_spatial_size: [usize; 2],
}

impl HieraSizes {
    /// Sizes of every block.
    ///
    /// # Errors
    /// When a stage is empty or has no window.
    pub fn blocks(&self) -> Result<Vec<BlockSizes>> {
        if self.stages.is_empty() || self.stages.contains(&0) || self.window_spec.len() != self.stages.len() {
            let expected = format!("at least one block a stage, and as many windows as stages, {:?}", self.window_spec);
            return Err(Error::config("stages", format!("{:?}", self.stages), expected));
        }
        let mut all = Vec::new();
        for (stage, &count) in self.stages.iter().enumerate() {
            for i in 0..count {
                let first = stage > 0 && i == 0;
                let before = if first { stage - 1 } else { stage };
                let global = self.global_att_blocks.contains(&all.len());
                all.push(BlockSizes {
                    dim: self.embed_dim << before,
                    dim_out: self.embed_dim << stage,
                    heads: self.num_heads << stage,
                    window: if global { 0 } else { self.window_spec[before] },
                    pool: first && stage <= self.q_pool,
                    mlp_ratio: 4,
                });
            }
        }
        Ok(all)
    }

    /// Channels of each stage's map.
    pub fn channels(&self) -> Vec<usize> {
        (0..self.stages.len()).map(|stage| self.embed_dim << stage).collect()
    }
}

/// The layer that makes the first map.
#[derive(Clone, Debug)]
pub struct PatchEmbed {
    /// 7 x 7, stride 4.
    pub proj: Conv2d,
}
module!(PatchEmbed { proj });

impl PatchEmbed {
    /// From RGB to `dim` channels.
    pub fn new(b: &Builder, dim: usize) -> Result<Self> {
        Ok(Self { proj: Conv2d::new(&b.pp("proj"), 3, dim, Window { kernel: 7, stride: 4, padding: 3 })? })
    }
}

/// The trunk: a map for each stage, at strides 4, 8, 16, 32.
#[derive(Clone, Debug)]
pub struct Hiera {
    /// `[1, C, b, b]`: resized to the map.
    pub pos_embed: Param,
    /// `[1, C, w, w]`, w the first window: repeated over the map.
    pub pos_embed_window: Param,
    /// The first map.
    pub patch_embed: PatchEmbed,
    /// All stages.
    pub blocks: Vec<HieraBlock>,
    /// Whether blocks keep only their inputs and compute the rest again in the backward.
    pub recompute: bool,
    sizes: HieraSizes,
    positions: PerSize<(Plan, Plan)>,
    identities: PerSize<Tensor>,
}
module!(Hiera { pos_embed, pos_embed_window, patch_embed, blocks });

impl Hiera {
    /// A trunk below `b`.
    ///
    /// # Errors
    /// As [`HieraSizes::blocks`] and [`HieraBlock::new`].
    pub fn new(b: &Builder, sizes: &HieraSizes) -> Result<Self> {
        let (dim, [rows, cols]) = (sizes.embed_dim, sizes.window_pos_embed_bkg_spatial_size);
        let blocks = sizes.blocks()?;
        let window = sizes.window_spec[0];
        let make = |(i, &sizes): (usize, &BlockSizes)| HieraBlock::new(&b.pp("blocks").pp(i), sizes);
        Ok(Self {
            pos_embed: b.param("pos_embed", [1, dim, rows, cols], Init::Zeros)?,
            pos_embed_window: b.param("pos_embed_window", [1, dim, window, window], Init::Zeros)?,
            patch_embed: PatchEmbed::new(&b.pp("patch_embed"), dim)?,
            blocks: blocks.iter().enumerate().map(make).collect::<Result<_>>()?,
            recompute: false,
            sizes: sizes.clone(),
            positions: PerSize::default(),
            identities: PerSize::default(),
        })
    }

    /// The position table of a map, `[H, W, C]`: `pos_embed` resized bicubically plus `pos_embed_window` repeated.
    ///
    /// # Errors
    /// When rows or columns are no multiple of the first window.
    pub fn positions(&self, tape: &Tape, [h, w]: [usize; 2]) -> Result<Var> {
        let (dim, window) = (self.sizes.embed_dim, self.sizes.window_spec[0]);
        let [rows, cols] = self.sizes.window_pos_embed_bkg_spatial_size;
        if window == 0 || h % window != 0 || w % window != 0 {
            let expected = format!("rows and columns of the map that are multiples of the first window, {window}");
            return Err(Error::value("hiera", "image", format!("a map of {h} x {w}"), expected));
        }
        let device = self.pos_embed.value().device().clone();
        let (resize, repeat) = self.positions.get(h, w, &device, || {
            Ok((Plan::bicubic([rows, cols], [h, w], &device)?, Plan::tile([window, window], [h, w], &device)?))
        })?;
        let resized = resample(tape, &self.turned(tape, &self.pos_embed)?, &resize)?;
        let repeated = resample(tape, &self.turned(tape, &self.pos_embed_window)?, &repeat)?;
        add::add(tape, &resized, &repeated)?.reshape([h, w, dim])
    }

    /// `[1, C, h, w]` as a map `[1, h, w, C]`: a product with the identity, which the gradient goes back through.
    fn turned(&self, tape: &Tape, table: &Param) -> Result<Var> {
        let [_, dim, h, w] = table.value().dims("hiera", "pos_embed")?;
        let (places, like) = (h * w, table.value());
        let identity = self.identities.get(h, w, like.device(), || {
            let values: Vec<f32> = (0..places * places).map(|i| f32::from(u8::from(i % (places + 1) == 0))).collect();
            Tensor::from_slice(&values, [places, places], &Device::Cpu)?.cast(like.dtype())?.to_device(like.device())
        })?;
        let table = tape.param(table).reshape([dim, places])?;
        linear::linear(tape, &Var::constant(identity), &table, None, None)?.reshape([1, h, w, dim])
    }

    /// On normalised images `[B, H, W, 3]`; returns a map for each stage. `drops`: one entry per block, or empty.
    pub fn forward(&self, tape: &Tape, images: &Var, drops: &[Drops]) -> Result<Vec<Var>> {
        let x = self.patch_embed.proj.forward(tape, images, None)?;
        let [_, h, w, _] = x.value().dims("hiera", "images")?;
        let mut x = add::add(tape, &x, &self.positions(tape, [h, w])?)?;
        let (mut maps, none, mut at) = (Vec::new(), Drops::default(), 0);
        for &count in &self.sizes.stages {
            for _ in 0..count {
                let (block, drops) = (&self.blocks[at], drops.get(at).unwrap_or(&none));
                x = if self.recompute && tape.records() {
                    let (block, drops) = (block.clone(), drops.clone());
                    tape.recompute(&[&x], move |tape, v| block.forward(tape, &v[0], &drops))?
                } else {
                    block.forward(tape, &x, drops)?
                };
                at += 1;
            }
            maps.push(x.clone());
        }
        Ok(maps)
    }
}
