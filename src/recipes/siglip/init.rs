//! The image tower alone from weights of another model.

use std::path::Path;

use super::{Siglip, Sizes, load};
use crate::checkpoint::{LoadOptions, StateDict, load_into};
use crate::data::augment::{IMAGENET_MEAN, IMAGENET_STD};
use crate::nn::Module;
use crate::nn::pos_embed::Resample;
use crate::ops::gelu::Form;
use crate::recipes::mae;
use crate::{Device, Error, Result, Tensor};

/// An image tower from a file.
pub struct ImageWeights {
    dict: StateDict,
    /// Sizes of the tower; the text tower's are to be ignored.
    from: From,
    resample: Resample,
}

/// What made the weights.
enum From {
    Siglip(Sizes),
    Mae(mae::Sizes),
}

/// MAE's names in a block, and this recipe's.
const BLOCK: [(&str, &str); 6] = [
    ("norm1.", "layer_norm1."),
    ("norm2.", "layer_norm2."),
    ("attn.qkv.", "self_attn.qkv_proj."),
    ("attn.proj.", "self_attn.out_proj."),
    ("mlp.fc1.", "mlp.fc1."),
    ("mlp.fc2.", "mlp.fc2."),
];

/// This recipe's name of a tensor of MAE's encoder; `None` for what has no place: class and mask token, the decoder.
fn renamed(name: &str) -> Option<String> {
    let model = |rest: &str| format!("vision_model.{rest}");
    if let Some(leaf) = name.strip_prefix("patch_embed.proj.") {
        return Some(model(&format!("embeddings.patch_embedding.{leaf}")));
    }
    if let Some(leaf) = name.strip_prefix("norm.") {
        return Some(model(&format!("post_layernorm.{leaf}")));
    }
    let (at, inside) = name.strip_prefix("blocks.")?.split_once('.')?;
    let (theirs, ours) = BLOCK.iter().find(|(theirs, _)| inside.starts_with(theirs))?;
    Some(model(&format!("encoder.layers.{at}.{ours}{}", &inside[theirs.len()..])))
}

/// The encoder of a masked autoencoder under this recipe's names.
///
/// Its images were normalised by mean `m` and deviation `s` of each colour channel, here they are in [-1, 1]. The patch
/// embedding takes that in: with `u = 2 p - 1` of a pixel `p`, `w (p - m) / s` is `w / (2 s) u + w (1/2 - m) / s`, so the tower
/// makes of an image what it made of it before.
fn of_mae(encoder: &StateDict) -> Result<StateDict> {
    let mut dict = StateDict::of(&encoder.origin, encoder.metadata.clone());
    let tensor = |values: &[f64], shape: &[usize]| {
        let values: Vec<f32> = values.iter().map(|&x| x as f32).collect();
        Tensor::from_slice(&values, shape, &Device::Cpu)
    };
    let kernel = encoder.require("patch_embed.proj.weight")?;
    let [outputs, channels, h, w] = kernel.dims("init_image", "patch_embed.proj.weight")?;
    let (mut kernel, mut bias) = (kernel.to_f64()?, encoder.require("patch_embed.proj.bias")?.to_f64()?);
    for (at, plane) in kernel.chunks_exact_mut(h * w).enumerate() {
        let (output, channel) = (at / channels, at % channels);
        let (mean, std) = (IMAGENET_MEAN[channel], IMAGENET_STD[channel]); // three of them: checked when it was read
        bias[output] += plane.iter().sum::<f64>() * (0.5 - mean) / std;
        plane.iter_mut().for_each(|x| *x *= 0.5 / std);
    }
    for (name, given) in encoder.iter() {
        if name == "pos_embed" {
            let [_, rows, width] = given.dims("init_image", "pos_embed")?;
            let table = tensor(&given.to_f64()?[width..], &[rows - 1, width])?; // without the class token's row
            dict.insert("vision_model.embeddings.position_embedding.weight", table)?;
        } else if let Some(ours) = renamed(name) {
            let value = match name {
                "patch_embed.proj.weight" => tensor(&kernel, &[outputs, channels, h, w])?,
                "patch_embed.proj.bias" => tensor(&bias, &[outputs])?,
                _ => given.clone(),
            };
            dict.insert(ours, value)?;
        }
    }
    Ok(dict)
}

impl ImageWeights {
    /// Reads SigLIP weights of any layout, or those of a masked autoencoder, whose class token has no place here.
    ///
    /// # Errors
    /// When it is neither.
    pub fn read(path: &Path) -> Result<Self> {
        let other = match load::weights(path) {
            Ok(load::Weights { dict, sizes, resample }) => {
                return Ok(Self { dict, from: From::Siglip(sizes), resample });
            }
            Err(other) => other,
        };
        let w = mae::load::weights(path)
            .map_err(|e| Error::checkpoint(path, format!("neither SigLIP's ({other}) nor MAE's weights ({e})")))?;
        Ok(Self { dict: of_mae(&w.dict)?, from: From::Mae(w.sizes), resample: Resample::Bicubic })
    }

    /// Sizes of a model that can take the tower: `sizes` with its activation and eps.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when width, depth, heads or patches are others.
    pub fn fit(&self, sizes: &Sizes) -> Result<Sizes> {
        let mut fitted = sizes.clone();
        let given = match &self.from {
            From::Siglip(from) => {
                (fitted.vision.gelu, fitted.eps) = (from.vision.gelu, from.eps);
                let v = &from.vision;
                [v.width, v.depth, v.heads, v.hidden, from.patch_size, from.in_chans]
            }
            From::Mae(from) => {
                (fitted.vision.gelu, fitted.eps) = (Form::Erf, from.eps);
                [from.embed_dim, from.depth, from.num_heads, from.hidden, from.patch_size, from.in_chans]
            }
        };
        let v = &sizes.vision;
        let expected = [v.width, v.depth, v.heads, v.hidden, sizes.patch_size, sizes.in_chans];
        let names = ["width", "blocks", "heads", "hidden units", "pixels to a patch side", "channels"];
        if let Some(at) = (0..names.len()).find(|&at| given[at] != expected[at]) {
            let cause = format!("its image tower has {} {}, expected {}", given[at], names[at], expected[at]);
            return Err(Error::checkpoint(&self.dict.origin, cause));
        }
        Ok(fitted)
    }

    /// Puts the weights into the image tower of a model of sizes [`fit`](Self::fit). What a masked autoencoder does not have
    /// starts anew: the pooling and, in files for other purposes, the last norm.
    ///
    /// # Errors
    /// When the tower lacks any other tensor.
    pub fn put(&self, model: &mut Siglip, sizes: &Sizes) -> Result<()> {
        let pair = |[h, w]: [usize; 2]| Some((h, w));
        let file_grid = match &self.from {
            From::Siglip(from) => pair(from.grid()?),
            From::Mae(from) => pair(from.vit().grid()?),
        };
        let options = LoadOptions { file_grid, model_grid: pair(sizes.grid()?), resample: self.resample };
        let report = load_into(&mut model.vision.params_mut(), &self.dict, &options)?;
        tracing::info!("image tower: {report}");
        let of_mae = matches!(self.from, From::Mae(_));
        let new = ["vision_model.head.", "vision_model.post_layernorm."];
        let anew = |name: &str| of_mae && new.iter().any(|start| name.starts_with(start));
        // A tower of another width needs a projection that no other model has.
        report.require(|name| !anew(name) && !name.starts_with("visual_projection."))
    }

    /// Whether the file has a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.dict.contains(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A patch of pixels gives what it gave, though it is normalised otherwise; positions lose the class token's row.
    #[test]
    fn patches_are_embedded_as_before() {
        let values = |n: usize, seed: f64| (0..n).map(|i| (0.7 * i as f64 + seed).sin() as f32).collect::<Vec<_>>();
        let tensor = |v: &[f32], shape: &[usize]| Tensor::from_slice(v, shape, &Device::Cpu).unwrap();
        let (kernel, bias) = (values(5 * 12, 0.0), values(5, 1.0));
        let mut encoder = StateDict::new();
        encoder.insert("patch_embed.proj.weight", tensor(&kernel, &[5, 3, 2, 2])).unwrap();
        encoder.insert("patch_embed.proj.bias", tensor(&bias, &[5])).unwrap();
        encoder.insert("pos_embed", tensor(&values(15, 2.0), &[1, 3, 5])).unwrap();
        let dict = of_mae(&encoder).unwrap();
        let get = |name: &str| dict.require(&format!("vision_model.embeddings.{name}")).unwrap().to_f64().unwrap();
        let (w, b) = (get("patch_embedding.weight"), get("patch_embedding.bias"));
        let pixel = |i: usize| 0.5 + 0.5 * (1.3 * i as f64).cos();
        for output in 0..5 {
            let old =
                |i: usize| f64::from(kernel[output * 12 + i]) * (pixel(i) - IMAGENET_MEAN[i / 4]) / IMAGENET_STD[i / 4];
            let before = (0..12).map(old).sum::<f64>() + f64::from(bias[output]);
            let now = (0..12).map(|i| w[output * 12 + i] * (2.0 * pixel(i) - 1.0)).sum::<f64>() + b[output];
            assert!((before - now).abs() < 1e-5, "{before} {now}");
        }
        assert_eq!(get("position_embedding.weight"), tensor(&values(15, 2.0)[5..], &[10]).to_f64().unwrap());
    }

    #[test]
    fn names_of_the_encoder_have_a_place() {
        for (theirs, ours) in [
            ("patch_embed.proj.bias", "embeddings.patch_embedding.bias"),
            ("blocks.11.attn.qkv.weight", "encoder.layers.11.self_attn.qkv_proj.weight"),
            ("blocks.0.norm2.bias", "encoder.layers.0.layer_norm2.bias"),
            ("norm.weight", "post_layernorm.weight"),
        ] {
            assert_eq!(renamed(theirs), Some(format!("vision_model.{ours}")));
        }
        for name in ["cls_token", "mask_token", "decoder_blocks.0.norm1.weight", "decoder_norm.weight", "blocks.0.ls1"]
        {
            assert_eq!(renamed(name), None, "{name}");
        }
    }
}
