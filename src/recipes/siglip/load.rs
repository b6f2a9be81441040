//! Weights from whatever people have: a run, a folder of `transformers`, an archive of big_vision, a file of open_clip.

use std::path::Path;

use super::config::Preset;
use super::{Siglip, Sizes, Tower, VOCAB_2};
use crate::checkpoint::siglip::{self, ERF, HfConfig, Layout, TANH, TextConfig, VisionConfig};
use crate::checkpoint::{self, LoadOptions, LoadReport, RunFolder, RunState, StateDict, load_into, run_state};
use crate::nn::pos_embed::Resample;
use crate::nn::{Builder, Module};
use crate::ops::gelu::Form;
use crate::{DType, Device, Error, Result};

/// Metadata key with which this crate marks its own files.
const SIZES: &str = "ocellus.siglip.sizes";
/// Weights of a finished run.
const FINISHED: &str = "model.safetensors";

/// Weights under this crate's names with the sizes they belong to.
pub struct Weights {
    /// Tensors.
    pub dict: StateDict,
    /// Sizes of the model they were made by.
    pub sizes: Sizes,
    /// How whoever made them reads positions at another resolution.
    pub resample: Resample,
}

/// Marks a dictionary with what is needed to build its model again.
pub fn mark(dict: &mut StateDict, sizes: &Sizes) -> Result<()> {
    let text = serde_json::to_string(sizes).map_err(|e| Error::Training(format!("sizes as JSON: {e}")))?;
    dict.metadata.insert(SIZES.into(), text);
    Ok(())
}

/// The sizes that [`mark`] put into a dictionary.
///
/// # Errors
/// What is damaged, or sizes that no model has.
pub fn marked(dict: &StateDict) -> Result<Option<Sizes>> {
    let damaged = |e| Error::checkpoint(&dict.origin, format!("damaged sizes: {e}"));
    let sizes: Option<Sizes> =
        dict.metadata.get(SIZES).map(|text| serde_json::from_str(text).map_err(damaged)).transpose()?;
    sizes.as_ref().map_or(Ok(()), Sizes::check)?;
    Ok(sizes)
}

/// Reads weights and finds their sizes: from this crate's own metadata, from the config.json of `transformers`, or from the
/// tensor shapes. The number of heads is then that of big_vision's query biases or of the preset of the same width, and the
/// activation that of the layout: tanh; of open_clip erf, with the exceptions that SigLIP 2 makes there.
///
/// Of a run that has not finished, the newest intact checkpoint.
///
/// # Errors
/// As [`siglip::read`], and when sizes cannot be found.
pub fn weights(path: &Path) -> Result<Weights> {
    let raw = read(path)?;
    let layout = siglip::detect(&raw)?;
    let dict = siglip::to_ours(&raw)?;
    let sizes = match (marked(&raw)?, hub_config(path, layout)?) {
        (Some(sizes), _) => sizes,
        (None, Some(config)) => from_hf(&config)?,
        (None, None) => from_shapes(&dict, siglip::heads(&raw), layout)?,
    };
    let resample = match layout {
        Layout::HuggingFace if siglip::is_naflex(&raw) => Resample::BilinearAntialias,
        Layout::HuggingFace => Resample::Bicubic,
        Layout::BigVision => Resample::Corners,
        Layout::OpenClip => Resample::Bilinear,
    };
    Ok(Weights { dict, sizes, resample })
}

/// Whether these weights are of an image-text model, by the names of their tensors.
///
/// # Errors
/// What cannot be read.
pub fn is_siglip(path: &Path) -> Result<bool> {
    Ok(siglip::detect(&read(path)?).is_ok())
}

fn read(path: &Path) -> Result<StateDict> {
    let states = path.join(run_state::FOLDER);
    if states.is_dir()
        && !path.join(FINISHED).is_file()
        && let Some(found) = RunFolder::reading(states).resume()?
    {
        tracing::info!("{} has not finished: taking {}", path.display(), found.path.display());
        return Ok(found.state.model);
    }
    let dict = checkpoint::read(path)?;
    // One checkpoint of a run, given by name.
    if RunState::is_state(&dict) { Ok(RunState::read(path)?.model) } else { Ok(dict) }
}

/// The config.json in the folder, or beside the file, of tensors that `transformers` named.
fn hub_config(path: &Path, layout: Layout) -> Result<Option<HfConfig>> {
    let file = if path.is_dir() { path.join("config.json") } else { path.with_file_name("config.json") };
    (layout == Layout::HuggingFace && file.is_file()).then(|| HfConfig::read(&file)).transpose()
}

/// Sizes from config.json.
///
/// # Errors
/// When no model can have them.
pub fn from_hf(config: &HfConfig) -> Result<Sizes> {
    let (text, vision) = (&config.text_config, &config.vision_config);
    let form = |act: &str| if act == ERF { Form::Erf } else { Form::Tanh };
    let sizes = Sizes {
        image_size: config.image_size(),
        patch_size: vision.patch_size,
        in_chans: vision.num_channels,
        vision: Tower {
            width: vision.hidden_size,
            depth: vision.num_hidden_layers,
            heads: vision.num_attention_heads,
            hidden: vision.intermediate_size,
            gelu: form(&vision.hidden_act),
        },
        text: Tower {
            width: text.hidden_size,
            depth: text.num_hidden_layers,
            heads: text.num_attention_heads,
            hidden: text.intermediate_size,
            gelu: form(&text.hidden_act),
        },
        vocab_size: text.vocab_size,
        context_len: text.max_position_embeddings,
        embed_dim: text.projection_size.unwrap_or(text.hidden_size),
        vision_head: false,
        eps: vision.layer_norm_eps as f32,
    };
    sizes.check()?;
    Ok(sizes)
}

/// config.json of sizes.
///
/// # Errors
/// When `transformers` has no such model: images that are no squares, a projection after the image tower.
pub fn to_hf(sizes: &Sizes) -> Result<HfConfig> {
    let [h, w] = sizes.image_size;
    if h != w {
        return Err(Error::config("image_size", format!("{h}x{w}"), "a square, the only images SiglipModel has"));
    }
    if sizes.vision_head {
        return Err(Error::config("vision_head", true, "false: SiglipModel has no projection after its image tower"));
    }
    let act = |form: Form| if form == Form::Erf { ERF } else { TANH }.to_string();
    let eps = f64::from(sizes.eps).to_string().parse().unwrap_or(f64::from(sizes.eps));
    let (text, vision) = (&sizes.text, &sizes.vision);
    Ok(HfConfig {
        text_config: TextConfig {
            vocab_size: sizes.vocab_size,
            hidden_size: text.width,
            intermediate_size: text.hidden,
            num_hidden_layers: text.depth,
            num_attention_heads: text.heads,
            max_position_embeddings: sizes.context_len,
            hidden_act: act(text.gelu),
            layer_norm_eps: eps,
            projection_size: Some(sizes.embed_dim),
            ..TextConfig::default()
        },
        vision_config: VisionConfig {
            hidden_size: vision.width,
            intermediate_size: vision.hidden,
            num_hidden_layers: vision.depth,
            num_attention_heads: vision.heads,
            num_channels: sizes.in_chans,
            image_size: sizes.image_size,
            patch_size: sizes.patch_size,
            hidden_act: act(vision.gelu),
            layer_norm_eps: eps,
            ..VisionConfig::default()
        },
        ..HfConfig::default()
    })
}

/// Writes a folder that `transformers` loads as `SiglipModel`, and this crate with its own sizes.
///
/// # Errors
/// As [`to_hf`] and [`siglip::save`].
pub fn save(folder: &Path, model: &Siglip, sizes: &Sizes) -> Result<()> {
    let mut dict = StateDict::from_params(model.params())?;
    mark(&mut dict, sizes)?;
    siglip::save(folder, &to_hf(sizes)?, &dict)
}

fn from_shapes(dict: &StateDict, heads: Option<[usize; 2]>, layout: Layout) -> Result<Sizes> {
    let shape = |name: &str| dict.require(name).map(|t| t.shape().to_vec());
    let refuse = |cause: String| Error::checkpoint(&dict.origin, cause);
    let rows_of = |name: &str| {
        let shape = shape(name)?;
        shape.first().copied().ok_or_else(|| refuse(format!("tensor `{name}` has no axis, expected rows")))
    };
    let kernel = shape("vision_model.embeddings.patch_embedding.weight")?;
    let &[width, in_chans, patch_size, _] = kernel.as_slice() else {
        return Err(refuse(format!("patch_embedding.weight has shape {kernel:?}, expected [D, C, p, p]")));
    };
    let tower = |model: &str, width: usize, at: usize| {
        let layers = format!("{model}.encoder.layers");
        let depth = (0..).take_while(|i| dict.contains(&format!("{layers}.{i}.layer_norm1.weight"))).count();
        let heads = heads.map(|heads| heads[at]).or_else(|| Preset::heads_of_width(width)).ok_or_else(|| {
            refuse(format!("width {width} is that of no preset and the file states no number of heads"))
        })?;
        let hidden = rows_of(&format!("{layers}.0.mlp.fc1.weight"))?;
        Ok::<_, Error>(Tower { width, depth, heads, hidden, gelu: Form::Tanh })
    };
    let side = match (rows_of(siglip::POSITIONS)?.isqrt(), patch_size) {
        (27, 14) => 384, // squashed to 384 pixels, the last 6 of which belong to no patch
        (patches, _) => patches.saturating_mul(patch_size),
    };
    let text = shape("text_model.embeddings.token_embedding.weight")?;
    let &[vocab_size, text_width] = text.as_slice() else {
        return Err(refuse(format!("token_embedding.weight has shape {text:?}, expected [vocabulary, D]")));
    };
    let mut sizes = Sizes {
        image_size: [side, side],
        patch_size,
        in_chans,
        vision: tower("vision_model", width, 0)?,
        text: tower("text_model", text_width, 1)?,
        vocab_size,
        context_len: rows_of("text_model.embeddings.position_embedding.weight")?,
        embed_dim: rows_of("text_model.head.weight")?,
        vision_head: dict.contains("visual_projection.weight"),
        eps: 1e-6,
    };
    if layout == Layout::OpenClip {
        (sizes.vision.gelu, sizes.text.gelu) = open_clip_gelu(&sizes);
    }
    sizes.check()?;
    Ok(sizes)
}

/// Activations of open_clip's image and text towers: erf, but for the texts of SigLIP 2 and for image towers that only it has
/// (B/32, L/16 at 512 pixels, So400m/16, g-opt), tanh. An image tower of both generations is erf in both.
///
/// Source: `vision_transformer.py` of timm 1.0.31 and `model_configs` of open_clip 3.3.0.
fn open_clip_gelu(sizes: &Sizes) -> (Form, Form) {
    let form = |second: bool| if second { Form::Tanh } else { Form::Erf };
    let vision = matches!(
        (sizes.vision.width, sizes.patch_size, sizes.image_size[0]),
        (768, 32, _) | (1024, 16, 512) | (1152, 16, _) | (1536, 16, _)
    );
    (form(vision), form(sizes.vocab_size == VOCAB_2))
}

/// Puts weights into a model of sizes `to`, whose images may have another size. Everything else has to fit.
///
/// # Errors
/// [`Error::Checkpoint`] when a tensor is missing or has another shape (another vocabulary, say), or the weights were made
/// with other numbers of heads: they change what weights mean, but not their shapes.
pub fn initialise(model: &mut Siglip, to: &Sizes, weights: &Weights) -> Result<LoadReport> {
    let from = &weights.sizes;
    for (tower, from, to) in [("image", &from.vision, &to.vision), ("text", &from.text, &to.text)] {
        if from.heads != to.heads {
            let cause = format!("has {} attention heads in its {tower} tower, expected {}", from.heads, to.heads);
            return Err(Error::checkpoint(&weights.dict.origin, cause));
        }
    }
    let grid = |s: &Sizes| s.grid().map(|[h, w]| Some((h, w)));
    let options = LoadOptions { file_grid: grid(from)?, model_grid: grid(to)?, resample: weights.resample };
    let report = load_into(&mut model.params_mut(), &weights.dict, &options)?;
    tracing::info!("{report}");
    report.require(|_| true)?;
    Ok(report)
}

/// A model read from a file, for images of its own size or of `image_size`.
///
/// # Errors
/// As [`weights`] and [`initialise`].
pub fn model(path: &Path, device: &Device, dtype: DType, image_size: Option<[usize; 2]>) -> Result<(Siglip, Sizes)> {
    let w = weights(path)?;
    let sizes = Sizes { image_size: image_size.unwrap_or(w.sizes.image_size), ..w.sizes.clone() };
    let mut model = Siglip::new(&Builder::new(device, dtype, 0), &sizes)?;
    initialise(&mut model, &sizes, &w)?;
    Ok((model, sizes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tensor;

    /// Names of open_clip's file with shapes of a model without blocks but the first's `fc1`.
    fn open_clip(width: usize, patch: usize, patches: usize, vocab: usize) -> Sizes {
        let mut dict = StateDict::new();
        for (name, shape) in [
            ("vision_model.embeddings.patch_embedding.weight", vec![width, 3, patch, patch]),
            (siglip::POSITIONS, vec![patches, width]),
            ("vision_model.encoder.layers.0.mlp.fc1.weight", vec![4, width]),
            ("text_model.embeddings.token_embedding.weight", vec![vocab, 4]),
            ("text_model.embeddings.position_embedding.weight", vec![64, 4]),
            ("text_model.encoder.layers.0.mlp.fc1.weight", vec![4, 4]),
            ("text_model.head.weight", vec![width, 4]),
        ] {
            let values = vec![0u8; shape.iter().product()];
            dict.insert(name, Tensor::from_slice(&values, shape, &Device::Cpu).unwrap()).unwrap();
        }
        from_shapes(&dict, Some([1, 1]), Layout::OpenClip).unwrap()
    }

    #[test]
    fn activations_of_open_clip_are_those_of_its_configurations() {
        let (erf, tanh) = (Form::Erf, Form::Tanh);
        for (width, patch, side, vocab, vision, text) in [
            (768, 16, 224, 32_000, erf, erf),
            (768, 16, 256, 250_000, erf, erf),
            (768, 16, 224, VOCAB_2, erf, tanh),
            (768, 32, 256, VOCAB_2, tanh, tanh),
            (1024, 16, 256, VOCAB_2, erf, tanh),
            (1024, 16, 512, VOCAB_2, tanh, tanh),
            (1152, 14, 224, VOCAB_2, erf, tanh),
            (1152, 16, 256, VOCAB_2, tanh, tanh),
            (1536, 16, 384, VOCAB_2, tanh, tanh),
        ] {
            let sizes = open_clip(width, patch, (side / patch) * (side / patch), vocab);
            let found = (sizes.image_size, sizes.vision.gelu, sizes.text.gelu);
            assert_eq!(found, ([side; 2], vision, text), "{width}/{patch}, {side} pixels, {vocab} ids");
        }
    }

    /// 27 patches of 14 pixels are of images of 384, not 378.
    #[test]
    fn a_side_that_is_no_multiple_of_the_patch_is_known() {
        assert_eq!(open_clip(1152, 14, 729, 32_000).image_size, [384, 384]);
        assert_eq!(open_clip(1152, 14, 256, 32_000).image_size, [224, 224]);
    }

    fn stated(text: &str) -> Result<Sizes> {
        let config: HfConfig = serde_json::from_str(text).unwrap();
        from_hf(&config)
    }

    /// Neither config.json nor this crate's own mark may ask for what cannot be built.
    #[test]
    fn stated_sizes_are_checked() {
        stated("{}").unwrap();
        for text in [
            r#"{"vision_config": {"num_attention_heads": 0, "num_hidden_layers": 0}}"#,
            r#"{"text_config": {"hidden_size": 1000000000000000}}"#,
            r#"{"text_config": {"vocab_size": 1000000000000000}}"#,
            r#"{"vision_config": {"patch_size": 1000000000000000000, "num_patches": 10000}}"#,
            r#"{"vision_config": {"patch_size": 9000000000000000000}, "model_type": "siglip2"}"#,
        ] {
            assert!(matches!(stated(text), Err(Error::Config { .. })), "{text}");
        }
        let good = stated("{}").unwrap();
        let mut dict = StateDict::new();
        mark(&mut dict, &good).unwrap();
        assert_eq!(marked(&dict).unwrap(), Some(good.clone()));
        mark(&mut dict, &Sizes { text: Tower { heads: 0, ..good.text }, ..good }).unwrap();
        assert!(matches!(marked(&dict), Err(Error::Config { .. })));
    }
}
