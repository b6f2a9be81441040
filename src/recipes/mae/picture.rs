//! The well-known picture: original | masked | reconstruction | reconstruction with the visible patches pasted in.

use super::{Mae, MaskIds};
use crate::data::augment::{IMAGENET_MEAN, IMAGENET_STD, Normalise};
use crate::data::masks::random_masking;
use crate::data::{Image, Purpose, Stream, contact};
use crate::ops::masked_mse;
use crate::ops::patchify::unpatchify;
use crate::{Device, Result, Tape, Tensor, Var};

/// One image in its four forms, as normalised values `[C, H, W]`.
#[derive(Clone, Debug)]
pub struct Picture {
    /// The input.
    pub original: Vec<f32>,
    /// `x (1 - m)`: removed patches are the mean colour.
    pub masked: Vec<f32>,
    /// What the decoder predicts, everywhere.
    pub reconstruction: Vec<f32>,
    /// `x (1 - m) + y m`.
    pub pasted: Vec<f32>,
    /// Height and width.
    pub size: [usize; 2],
}

/// Reconstructs images of the model's size under masks drawn from `seed`.
///
/// A model trained on normalised targets predicts each patch up to its mean and standard deviation; its pictures take
/// both from the original patch, so the hidden patches' colour and contrast are given away.
pub fn draw(model: &Mae, images: &[Image], mask_ratio: f64, seed: u64) -> Result<Vec<Picture>> {
    let normalise = Normalise::imagenet();
    let values: Vec<f32> = images.iter().flat_map(|image| normalise.apply(image)).collect();
    let len = model.encoder.config.patches()?;
    let mut rng = Stream::new(seed, Purpose::MASK, u64::MAX, 0); // no epoch of a run
    let noise: Vec<f32> = (0..images.len() * len).map(|_| rng.unit_f32()).collect();
    reconstruct(model, &values, model.encoder.config.images(images.len()), &noise, mask_ratio)
}

/// [`draw`] on normalised values `[B, C, H, W]` with given noise `[B, L]`.
pub fn reconstruct(
    model: &Mae,
    values: &[f32],
    shape: [usize; 4],
    noise: &[f32],
    mask_ratio: f64,
) -> Result<Vec<Picture>> {
    let ([batch, channels, h, w], device) = (shape, model.norm.weight.master.device());
    let (len, patch) = (model.encoder.config.patches()?, model.encoder.config.patch);
    let masking = random_masking(noise, batch, len, mask_ratio)?;
    let ids = MaskIds::new(&masking, batch, device)?;
    let images = Tensor::from_slice(values, shape, device)?;
    let tape = Tape::no_grad();
    let latent = model.encode(&tape, &Var::constant(images.clone()), None, &ids.kept)?;
    let pred = model.predict_all(&tape, &latent, &ids.kept.restore)?;
    let mut pred: Vec<f32> = pred.value().to_f64()?.into_iter().map(|x| x as f32).collect();
    let values_per_patch = patch * patch * channels;
    if model.norm_pix_loss {
        let target = masked_mse::target(&images, None, patch, false)?.to_f64()?;
        for (pred, target) in pred.chunks_exact_mut(values_per_patch).zip(target.chunks_exact(values_per_patch)) {
            denormalise(pred, target);
        }
    }
    let mask: Vec<f32> = masking.mask.iter().flat_map(|&m| std::iter::repeat_n(m, values_per_patch)).collect();
    let grid = (h / patch, w / patch);
    let pixels = |rows: &[f32]| {
        let rows = Tensor::from_slice(rows, [batch, len, values_per_patch], &Device::Cpu)?;
        unpatchify(&rows, patch, grid)?.to_vec::<f32>()
    };
    let (pred, mask) = (pixels(&pred)?, pixels(&mask)?);
    let plane = channels * h * w;
    let each = |i: usize| {
        let range = i * plane..(i + 1) * plane;
        let (x, y, m) = (&values[range.clone()], &pred[range.clone()], &mask[range]);
        let masked: Vec<f32> = x.iter().zip(m).map(|(x, m)| x * (1.0 - m)).collect();
        let pasted = masked.iter().zip(y.iter().zip(m)).map(|(x, (y, m))| x + y * m).collect();
        Picture { original: x.to_vec(), masked, reconstruction: y.to_vec(), pasted, size: [h, w] }
    };
    Ok((0..batch).map(each).collect())
}

/// `pred · sqrt(var + 1e-6) + mean` with the unbiased variance of the original patch.
fn denormalise(pred: &mut [f32], target: &[f64]) {
    let n = target.len() as f64;
    let mean = target.iter().sum::<f64>() / n;
    let var = target.iter().map(|t| (t - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    pred.iter_mut().for_each(|p| *p = (f64::from(*p) * (var + 1e-6).sqrt() + mean) as f32);
}

/// Values `[3, H, W]` normalised with `mean` and `std` as 8-bit RGB: `trunc(clip((v · std + mean) · 255, 0, 255))`.
pub fn to_image(values: &[f32], [h, w]: [usize; 2], mean: [f64; 3], std: [f64; 3]) -> Result<Image> {
    let bytes: Vec<u8> = values
        .chunks_exact(h * w)
        .zip(mean.iter().zip(&std))
        .flat_map(|(plane, (mean, std))| {
            plane.iter().map(move |v| ((f64::from(*v) * std + mean) * 255.0).clamp(0.0, 255.0) as u8)
        })
        .collect();
    Image::from_planes(w, h, &bytes)
}

/// One row for each picture: original, masked, reconstruction, pasted.
pub fn grid(pictures: &[Picture]) -> Result<Image> {
    let mut tiles = Vec::with_capacity(4 * pictures.len());
    for p in pictures {
        for values in [&p.original, &p.masked, &p.reconstruction, &p.pasted] {
            tiles.push(contact::enlarge(&to_image(values, p.size, IMAGENET_MEAN, IMAGENET_STD)?, 96)?);
        }
    }
    contact::grid(&tiles, 4, 4)
}
