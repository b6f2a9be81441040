//! The masked autoencoder: a ViT encoder on the kept patches, a small decoder on all, the loss on the removed ones.

use super::Sizes;
use crate::data::masks::Masking;
use crate::nn::pos_embed::sincos_2d;
use crate::nn::vit::{PatchIds, Vit};
use crate::nn::{Block, Builder, Init, LayerNorm, Linear, Style, UniformSequences};
use crate::{Device, Param, Result, Tape, Tensor, Var, module, ops};

/// Which patches are kept and which are reconstructed, on the device.
#[derive(Clone, Debug)]
pub struct MaskIds {
    /// Kept patches in noise order and the rank of each patch.
    pub kept: PatchIds,
    /// `[B, L - K]` i32, ascending.
    pub masked: Tensor,
    /// Rows of the removed patches in the decoder.
    pub rows: Tensor,
}

impl MaskIds {
    /// Copies the masking of `batch` images to the device.
    pub fn new(masking: &Masking, batch: usize, device: &Device) -> Result<Self> {
        let len = masking.ids_restore.len() / batch.max(1);
        let ids = |v: &[i32], n: usize| Tensor::from_slice(v, [batch, n], device);
        let rows = decoder_rows(&masking.ids_masked, batch, len);
        Ok(Self {
            rows: Tensor::from_slice(&rows, [rows.len()], device)?,
            kept: PatchIds { keep: ids(&masking.ids_keep, masking.keep)?, restore: ids(&masking.ids_restore, len)? },
            masked: ids(&masking.ids_masked, len - masking.keep)?,
        })
    }
}

/// Encoder and decoder. Parameter names are those of the official checkpoints.
#[derive(Clone, Debug)]
pub struct Mae {
    /// The encoder's trunk.
    pub encoder: Vit,
    /// After the encoder.
    pub norm: LayerNorm,
    /// Encoder width to decoder width.
    pub decoder_embed: Linear,
    /// `[1, 1, decoder width]`: stands for every removed patch.
    pub mask_token: Param,
    /// `[1, L + 1, decoder width]`.
    pub decoder_pos_embed: Param,
    /// The decoder's transformer.
    pub decoder_blocks: Vec<Block>,
    /// After the decoder.
    pub decoder_norm: LayerNorm,
    /// Decoder width to the values of a patch, order (py, px, c).
    pub decoder_pred: Linear,
    /// Whether targets are normalised per patch.
    pub norm_pix_loss: bool,
    kept_seqs: UniformSequences,
    all_seqs: UniformSequences,
}
module!(Mae {
    encoder,
    norm,
    decoder_embed,
    mask_token,
    decoder_pos_embed,
    decoder_blocks,
    decoder_norm,
    decoder_pred
});

impl Mae {
    /// A model with the official initial values: Xavier uniform linears with
    /// zero bias, tokens N(0, 0.02²), fixed sin-cos tables.
    pub fn new(b: &Builder, sizes: &Sizes, norm_pix_loss: bool) -> Result<Self> {
        let vit = sizes.vit();
        let [gh, gw] = vit.grid()?;
        let dim = sizes.decoder_embed_dim;
        let table = Init::Values(sincos_2d(dim, gh, gw, true)?);
        let decoder_blocks = (0..sizes.decoder_depth)
            .map(|i| {
                let path = b.pp("decoder_blocks").pp(i);
                Block::new(&path, dim, sizes.decoder_num_heads, sizes.decoder_hidden, sizes.eps, &Style::VIT)
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            encoder: Vit::new(b, &vit)?,
            norm: LayerNorm::new(&b.pp("norm"), sizes.embed_dim, sizes.eps)?,
            decoder_embed: Linear::new(&b.pp("decoder_embed"), sizes.embed_dim, dim)?,
            mask_token: b.param("mask_token", [1, 1, dim], Init::Normal(0.02))?,
            decoder_pos_embed: b.frozen("decoder_pos_embed", [1, gh * gw + 1, dim], table)?,
            decoder_blocks,
            decoder_norm: LayerNorm::new(&b.pp("decoder_norm"), dim, sizes.eps)?,
            decoder_pred: Linear::new(&b.pp("decoder_pred"), dim, vit.patch * vit.patch * vit.channels)?,
            norm_pix_loss,
            kept_seqs: UniformSequences::default(),
            all_seqs: UniformSequences::default(),
        })
    }

    /// Latent tokens of the kept patches, class token first: `[B (K + 1), embed_dim]`.
    pub fn encode(&self, tape: &Tape, images: &Var, norm: Option<&Tensor>, ids: &PatchIds) -> Result<Var> {
        let [batch, keep] = ids.keep.dims("encode", "ids.keep")?;
        let seqs = self.kept_seqs.get(batch, keep + 1, images.value().device())?;
        let x = self.encoder.embed(tape, images, norm, ids)?;
        let x = self.encoder.run(tape, x, &seqs, &[])?;
        self.norm.forward(tape, &x)
    }

    /// Decoder tokens before the last norm, class row first: `[B (L + 1), decoder_embed_dim]`.
    fn decode(&self, tape: &Tape, latent: &Var, ids_restore: &Tensor) -> Result<Var> {
        let [batch, len] = ids_restore.dims("decode", "ids_restore")?;
        let seqs = self.all_seqs.get(batch, len + 1, latent.value().device())?;
        let z = self.decoder_embed.forward(tape, latent, None)?;
        let (token, pos) = (tape.param(&self.mask_token), tape.param(&self.decoder_pos_embed));
        let x = ops::masked_scatter::masked_scatter(tape, &z, &token, &pos, ids_restore)?;
        Block::run(&self.decoder_blocks, tape, x, &seqs, &[], self.encoder.recompute)
    }

    /// Predicted values of all patches: `[B L, P]`.
    pub fn predict_all(&self, tape: &Tape, latent: &Var, ids_restore: &Tensor) -> Result<Var> {
        let [batch, len] = ids_restore.dims("predict", "ids_restore")?;
        let ids: Vec<i32> = (0..batch).flat_map(|_| 0..len as i32).collect();
        let rows = decoder_rows(&ids, batch, len);
        self.predict(tape, latent, ids_restore, &Tensor::from_slice(&rows, [rows.len()], ids_restore.device())?)
    }

    /// Predicted values of the patches in these `rows: [R]` of the decoder (see [`MaskIds`]): `[R, P]`. Rows nobody asks
    /// for are neither normalised nor projected.
    pub fn predict(&self, tape: &Tape, latent: &Var, ids_restore: &Tensor, rows: &Tensor) -> Result<Var> {
        let x = self.decode(tape, latent, ids_restore)?;
        let x = ops::gather_rows::gather_rows(tape, &x, rows)?;
        self.decoder_pred.forward(tape, &self.decoder_norm.forward(tape, &x)?, None)
    }

    /// Mean squared error on the removed patches: a scalar in f32.
    ///
    /// `images`: `[B, C, H, W]` u8 (with `norm`) or normalised floats (without).
    pub fn loss(&self, tape: &Tape, images: &Var, norm: Option<&Tensor>, ids: &MaskIds) -> Result<Var> {
        let latent = self.encode(tape, images, norm, &ids.kept)?;
        let pred = self.predict(tape, &latent, &ids.kept.restore, &ids.rows)?;
        let patch = self.encoder.config.patch;
        ops::masked_mse::masked_mse(tape, &pred, images.value(), norm, &ids.masked, patch, self.norm_pix_loss)
    }
}

/// Rows of the decoder's output `[B (L + 1), ..]` that belong to the patches `ids: [B, M]`.
fn decoder_rows(ids: &[i32], batch: usize, len: usize) -> Vec<i32> {
    let count = (ids.len() / batch.max(1)).max(1);
    ids.iter().enumerate().map(|(i, id)| (i / count * (len + 1)) as i32 + 1 + id).collect()
}
