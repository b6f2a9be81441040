//! Folders of Hugging Face ViTMAE: `config.json` beside `model.safetensors`.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use super::{StateDict, atomic, names, pth, safetensors};
use crate::Error;

type Result<T, E = Error> = std::result::Result<T, E>;

/// `config.json` of a ViTMAE model. Keys that are absent have the defaults of `transformers`; other keys are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HfConfig {
    /// Encoder width.
    pub hidden_size: usize,
    /// Encoder blocks.
    pub num_hidden_layers: usize,
    /// Encoder heads.
    pub num_attention_heads: usize,
    /// Hidden width of the encoder's MLPs.
    pub intermediate_size: usize,
    /// Height and width in pixels; a number stands for a square.
    #[serde(deserialize_with = "pair", serialize_with = "number_or_pair")]
    pub image_size: [usize; 2],
    /// Side of a patch in pixels.
    #[serde(deserialize_with = "square")]
    pub patch_size: usize,
    /// Image channels.
    pub num_channels: usize,
    /// Whether `qkv` has a bias.
    pub qkv_bias: bool,
    /// Added to the variance in layer norms. The upstream repository trained with 1e-6; this default is that of `transformers`.
    pub layer_norm_eps: f64,
    /// Activation of the MLPs; only `gelu`, the exact one, is known here.
    pub hidden_act: String,
    /// Part of the patches removed in pre-training.
    pub mask_ratio: f64,
    /// Whether targets are normalised per patch.
    pub norm_pix_loss: bool,
    /// Decoder width.
    pub decoder_hidden_size: usize,
    /// Decoder blocks.
    pub decoder_num_hidden_layers: usize,
    /// Decoder heads.
    pub decoder_num_attention_heads: usize,
    /// Hidden width of the decoder's MLPs.
    pub decoder_intermediate_size: usize,
    /// Everything else.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Default for HfConfig {
    fn default() -> Self {
        let other = [
            ("architectures", Value::from(vec!["ViTMAEForPreTraining"])),
            ("model_type", Value::from("vit_mae")),
            ("torch_dtype", Value::from("float32")),
        ];
        Self {
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            image_size: [224, 224],
            patch_size: 16,
            num_channels: 3,
            qkv_bias: true,
            layer_norm_eps: 1e-12,
            hidden_act: "gelu".into(),
            mask_ratio: 0.75,
            norm_pix_loss: false,
            decoder_hidden_size: 512,
            decoder_num_hidden_layers: 8,
            decoder_num_attention_heads: 16,
            decoder_intermediate_size: 2048,
            other: other.into_iter().map(|(k, v)| (k.to_string(), v)).collect(),
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Extent {
    Number(usize),
    List(Vec<usize>),
}

impl Extent {
    fn pair<E: serde::de::Error>(self) -> Result<[usize; 2], E> {
        match self {
            Self::Number(n) => Ok([n, n]),
            Self::List(v) => v.try_into().map_err(|v| E::custom(format!("{v:?}, expected one number or two"))),
        }
    }
}

pub(super) fn pair<'de, D: Deserializer<'de>>(from: D) -> Result<[usize; 2], D::Error> {
    Extent::deserialize(from)?.pair()
}

pub(super) fn square<'de, D: Deserializer<'de>>(from: D) -> Result<usize, D::Error> {
    let [h, w] = Extent::deserialize(from)?.pair()?;
    if h == w { Ok(h) } else { Err(serde::de::Error::custom(format!("patches of {h} x {w}, expected square ones"))) }
}

pub(super) fn number_or_pair<S: Serializer>(size: &[usize; 2], to: S) -> Result<S::Ok, S::Error> {
    if size[0] == size[1] { size[0].serialize(to) } else { size.serialize(to) }
}

impl HfConfig {
    /// Reads `config.json`, given itself or its folder.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Checkpoint`] for other model types, activations and impossible sizes.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = file(path.as_ref(), "config.json");
        let text = std::fs::read(&path).map_err(Error::io(&path))?;
        let config: Self = serde_json::from_slice(&text).map_err(|e| Error::checkpoint(&path, e.to_string()))?;
        config.check().map_err(|cause| Error::checkpoint(&path, cause))?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        let kind = self.other.get("model_type").and_then(Value::as_str).unwrap_or("vit_mae");
        if kind != "vit_mae" && kind != "vit" {
            return Err(format!("`model_type` is {kind}, expected vit_mae"));
        }
        if !self.qkv_bias {
            return Err("`qkv_bias` is false, expected true: blocks without that bias are not known here".into());
        }
        if self.hidden_act != "gelu" {
            return Err(format!("`hidden_act` is {}, expected gelu", self.hidden_act));
        }
        if !(self.layer_norm_eps > 0.0 && self.layer_norm_eps.is_finite()) {
            return Err(format!("`layer_norm_eps` is {}, expected a positive number", self.layer_norm_eps));
        }
        if !(0.0..1.0).contains(&self.mask_ratio) {
            return Err(format!("`mask_ratio` is {}, expected at least 0 and less than 1", self.mask_ratio));
        }
        if self.patch_size == 0 || self.image_size.iter().any(|s| *s == 0 || !s.is_multiple_of(self.patch_size)) {
            let [h, w] = self.image_size;
            return Err(format!(
                "`image_size` is {h} x {w}, expected multiples of `patch_size`, which is {}",
                self.patch_size
            ));
        }
        let heads = |width: usize, heads: usize| heads > 0 && width > 0 && width.is_multiple_of(heads);
        if !heads(self.hidden_size, self.num_attention_heads) {
            return Err(format!(
                "`hidden_size` is {}, expected a multiple of {} heads",
                self.hidden_size, self.num_attention_heads
            ));
        }
        if !heads(self.decoder_hidden_size, self.decoder_num_attention_heads) {
            let (width, heads) = (self.decoder_hidden_size, self.decoder_num_attention_heads);
            return Err(format!("`decoder_hidden_size` is {width}, expected a multiple of {heads} heads"));
        }
        Ok(())
    }

    /// Patch grid: rows, columns.
    pub fn grid(&self) -> (usize, usize) {
        (self.image_size[0] / self.patch_size, self.image_size[1] / self.patch_size)
    }
}

/// A file given itself or by its folder.
pub(super) fn file(path: &Path, name: &str) -> PathBuf {
    if path.is_dir() { path.join(name) } else { path.into() }
}

/// Reads the weights of a folder as they are named there: `model.safetensors`, its shards or `pytorch_model.bin`.
///
/// # Errors
/// When there is none of them, or as [`safetensors::read`] and [`pth::read`].
pub fn read_weights(folder: &Path) -> Result<StateDict> {
    let one = folder.join("model.safetensors");
    let index = folder.join("model.safetensors.index.json");
    let archive = folder.join("pytorch_model.bin");
    if one.exists() {
        safetensors::read(one)
    } else if index.exists() {
        safetensors::read_sharded(index)
    } else if archive.exists() {
        pth::read(archive)
    } else {
        let expected = "model.safetensors, model.safetensors.index.json or pytorch_model.bin";
        Err(Error::checkpoint(folder, format!("no weights in this folder, expected {expected}")))
    }
}

/// Writes a folder that `transformers` loads, from upstream names; makes the folder.
///
/// # Errors
/// [`Error::Io`]; [`Error::Checkpoint`] when a tensor has no place in the layout.
pub fn save(folder: impl AsRef<Path>, config: &HfConfig, weights: &StateDict) -> Result<()> {
    write(folder.as_ref(), config, names::to_hf(weights)?)
}

/// Writes a folder of weights under the names of `transformers` and their `config.json`.
pub(super) fn write(folder: &Path, config: &impl Serialize, mut weights: StateDict) -> Result<()> {
    weights.metadata.insert("format".into(), "pt".into()); // transformers insists on it
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    safetensors::write(folder.join("model.safetensors"), &weights)?;
    write_json(&folder.join("config.json"), config)
}

/// Writes a file of settings.
pub(super) fn write_json(path: &Path, settings: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(settings).map_err(|e| Error::checkpoint(path, e.to_string()))?;
    atomic::write(path, |w| writeln!(w, "{text}"))
}
