//! The image tower alone from weights of another model.

use std::path::Path;

use super::{Siglip, Sizes, load};
use crate::checkpoint::{LoadOptions, StateDict, load_into};
use crate::nn::Module;
use crate::nn::pos_embed::Resample;
use crate::ops::gelu::Form;
use crate::recipes::mae;
use crate::{Error, Result};

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
        let mut dict = StateDict::of(&w.dict.origin, w.dict.metadata.clone());
        for (name, tensor) in w.dict.iter() {
            if name == "pos_embed" {
                let [_, rows, width] = tensor.dims("init_image", "pos_embed")?;
                let values = &tensor.to_f64()?[width..]; // without the class token's
                let values: Vec<f32> = values.iter().map(|&x| x as f32).collect();
                let table = crate::Tensor::from_slice(&values, [rows - 1, width], &crate::Device::Cpu)?;
                dict.insert("vision_model.embeddings.position_embedding.weight", table)?;
            } else if let Some(name) = renamed(name) {
                dict.insert(name, tensor.clone())?;
            }
        }
        Ok(Self { dict, from: From::Mae(w.sizes), resample: Resample::Bicubic })
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
