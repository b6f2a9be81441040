//! DINOv2's names: those of the official files in all their wrappings, which this crate uses without them, and those of
//! Hugging Face's `Dinov2Model` and `Dinov2WithRegistersModel`.
//!
//! | official | Hugging Face |
//! |---|---|
//! | `cls_token`, `mask_token`, `register_tokens` | `embeddings.` and the same |
//! | `pos_embed` | `embeddings.position_embeddings` |
//! | `patch_embed.proj` | `embeddings.patch_embeddings.projection` |
//! | `blocks.i.norm1`, `norm2` | `encoder.layer.i.norm1`, `norm2` |
//! | rows of `blocks.i.attn.qkv` | `encoder.layer.i.attention.attention.{query,key,value}` |
//! | `blocks.i.attn.proj` | `encoder.layer.i.attention.output.dense` |
//! | `blocks.i.ls1.gamma`, `ls2.gamma` | `encoder.layer.i.layer_scale1.lambda1`, `layer_scale2.lambda1` |
//! | `blocks.i.mlp.fc1`, `fc2` | the same below `encoder.layer.i` |
//! | `blocks.i.mlp.w12`, `w3` | `encoder.layer.i.mlp.weights_in`, `weights_out` |
//! | `norm` | `layernorm` |
//!
//! Training runs of upstream put `backbone.` in front, shards of them `_fsdp_wrapped_module.`, and block chunks make
//! `blocks.<chunk>.<i>` of `blocks.<i>`, where `i` counts through all chunks.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::arrange::{join, split};
use super::{StateDict, hf};
use crate::{Error, Result, Tensor};

/// Whole modules and tensors: official, Hugging Face.
const OUTER: [(&str, &str); 6] = [
    ("cls_token", "embeddings.cls_token"),
    ("mask_token", "embeddings.mask_token"),
    ("register_tokens", "embeddings.register_tokens"),
    ("pos_embed", "embeddings.position_embeddings"),
    ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
    ("norm", "layernorm"),
];

/// In a block, with the end of the name where it differs.
const INNER: [(&str, &str); 9] = [
    ("norm1", "norm1"),
    ("norm2", "norm2"),
    ("attn.proj", "attention.output.dense"),
    ("ls1.gamma", "layer_scale1.lambda1"),
    ("ls2.gamma", "layer_scale2.lambda1"),
    ("mlp.fc1", "mlp.fc1"),
    ("mlp.fc2", "mlp.fc2"),
    ("mlp.w12", "mlp.weights_in"),
    ("mlp.w3", "mlp.weights_out"),
];

const THIRDS: [&str; 3] = ["attention.attention.query", "attention.attention.key", "attention.attention.value"];
const STACK: &str = "encoder.layer";

/// The name of a parameter without wrappers and chunks: `blocks.11.norm1.weight` for
/// `module.backbone.blocks.2.11._fsdp_wrapped_module.norm1.weight`.
pub fn plain(name: &str) -> String {
    let bare = name.replace("_fsdp_wrapped_module.", "");
    let bare = bare.strip_prefix("module.").unwrap_or(&bare);
    let bare = bare.strip_prefix("backbone.").unwrap_or(bare);
    let (path, block) = match bare.rfind("blocks.") {
        Some(at) if at == 0 || bare.as_bytes()[at - 1] == b'.' => bare.split_at(at + "blocks.".len()),
        _ => return bare.into(),
    };
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match block.split('.').collect::<Vec<_>>().as_slice() {
        [chunk, i, rest @ ..] if number(chunk) && number(i) => format!("{path}{i}.{}", rest.join(".")),
        _ => bare.into(),
    }
}

/// `rest` if `name` is `module` or something in it.
fn below<'a>(name: &'a str, module: &str) -> Option<&'a str> {
    name.strip_prefix(module).filter(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Whether a dictionary has Hugging Face's names of a DINOv2 model.
pub fn is_hf(dict: &StateDict) -> bool {
    dict.names().any(|n| hf_name(n).starts_with("encoder.layer.0.layer_scale1."))
}

/// Whether a dictionary has official names of a DINOv2 model: no other recipe's have LayerScale.
pub fn is_official(dict: &StateDict) -> bool {
    dict.names().any(|n| plain(n) == "blocks.0.ls1.gamma")
}

/// Without the prefix that models around a backbone put in front.
fn hf_name(name: &str) -> &str {
    ["dinov2.", "dinov2_with_registers.", "backbone."].iter().find_map(|p| name.strip_prefix(p)).unwrap_or(name)
}

/// The official name, or the fused one with the number of the third.
fn from_hf(name: &str) -> Option<(String, Option<usize>)> {
    if let Some((ours, rest)) = OUTER.iter().find_map(|(ours, theirs)| Some((ours, below(name, theirs)?))) {
        return Some((format!("{ours}{rest}"), None));
    }
    let (i, inner) = below(name, STACK)?.strip_prefix('.')?.split_once('.')?;
    if let Some((third, rest)) = THIRDS.iter().enumerate().find_map(|(k, t)| Some((k, below(inner, t)?))) {
        return Some((format!("blocks.{i}.attn.qkv{rest}"), Some(third)));
    }
    let (ours, rest) = INNER.iter().find_map(|(ours, theirs)| Some((ours, below(inner, theirs)?)))?;
    Some((format!("blocks.{i}.{ours}{rest}"), None))
}

fn into_hf(name: &str) -> Option<Vec<String>> {
    if let Some((theirs, rest)) = OUTER.iter().find_map(|(ours, theirs)| Some((theirs, below(name, ours)?))) {
        return Some(vec![format!("{theirs}{rest}")]);
    }
    let (i, inner) = name.strip_prefix("blocks.")?.split_once('.')?;
    if let Some(rest) = below(inner, "attn.qkv") {
        return Some(THIRDS.iter().map(|third| format!("{STACK}.{i}.{third}{rest}")).collect());
    }
    let (theirs, rest) = INNER.iter().find_map(|(ours, theirs)| Some((theirs, below(inner, ours)?)))?;
    Some(vec![format!("{STACK}.{i}.{theirs}{rest}")])
}

/// The backbone under plain official names, from any of the layouts; tensors of heads and classifiers are left out.
///
/// # Errors
/// When it is no DINOv2 model, a third of a `qkv` is missing or does not fit the others, or a tensor occurs twice.
pub fn to_upstream(dict: &StateDict) -> Result<StateDict> {
    let bad = |cause: String| Error::checkpoint(&dict.origin, cause);
    let mut out = StateDict::of(&dict.origin, dict.metadata.clone());
    if is_official(dict) {
        for (name, tensor) in dict.iter().map(|(name, t)| (plain(name), t)).filter(|(n, _)| into_hf(n).is_some()) {
            out.insert(name, tensor.clone())?;
        }
        return Ok(out);
    }
    if !is_hf(dict) {
        return Err(bad(
            "no DINOv2 model: neither `blocks.0.ls1.gamma` nor `encoder.layer.0.layer_scale1.lambda1`".into()
        ));
    }
    let mut thirds: BTreeMap<String, [Option<&Tensor>; 3]> = BTreeMap::new();
    for (name, tensor) in dict.iter() {
        match from_hf(hf_name(name)) {
            None => {} // a classifier
            Some((ours, None)) => out.insert(ours, tensor.clone())?,
            Some((fused, Some(third))) => thirds.entry(fused).or_default()[third] = Some(tensor),
        }
    }
    for (fused, parts) in thirds {
        let [Some(q), Some(k), Some(v)] = parts else {
            return Err(bad(format!("`{fused}` lacks its query, key or value")));
        };
        out.insert(fused, join(&[q, k, v])?)?;
    }
    Ok(out)
}

/// Hugging Face's names, from plain official ones.
///
/// # Errors
/// When a tensor has no place there.
pub fn to_hf(dict: &StateDict) -> Result<StateDict> {
    let bad = |name: &str| Error::checkpoint(&dict.origin, format!("tensor `{name}` has no place in a Dinov2Model"));
    let mut out = StateDict::of(&dict.origin, dict.metadata.clone());
    for (name, tensor) in dict.iter() {
        let names = into_hf(name).ok_or_else(|| bad(name))?;
        let parts = if names.len() == 3 { split(tensor, 3)? } else { vec![tensor.clone()] };
        names.into_iter().zip(parts).try_for_each(|(name, part)| out.insert(name, part))?;
    }
    Ok(out)
}

/// `config.json` of a DINOv2 model. Keys that are absent have the defaults of `transformers`; other keys are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dinov2Config {
    /// `dinov2` or `dinov2_with_registers`.
    pub model_type: String,
    /// Width.
    pub hidden_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Heads.
    pub num_attention_heads: usize,
    /// Hidden units of an MLP over the width.
    pub mlp_ratio: f64,
    /// Side in pixels of the position table's image.
    #[serde(deserialize_with = "hf::square")]
    pub image_size: usize,
    /// Side of a patch in pixels.
    #[serde(deserialize_with = "hf::square")]
    pub patch_size: usize,
    /// Image channels; only 3 are known here.
    pub num_channels: usize,
    /// Whether `qkv` has a bias; only true is known here.
    pub qkv_bias: bool,
    /// Activation; only `gelu`, the exact one, is known here.
    pub hidden_act: String,
    /// Added to the variance in layer norms.
    pub layer_norm_eps: f64,
    /// First value of LayerScale.
    pub layerscale_value: f64,
    /// Whether the feed-forward networks are SwiGLU.
    pub use_swiglu_ffn: bool,
    /// Registers; 0 of models without them.
    #[serde(skip_serializing_if = "none")]
    pub num_register_tokens: usize,
    /// Everything else.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

fn none(count: &usize) -> bool {
    *count == 0
}

impl Default for Dinov2Config {
    fn default() -> Self {
        Self {
            model_type: "dinov2".into(),
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            mlp_ratio: 4.0,
            image_size: 224,
            patch_size: 14,
            num_channels: 3,
            qkv_bias: true,
            hidden_act: "gelu".into(),
            layer_norm_eps: 1e-6,
            layerscale_value: 1.0,
            use_swiglu_ffn: false,
            num_register_tokens: 0,
            other: Map::new(),
        }
    }
}

impl Dinov2Config {
    /// Reads `config.json`, given itself or its folder.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Checkpoint`] for what is not known here.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = hf::file(path.as_ref(), "config.json");
        let text = std::fs::read(&path).map_err(Error::io(&path))?;
        let mut config: Self = serde_json::from_slice(&text).map_err(|e| Error::checkpoint(&path, e.to_string()))?;
        config.check().map_err(|cause| Error::checkpoint(&path, cause))?;
        if config.has_registers() && !String::from_utf8_lossy(&text).contains("num_register_tokens") {
            config.num_register_tokens = 4; // the default of `transformers`
        }
        Ok(config)
    }

    /// Whether it is of `Dinov2WithRegistersModel`.
    pub fn has_registers(&self) -> bool {
        self.model_type == "dinov2_with_registers"
    }

    fn check(&self) -> std::result::Result<(), String> {
        let known = ["dinov2", "dinov2_with_registers"];
        if !known.contains(&self.model_type.as_str()) {
            return Err(format!("`model_type` is {}, expected one of {}", self.model_type, known.join(", ")));
        }
        if !self.qkv_bias {
            return Err("`qkv_bias` is false, expected true: blocks without that bias are not known here".into());
        }
        if self.hidden_act != "gelu" {
            return Err(format!("`hidden_act` is {}, expected gelu", self.hidden_act));
        }
        if self.layer_norm_eps != 1e-6 {
            return Err(format!("`layer_norm_eps` is {}, expected 1e-6", self.layer_norm_eps));
        }
        if self.num_channels != 3 {
            return Err(format!("`num_channels` is {}, expected 3", self.num_channels));
        }
        Ok(())
    }
}

/// Writes a folder that `transformers` loads, from plain official names; makes the folder.
///
/// # Errors
/// [`Error::Io`]; [`Error::Checkpoint`] when a tensor has no place in the layout.
pub fn save(folder: impl AsRef<Path>, config: &Dinov2Config, weights: &StateDict) -> Result<()> {
    hf::write(folder.as_ref(), config, to_hf(weights)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, Device};

    #[test]
    fn wrappers_and_chunks_come_off() {
        for (given, expected) in [
            ("blocks.3.norm1.weight", "blocks.3.norm1.weight"),
            ("blocks.2.11.norm1.weight", "blocks.11.norm1.weight"),
            ("module.backbone.blocks.2.11._fsdp_wrapped_module.norm1.weight", "blocks.11.norm1.weight"),
            ("backbone.pos_embed", "pos_embed"),
            ("dino_head.mlp.0.weight", "dino_head.mlp.0.weight"),
            ("student.backbone.blocks.1.4.ls1.gamma", "student.backbone.blocks.4.ls1.gamma"),
        ] {
            assert_eq!(plain(given), expected);
        }
    }

    fn dict(names: &[&str]) -> StateDict {
        let mut dict = StateDict::default();
        for (i, name) in names.iter().enumerate() {
            let values: Vec<f32> = (0..6).map(|j| (10 * i + j) as f32).collect();
            dict.insert(*name, Tensor::from_slice(&values, [6], &Device::Cpu).unwrap()).unwrap();
        }
        dict
    }

    #[test]
    fn names_go_to_hugging_face_and_back() {
        let all = [
            "cls_token",
            "register_tokens",
            "norm.weight",
            "patch_embed.proj.bias",
            "blocks.0.attn.qkv.weight",
            "blocks.0.attn.proj.bias",
            "blocks.0.ls1.gamma",
            "blocks.0.ls2.gamma",
            "blocks.0.norm1.weight",
            "blocks.0.mlp.w12.weight",
            "blocks.0.mlp.w3.bias",
            "blocks.10.mlp.fc1.weight",
        ];
        let hf = to_hf(&dict(&all)).unwrap();
        assert!(is_hf(&hf) && !is_official(&hf));
        assert_eq!(hf.get("encoder.layer.0.attention.attention.key.weight").unwrap().to_f64().unwrap(), [42.0, 43.0]);
        assert_eq!(hf.get("encoder.layer.0.mlp.weights_out.bias").unwrap().dtype(), DType::F32);
        let back = to_upstream(&hf).unwrap();
        assert_eq!(back.len(), all.len());
        for (name, t) in dict(&all).iter() {
            assert_eq!(back.get(name).unwrap().to_f64().unwrap(), t.to_f64().unwrap(), "{name}");
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let error = to_upstream(&dict(&["a.weight"])).unwrap_err().to_string();
        assert!(error.contains("no DINOv2 model"), "{error}");
        let names = ["encoder.layer.0.layer_scale1.lambda1", "encoder.layer.0.attention.attention.key.weight"];
        let error = to_upstream(&dict(&names)).unwrap_err().to_string();
        assert!(error.contains("`blocks.0.attn.qkv.weight` lacks its query, key or value"), "{error}");
        let error = to_hf(&dict(&["dino_head.mlp.0.weight"])).unwrap_err().to_string();
        assert!(error.contains("`dino_head.mlp.0.weight` has no place"), "{error}");
    }
}
