//! Finished weights from whatever people have: a run, a Hugging Face folder, a safetensors file, an official `.pth`.

use std::path::{Path, PathBuf};

use super::{Classifier, Mae, Pool, Preset, Sizes};
use crate::checkpoint::{self, HfConfig, LoadOptions, LoadReport, StateDict, load_into, to_upstream};
use crate::nn::{Builder, Module};
use crate::{DType, Device, Error, Result};

/// Metadata keys with which this crate marks its own files.
const SIZES: &str = "ocellus.sizes";
const NORM_PIX: &str = "ocellus.norm_pix_loss";

/// A masked autoencoder read from a file.
pub struct LoadedMae {
    /// The model.
    pub model: Mae,
    /// What the file had and had not.
    pub report: LoadReport,
    path: PathBuf,
}

impl LoadedMae {
    /// Refuses weights without their decoder: reconstructions would be noise.
    pub fn require_decoder(&self) -> Result<()> {
        let missing: Vec<&str> = self
            .report
            .missing
            .iter()
            .map(String::as_str)
            .filter(|n| n.starts_with("decoder") || *n == "mask_token")
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let cause = format!(
            "has the encoder only ({} decoder tensors are missing, {} among them), so it cannot reconstruct; use a file \
             with the decoder, such as mae_visualize_vit_*.pth or mae_pretrain_vit_*_full.pth",
            missing.len(),
            missing[0]
        );
        Err(Error::checkpoint(&self.path, cause))
    }
}

/// Weights under upstream names with the sizes they belong to.
pub struct Weights {
    /// Tensors.
    pub dict: StateDict,
    /// Sizes of the model they were made by.
    pub sizes: Sizes,
    /// Whether they predict normalised patches, if the file says.
    pub norm_pix: Option<bool>,
}

/// Marks a dictionary with what is needed to build its model again.
pub fn mark(dict: &mut StateDict, sizes: &Sizes, norm_pix: bool) -> Result<()> {
    let text = serde_json::to_string(sizes).map_err(|e| Error::Training(format!("sizes as JSON: {e}")))?;
    dict.metadata.insert(SIZES.into(), text);
    dict.metadata.insert(NORM_PIX.into(), norm_pix.to_string());
    Ok(())
}

/// Reads weights and finds their sizes: from this crate's own metadata, from config.json, or from the tensor shapes (the
/// number of heads is then that of the preset of the same width).
pub fn weights(path: &Path) -> Result<Weights> {
    let own = path.join("upstream.safetensors");
    let file = if own.is_file() { own } else { path.to_path_buf() };
    let dict = checkpoint::read(&file)?;
    let stated = dict.metadata.get(SIZES).cloned();
    let norm_pix = dict.metadata.get(NORM_PIX).and_then(|v| v.parse().ok());
    if let Some(text) = stated {
        let sizes = serde_json::from_str(&text).map_err(|e| Error::checkpoint(&file, format!("damaged sizes: {e}")))?;
        return Ok(Weights { dict: to_upstream(dict)?, sizes, norm_pix });
    }
    let config = file.join("config.json");
    if config.is_file() {
        let config = HfConfig::read(&config)?;
        let dict = to_upstream(dict)?;
        return Ok(Weights { dict, sizes: from_hf(&config), norm_pix: Some(config.norm_pix_loss) });
    }
    let dict = to_upstream(dict)?;
    let sizes = from_shapes(&dict, &file)?;
    Ok(Weights { dict, sizes, norm_pix })
}

fn from_hf(c: &HfConfig) -> Sizes {
    Sizes {
        image_size: c.image_size,
        patch_size: c.patch_size,
        in_chans: c.num_channels,
        embed_dim: c.hidden_size,
        depth: c.num_hidden_layers,
        num_heads: c.num_attention_heads,
        hidden: c.intermediate_size,
        decoder_embed_dim: c.decoder_hidden_size,
        decoder_depth: c.decoder_num_hidden_layers,
        decoder_num_heads: c.decoder_num_attention_heads,
        decoder_hidden: c.decoder_intermediate_size,
        eps: c.layer_norm_eps as f32,
    }
}

fn from_shapes(dict: &StateDict, file: &Path) -> Result<Sizes> {
    let shape = |name: &str| dict.require(name).map(|t| t.shape().to_vec());
    let kernel = shape("patch_embed.proj.weight")?;
    let &[embed_dim, in_chans, patch_size, _] = kernel.as_slice() else {
        return Err(Error::checkpoint(
            file,
            format!("patch_embed.proj.weight has shape {kernel:?}, expected [D, C, p, p]"),
        ));
    };
    let preset = Preset::of_width(embed_dim).ok_or_else(|| {
        let known = Preset::names().join(", ");
        Error::checkpoint(
            file,
            format!("width {embed_dim} is that of no preset ({known}) and the file states no number of heads"),
        )
    })?;
    let blocks = |prefix: &str| (0..).take_while(|i| dict.contains(&format!("{prefix}.{i}.norm1.weight"))).count();
    let preset_sizes = preset.sizes(None, None);
    let tokens = shape("pos_embed")?.get(1).copied().unwrap_or(0);
    let side = (tokens.saturating_sub(1) as f64).sqrt().round() as usize * patch_size;
    let decoder = dict.get("decoder_embed.weight").map(|t| t.shape()[0]);
    Ok(Sizes {
        image_size: [side, side],
        patch_size,
        in_chans,
        embed_dim,
        depth: blocks("blocks"),
        hidden: shape("blocks.0.mlp.fc1.weight")?[0],
        decoder_embed_dim: decoder.unwrap_or(preset_sizes.decoder_embed_dim),
        decoder_depth: if decoder.is_some() { blocks("decoder_blocks") } else { preset_sizes.decoder_depth },
        decoder_hidden: dict
            .get("decoder_blocks.0.mlp.fc1.weight")
            .map_or(preset_sizes.decoder_hidden, |t| t.shape()[0]),
        ..preset_sizes
    })
}

/// Parameters that files of an encoder may lack: the decoder, and the encoder's last norm, which fine-tuning replaces.
pub fn only_in_pretraining(name: &str) -> bool {
    name.starts_with("decoder") || name == "mask_token" || name.starts_with("norm.")
}

/// A masked autoencoder. `norm_pix` is asked of files that do not say it; without either, raw pixels are assumed.
pub fn mae(path: &Path, device: &Device, dtype: DType, norm_pix: Option<bool>) -> Result<LoadedMae> {
    let w = weights(path)?;
    let builder = Builder::new(device, dtype, 0);
    let mut model = Mae::new(&builder, &w.sizes, norm_pix.or(w.norm_pix).unwrap_or(false))?;
    let report = load_into(&mut model.params_mut(), &w.dict, &LoadOptions::default())?;
    report.require(|name| !only_in_pretraining(name))?;
    Ok(LoadedMae { model, report, path: path.into() })
}

/// A classifier on loaded weights: for fine-tuning, probing and features. `image_size` resizes the position table.
pub fn classifier(
    path: &Path,
    builder: &Builder,
    classes: usize,
    pool: Pool,
    image_size: Option<usize>,
) -> Result<(Classifier, Sizes)> {
    let w = weights(path)?;
    let mut sizes = w.sizes.clone();
    let grid = |s: &Sizes| s.vit().grid().map(|[h, w]| (h, w));
    let file_grid = grid(&sizes)?;
    if let Some(side) = image_size {
        sizes.image_size = [side, side];
    }
    let mut model = Classifier::new(builder, &sizes, classes, pool)?;
    let dict = without_other_head(&w.dict, &[classes, sizes.embed_dim])?;
    let options = LoadOptions { file_grid: Some(file_grid), model_grid: Some(grid(&sizes)?) };
    let report = load_into(&mut model.params_mut(), &dict, &options)?;
    // The head and the norm of mean pooling are new; everything else must be there.
    report.require(|name| !name.starts_with("head.") && !name.starts_with("fc_norm."))?;
    Ok((model, sizes))
}

/// A fine-tuned file has a head for its own classes; for any other number of them the head starts anew.
fn without_other_head(dict: &StateDict, shape: &[usize]) -> Result<StateDict> {
    if dict.get("head.weight").is_none_or(|head| **head.shape() == *shape) {
        return Ok(dict.clone());
    }
    let mut rest = StateDict::of(&dict.origin, dict.metadata.clone());
    for (name, tensor) in dict.iter().filter(|(name, _)| !name.starts_with("head.")) {
        rest.insert(name, tensor.clone())?;
    }
    Ok(rest)
}
