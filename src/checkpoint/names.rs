//! Parameter names: upstream MAE (which this crate uses) and the three spellings of Hugging Face ViTMAE.
//!
//! | upstream | hub | newer modules |
//! |---|---|---|
//! | `cls_token`, `pos_embed` | `vit.embeddings.cls_token`, `vit.embeddings.position_embeddings` | same |
//! | `patch_embed.proj` | `vit.embeddings.patch_embeddings.projection` | same |
//! | `blocks.i` | `vit.encoder.layer.i` | `vit.layers.i` |
//! | `decoder_blocks.i` | `decoder.decoder_layers.i` | same, or `decoder.decoder_encoder.layer.i` |
//! | rows of `attn.qkv` | `attention.attention.{query,key,value}` | `attention.{q,k,v}_proj` |
//!
//! and so on. All spellings are read, also without the leading `vit.` of encoder-only exports; the hub's is written. The fused
//! `qkv` of upstream is `query`, `key`, `value` stacked by rows, so splitting and joining are exact.

use std::collections::BTreeMap;

use super::StateDict;
use super::arrange::{join, split};
use crate::{Error, Result, Tensor};

/// Outside of blocks: upstream, Hugging Face.
const OUTER: [(&str, &str); 9] = [
    ("cls_token", "vit.embeddings.cls_token"),
    ("pos_embed", "vit.embeddings.position_embeddings"),
    ("patch_embed.proj", "vit.embeddings.patch_embeddings.projection"),
    ("norm", "vit.layernorm"),
    ("mask_token", "decoder.mask_token"),
    ("decoder_pos_embed", "decoder.decoder_pos_embed"),
    ("decoder_embed", "decoder.decoder_embed"),
    ("decoder_norm", "decoder.decoder_norm"),
    ("decoder_pred", "decoder.decoder_pred"),
];

/// In a block: upstream, hub, newer modules.
const INNER: [(&str, &str, &str); 5] = [
    ("norm1", "layernorm_before", "layernorm_before"),
    ("norm2", "layernorm_after", "layernorm_after"),
    ("attn.proj", "attention.output.dense", "attention.o_proj"),
    ("mlp.fc1", "intermediate.dense", "mlp.fc1"),
    ("mlp.fc2", "output.dense", "mlp.fc2"),
];

/// The thirds of `attn.qkv` in order: hub, newer modules.
const THIRDS: [(&str, &str); 3] = [
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
];

/// Stacks of blocks: upstream, then the spellings of Hugging Face with the one written first.
const STACKS: [(&str, [&str; 2]); 2] = [
    ("blocks", ["vit.encoder.layer", "vit.layers"]),
    ("decoder_blocks", ["decoder.decoder_layers", "decoder.decoder_encoder.layer"]),
];

/// Whose names a dictionary has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// The upstream MAE repository, and this crate.
    Upstream,
    /// Hugging Face ViTMAE in any of its spellings.
    HuggingFace,
}

/// Where a tensor of Hugging Face belongs.
enum Target {
    Whole(String),
    Third(String, usize),
}

/// `blocks.3.attn.proj.weight` into `blocks`, `3`, `attn.proj`, `weight`, given the stack's spelling.
fn block_of<'a>(name: &'a str, stack: &str) -> Option<(&'a str, &'a str, &'a str)> {
    let (at, rest) = name.strip_prefix(stack)?.strip_prefix('.')?.split_once('.')?;
    let canonical = at.parse::<u32>().is_ok_and(|i| i.to_string() == at); // `03` or `+3` would collide with `3`
    let (module, leaf) = rest.rsplit_once('.')?;
    canonical.then_some((at, module, leaf))
}

/// `module.weight`, `module.bias` or the bare name of a token or table.
fn outer(name: &str, module: &str) -> Option<String> {
    let rest = name.strip_prefix(module)?;
    matches!(rest, "" | ".weight" | ".bias").then(|| rest.to_string())
}

fn from_hf(name: &str) -> Option<Target> {
    let full = match name.split('.').next() {
        Some("embeddings" | "encoder" | "layers" | "layernorm") => &format!("vit.{name}"),
        _ => name,
    };
    if let Some(upstream) = OUTER.iter().find_map(|(ours, theirs)| Some(format!("{ours}{}", outer(full, theirs)?))) {
        return Some(Target::Whole(upstream));
    }
    for (stack, spellings) in STACKS {
        let Some((at, module, leaf)) = spellings.iter().find_map(|s| block_of(full, s)) else { continue };
        if let Some((ours, ..)) = INNER.iter().find(|(_, hub, new)| module == *hub || module == *new) {
            return Some(Target::Whole(format!("{stack}.{at}.{ours}.{leaf}")));
        }
        if let Some(third) = THIRDS.iter().position(|(hub, new)| module == *hub || module == *new) {
            return Some(Target::Third(format!("{stack}.{at}.attn.qkv.{leaf}"), third));
        }
    }
    None
}

/// The hub's name or, for a fused tensor, its three names.
fn into_hf(name: &str) -> Option<Vec<String>> {
    if let Some(hub) = OUTER.iter().find_map(|(ours, theirs)| Some(format!("{theirs}{}", outer(name, ours)?))) {
        return Some(vec![hub]);
    }
    let (at, module, leaf, hub) = STACKS.iter().find_map(|(stack, spellings)| {
        let (at, module, leaf) = block_of(name, stack)?;
        Some((at, module, leaf, spellings[0]))
    })?;
    if module == "attn.qkv" {
        return Some(THIRDS.iter().map(|(third, _)| format!("{hub}.{at}.{third}.{leaf}")).collect());
    }
    let (_, theirs, _) = INNER.iter().find(|(ours, ..)| module == *ours)?;
    Some(vec![format!("{hub}.{at}.{theirs}.{leaf}")])
}

/// Whether an upstream name is of the decoder, which encoder-only files lack.
pub fn is_decoder(name: &str) -> bool {
    name.starts_with("decoder") || name == "mask_token"
}

/// Finds out whose names a dictionary has.
///
/// # Errors
/// When no name belongs to a ViT of either layout, or some belong to one and some to the other.
pub fn detect(dict: &StateDict) -> Result<Layout> {
    let hf = dict.names().find(|n| from_hf(n).is_some());
    let upstream = dict.names().find(|n| into_hf(n).is_some());
    match (upstream, hf) {
        (Some(_), None) => Ok(Layout::Upstream),
        (None, Some(_)) => Ok(Layout::HuggingFace),
        (Some(a), Some(b)) => {
            let cause = format!(
                "tensor `{a}` is named as in the MAE repository, `{b}` as by Hugging Face: expected one layout"
            );
            Err(Error::checkpoint(&dict.origin, cause))
        }
        (None, None) => {
            let names: Vec<_> = dict.names().take(3).map(|n| format!("`{n}`")).collect();
            let cause = match names.len() {
                0 => "holds no tensors".to_string(),
                _ => format!(
                    "neither an MAE nor a Hugging Face ViT layout: {} tensors, the first are {}",
                    dict.len(),
                    names.join(", ")
                ),
            };
            Err(Error::checkpoint(&dict.origin, cause))
        }
    }
}

/// Names of the upstream repository, from either layout. Tensors that neither knows keep their name, to be reported when the
/// dictionary is loaded.
///
/// # Errors
/// When the layout is unknown, a third of a `qkv` is missing or does not fit the others, or two spellings of one tensor occur.
pub fn to_upstream(dict: StateDict) -> Result<StateDict> {
    if detect(&dict)? == Layout::Upstream {
        return Ok(dict);
    }
    let mut out = StateDict::of(&dict.origin, dict.metadata.clone());
    let mut thirds: BTreeMap<String, [Option<&Tensor>; 3]> = BTreeMap::new();
    for (name, tensor) in dict.iter() {
        match from_hf(name) {
            None => out.insert(name, tensor.clone())?,
            Some(Target::Whole(ours)) => out.insert(ours, tensor.clone())?,
            Some(Target::Third(fused, at)) => {
                let parts = thirds.entry(fused.clone()).or_default();
                if parts[at].replace(tensor).is_some() {
                    return Err(Error::checkpoint(
                        &dict.origin,
                        format!("tensor `{name}` occurs twice in different spellings"),
                    ));
                }
                if let [Some(q), Some(k), Some(v)] = *parts {
                    let fits = |t: &Tensor| t.shape() == q.shape() && t.dtype() == q.dtype() && !t.shape().is_empty();
                    if ![q, k, v].into_iter().all(fits) {
                        let cause =
                            format!("query, key and value of `{fused}` are {q:?}, {k:?}, {v:?}: expected equal ones");
                        return Err(Error::checkpoint(&dict.origin, cause));
                    }
                    out.insert(fused, join(&[q, k, v])?)?;
                }
            }
        }
    }
    if let Some((fused, parts)) = thirds.iter().find(|(_, parts)| parts.iter().any(Option::is_none)) {
        let names = ["query", "key", "value"].into_iter().zip(parts);
        let missing: Vec<_> = names.filter(|(_, part)| part.is_none()).map(|(name, _)| name).collect();
        return Err(Error::checkpoint(&dict.origin, format!("`{fused}` lacks its {}", missing.join(" and "))));
    }
    Ok(out)
}

/// Names of the Hugging Face hub, from upstream names.
///
/// # Errors
/// When a tensor has no place there (the classifier of a fine-tuned model), or a `qkv` cannot be split into three.
pub fn to_hf(dict: &StateDict) -> Result<StateDict> {
    let bad = |cause: String| Error::checkpoint(&dict.origin, cause);
    let mut out = StateDict::of(&dict.origin, dict.metadata.clone());
    for (name, tensor) in dict.iter() {
        let names = into_hf(name)
            .ok_or_else(|| bad(format!("tensor `{name}` has no place in the Hugging Face ViTMAE layout")))?;
        match <[String; 3]>::try_from(names) {
            Ok(names) => {
                if tensor.shape().first().is_none_or(|rows| rows % 3 != 0) {
                    let given = tensor.shape();
                    return Err(bad(format!(
                        "tensor `{name}` has shape {given}, expected rows of query, key and value"
                    )));
                }
                names.into_iter().zip(split(tensor, 3)?).try_for_each(|(name, part)| out.insert(name, part))?;
            }
            Err(names) => names.into_iter().try_for_each(|name| out.insert(name, tensor.clone()))?,
        }
    }
    Ok(out)
}
