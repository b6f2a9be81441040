//! Frozen features: what evaluation, pictures and curation ask of the encoder of any recipe.

use std::path::Path;

use super::dinov2;
use super::mae::{self, Pool};
use crate::nn::Builder;
use crate::{DType, Device, Error, Result, Tensor};

/// An encoder of images. All methods take `images: [B, 3, H, W]` u8 of [`image_size`](Self::image_size) and normalise them
/// themselves; results are f32, on the encoder's device.
pub trait Encoder: Send + Sync {
    /// Height and width of the images in pixels.
    fn image_size(&self) -> [usize; 2];

    /// Side of a patch in pixels.
    fn patch_size(&self) -> usize;

    /// Width of tokens.
    fn dim(&self) -> usize;

    /// Number of blocks.
    fn depth(&self) -> usize;

    /// Where it computes.
    fn device(&self) -> &Device;

    /// One feature of each image, what a head would see: `[B, dim]`.
    fn features(&self, images: &Tensor) -> Result<Tensor>;

    /// Tokens after the last `n` blocks, oldest first, each through the last norm if there is one: `[B, 1 + L, dim]`, the
    /// class token first, then the patches in raster order, without registers.
    ///
    /// # Errors
    /// When there are less than `n` blocks.
    fn layers(&self, images: &Tensor, n: usize) -> Result<Vec<Tensor>>;

    /// Attention of the class token to the patches in the last block: `[B, heads, L]`.
    fn attention(&self, images: &Tensor) -> Result<Tensor>;

    /// Patch rows and columns of an image.
    fn grid(&self) -> [usize; 2] {
        self.image_size().map(|side| side / self.patch_size())
    }
}

/// The encoder in whatever people have: a run folder, finished or not, a Hugging Face folder, .safetensors or an official
/// .pth. `pool` is asked of encoders that can pool in several ways; `image_size` resizes the position table.
///
/// # Errors
/// When it is not a model of a recipe whose encoder this knows.
pub fn load(
    path: &Path,
    device: &Device,
    dtype: DType,
    pool: Option<Pool>,
    image_size: Option<[usize; 2]>,
) -> Result<Box<dyn Encoder>> {
    let builder = Builder::new(device, dtype, 0);
    if dinov2::load::is_dinov2(path)? {
        if pool == Some(Pool::Mean) {
            return Err(Error::config("pool", "mean", "cls: DINOv2's feature is the class token"));
        }
        let backbone = dinov2::load::backbone(path, &builder)?;
        return Ok(Box::new(dinov2::Features::new(backbone, image_size)?));
    }
    // The head is not used; it has one class so that there is one.
    Ok(Box::new(mae::load::classifier(path, &builder, 1, pool, image_size)?.0))
}

/// Refuses to take the last `n` of `depth` blocks.
pub(super) fn check_layers(n: usize, depth: usize) -> Result<()> {
    match (1..=depth).contains(&n) {
        true => Ok(()),
        false => Err(Error::value("layers", "n", n, format!("1 to the {depth} blocks"))),
    }
}

/// Of probabilities `[B, heads, n, n]` on the CPU those of the class token, the first, for the patches, which follow
/// `before` other tokens: `[B, heads, n - before]`.
pub(super) fn class_attention(probabilities: &Tensor, before: usize) -> Result<Tensor> {
    let [batch, heads, n, _] = probabilities.dims("attention", "probabilities")?;
    let rows = probabilities.as_slice::<f32>()?.chunks_exact((n * n).max(1));
    let values: Vec<f32> = rows.flat_map(|p| &p[before..n]).copied().collect();
    Tensor::from_slice(&values, [batch, heads, n - before], &Device::Cpu)
}
