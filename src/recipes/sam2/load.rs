//! Weights with what is needed to build their model again: this crate's, the official files, Hugging Face's.

use std::path::Path;

use super::config::{Options, Preset, Sizes};
use super::decoder::Stability;
use super::model::Sam2;
use crate::checkpoint::{LoadOptions, StateDict, load_into, sam2};
use crate::nn::{Builder, Module};
use crate::recipes::mae::load::read;
use crate::{DType, Device, Error, Result};

/// Metadata key of sizes as JSON.
const SIZES: &str = "sam2_sizes";
/// Metadata key of options as JSON.
const OPTIONS: &str = "sam2_options";

/// Marks a dictionary with its model's sizes and options.
///
/// # Errors
/// When they cannot be written as JSON.
pub fn mark(dict: &mut StateDict, model: &Sam2) -> Result<()> {
    let failed = |e: serde_json::Error| Error::Training(format!("sizes as JSON: {e}"));
    dict.metadata.insert(SIZES.into(), serde_json::to_string(model.sizes()).map_err(failed)?);
    dict.metadata.insert(OPTIONS.into(), serde_json::to_string(model.options()).map_err(failed)?);
    Ok(())
}

/// What [`mark`] put into a dictionary.
///
/// # Errors
/// When it is damaged.
pub fn marked(dict: &StateDict) -> Result<Option<(Sizes, Options)>> {
    let damaged = |e| Error::checkpoint(&dict.origin, format!("damaged sizes: {e}"));
    let sizes = dict.metadata.get(SIZES).map(|text| serde_json::from_str(text)).transpose().map_err(damaged)?;
    let options = dict.metadata.get(OPTIONS).map(|text| serde_json::from_str(text)).transpose().map_err(damaged)?;
    Ok(sizes.map(|sizes| (sizes, options.unwrap_or_default())))
}

/// The released model that has this width and so many blocks.
fn released(dict: &StateDict) -> Result<Sizes> {
    let width = |name: &str| dict.get(name).map(|t| t.shape()[0]);
    let width = width("image_encoder.trunk.patch_embed.proj.bias")
        .or_else(|| width("model.image_encoder.trunk.patch_embed.proj.bias"))
        .or_else(|| width("vision_encoder.backbone.patch_embed.projection.bias"));
    let blocks = dict.names().filter(|n| n.contains(".blocks.") && n.ends_with("attn.qkv.bias")).count();
    let found = Preset::ALL
        .into_iter()
        .map(Preset::sizes)
        .find(|sizes| Some(sizes.trunk.embed_dim) == width && sizes.trunk.stages.iter().sum::<usize>() == blocks);
    let mut sizes = found.ok_or_else(|| {
        let cause = format!("a trunk of width {width:?} with {blocks} blocks, which no released SAM-2 model has");
        Error::checkpoint(&dict.origin, cause)
    })?;
    // SAM 2 has neither, SAM 2.1 has both.
    let later = ["no_obj_embed_spatial", "model.no_obj_embed_spatial", "occlusion_spatial_embedding_parameter"];
    let later = later.iter().any(|name| dict.contains(name));
    (sizes.occlusion_embedding, sizes.project_pointer_time) = (later, later);
    Ok(sizes)
}

/// Options that weights of these sizes were trained with.
fn released_options(sizes: &Sizes) -> Options {
    let later = sizes.project_pointer_time;
    Options { add_tpos_enc_to_obj_ptrs: later, use_signed_tpos_enc_to_obj_ptrs: later, ..Options::default() }
}

/// What a model is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Prompts on single images, as the released image predictor answers them. Weights without a memory will do, as Hugging Face's
    /// `Sam2Model` has them.
    Images,
    /// Prompts on videos, as the released video predictor answers them.
    Videos,
    /// Objects followed from their masks, as the released benchmark does: nothing is done to masks afterwards.
    Benchmark,
}

impl Use {
    fn needs(self, name: &str) -> bool {
        let of_images = ["image_encoder.", "sam_prompt_encoder.", "sam_mask_decoder.", "no_mem_embed"];
        self != Self::Images || of_images.iter().any(|start| name.starts_with(start))
    }

    /// Source: `sam2/build_sam.py`, `apply_postprocessing`.
    fn options(self, trained: Options) -> Options {
        let stability = (self != Self::Benchmark).then_some(Stability { delta: 0.05, thresh: 0.98 });
        Options { stability, binarize_mask_from_pts_for_mem_enc: self == Self::Videos, ..trained }
    }
}

/// A model with the weights of a file, a run or a folder of Hugging Face. `image_size`: another input size than theirs, a multiple
/// of 32 that windows divide; positions are those of the weights.
///
/// # Errors
/// When they are no SAM-2 weights, or one is missing.
pub fn model(path: &Path, device: &Device, dtype: DType, image_size: Option<usize>, used: Use) -> Result<Sam2> {
    let dict = read(path)?;
    let (mut sizes, options) = match marked(&dict)? {
        Some(marked) => marked,
        None => {
            let sizes = released(&dict)?;
            let options = released_options(&sizes);
            (sizes, options)
        }
    };
    if let Some(size) = image_size {
        sizes.image_size = size;
    }
    let options = used.options(options);
    let mut model = Sam2::new(&Builder::new(device, dtype, 0), &sizes, &options)?;
    put(&mut model, &dict, |name| used.needs(name))?;
    Ok(model)
}

/// Parameters that SAM 2.1 has beside those of SAM 2.
const LATER: [&str; 2] = ["no_obj_embed_spatial", "obj_ptr_tpos_proj."];

/// Puts weights into a model that goes on learning: every parameter must be there but those that SAM 2 has not, which keep their
/// initial values.
///
/// # Errors
/// When one is missing or has another shape.
pub fn initialise(model: &mut Sam2, dict: &StateDict) -> Result<()> {
    let later = |name: &str| LATER.iter().any(|start| name.starts_with(start));
    put(model, dict, |name| !later(name))?;
    let names: Vec<&str> = model.params().iter().map(|p| p.name()).filter(|name| later(name)).collect();
    if !names.is_empty() && sam2::to_upstream(dict, names.iter().copied())?.is_empty() {
        tracing::warn!("weights of SAM 2: {} begin anew", names.join(", "));
    }
    Ok(())
}

fn put(model: &mut Sam2, dict: &StateDict, needed: impl Fn(&str) -> bool) -> Result<()> {
    let names: Vec<String> = model.params().iter().map(|p| p.name().to_string()).collect();
    let weights = sam2::to_upstream(dict, names.iter().map(String::as_str))?;
    let report = load_into(&mut model.params_mut(), &weights, &LoadOptions::default())?;
    report.require(needed)
}
