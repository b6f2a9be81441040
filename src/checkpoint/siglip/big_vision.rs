//! Names and layouts of big_vision's two towers.
//!
//! Kernels have their inputs first, attention has its heads as an axis: `[D, H, hd]` for query, key and value,
//! `[H, hd, D]` for the output. A convolution kernel is `[p, p, C, D]`.

use super::super::arrange::{permuted, split};
use super::{OURS, cut};
use crate::checkpoint::StateDict;
use crate::{Device, Error, Result, Tensor};

/// How a layer of flax differs from one of torch.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Norm,
    Dense,
    Conv,
    /// Query, key or value: the heads are axes of the output.
    ToHeads,
    /// After attention: the heads are axes of the input.
    FromHeads,
    /// One tensor without a leaf: as it is.
    Same,
    /// One tensor without a leaf and with a leading axis of 1.
    Table,
}

/// Where a tensor belongs, and what is to be done with it.
struct Place {
    name: String,
    kind: Kind,
    leaf: Leaf,
    /// Of the image tower, else of the text tower.
    vision: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Leaf {
    Weight,
    Bias,
    None,
}

/// Outside of blocks: big_vision, here.
const OUTER: [(&str, &str, Kind); 19] = [
    ("t", "logit_scale", Kind::Same),
    ("b", "logit_bias", Kind::Same),
    ("img/embedding", "vision_model.embeddings.patch_embedding", Kind::Conv),
    ("img/pos_embedding", "vision_model.embeddings.position_embedding.weight", Kind::Table),
    ("img/Transformer/encoder_norm", "vision_model.post_layernorm", Kind::Norm),
    ("img/head", "visual_projection", Kind::Dense),
    ("img/MAPHead_0/probe", "vision_model.head.probe", Kind::Same),
    ("img/MAPHead_0/LayerNorm_0", "vision_model.head.layernorm", Kind::Norm),
    ("img/MAPHead_0/MlpBlock_0/Dense_0", "vision_model.head.mlp.fc1", Kind::Dense),
    ("img/MAPHead_0/MlpBlock_0/Dense_1", "vision_model.head.mlp.fc2", Kind::Dense),
    ("img/MAPHead_0/MultiHeadDotProductAttention_0/query", "vision_model.head.attention.q_proj", Kind::ToHeads),
    ("img/MAPHead_0/MultiHeadDotProductAttention_0/key", "vision_model.head.attention.k_proj", Kind::ToHeads),
    ("img/MAPHead_0/MultiHeadDotProductAttention_0/value", "vision_model.head.attention.v_proj", Kind::ToHeads),
    ("img/MAPHead_0/MultiHeadDotProductAttention_0/out", "vision_model.head.attention.out_proj", Kind::FromHeads),
    ("txt/Embed_0/embedding", "text_model.embeddings.token_embedding.weight", Kind::Same),
    ("txt/pos_embedding", "text_model.embeddings.position_embedding.weight", Kind::Table),
    ("txt/Encoder_0/encoder_norm", "text_model.final_layer_norm", Kind::Norm),
    ("txt/head", "text_model.head", Kind::Dense),
    // Of older files: added to the table above.
    (OLD_POSITIONS, OLD_POSITIONS, Kind::Table),
];

const OLD_POSITIONS: &str = "txt/Encoder_0/pos_embedding";
const TEXT_POSITIONS: &str = "text_model.embeddings.position_embedding.weight";

/// In a block: big_vision, here.
const INNER: [(&str, &str, Kind); 8] = [
    ("LayerNorm_0", "layer_norm1", Kind::Norm),
    ("LayerNorm_1", "layer_norm2", Kind::Norm),
    ("MlpBlock_0/Dense_0", "mlp.fc1", Kind::Dense),
    ("MlpBlock_0/Dense_1", "mlp.fc2", Kind::Dense),
    ("MultiHeadDotProductAttention_0/query", "self_attn.q_proj", Kind::ToHeads),
    ("MultiHeadDotProductAttention_0/key", "self_attn.k_proj", Kind::ToHeads),
    ("MultiHeadDotProductAttention_0/value", "self_attn.v_proj", Kind::ToHeads),
    ("MultiHeadDotProductAttention_0/out", "self_attn.out_proj", Kind::FromHeads),
];

/// Stacks of blocks: big_vision, here.
const STACKS: [(&str, &str); 2] = [
    ("img/Transformer/encoderblock", "vision_model.encoder.layers"),
    ("txt/Encoder_0/encoderblock", "text_model.encoder.layers"),
];

/// Whether a name is of this layout.
pub(super) fn knows(name: &str) -> bool {
    let name = name.strip_prefix("params/").unwrap_or(name);
    name.starts_with("img/") || name.starts_with("txt/")
}

/// `module/kernel` as `here.weight`, `module/bias` as `here.bias`; a bare tensor as it is.
fn leaf(rest: &str, kind: Kind) -> Option<(Leaf, &'static str)> {
    match (rest, kind) {
        ("", Kind::Same | Kind::Table) => Some((Leaf::None, "")),
        ("/scale", Kind::Norm) => Some((Leaf::Weight, ".weight")),
        ("/kernel", Kind::Dense | Kind::Conv | Kind::ToHeads | Kind::FromHeads) => Some((Leaf::Weight, ".weight")),
        ("/bias", Kind::Norm | Kind::Dense | Kind::Conv | Kind::ToHeads | Kind::FromHeads) => {
            Some((Leaf::Bias, ".bias"))
        }
        _ => None,
    }
}

/// Where a tensor of big_vision belongs.
fn place(name: &str) -> Option<Place> {
    let vision = name.starts_with("img/");
    for (theirs, ours, kind) in OUTER {
        if let Some((leaf, end)) = name.strip_prefix(theirs).and_then(|rest| leaf(rest, kind)) {
            return Some(Place { name: format!("{ours}{end}"), kind, leaf, vision });
        }
    }
    let (at, inside, ours) = STACKS.iter().find_map(|(theirs, ours)| {
        let (at, inside) = name.strip_prefix(theirs)?.strip_prefix('_')?.split_once('/')?;
        at.parse::<u32>().ok().filter(|i| i.to_string() == at)?;
        Some((at, inside, ours))
    })?;
    INNER.iter().find_map(|&(theirs, module, kind)| {
        let (leaf, end) = leaf(inside.strip_prefix(theirs)?, kind)?;
        Some(Place { name: format!("{ours}.{at}.{module}{end}"), kind, leaf, vision })
    })
}

/// Number of heads of image and text tower, from the shapes of a dictionary of this layout.
pub fn heads(dict: &StateDict) -> Option<[usize; 2]> {
    let query = |stack: &str| {
        let found = dict.iter().find(|(n, _)| n.contains(stack) && n.ends_with("/query/bias"));
        found.and_then(|(_, t)| t.shape().len().checked_sub(2).map(|axis| t.shape()[axis]))
    };
    Some([query("img/Transformer/encoderblock")?, query("txt/Encoder_0/encoderblock")?])
}

/// Names of this crate with projections apart, from big_vision's, also of files saved from a scan over the blocks (one
/// tensor for all blocks, with a leading axis) and with a second table of text positions.
pub(super) fn read(dict: &StateDict) -> Result<StateDict> {
    let mut out = StateDict::of(&dict.origin, dict.metadata.clone());
    let mut old_positions = None;
    for (name, tensor) in unrolled(dict)?.iter() {
        let Some(place) = place(name) else {
            out.insert(name, tensor.clone())?;
            continue;
        };
        let refuse = |e: Error| Error::checkpoint(&dict.origin, format!("tensor `{name}`: {e}"));
        let tensor = turned(tensor, &place).map_err(refuse)?;
        if name == OLD_POSITIONS {
            old_positions = Some(tensor);
        } else {
            out.insert(place.name, tensor)?;
        }
    }
    match old_positions {
        None => Ok(out),
        Some(old) => summed(&out, TEXT_POSITIONS, &old),
    }
}

/// Without the prefix of newer files, and one tensor for each block.
fn unrolled(dict: &StateDict) -> Result<StateDict> {
    let mut out = StateDict::of(&dict.origin, dict.metadata.clone());
    for (name, tensor) in dict.iter() {
        let name = name.strip_prefix("params/").unwrap_or(name);
        let scanned = STACKS.iter().find_map(|(stack, _)| Some((*stack, name.strip_prefix(stack)?.strip_prefix('/')?)));
        let Some((stack, inside)) = scanned else {
            out.insert(name, tensor.clone())?;
            continue;
        };
        let depth = tensor.shape().first().copied().unwrap_or(0);
        if depth == 0 {
            let cause = format!("tensor `{name}` has shape {}, expected a leading axis of blocks", tensor.shape());
            return Err(Error::checkpoint(&dict.origin, cause));
        }
        for (i, block) in split(tensor, depth)?.into_iter().enumerate() {
            out.insert(format!("{stack}_{i}/{inside}"), block.reshape(&tensor.shape()[1..])?)?;
        }
    }
    Ok(out)
}

/// `dict` with `addend` added to one of its tensors.
fn summed(dict: &StateDict, name: &str, addend: &Tensor) -> Result<StateDict> {
    let table = dict.require(name)?;
    if table.shape() != addend.shape() {
        let cause = format!("tensor `{OLD_POSITIONS}` has shape {}, expected {}", addend.shape(), table.shape());
        return Err(Error::checkpoint(&dict.origin, cause));
    }
    let sum: Vec<f32> = table.to_f64()?.iter().zip(addend.to_f64()?).map(|(a, b)| (a + b) as f32).collect();
    let sum = Tensor::from_slice(&sum, table.shape().clone(), &Device::Cpu)?;
    let mut out = StateDict::of(&dict.origin, dict.metadata.clone());
    for (other, tensor) in dict.iter() {
        out.insert(other, if other == name { sum.clone() } else { tensor.clone() })?;
    }
    Ok(out)
}

/// A tensor of flax as torch has it.
fn turned(t: &Tensor, place: &Place) -> Result<Tensor> {
    let op = "big_vision";
    match (place.kind, place.leaf) {
        (Kind::Table, _) => {
            let [one, rows, width] = t.dims(op, "table")?;
            if one == 1 {
                t.reshape([rows, width])
            } else {
                Err(Error::shape(op, "table", t.shape(), "[1, rows, width]"))
            }
        }
        (Kind::Dense, Leaf::Weight) => permuted(t, &[1, 0]),
        (Kind::Conv, Leaf::Weight) => permuted(t, &[3, 2, 0, 1]),
        (Kind::ToHeads, Leaf::Weight) => {
            let [width, heads, dim] = t.dims(op, "kernel")?;
            permuted(&t.reshape([width, heads * dim])?, &[1, 0])
        }
        (Kind::FromHeads, Leaf::Weight) => {
            let [heads, dim, width] = t.dims(op, "kernel")?;
            permuted(&t.reshape([heads * dim, width])?, &[1, 0])
        }
        (Kind::ToHeads, Leaf::Bias) => t.reshape([t.numel()]),
        _ => Ok(t.clone()),
    }
}

/// Names of big_vision, from this crate's; `heads` of image and text tower.
///
/// # Errors
/// When a tensor has no place there, or its width is not a multiple of the heads.
pub fn to_big_vision(dict: &StateDict, heads: [usize; 2]) -> Result<StateDict> {
    let mut out = StateDict::of(&dict.origin, dict.metadata.clone());
    for (name, tensor) in cut(dict, &OURS)?.iter() {
        let (theirs, place) = back(name).ok_or_else(|| {
            Error::checkpoint(&dict.origin, format!("tensor `{name}` has no place in the layout of big_vision"))
        })?;
        let refuse = |e: Error| Error::checkpoint(&dict.origin, format!("tensor `{name}`: {e}"));
        out.insert(theirs, turned_back(tensor, &place, heads[usize::from(!place.vision)]).map_err(refuse)?)?;
    }
    Ok(out)
}

/// big_vision's name of a tensor, and how it differs.
fn back(name: &str) -> Option<(String, Place)> {
    let candidates = |theirs: String| {
        ["", "/scale", "/kernel", "/bias"].into_iter().map(move |end| format!("{theirs}{end}")).find_map(|theirs| {
            let place = place(&theirs).filter(|place| place.name == name)?;
            Some((theirs, place))
        })
    };
    let of_outer = OUTER.iter().filter(|(_, ours, _)| name.starts_with(ours)).find_map(|o| candidates(o.0.into()));
    of_outer.or_else(|| {
        let (at, inside, theirs) = STACKS.iter().find_map(|(theirs, ours)| {
            let (at, inside) = name.strip_prefix(ours)?.strip_prefix('.')?.split_once('.')?;
            Some((at, inside, theirs))
        })?;
        let modules = INNER.iter().filter(|(_, ours, _)| inside.starts_with(ours));
        modules.map(|(module, ..)| format!("{theirs}_{at}/{module}")).find_map(candidates)
    })
}

/// A tensor of torch as flax has it.
fn turned_back(t: &Tensor, place: &Place, heads: usize) -> Result<Tensor> {
    let op = "big_vision";
    let head_dim = |width: usize| {
        let expected = format!("a multiple of {heads} heads");
        let fits = heads > 0 && width.is_multiple_of(heads);
        if fits { Ok(width / heads) } else { Err(Error::shape(op, "tensor", t.shape(), expected)) }
    };
    match (place.kind, place.leaf) {
        (Kind::Table, _) => {
            let [rows, width] = t.dims(op, "table")?;
            t.reshape([1, rows, width])
        }
        (Kind::Dense, Leaf::Weight) => permuted(t, &[1, 0]),
        (Kind::Conv, Leaf::Weight) => permuted(t, &[2, 3, 1, 0]),
        (Kind::ToHeads, Leaf::Weight) => {
            let [out, width] = t.dims(op, "weight")?;
            permuted(t, &[1, 0])?.reshape([width, heads, head_dim(out)?])
        }
        (Kind::FromHeads, Leaf::Weight) => {
            let [width, inner] = t.dims(op, "weight")?;
            permuted(t, &[1, 0])?.reshape([heads, head_dim(inner)?, width])
        }
        (Kind::ToHeads, Leaf::Bias) => t.reshape([heads, head_dim(t.numel())?]),
        _ => Ok(t.clone()),
    }
}
