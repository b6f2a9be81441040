//! `config.json` of `SiglipModel` and, to read, of `Siglip2Model`.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::super::hf::{file, number_or_pair, pair, square};
use crate::{Error, Result};

/// The file. Keys that are absent have the defaults of `transformers`; other keys are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HfConfig {
    /// The text tower.
    pub text_config: TextConfig,
    /// The image tower.
    pub vision_config: VisionConfig,
    /// Everything else.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// The text tower.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TextConfig {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Width.
    pub hidden_size: usize,
    /// Hidden width of the MLPs.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Heads.
    pub num_attention_heads: usize,
    /// Tokens of a text.
    pub max_position_embeddings: usize,
    /// Activation of the MLPs.
    pub hidden_act: String,
    /// Added to the variance in layer norms.
    pub layer_norm_eps: f64,
    /// Width of the embeddings; that of the tower if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub projection_size: Option<usize>,
    /// Everything else.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// The image tower.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VisionConfig {
    /// Width.
    pub hidden_size: usize,
    /// Hidden width of the MLPs.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Heads.
    pub num_attention_heads: usize,
    /// Image channels.
    pub num_channels: usize,
    /// Positions of the table, of models for images of different shapes (NaFlex): they have no `image_size`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_patches: Option<usize>,
    /// Height and width in pixels.
    #[serde(deserialize_with = "pair", serialize_with = "number_or_pair")]
    pub image_size: [usize; 2],
    /// Side of a patch in pixels.
    #[serde(deserialize_with = "square")]
    pub patch_size: usize,
    /// Activation of the MLPs.
    pub hidden_act: String,
    /// Added to the variance in layer norms.
    pub layer_norm_eps: f64,
    /// Everything else.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// The approximation by tanh.
pub const TANH: &str = "gelu_pytorch_tanh";
/// The exact function.
pub const ERF: &str = "gelu";

fn entries(pairs: &[(&str, Value)]) -> Map<String, Value> {
    pairs.iter().map(|(key, value)| (key.to_string(), value.clone())).collect()
}

impl Default for HfConfig {
    fn default() -> Self {
        let other = entries(&[
            ("architectures", vec!["SiglipModel"].into()),
            ("model_type", "siglip".into()),
            ("torch_dtype", "float32".into()),
        ]);
        Self { text_config: TextConfig::default(), vision_config: VisionConfig::default(), other }
    }
}

impl Default for TextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 32_000,
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            max_position_embeddings: 64,
            hidden_act: TANH.into(),
            layer_norm_eps: 1e-6,
            projection_size: None,
            other: entries(&[("model_type", "siglip_text_model".into())]),
        }
    }
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            num_patches: None,
            image_size: [224, 224],
            patch_size: 16,
            hidden_act: TANH.into(),
            layer_norm_eps: 1e-6,
            other: entries(&[("model_type", "siglip_vision_model".into())]),
        }
    }
}

impl HfConfig {
    /// Height and width in pixels; of NaFlex, of the images that its table of positions is made for.
    pub fn image_size(&self) -> [usize; 2] {
        let vision = &self.vision_config;
        match vision.num_patches {
            // What would overflow is too large for the check of the sizes too.
            Some(patches) => [patches.isqrt().saturating_mul(vision.patch_size); 2],
            None if self.other.get("model_type").is_some_and(|kind| kind == "siglip2") => {
                [vision.patch_size.saturating_mul(16); 2]
            }
            None => vision.image_size,
        }
    }

    /// Reads `config.json`, given itself or its folder.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Checkpoint`] for other model types and activations.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = file(path.as_ref(), "config.json");
        let text = std::fs::read(&path).map_err(Error::io(&path))?;
        let config: Self = serde_json::from_slice(&text).map_err(|e| Error::checkpoint(&path, e.to_string()))?;
        config.check().map_err(|cause| Error::checkpoint(&path, cause))?;
        Ok(config)
    }

    fn check(&self) -> std::result::Result<(), String> {
        let kind = self.other.get("model_type").and_then(Value::as_str).unwrap_or("siglip");
        if kind != "siglip" && kind != "siglip2" {
            return Err(format!("`model_type` is {kind}, expected siglip or siglip2"));
        }
        for (tower, act) in [("text", &self.text_config.hidden_act), ("vision", &self.vision_config.hidden_act)] {
            if act != TANH && act != ERF {
                return Err(format!("`{tower}_config.hidden_act` is {act}, expected {TANH} or {ERF}"));
            }
        }
        let [text, vision] = [self.text_config.layer_norm_eps, self.vision_config.layer_norm_eps];
        if text != vision || !(text > 0.0 && text.is_finite()) {
            return Err(format!("`layer_norm_eps` is {text} and {vision}, expected one positive number"));
        }
        Ok(())
    }
}
