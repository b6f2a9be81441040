//! Weights with what is needed to build their model again: this crate's, the official files, Hugging Face's.

use std::path::Path;

use super::config::{Options, Preset, Sizes};
use super::decoder::Stability;
use super::model::Sam2;
use crate::checkpoint::sam2::{self, BackboneConfig, DecoderConfig, HfConfig, PromptConfig, VisionConfig};
use crate::checkpoint::{LoadOptions, StateDict, load_into};
use crate::nn::hiera::HieraSizes;
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

/// Width and number of blocks of the trunk.
fn trunk(dict: &StateDict) -> (Option<usize>, usize) {
    let width = |name: &str| dict.get(name).and_then(|t| t.shape().first().copied());
    let width = width("image_encoder.trunk.patch_embed.proj.bias")
        .or_else(|| width("model.image_encoder.trunk.patch_embed.proj.bias"))
        .or_else(|| width("vision_encoder.backbone.patch_embed.projection.bias"));
    (width, dict.names().filter(|n| n.contains(".blocks.") && n.ends_with("attn.qkv.bias")).count())
}

/// The released model that has this width and so many blocks.
fn released(dict: &StateDict) -> Result<Sizes> {
    let (width, blocks) = trunk(dict);
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

/// The config.json in the folder, or beside the file, of tensors that Hugging Face named.
fn hub_config(path: &Path, dict: &StateDict) -> Result<Option<HfConfig>> {
    let file = if path.is_dir() { path.join("config.json") } else { path.with_file_name("config.json") };
    (sam2::is_hf(dict) && file.is_file()).then(|| HfConfig::read(&file)).transpose()
}

/// Sizes and options of a config.json.
pub fn from_hf(config: &HfConfig) -> (Sizes, Options) {
    let (vision, decoder) = (&config.vision_config, &config.mask_decoder_config);
    let trunk = &vision.backbone_config;
    let later = config.enable_temporal_pos_encoding_for_object_pointers;
    let sizes = Sizes {
        image_size: config.prompt_encoder_config.image_size[0],
        trunk: HieraSizes {
            embed_dim: trunk.hidden_size,
            num_heads: trunk.num_attention_heads_per_stage.first().copied().unwrap_or_default(),
            stages: trunk.blocks_per_stage.clone(),
            q_pool: trunk.num_query_pool_stages,
            window_spec: trunk.window_size_per_stage.clone(),
            global_att_blocks: trunk.global_attention_blocks.clone(),
            window_pos_embed_bkg_spatial_size: trunk.window_positional_embedding_background_size,
        },
        hidden_dim: vision.fpn_hidden_size,
        mem_dim: config.memory_encoder_output_channels,
        memory_layers: config.memory_attention_num_layers,
        memory_hidden: config.memory_attention_feed_forward_hidden_size,
        memory_heads: config.memory_attention_num_attention_heads,
        decoder_heads: decoder.num_attention_heads,
        decoder_mlp_dim: decoder.mlp_dim,
        iou_head_hidden_dim: decoder.iou_head_hidden_dim,
        num_maskmem: config.num_maskmem,
        occlusion_embedding: config.enable_occlusion_spatial_embedding,
        project_pointer_time: later,
    };
    let options = Options {
        sigmoid_scale_for_mem_enc: config.sigmoid_scale_for_mem_enc,
        sigmoid_bias_for_mem_enc: config.sigmoid_bias_for_mem_enc,
        max_cond_frames_in_attn: usize::try_from(config.max_cond_frame_num).ok(),
        multimask_output_in_sam: config.multimask_output_in_sam,
        multimask_min_pt_num: config.multimask_min_pt_num,
        multimask_max_pt_num: config.multimask_max_pt_num,
        multimask_output_for_tracking: config.multimask_output_for_tracking,
        max_obj_ptrs_in_encoder: config.max_object_pointers_in_encoder,
        ..released_options(&sizes)
    };
    (sizes, options)
}

/// config.json of a model with memory. Options that it does not know are those of the released models there.
pub fn to_hf(sizes: &Sizes, options: &Options) -> HfConfig {
    let (trunk, dim, side) = (&sizes.trunk, sizes.hidden_dim, sizes.image_size);
    let doubled = |first: usize| (0..trunk.stages.len()).map(|stage| first << stage).collect::<Vec<usize>>();
    let channels = doubled(trunk.embed_dim);
    HfConfig {
        vision_config: VisionConfig {
            backbone_channel_list: channels.iter().rev().copied().collect(),
            backbone_feature_sizes: [4, 8, 16].map(|stride| [side / stride; 2]).into(),
            fpn_hidden_size: dim,
            backbone_config: BackboneConfig {
                hidden_size: trunk.embed_dim,
                image_size: [side; 2],
                window_positional_embedding_background_size: trunk.window_pos_embed_bkg_spatial_size,
                num_query_pool_stages: trunk.q_pool,
                blocks_per_stage: trunk.stages.clone(),
                embed_dim_per_stage: channels,
                num_attention_heads_per_stage: doubled(trunk.num_heads),
                window_size_per_stage: trunk.window_spec.clone(),
                global_attention_blocks: trunk.global_att_blocks.clone(),
                ..BackboneConfig::default()
            },
            ..VisionConfig::default()
        },
        prompt_encoder_config: PromptConfig { hidden_size: dim, image_size: [side; 2], ..PromptConfig::default() },
        mask_decoder_config: DecoderConfig {
            hidden_size: dim,
            mlp_dim: sizes.decoder_mlp_dim,
            num_attention_heads: sizes.decoder_heads,
            iou_head_hidden_dim: sizes.iou_head_hidden_dim,
            ..DecoderConfig::default()
        },
        image_size: [side; 2],
        num_maskmem: sizes.num_maskmem,
        sigmoid_scale_for_mem_enc: options.sigmoid_scale_for_mem_enc,
        sigmoid_bias_for_mem_enc: options.sigmoid_bias_for_mem_enc,
        enable_occlusion_spatial_embedding: sizes.occlusion_embedding,
        multimask_output_in_sam: options.multimask_output_in_sam,
        multimask_min_pt_num: options.multimask_min_pt_num,
        multimask_max_pt_num: options.multimask_max_pt_num,
        multimask_output_for_tracking: options.multimask_output_for_tracking,
        max_object_pointers_in_encoder: options.max_obj_ptrs_in_encoder,
        max_cond_frame_num: options.max_cond_frames_in_attn.map_or(-1, |most| most as i64),
        enable_temporal_pos_encoding_for_object_pointers: sizes.project_pointer_time,
        memory_attention_hidden_size: dim,
        memory_attention_num_layers: sizes.memory_layers,
        memory_attention_num_attention_heads: sizes.memory_heads,
        memory_attention_feed_forward_hidden_size: sizes.memory_hidden,
        memory_attention_rope_feat_sizes: [side / 16; 2],
        memory_encoder_hidden_size: dim,
        memory_encoder_output_channels: sizes.mem_dim,
        mask_downsampler_embed_dim: dim,
        memory_fuser_embed_dim: dim,
        memory_fuser_intermediate_dim: 4 * dim,
        ..HfConfig::default()
    }
}

/// Writes a folder in the layout of transformers' `Sam2VideoModel`, whose code has memories of 64 channels, and with this
/// crate's own sizes and options.
///
/// # Errors
/// As [`mark`] and [`sam2::save`].
pub fn save(folder: &Path, model: &Sam2) -> Result<()> {
    let mut dict = StateDict::from_params(model.params())?;
    mark(&mut dict, model)?;
    sam2::save(folder, &to_hf(model.sizes(), model.options()), &dict)
}

/// Options that weights of these sizes were trained with.
fn released_options(sizes: &Sizes) -> Options {
    let later = sizes.project_pointer_time;
    Options { add_tpos_enc_to_obj_ptrs: later, use_signed_tpos_enc_to_obj_ptrs: later, ..Options::default() }
}

/// What a model is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Prompts on single images, as the released image predictor answers them. Weights without a memory will do, as
    /// Hugging Face's `Sam2Model` has them.
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

/// A model with the weights of a file, a run or a folder of Hugging Face. Its sizes are those of this crate's own mark,
/// which says all (and which transformers drops when it writes the weights again), else those of a `config.json` beside
/// weights that Hugging Face named, else those of the released model of this width and depth. `image_size`: another input size than theirs, a multiple of 32 that windows divide; positions are those
/// of the weights.
///
/// # Errors
/// When they are no SAM-2 weights, or one is missing.
pub fn model(path: &Path, device: &Device, dtype: DType, image_size: Option<usize>, used: Use) -> Result<Sam2> {
    let dict = read(path)?;
    let (mut sizes, options) = match marked(&dict)? {
        Some(marked) => marked,
        None => match hub_config(path, &dict)? {
            Some(config) => from_hf(&config),
            None => {
                let sizes = released(&dict)?;
                let options = released_options(&sizes);
                (sizes, options)
            }
        },
    };
    // Before a model of these sizes is made: a damaged file may ask for any.
    let (said, found) = ((Some(sizes.trunk.embed_dim), sizes.trunk.stages.iter().sum()), trunk(&dict));
    if said != found {
        let cause = format!("a trunk of width and blocks {found:?}, expected {said:?} from its sizes");
        return Err(Error::checkpoint(path, cause));
    }
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

/// Puts weights into a model that goes on learning: every parameter must be there but those that SAM 2 has not, which
/// keep their initial values.
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::checkpoint::safetensors;

    /// What the public configurations say beside the defaults of `transformers`.
    #[test]
    fn sizes_survive_config_json() {
        for (preset, changes) in [
            (Preset::Tiny, json!({})),
            (Preset::Small, json!({"blocks_per_stage": [1, 2, 11, 2], "global_attention_blocks": [7, 10, 13]})),
            (
                Preset::BasePlus,
                json!({"hidden_size": 112, "embed_dim_per_stage": [112, 224, 448, 896],
                    "num_attention_heads_per_stage": [2, 4, 8, 16], "blocks_per_stage": [2, 3, 16, 3],
                    "global_attention_blocks": [12, 16, 20], "window_positional_embedding_background_size": [14, 14]}),
            ),
            (
                Preset::Large,
                json!({"hidden_size": 144, "embed_dim_per_stage": [144, 288, 576, 1152],
                    "num_attention_heads_per_stage": [2, 4, 8, 16], "blocks_per_stage": [2, 6, 36, 4],
                    "global_attention_blocks": [23, 33, 43], "window_size_per_stage": [8, 4, 16, 8]}),
            ),
        ] {
            let (sizes, options) = (preset.sizes(), Options::default());
            let config = to_hf(&sizes, &options);
            let mut public = serde_json::to_value(HfConfig::default()).unwrap();
            let vision = &mut public["vision_config"];
            if let Some(all) = changes.get("embed_dim_per_stage").and_then(|all| all.as_array()) {
                vision["backbone_channel_list"] = all.iter().rev().cloned().collect();
            }
            changes.as_object().unwrap().iter().for_each(|(k, v)| vision["backbone_config"][k] = v.clone());
            let ours = serde_json::to_value(&config).unwrap();
            assert_eq!(ours, public, "{preset}");
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("config.json"), ours.to_string()).unwrap();
            assert_eq!(from_hf(&HfConfig::read(folder.path()).unwrap()), (sizes, options), "{preset}");
        }
        // SAM 2, and what is not usual.
        let sizes = Sizes { occlusion_embedding: false, project_pointer_time: false, ..Preset::Micro.sizes() };
        let options = Options {
            max_cond_frames_in_attn: Some(4),
            sigmoid_bias_for_mem_enc: -0.5,
            multimask_max_pt_num: 3,
            max_obj_ptrs_in_encoder: 5,
            ..released_options(&sizes)
        };
        let config = to_hf(&sizes, &options);
        assert_eq!(config.vision_config.backbone_feature_sizes, [[24; 2], [12; 2], [6; 2]]);
        assert_eq!(from_hf(&config), (sizes, options));
    }

    #[test]
    fn a_folder_of_transformers_needs_no_mark() {
        let folder = tempfile::tempdir().unwrap();
        let sizes = Sizes { image_size: 32, memory_layers: 1, ..Preset::Micro.sizes() };
        let model = Sam2::new(&Builder::new(&Device::Cpu, DType::F32, 3), &sizes, &Options::default()).unwrap();
        save(folder.path(), &model).unwrap();
        let weights = folder.path().join("model.safetensors");
        let mut dict = safetensors::read(&weights).unwrap();
        dict.metadata.clear();
        safetensors::write(&weights, &dict).unwrap();
        for path in [folder.path(), &weights] {
            let back = super::model(path, &Device::Cpu, DType::F32, None, Use::Videos).unwrap();
            assert_eq!(back.sizes(), &sizes);
            for (a, b) in model.params().into_iter().zip(back.params()) {
                assert_eq!((a.name(), a.master.to_f64().unwrap()), (b.name(), b.master.to_f64().unwrap()));
            }
        }
        for name in ["preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"] {
            assert!(folder.path().join(name).is_file(), "{name}");
        }
        // The file's word counts: what does not fit the weights is an error that names a tensor.
        let text = std::fs::read_to_string(folder.path().join("config.json")).unwrap();
        let other = text.replace("\"num_maskmem\": 7", "\"num_maskmem\": 6");
        std::fs::write(folder.path().join("config.json"), other).unwrap();
        let error = super::model(folder.path(), &Device::Cpu, DType::F32, None, Use::Videos).unwrap_err();
        assert!(error.to_string().contains("maskmem_tpos_enc"), "{error}");
        std::fs::remove_file(folder.path().join("config.json")).unwrap();
        let error = super::model(folder.path(), &Device::Cpu, DType::F32, None, Use::Videos).unwrap_err();
        // Width and depth say "micro", which has another layer.
        assert!(error.to_string().contains("memory_attention.layers.1."), "{error}");
    }
}
