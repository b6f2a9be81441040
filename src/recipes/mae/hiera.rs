//! The masked autoencoder on Hiera, which SAM-2's trunk starts from: whole units of 32 x 32 pixels are removed, the encoder sees
//! the others alone.
//!
//! Maps of the kept units are a batch of their own, `[B·K, 8, 8, C]`: attention within a unit is attention within a map, pooling
//! is that of maps, and nothing of a removed unit is ever computed but the windows of the first convolution.
//!
//! Source: Ryali et al. 2023, arXiv 2306.00989, section 3; facebookresearch/hiera `hiera_mae.py`. Names are upstream's, but that
//! MLPs of the trunk are `mlp.layers.0` and `.1`, as in SAM-2 (see [`to_upstream`]).

use crate::nn::hiera::{BlockSizes, HieraBlock, PatchEmbed};
use crate::nn::{Block, Builder, Conv2d, Drops, Init, LayerNorm, Linear, Style, UniformSequences};
use crate::ops::concat::concat;
use crate::ops::embedding::{Lookup, embedding};
use crate::ops::unfold::{Window, fold, unfold};
use crate::ops::window_partition::{window_partition, window_unpartition};
use crate::ops::{gather_rows, linear, masked_mse, select_rows};
use crate::{Device, Error, Param, Result, Tape, Tensor, Var, module};

/// Stride of the first convolution.
const STRIDE: usize = 4;
/// Rows and columns of a unit's first map.
const UNIT: usize = 8;
/// Rows and columns of a unit in pixels.
pub const UNIT_PIXELS: usize = UNIT * STRIDE;

/// Sizes of encoder and decoder, under the names of the upstream code.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HieraMaeSizes {
    /// Rows and columns of the images.
    pub input_size: [usize; 2],
    /// Channels of the first stage; each further stage has twice as many, and twice as many heads.
    pub embed_dim: usize,
    /// Heads of the first stage.
    pub num_heads: usize,
    /// Blocks of each stage.
    pub stages: Vec<usize>,
    /// Stages, after the first, that begin with pooling.
    pub q_pool: usize,
    /// Width of the decoder.
    pub decoder_embed_dim: usize,
    /// Blocks of the decoder.
    pub decoder_depth: usize,
    /// Heads of the decoder.
    pub decoder_num_heads: usize,
}

impl HieraMaeSizes {
    /// Rows and columns of units.
    ///
    /// # Errors
    /// When a side is no multiple of a unit, or pooling leaves nothing of one.
    pub fn units(&self) -> Result<[usize; 2]> {
        let [h, w] = self.input_size;
        if h == 0 || w == 0 || h % UNIT_PIXELS != 0 || w % UNIT_PIXELS != 0 {
            let expected = format!("multiples of {UNIT_PIXELS}");
            return Err(Error::config("input_size", format!("{h} x {w}"), expected));
        }
        if self.q_pool >= self.stages.len() || UNIT >> self.q_pool == 0 {
            return Err(Error::config("q_pool", self.q_pool, "fewer than the stages, and at most 3"));
        }
        Ok([h / UNIT_PIXELS, w / UNIT_PIXELS])
    }

    /// Rows and columns of a unit after all pooling.
    fn last(&self) -> usize {
        UNIT >> self.q_pool
    }

    /// Rows and columns of a predicted patch in pixels.
    pub fn patch(&self) -> usize {
        UNIT_PIXELS / self.last()
    }
}

/// Which units of each image are kept, the same number in all.
#[derive(Clone, Debug)]
pub struct VisibleUnits {
    visible: Vec<bool>,
    batch: usize,
    kept: usize,
    grid: [usize; 2],
}

impl VisibleUnits {
    /// `visible: [B, U]`, row by row; `grid`: rows and columns of units.
    ///
    /// # Errors
    /// When images keep different numbers, none or all of their units.
    pub fn new(visible: &[bool], grid: [usize; 2]) -> Result<Self> {
        let units = grid[0] * grid[1];
        let counts: Vec<usize> = visible.chunks(units.max(1)).map(|v| v.iter().filter(|x| **x).count()).collect();
        let kept = counts.first().copied().unwrap_or(0);
        let fits = units > 0 && visible.len().is_multiple_of(units) && counts.iter().all(|&n| n == kept);
        if !fits || kept == 0 || kept == units {
            let expected = format!("the same number of each image's {units} units, neither none nor all");
            return Err(Error::value("hiera_mae", "visible", format!("{counts:?}"), expected));
        }
        Ok(Self { visible: visible.to_vec(), batch: counts.len(), kept, grid })
    }

    /// Kept units: image and unit.
    fn each(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let units = self.grid[0] * self.grid[1];
        self.visible.iter().enumerate().filter(|(_, visible)| **visible).map(move |(at, _)| (at / units, at % units))
    }

    /// For each position of a map of `side x side` in every kept unit: its image, and its place in the whole map, row by row.
    fn positions(&self, side: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        let columns = self.grid[1];
        self.each().flat_map(move |(image, unit)| {
            let (top, left) = (unit / columns * side, unit % columns * side);
            (0..side * side).map(move |t| (image, (top + t / side) * columns * side + left + t % side))
        })
    }
}

/// [`VisibleUnits`] on the device, in the forms the model reads.
#[derive(Clone, Debug)]
pub struct UnitIds {
    batch: usize,
    kept: usize,
    /// `[B, U]` f32: 1 where a unit is kept.
    flags: Tensor,
    /// Rows of the kept positions among the windows of the first convolution.
    rows: Tensor,
    /// Their places in the position table.
    places: Lookup,
    /// For each token of the decoder its row among those of the encoder, or the mask token's.
    tokens: Lookup,
    /// `[B, M]` i32: removed patches, ascending.
    pub masked: Tensor,
    /// Their rows among the decoder's tokens.
    masked_rows: Tensor,
}

impl UnitIds {
    /// Copies to the device what `sizes` makes of the kept units.
    ///
    /// # Errors
    /// When the units are those of other images.
    pub fn new(units: &VisibleUnits, sizes: &HieraMaeSizes, device: &Device) -> Result<Self> {
        let grid = sizes.units()?;
        if grid != units.grid {
            let expected = format!("{grid:?}, as in the configuration");
            return Err(Error::value("hiera_mae", "grid", format!("{:?}", units.grid), expected));
        }
        let (count, last) = (grid[0] * grid[1], sizes.last());
        let (positions, tokens) = (count * UNIT * UNIT, count * last * last);
        let flags: Vec<f32> = units.visible.iter().map(|&v| f32::from(u8::from(v))).collect();
        let rows: Vec<i32> = units.positions(UNIT).map(|(b, at)| (b * positions + at) as i32).collect();
        let places: Vec<i32> = units.positions(UNIT).map(|(_, at)| at as i32).collect();
        let encoded = units.batch * units.kept * last * last;
        let mut of_token = vec![encoded as i32; units.batch * tokens];
        for (row, (b, at)) in units.positions(last).enumerate() {
            of_token[b * tokens + at] = row as i32;
        }
        let removed = |(at, row): (usize, &i32)| (*row == encoded as i32).then_some(at as i32);
        let masked_rows: Vec<i32> = of_token.iter().enumerate().filter_map(removed).collect();
        let masked: Vec<i32> = masked_rows.iter().map(|row| row % tokens as i32).collect();
        let missing = masked.len() / units.batch;
        Ok(Self {
            batch: units.batch,
            kept: units.kept,
            flags: Tensor::from_slice(&flags, [units.batch * count], device)?,
            rows: Tensor::from_slice(&rows, [rows.len()], device)?,
            places: Lookup::new(&places, positions, device)?,
            tokens: Lookup::new(&of_token, encoded + 1, device)?,
            masked: Tensor::from_slice(&masked, [units.batch, missing], device)?,
            masked_rows: Tensor::from_slice(&masked_rows, [masked_rows.len()], device)?,
        })
    }
}

/// Encoder and decoder.
#[derive(Clone, Debug)]
pub struct HieraMae {
    /// `[1, L, C]`: of each position of the first map.
    pub pos_embed: Param,
    /// The first map.
    pub patch_embed: PatchEmbed,
    /// All stages.
    pub blocks: Vec<HieraBlock>,
    /// `multi_scale_fusion_heads.i`: the map of a pooled stage at the size of the last.
    pub multi_scale_fusion_heads: Vec<Conv2d>,
    /// After the encoder.
    pub encoder_norm: LayerNorm,
    /// Encoder width to decoder width.
    pub decoder_embed: Linear,
    /// `[1, 1, D]`: stands for every removed token.
    pub mask_token: Param,
    /// `[1, N, D]`.
    pub decoder_pos_embed: Param,
    /// The decoder's transformer.
    pub decoder_blocks: Vec<Block>,
    /// After the decoder.
    pub decoder_norm: LayerNorm,
    /// Decoder width to the values of a patch, order (c, py, px).
    pub decoder_pred: Linear,
    sizes: HieraMaeSizes,
    sequences: UniformSequences,
}
module!(HieraMae {
    pos_embed,
    patch_embed,
    blocks,
    multi_scale_fusion_heads,
    encoder_norm,
    decoder_embed,
    mask_token,
    decoder_pos_embed,
    decoder_blocks,
    decoder_norm,
    decoder_pred,
});

impl HieraMae {
    /// A model with upstream's initial values: Xavier-uniform linear layers with zero bias, tables and token N(0, 0.02²).
    ///
    /// # Errors
    /// When sizes do not fit each other.
    pub fn new(b: &Builder, sizes: &HieraMaeSizes) -> Result<Self> {
        let [rows, cols] = sizes.units()?;
        let (units, dim, width) = (rows * cols, sizes.embed_dim, sizes.decoder_embed_dim);
        let (mut blocks, mut heads) = (Vec::new(), Vec::new());
        for (stage, &count) in sizes.stages.iter().enumerate() {
            for i in 0..count {
                let first = stage > 0 && i == 0;
                let of_block = BlockSizes {
                    dim: dim << if first { stage - 1 } else { stage },
                    dim_out: dim << stage,
                    heads: sizes.num_heads << stage,
                    window: UNIT,
                    pool: first && stage <= sizes.q_pool,
                    mlp_ratio: 4,
                };
                blocks.push(HieraBlock::new(&b.pp("blocks").pp(blocks.len()), of_block)?);
            }
        }
        let last_dim = dim << (sizes.stages.len() - 1);
        for stage in 0..sizes.q_pool {
            let kernel = 1 << (sizes.q_pool - stage);
            let window = Window { kernel, stride: kernel, padding: 0 };
            heads.push(Conv2d::new(&b.pp("multi_scale_fusion_heads").pp(stage), dim << stage, last_dim, window)?);
        }
        let decoder = |i: usize| {
            let path = b.pp("decoder_blocks").pp(i);
            Block::new(&path, width, sizes.decoder_num_heads, 4 * width, 1e-6, &Style::VIT)
        };
        let tokens = units * sizes.last() * sizes.last();
        Ok(Self {
            pos_embed: b.param("pos_embed", [1, units * UNIT * UNIT, dim], Init::Normal(0.02))?,
            patch_embed: PatchEmbed::new(&b.pp("patch_embed"), dim)?,
            blocks,
            multi_scale_fusion_heads: heads,
            encoder_norm: LayerNorm::new(&b.pp("encoder_norm"), last_dim, 1e-6)?,
            decoder_embed: Linear::new(&b.pp("decoder_embed"), last_dim, width)?,
            mask_token: b.param("mask_token", [1, 1, width], Init::Normal(0.02))?,
            decoder_pos_embed: b.param("decoder_pos_embed", [1, tokens, width], Init::Normal(0.02))?,
            decoder_blocks: (0..sizes.decoder_depth).map(decoder).collect::<Result<_>>()?,
            decoder_norm: LayerNorm::new(&b.pp("decoder_norm"), width, 1e-6)?,
            decoder_pred: Linear::new(&b.pp("decoder_pred"), width, 3 * sizes.patch() * sizes.patch())?,
            sizes: sizes.clone(),
            sequences: UniformSequences::default(),
        })
    }

    /// Fused maps of the kept units of normalised images `[B, H, W, 3]` before `encoder_norm`: `[B·K, m, m, C]`.
    pub fn fused(&self, tape: &Tape, images: &Var, ids: &UnitIds, drops: &[Drops]) -> Result<Var> {
        let [batch, h, w, _] = images.value().dims("hiera_mae", "images")?;
        // Windows of the convolution overlap units: the removed ones are zero before it.
        let units = window_partition(tape, images, UNIT_PIXELS)?;
        let zero = Var::constant(Tensor::zeros([1], images.value().dtype(), images.value().device())?);
        let units = select_rows::select_rows(tape, &ids.flags, &units, &zero)?;
        let images = window_unpartition(tape, &units, [h, w])?;
        let columns = unfold(tape, &images, Window { kernel: 7, stride: STRIDE, padding: 3 })?;
        let (rows, cols) = columns.value().shape().rows_cols();
        let columns = gather_rows::gather_rows(tape, &columns.reshape([rows, cols])?, &ids.rows)?;
        let (weight, bias) = (&self.patch_embed.proj.weight, &self.patch_embed.proj.bias);
        let x = linear::linear(tape, &columns, &tape.param(weight), Some(&tape.param(bias)), None)?;
        let dim = self.sizes.embed_dim;
        let table = tape.param(&self.pos_embed).reshape([self.pos_embed.value().numel() / dim, dim])?;
        let x = embedding(tape, &table, &ids.places, Some(&x))?;
        let mut x = x.reshape([batch * ids.kept, UNIT, UNIT, dim])?;

        let (none, mut at, mut fused) = (Drops::default(), 0, None::<Var>);
        for (stage, &count) in self.sizes.stages.iter().enumerate() {
            for i in 0..count {
                // Within units in the pooled stages and, since the switch lags by a block, once more.
                let within = stage < self.sizes.q_pool || (stage == self.sizes.q_pool && i == 0 && stage > 0);
                let pieces = if within { 1 } else { ids.kept };
                x = self.blocks[at].forward_pieces(tape, &x, pieces, drops.get(at).unwrap_or(&none))?;
                at += 1;
            }
            if let Some(head) = self.multi_scale_fusion_heads.get(stage) {
                fused = Some(head.forward(tape, &x, fused.as_ref())?);
            }
        }
        match fused {
            None => Ok(x),
            Some(sum) => crate::ops::add::add(tape, &sum, &x),
        }
    }

    /// Latent maps of the kept units: `[B·K, m, m, C]`.
    pub fn encode(&self, tape: &Tape, images: &Var, ids: &UnitIds, drops: &[Drops]) -> Result<Var> {
        self.encoder_norm.forward(tape, &self.fused(tape, images, ids, drops)?)
    }

    /// The decoder's tokens before its norm, raster order: `[B·N, D]`.
    fn decode(&self, tape: &Tape, latent: &Var, ids: &UnitIds) -> Result<Var> {
        let width = self.sizes.decoder_embed_dim;
        let z = self.decoder_embed.forward(tape, latent, None)?;
        let z = z.reshape([z.value().numel() / width, width])?;
        let table = concat(tape, &[&z, &tape.param(&self.mask_token).reshape([1, width])?], 0)?;
        let x = embedding(tape, &table, &ids.tokens, None)?;
        let tokens = self.decoder_pos_embed.value().shape()[1];
        let x = x.reshape([ids.batch, tokens, width])?;
        let pos = tape.param(&self.decoder_pos_embed).reshape([tokens, width])?;
        let x = crate::ops::add::add(tape, &x, &pos)?.reshape([ids.batch * tokens, width])?;
        let seqs = self.sequences.get(ids.batch, tokens, x.value().device())?;
        Block::run(&self.decoder_blocks, tape, x, &seqs, &[], false)
    }

    /// Predicted values of the removed patches, `[B·M, P]`, order (c, py, px).
    pub fn predict(&self, tape: &Tape, latent: &Var, ids: &UnitIds) -> Result<Var> {
        let x = gather_rows::gather_rows(tape, &self.decode(tape, latent, ids)?, &ids.masked_rows)?;
        self.decoder_pred.forward(tape, &self.decoder_norm.forward(tape, &x)?, None)
    }

    /// Predicted values of all patches, `[B·N, P]`.
    pub fn predict_all(&self, tape: &Tape, latent: &Var, ids: &UnitIds) -> Result<Var> {
        let x = self.decode(tape, latent, ids)?;
        self.decoder_pred.forward(tape, &self.decoder_norm.forward(tape, &x)?, None)
    }

    /// Mean squared error of the removed patches of `images: [B, 3, H, W]`, each normalised by its own mean and unbiased
    /// variance.
    pub fn loss(&self, tape: &Tape, pred: &Var, images: &Tensor, norm: Option<&Tensor>, ids: &UnitIds) -> Result<Var> {
        let (patch, rows) = (self.sizes.patch(), pred.value().shape()[0]);
        // A patch as a map of one position unfolds to (py, px, c), which is how the loss reads images.
        let window = Window { kernel: patch, stride: patch, padding: 0 };
        let values = 3 * patch * patch;
        let pred = fold(tape, &pred.reshape([rows, 1, 1, values])?, window, [patch, patch])?;
        masked_mse::masked_mse(tape, &pred.reshape([rows, values])?, images, norm, &ids.masked, patch, true)
    }
}

/// The name of a parameter in upstream's files.
pub fn to_upstream(name: &str) -> String {
    match name.strip_prefix("blocks.") {
        None => name.to_string(),
        Some(rest) => format!("blocks.{}", rest.replace("mlp.layers.0", "mlp.fc1").replace("mlp.layers.1", "mlp.fc2")),
    }
}
