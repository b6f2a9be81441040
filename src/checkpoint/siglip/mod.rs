//! SigLIP under the names of `transformers`, big_vision and open_clip.
//!
//! This crate's names are those of `transformers`, with what one product makes kept in one tensor (rows stacked):
//!
//! | here | `transformers` | big_vision | open_clip |
//! |---|---|---|---|
//! | `*_model.encoder.layers.i.self_attn.qkv_proj` | `self_attn.{q,k,v}_proj` | `.../{query,key,value}` | `attn.qkv`, `attn.in_proj_*` |
//! | `vision_model.head.attention.q_proj`, `.kv_proj` | thirds of `attention.in_proj_*` | `.../{query,key,value}` | `attn_pool.q`, `attn_pool.kv` |
//!
//! In between, every projection is apart (`q_proj`, `k_proj`, `v_proj`): cutting and stacking rows is exact, so is every
//! translation back. A projection after the image tower, which only big_vision knows, is `visual_projection`.

mod big_vision;
mod config;
mod open_clip;

use std::collections::HashMap;
use std::path::Path;

pub use big_vision::{heads, to_big_vision};
pub use config::{ERF, HfConfig, TANH, TextConfig, VisionConfig};

use super::arrange::{join, permuted, split};
use super::{StateDict, hf};
use crate::{Error, Result, Tensor};

/// The table of positions whose rows belong to a grid of patches.
pub const POSITIONS: &str = "vision_model.embeddings.position_embedding.weight";

const PATCHES: &str = "vision_model.embeddings.patch_embedding.weight";

/// Whose names a dictionary has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `transformers`, and this crate.
    HuggingFace,
    /// big_vision.
    BigVision,
    /// open_clip on timm.
    OpenClip,
}

/// A tensor and what its rows are: pieces of names.
type Fused = (&'static str, &'static [&'static str]);

const BLOCK: Fused = (".self_attn.qkv_proj.", &[".self_attn.q_proj.", ".self_attn.k_proj.", ".self_attn.v_proj."]);
/// Stacked here.
const OURS: [Fused; 2] = [BLOCK, (".head.attention.kv_proj.", &[".head.attention.k_proj.", ".head.attention.v_proj."])];
/// Stacked by `transformers`.
const THEIRS: [Fused; 1] =
    [(".head.attention.in_proj_", &[".head.attention.q_proj.", ".head.attention.k_proj.", ".head.attention.v_proj."])];

/// Finds out whose names a dictionary has.
///
/// # Errors
/// When no name is of a SigLIP model, or names are of several layouts.
pub fn detect(dict: &StateDict) -> Result<Layout> {
    let hub = |n: &str| n.starts_with("vision_model.") || n.starts_with("text_model.");
    let find = |of: &dyn Fn(&str) -> bool| dict.names().find(|n| of(n));
    let found = [
        (Layout::HuggingFace, find(&hub)),
        (Layout::BigVision, find(&big_vision::knows)),
        (Layout::OpenClip, find(&open_clip::knows)),
    ];
    let mut layouts = found.iter().filter_map(|(layout, name)| Some((*layout, (*name)?)));
    match (layouts.next(), layouts.next()) {
        (Some((layout, _)), None) => Ok(layout),
        (Some((_, a)), Some((_, b))) => {
            let cause = format!("tensors `{a}` and `{b}` are named in different layouts, expected one");
            Err(Error::checkpoint(&dict.origin, cause))
        }
        (None, _) => {
            let names: Vec<_> = dict.names().take(3).map(|n| format!("`{n}`")).collect();
            let cause = format!(
                "no SigLIP model of transformers, big_vision or open_clip: {} tensors, the first are {}",
                dict.len(),
                names.join(", ")
            );
            Err(Error::checkpoint(&dict.origin, cause))
        }
    }
}

/// This crate's names, from any layout. Tensors that are unknown keep their names, to be reported when the dictionary is
/// loaded.
///
/// # Errors
/// When the layout is unknown, or a part of a stacked tensor is missing or does not fit the others.
pub fn to_ours(dict: &StateDict) -> Result<StateDict> {
    let dict = match detect(dict)? {
        Layout::HuggingFace => convolution(cut(dict, &THEIRS)?)?,
        Layout::BigVision => big_vision::read(dict)?,
        Layout::OpenClip => open_clip::read(dict)?,
    };
    stacked(&dict, &OURS)
}

/// Whether a dictionary of `transformers` is of the second model's NaFlex form, for images of different shapes.
pub fn is_naflex(dict: &StateDict) -> bool {
    dict.get(PATCHES).is_some_and(|kernel| kernel.shape().len() == 2)
}

/// With the patch embedding of NaFlex, a linear layer `[D, p · p · 3]` on pixels with their channels last, as the convolution
/// that it is.
fn convolution(dict: StateDict) -> Result<StateDict> {
    if !is_naflex(&dict) {
        return Ok(dict);
    }
    let mut out = StateDict::of(&dict.origin, dict.metadata.clone());
    for (name, tensor) in dict.iter() {
        if name != PATCHES {
            out.insert(name, tensor.clone())?;
            continue;
        }
        let [width, values] = tensor.dims("siglip", PATCHES)?;
        let patch = (values / 3).isqrt();
        if 3 * patch * patch != values || values == 0 {
            let cause = format!("tensor `{name}` has shape {}, expected square patches of 3 channels", tensor.shape());
            return Err(Error::checkpoint(&dict.origin, cause));
        }
        out.insert(name, permuted(&tensor.reshape([width, patch, patch, 3])?, &[0, 3, 1, 2])?)?;
    }
    Ok(out)
}

/// Names of `transformers`, from this crate's.
///
/// # Errors
/// When a stacked tensor cannot be cut, or the model has a projection after its image tower, which has no place there.
pub fn to_hf(dict: &StateDict) -> Result<StateDict> {
    if let Some(name) = dict.names().find(|n| n.starts_with("visual_projection.")) {
        return Err(Error::checkpoint(
            &dict.origin,
            format!("tensor `{name}` has no place in the layout of transformers"),
        ));
    }
    stacked(&cut(dict, &OURS)?, &THEIRS)
}

/// Reads the weights of a folder of `transformers` or any file of weights, under this crate's names.
///
/// # Errors
/// As [`read`](super::read) and [`to_ours`].
pub fn read(path: impl AsRef<Path>) -> Result<StateDict> {
    to_ours(&super::read(path)?)
}

/// Writes a folder that `transformers` loads as `SiglipModel`, from this crate's names; makes the folder.
///
/// # Errors
/// [`Error::Io`]; [`Error::Checkpoint`] as [`to_hf`].
pub fn save(folder: impl AsRef<Path>, config: &HfConfig, weights: &StateDict) -> Result<()> {
    hf::write(folder.as_ref(), config, to_hf(weights)?)
}

/// Cuts stacked tensors.
fn cut(dict: &StateDict, tables: &[Fused]) -> Result<StateDict> {
    let mut out = StateDict::of(&dict.origin, dict.metadata.clone());
    for (name, tensor) in dict.iter() {
        match tables.iter().find(|(fused, _)| name.contains(fused)) {
            None => out.insert(name, tensor.clone())?,
            Some((fused, parts)) => {
                let rows = split(tensor, parts.len()).map_err(|_| {
                    let expected = format!("the rows of {} equal parts", parts.len());
                    Error::checkpoint(
                        &dict.origin,
                        format!("tensor `{name}` has shape {}, expected {expected}", tensor.shape()),
                    )
                })?;
                parts.iter().zip(rows).try_for_each(|(part, rows)| out.insert(name.replace(fused, part), rows))?;
            }
        }
    }
    Ok(out)
}

/// Stacks tensors that are apart, each where its first part was.
fn stacked(dict: &StateDict, tables: &[Fused]) -> Result<StateDict> {
    let part_of = |name: &str| {
        let mut parts = tables.iter().flat_map(|(fused, parts)| parts.iter().map(move |part| (fused, parts, part)));
        parts
            .find(|(_, _, part)| name.contains(**part))
            .map(|(fused, parts, part)| (name.replace(*part, fused), parts, *part))
    };
    let mut out = StateDict::of(&dict.origin, dict.metadata.clone());
    let mut done: HashMap<String, ()> = HashMap::new();
    for (name, tensor) in dict.iter() {
        let Some((fused, parts, part)) = part_of(name) else {
            out.insert(name, tensor.clone())?;
            continue;
        };
        if done.insert(fused.clone(), ()).is_some() {
            continue;
        }
        let found: Vec<&Tensor> =
            parts.iter().map(|other| dict.require(&name.replace(part, other))).collect::<Result<_>>()?;
        if let Some(other) = found.iter().find(|t| t.shape() != found[0].shape() || t.dtype() != found[0].dtype()) {
            let cause = format!("the parts of `{fused}` are {:?} and {other:?}, expected equal ones", found[0]);
            return Err(Error::checkpoint(&dict.origin, cause));
        }
        out.insert(fused, join(&found)?)?;
    }
    Ok(out)
}
