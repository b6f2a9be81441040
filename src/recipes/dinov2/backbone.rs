//! The Vision Transformer of DINOv2: registers, mask token, a position table for any grid, crops of several sizes in one
//! packed batch. Parameter names are those of the official checkpoints.

use std::sync::{Arc, Mutex, PoisonError};

use super::block::{Block, Drops, FfnKind, Start};
use crate::nn::pos_embed::{self, Grid, Resample};
use crate::nn::vit::PatchIds;
use crate::nn::{Builder, Init, LayerNorm, Linear, Sequences};
use crate::ops::masked_gather::masked_gather;
use crate::ops::prepare_tokens::{Part, prepare_tokens};
use crate::{Device, Error, Param, Result, Tape, Tensor, Var, module};

/// LayerNorm eps of all models.
const EPS: f32 = 1e-6;

/// Sizes of a [`Backbone`].
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Sizes {
    /// Side in pixels of the images that the position table is for.
    pub image_size: usize,
    /// Patch side in pixels.
    pub patch_size: usize,
    /// Width.
    pub embed_dim: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// Which feed-forward network.
    pub ffn: FfnKind,
    /// Its hidden units.
    pub hidden: usize,
    /// Register tokens.
    pub registers: usize,
    /// How the position table is read for other grids.
    pub interpolate_offset: f64,
    /// The same.
    pub interpolate_antialias: bool,
}

impl Sizes {
    /// Rows and columns of the position table.
    ///
    /// # Errors
    /// When the image is not a whole number of patches or the heads do not divide the width.
    pub fn grid(&self) -> Result<Grid> {
        self.grid_of([self.image_size; 2])
    }

    /// Patches in rows and columns of an image of this height and width.
    ///
    /// # Errors
    /// As [`grid`](Self::grid).
    pub fn grid_of(&self, [h, w]: [usize; 2]) -> Result<Grid> {
        let p = self.patch_size;
        if p == 0 || h == 0 || w == 0 || !h.is_multiple_of(p) || !w.is_multiple_of(p) {
            return Err(Error::config("image_size", format!("{h}x{w}"), format!("multiples of the patch size {p}")));
        }
        Ok((h / p, w / p))
    }

    /// How the position table is read for other grids.
    pub fn resample(&self) -> Resample {
        Resample::Scaled { offset: self.interpolate_offset, antialias: self.interpolate_antialias }
    }
}

/// Crops of one size.
#[derive(Clone, Copy)]
pub struct Crops<'a> {
    /// `[N, 3, H, W]`: u8 (with a norm) or normalised floats.
    pub images: &'a Var,
    /// `[N, L]` i32: not 0 where a patch is hidden.
    pub masks: Option<&'a Tensor>,
}

/// Where the crops of a packed batch lie.
#[derive(Clone, Debug)]
pub struct Layout {
    /// All sequences: those of the first size, then those of the second.
    pub seqs: Sequences,
    /// Their offsets, on the host.
    pub cu_seqlens: Vec<i32>,
    /// Crops of each size.
    pub lists: Vec<usize>,
    /// First row of each list, patches of each of its crops.
    places: Vec<(usize, usize)>,
    registers: usize,
    /// Every patch of each list, and how positions are read for it (the table as it is without).
    parts: Vec<(PatchIds, Option<Tensor>)>,
    /// Rows of the class tokens of each list, `[N]` i32.
    classes: Vec<Tensor>,
}

impl Layout {
    fn new(sizes: &Sizes, table: &Param, shapes: &[[usize; 3]]) -> Result<Self> {
        let (device, own) = (table.master.device(), sizes.grid()?);
        let (mut cu_seqlens, mut max) = (vec![0i32], 0);
        let (mut places, mut parts) = (vec![], vec![]);
        for &[count, h, w] in shapes {
            let grid = sizes.grid_of([h, w])?;
            let (len, first) = (grid.0 * grid.1, cu_seqlens[cu_seqlens.len() - 1]);
            let tokens = 1 + sizes.registers + len;
            let past = (first as usize).saturating_add(count.saturating_mul(tokens));
            if i32::try_from(past).is_err() {
                return Err(Error::value("backbone", "crops", past, "less than 2^31 tokens"));
            }
            cu_seqlens.extend((1..=count).map(|i| first + (i * tokens) as i32));
            max = max.max(tokens);
            places.push((first as usize, len));
            let how = sizes.resample();
            let matrix = (grid != own).then(|| pos_embed::matrix(own, grid, how, table.master.dtype(), device));
            parts.push((PatchIds::all(count, len, device)?, matrix.transpose()?));
        }
        let seqs = Sequences { cu_seqlens: Tensor::from_slice(&cu_seqlens, [cu_seqlens.len()], device)?, max };
        let lists = shapes.iter().map(|s| s[0]).collect();
        let mut layout = Self { seqs, cu_seqlens, lists, places, registers: sizes.registers, parts, classes: vec![] };
        for list in 0..shapes.len() {
            let rows: Vec<i32> = layout.class_rows(list).collect();
            layout.classes.push(Tensor::from_slice(&rows, [rows.len()], device)?);
        }
        Ok(layout)
    }

    fn tokens(&self, list: usize) -> usize {
        1 + self.registers + self.places[list].1
    }

    /// Rows of the class tokens of a list.
    pub fn class_rows(&self, list: usize) -> impl Iterator<Item = i32> + '_ {
        (0..self.lists[list]).map(move |i| (self.places[list].0 + i * self.tokens(list)) as i32)
    }

    /// The same on the device: `[N]` i32.
    pub fn class_ids(&self, list: usize) -> &Tensor {
        &self.classes[list]
    }

    /// Row of patch `flat` of a list, counted through all its crops.
    pub fn patch_row(&self, list: usize, flat: usize) -> i32 {
        let (first, len) = self.places[list];
        (first + flat / len * self.tokens(list) + 1 + self.registers + flat % len) as i32
    }

    /// Patches of a crop of a list.
    pub fn patches(&self, list: usize) -> usize {
        self.places[list].1
    }
}

/// The layout of the last batch, kept while batches have its shapes: nothing is uploaded for the next one.
type Held = Arc<Mutex<Option<(Vec<[usize; 3]>, Device, Arc<Layout>)>>>;

/// The model.
#[derive(Clone, Debug)]
pub struct Backbone {
    /// `[1, 1, dim]`.
    pub cls_token: Param,
    /// `[1, 1 + L, dim]`, the class token's row first.
    pub pos_embed: Param,
    /// `[1, R, dim]`.
    pub register_tokens: Option<Param>,
    /// `[1, dim]`.
    pub mask_token: Param,
    /// `[dim, 3, p, p]`: a convolution kernel.
    pub patch_embed: Linear,
    /// The transformer.
    pub blocks: Vec<Block>,
    /// After the last block.
    pub norm: LayerNorm,
    /// Sizes.
    pub sizes: Sizes,
    /// Whether blocks keep only their input and compute the rest again in the backward sweep.
    pub recompute: bool,
    held: Held,
}
module!(Backbone { cls_token, pos_embed, register_tokens, mask_token, patch_embed, blocks, norm });

impl Backbone {
    /// Positions start as N(0, 0.02²), class token and registers as N(0, 1e-6²), mask token and biases at 0, the patch embedding
    /// as torch's convolutions, blocks as `start` says.
    pub fn new(b: &Builder, sizes: &Sizes, start: &Start) -> Result<Self> {
        let ((rows, columns), &Sizes { patch_size, embed_dim: dim, .. }) = (sizes.grid()?, sizes);
        let proj = b.pp("patch_embed.proj");
        let bound = ((3 * patch_size * patch_size) as f64).powf(-0.5);
        let block = |i: usize| {
            let path = b.pp("blocks").pp(i);
            Block::new(&path, dim, sizes.num_heads, sizes.ffn, sizes.hidden, EPS, start)
        };
        let registers = |count: usize| b.param("register_tokens", [1, count, dim], Init::Normal(1e-6));
        Ok(Self {
            cls_token: b.param("cls_token", [1, 1, dim], Init::Normal(1e-6))?,
            pos_embed: b.param("pos_embed", [1, rows * columns + 1, dim], Init::Normal(0.02))?,
            register_tokens: (sizes.registers > 0).then(|| registers(sizes.registers)).transpose()?,
            mask_token: b.param("mask_token", [1, dim], Init::Zeros)?,
            patch_embed: Linear {
                weight: proj.param("weight", [dim, 3, patch_size, patch_size], Init::Uniform(bound))?,
                bias: Some(proj.param("bias", [dim], Init::Uniform(bound))?),
            },
            blocks: (0..sizes.depth).map(block).collect::<Result<_>>()?,
            norm: LayerNorm::new(&b.pp("norm"), dim, EPS)?,
            sizes: sizes.clone(),
            recompute: false,
            held: Held::default(),
        })
    }

    /// Where the tokens of crops of these shapes `[N, H, W]` lie.
    ///
    /// # Errors
    /// When a side is not a whole number of patches.
    pub fn layout(&self, shapes: &[[usize; 3]]) -> Result<Arc<Layout>> {
        let device = self.pos_embed.master.device();
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        match &*held {
            Some((known, on, layout)) if known == shapes && on == device => Ok(layout.clone()),
            _ => {
                let layout = Arc::new(Layout::new(&self.sizes, &self.pos_embed, shapes)?);
                *held = Some((shapes.to_vec(), device.clone(), layout.clone()));
                Ok(layout)
            }
        }
    }

    /// The layout of these crops.
    ///
    /// # Errors
    /// When images are not `[N, 3, H, W]` of whole patches.
    pub fn layout_of(&self, crops: &[Crops]) -> Result<Arc<Layout>> {
        let shape = |c: &Crops| {
            let [n, channels, h, w] = c.images.value().dims("backbone", "images")?;
            match channels {
                3 => Ok([n, h, w]),
                _ => Err(Error::shape("backbone", "images", c.images.value().shape(), "[N, 3, H, W]")),
            }
        };
        self.layout(&crops.iter().map(shape).collect::<Result<Vec<_>>>()?)
    }

    /// Tokens before the first block: `[tokens, dim]`.
    ///
    /// # Errors
    /// As [`layout_of`](Self::layout_of), and when masks do not fit.
    pub fn embed(&self, tape: &Tape, crops: &[Crops], norm: Option<&Tensor>) -> Result<Var> {
        let layout = self.layout_of(crops)?;
        let dtype = self.patch_embed.weight.value().dtype();
        let mut embedded = Vec::with_capacity(crops.len());
        for (c, (ids, matrix)) in crops.iter().zip(&layout.parts) {
            let patches = masked_gather(tape, c.images, &ids.keep, self.sizes.patch_size, norm, dtype)?;
            let pos = match matrix {
                None => tape.param(&self.pos_embed),
                Some(matrix) => pos_embed::resampled(tape, &self.pos_embed, matrix, dtype)?,
            };
            embedded.push((self.patch_embed.forward(tape, &patches, None)?, pos));
        }
        let parts: Vec<Part> = crops
            .iter()
            .zip(&embedded)
            .map(|(c, (patches, pos_embed))| Part { patches, pos_embed, masks: c.masks })
            .collect();
        let (cls, mask) = (tape.param(&self.cls_token), tape.param(&self.mask_token));
        let registers = self.register_tokens.as_ref().map(|r| tape.param(r));
        prepare_tokens(tape, &parts, &cls, &mask, registers.as_ref())
    }

    /// Tokens after the last block, before the last norm: `[tokens, dim]`, where the [`Layout`] says. `drops`: one entry
    /// for each block, or empty. `each` sees what every block gives.
    ///
    /// # Errors
    /// As [`embed`](Self::embed).
    pub fn forward_each(
        &self,
        tape: &Tape,
        crops: &[Crops],
        norm: Option<&Tensor>,
        drops: &[Drops],
        each: &mut dyn FnMut(usize, &Var) -> Result<()>,
    ) -> Result<Var> {
        let (layout, none) = (self.layout_of(crops)?, Drops::default());
        let mut x = self.embed(tape, crops, norm)?;
        for (i, block) in self.blocks.iter().enumerate() {
            let drops = drops.get(i).unwrap_or(&none);
            x = if self.recompute && tape.records() {
                block.recomputed(tape, &x, &layout.seqs, drops)?
            } else {
                block.forward(tape, &x, &layout.seqs, drops)?
            };
            each(i, &x)?;
        }
        Ok(x)
    }

    /// [`forward_each`](Self::forward_each) without looking.
    ///
    /// # Errors
    /// As [`embed`](Self::embed).
    pub fn forward(&self, tape: &Tape, crops: &[Crops], norm: Option<&Tensor>, drops: &[Drops]) -> Result<Var> {
        self.forward_each(tape, crops, norm, drops, &mut |_, _| Ok(()))
    }
}
