//! Weights from whatever people have: a run, finished or not, a Hugging Face folder, a safetensors file, an official `.pth`.

use std::path::{Path, PathBuf};

use super::{Classifier, Mae, Pool, Preset, Sizes};
use crate::checkpoint::{
    self, HfConfig, LoadOptions, LoadReport, RunFolder, RunState, StateDict, load_into, names, run_state, to_upstream,
};
use crate::nn::{Builder, Module};
use crate::{DType, Device, Error, Param, Result};

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
        let missing: Vec<&str> =
            self.report.missing.iter().map(String::as_str).filter(|n| names::is_decoder(n)).collect();
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

/// Marks a dictionary with what is needed to build its model again. `norm_pix`: what its decoder predicts, if it has one.
pub fn mark(dict: &mut StateDict, sizes: &Sizes, norm_pix: Option<bool>) -> Result<()> {
    let text = serde_json::to_string(sizes).map_err(|e| Error::Training(format!("sizes as JSON: {e}")))?;
    dict.metadata.insert(SIZES.into(), text);
    dict.metadata.extend(norm_pix.map(|it| (NORM_PIX.into(), it.to_string())));
    Ok(())
}

/// The sizes that [`mark`] put into a dictionary.
pub fn marked(dict: &StateDict) -> Result<Option<Sizes>> {
    let damaged = |e| Error::checkpoint(&dict.origin, format!("damaged sizes: {e}"));
    dict.metadata.get(SIZES).map(|text| serde_json::from_str(text).map_err(damaged)).transpose()
}

/// Reads weights and finds their sizes: from the config.json of files of Hugging Face, from this crate's own metadata, or
/// from the tensor shapes (the number of heads is then that of the preset of the same width).
///
/// Of a run that has not finished, the newest intact checkpoint.
pub fn weights(path: &Path) -> Result<Weights> {
    let dict = read(path)?;
    let norm_pix = dict.metadata.get(NORM_PIX).and_then(|v| v.parse().ok());
    let (sizes, norm_pix) = match hub_config(path, &dict)? {
        Some(config) => (Some(from_hf(&config)), Some(config.norm_pix_loss)),
        None => (marked(&dict)?, norm_pix),
    };
    let dict = to_upstream(dict)?;
    let sizes = sizes.map_or_else(|| from_shapes(&dict), Ok)?;
    if sizes.in_chans != 3 {
        let cause = format!("the model is for images of {} channels, expected 3 (RGB)", sizes.in_chans);
        return Err(Error::checkpoint(&dict.origin, cause));
    }
    Ok(Weights { dict, sizes, norm_pix })
}

/// The weights of a run, of the newest intact checkpoint where it has not finished, or of any file or folder.
///
/// # Errors
/// When there are none, or they are damaged.
pub fn read(path: &Path) -> Result<StateDict> {
    let finished = path.join("upstream.safetensors");
    if finished.is_file() {
        return checkpoint::read(finished);
    }
    let states = path.join(run_state::FOLDER);
    if states.is_dir()
        && let Some(found) = RunFolder::reading(states).resume()?
    {
        tracing::info!("{} has not finished: taking {}", path.display(), found.path.display());
        return Ok(found.state.model);
    }
    let dict = checkpoint::read(path)?;
    // One checkpoint of a run, given by name.
    if RunState::is_state(&dict) { Ok(RunState::read(path)?.model) } else { Ok(dict) }
}

/// The config.json in the folder, or beside the file, of tensors that Hugging Face named.
fn hub_config(path: &Path, dict: &StateDict) -> Result<Option<HfConfig>> {
    let file = if path.is_dir() { path.join("config.json") } else { path.with_file_name("config.json") };
    let hub = matches!(names::detect(dict), Ok(names::Layout::HuggingFace));
    (hub && file.is_file()).then(|| HfConfig::read(&file)).transpose()
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

fn from_shapes(dict: &StateDict) -> Result<Sizes> {
    let shape = |name: &str| dict.require(name).map(|t| t.shape().to_vec());
    let kernel = shape("patch_embed.proj.weight")?;
    let &[embed_dim, in_chans, patch_size, _] = kernel.as_slice() else {
        return Err(Error::checkpoint(
            &dict.origin,
            format!("patch_embed.proj.weight has shape {kernel:?}, expected [D, C, p, p]"),
        ));
    };
    let preset = Preset::of_width(embed_dim).ok_or_else(|| {
        let known = Preset::names().join(", ");
        Error::checkpoint(
            &dict.origin,
            format!("width {embed_dim} is that of no preset ({known}) and the file states no number of heads"),
        )
    })?;
    let blocks = |prefix: &str| (0..).take_while(|i| dict.contains(&format!("{prefix}.{i}.norm1.weight"))).count();
    let preset_sizes = preset.sizes(None, None);
    let tokens = shape("pos_embed")?.get(1).copied().unwrap_or(0);
    let side = tokens.saturating_sub(1).isqrt() * patch_size;
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

/// Puts weights of a model of sizes `from` into one of sizes `to`, whose position tables may have another grid, and says
/// what became of every tensor.
fn fill(mut params: Vec<&mut Param>, dict: &StateDict, from: &Sizes, to: &Sizes) -> Result<LoadReport> {
    let grid = |s: &Sizes| s.vit().grid().map(|[h, w]| Some((h, w)));
    let options = LoadOptions { file_grid: grid(from)?, model_grid: grid(to)?, ..LoadOptions::default() };
    let report = load_into(&mut params, dict, &options)?;
    tracing::info!("{report}");
    Ok(report)
}

/// Starts a masked autoencoder of `sizes` from weights that may lack the decoder and the encoder's last norm, which files
/// for other purposes replace; anything else missing would be training from scratch unawares.
pub fn initialise(model: &mut Mae, sizes: &Sizes, weights: &Weights) -> Result<LoadReport> {
    // The number of heads changes what weights mean, but not their shapes.
    if weights.sizes.num_heads != sizes.num_heads {
        let cause = format!("has {} attention heads, expected {}", weights.sizes.num_heads, sizes.num_heads);
        return Err(Error::checkpoint(&weights.dict.origin, cause));
    }
    let report = fill(model.params_mut(), &weights.dict, &weights.sizes, sizes)?;
    report.require(|name| !names::is_decoder(name) && !name.starts_with("norm."))?;
    Ok(report)
}

/// A masked autoencoder. `norm_pix` is asked of files that do not say it; without either, raw pixels are assumed.
pub fn mae(path: &Path, device: &Device, dtype: DType, norm_pix: Option<bool>) -> Result<LoadedMae> {
    let w = weights(path)?;
    let norm_pix = norm_pix.or(w.norm_pix).unwrap_or_else(|| {
        tracing::warn!(
            "{} does not say what it predicts, taken as raw pixels; if it is normalised patches, as in \
             mae_pretrain_vit_*_full.pth, pass --norm-pix true",
            path.display()
        );
        false
    });
    let mut model = Mae::new(&Builder::new(device, dtype, 0), &w.sizes, norm_pix)?;
    let report = initialise(&mut model, &w.sizes, &w)?;
    Ok(LoadedMae { model, report, path: path.into() })
}

/// A classifier on loaded weights: for fine-tuning, probing and features. Without `pool`, the one the weights were
/// trained with. `image_size` resizes the position table.
///
/// # Errors
/// What cannot be read or lacks a tensor, [`Pool::Cls`] of weights that were fine-tuned on the mean of the patches among it:
/// nothing normalises their class token.
pub fn classifier(
    path: &Path,
    builder: &Builder,
    classes: usize,
    pool: Option<Pool>,
    image_size: Option<[usize; 2]>,
) -> Result<(Classifier, Sizes)> {
    let w = weights(path)?;
    let sizes = Sizes { image_size: image_size.unwrap_or(w.sizes.image_size), ..w.sizes.clone() };
    let trained = if w.dict.contains("fc_norm.weight") { Pool::Mean } else { Pool::Cls };
    let pool = pool.unwrap_or(trained);
    if (pool, trained) == (Pool::Cls, Pool::Mean) && !w.dict.contains("norm.weight") {
        let cause =
            "was fine-tuned on the mean of the patches, there is no norm of the class token (norm.weight) in it";
        return Err(Error::checkpoint(&w.dict.origin, cause));
    }
    let mut model = Classifier::new(builder, &sizes, classes, pool)?;
    let dict = without_other_head(&w.dict, &[classes, sizes.embed_dim])?;
    let report = fill(model.params_mut(), &dict, &w.sizes, &sizes)?;
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
