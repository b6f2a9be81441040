//! SAM-2's names: those of the official files, which this crate uses, and those of Hugging Face's `Sam2Model` and
//! `Sam2VideoModel`.
//!
//! | official | Hugging Face |
//! |---|---|
//! | `image_encoder.trunk` | `vision_encoder.backbone` |
//! | `image_encoder.neck.convs.N.conv` | `vision_encoder.neck.convs.N` |
//! | `patch_embed.proj` | `patch_embed.projection` |
//! | `normK`, `norm`, `norm_final_attn` | `layer_normK`, `layer_norm`, `layer_norm_final_attn` |
//! | `mlp.layers.0`, `.1` of blocks and transformer | `mlp.proj_in`, `mlp.proj_out` |
//! | `layers.0`, `.1`, `.2` of heads | `proj_in`, `layers.0`, `proj_out` |
//! | `out_proj` of attention | `o_proj` |
//! | `sam_prompt_encoder`, `sam_mask_decoder` | `prompt_encoder`, `mask_decoder` |
//! | `point_embeddings.0` to `.3` | rows of `point_embed` |
//! | `pe_layer.positional_encoding_gaussian_matrix` | `shared_embedding.positional_embedding`, and the same as `shared_image_embedding` |
//! | `mask_downscaling.0`, `.1`, `.3`, `.4`, `.6` | `mask_embed.conv1`, `layer_norm1`, `conv2`, `layer_norm2`, `conv3` |
//! | `output_upscaling.0`, `.1`, `.3` | `upscale_conv1`, `upscale_layer_norm`, `upscale_conv2` |
//! | `memory_encoder.pix_feat_proj`, `out_proj`, `fuser` | `feature_projection`, `projection`, `memory_fuser` |
//! | `dwconv`, `pwconvK`, `gamma` | `depthwise_conv`, `pointwise_convK`, `scale` |
//! | `mask_downsampler.encoder.3i`, `.3i+1`, `.12` | `mask_downsampler.layers.i.conv`, `.layer_norm`, `final_conv` |
//! | `no_mem_embed`, `no_mem_pos_enc`, `no_obj_ptr` | `no_memory_embedding`, `no_memory_positional_encoding`, `no_object_pointer` |
//! | `maskmem_tpos_enc` | `memory_temporal_positional_encoding` |
//! | `no_obj_embed_spatial` | `occlusion_spatial_embedding_parameter` |
//! | `obj_ptr_proj`, `obj_ptr_tpos_proj` | `object_pointer_proj`, `temporal_positional_encoding_projection_layer` |

mod config;

use std::path::Path;

pub use config::{BackboneConfig, DecoderConfig, HfConfig, PromptConfig, VisionConfig};

use super::arrange::{join, split};
use super::{StateDict, hf};
use crate::{Error, Result, Tensor};

/// Of the prompt encoder, official: its rows are one tensor of Hugging Face's.
const POINTS: &str = "sam_prompt_encoder.point_embeddings.";
const POINTS_HF: &str = "prompt_encoder.point_embed.weight";
/// Embeddings of points, by label.
const LABELS: usize = 4;
const MATRIX: &str = "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix";
const MATRIX_HF: [&str; 2] =
    ["prompt_encoder.shared_embedding.positional_embedding", "shared_image_embedding.positional_embedding"];

/// Beginnings of names, longest first.
const BEGINNINGS: [(&str, &str); 14] = [
    ("image_encoder.trunk.", "vision_encoder.backbone."),
    ("image_encoder.neck.", "vision_encoder.neck."),
    ("sam_prompt_encoder.", "prompt_encoder."),
    ("sam_mask_decoder.", "mask_decoder."),
    ("memory_encoder.pix_feat_proj.", "memory_encoder.feature_projection."),
    ("memory_encoder.out_proj.", "memory_encoder.projection."),
    ("memory_encoder.fuser.", "memory_encoder.memory_fuser."),
    ("maskmem_tpos_enc", "memory_temporal_positional_encoding"),
    ("no_mem_embed", "no_memory_embedding"),
    ("no_mem_pos_enc", "no_memory_positional_encoding"),
    ("no_obj_ptr", "no_object_pointer"),
    ("no_obj_embed_spatial", "occlusion_spatial_embedding_parameter"),
    ("obj_ptr_proj.", "object_pointer_proj."),
    ("obj_ptr_tpos_proj.", "temporal_positional_encoding_projection_layer."),
];

/// Parts of names, whole segments.
const PARTS: [(&str, &str); 17] = [
    ("patch_embed.proj", "patch_embed.projection"),
    ("mask_downscaling.0", "mask_embed.conv1"),
    ("mask_downscaling.1", "mask_embed.layer_norm1"),
    ("mask_downscaling.3", "mask_embed.conv2"),
    ("mask_downscaling.4", "mask_embed.layer_norm2"),
    ("mask_downscaling.6", "mask_embed.conv3"),
    ("output_upscaling.0", "upscale_conv1"),
    ("output_upscaling.1", "upscale_layer_norm"),
    ("output_upscaling.3", "upscale_conv2"),
    ("dwconv", "depthwise_conv"),
    ("pwconv1", "pointwise_conv1"),
    ("pwconv2", "pointwise_conv2"),
    ("gamma", "scale"),
    ("out_proj", "o_proj"),
    ("mlp.layers.0", "mlp.proj_in"),
    ("mlp.layers.1", "mlp.proj_out"),
    ("norm_final_attn", "layer_norm_final_attn"),
];

/// Heads of three layers.
const HEADS: [&str; 4] =
    ["iou_prediction_head", "pred_obj_score_head", "output_hypernetworks_mlps", "object_pointer_proj"];

/// The last convolution of the mask's downsampler, official.
const FINAL_CONV: usize = 12;

/// Whether a dictionary has official names of a SAM-2 model, perhaps below `model.`.
pub fn is_official(dict: &StateDict) -> bool {
    dict.names().any(|n| n.ends_with("image_encoder.trunk.patch_embed.proj.weight"))
}

/// Whether a dictionary has Hugging Face's names of a SAM-2 model.
pub fn is_hf(dict: &StateDict) -> bool {
    dict.names().any(|n| n == "vision_encoder.backbone.patch_embed.projection.weight")
}

/// Replaces whole segments of a dotted name.
fn replace(name: &str, from: &str, to: &str) -> String {
    let padded = format!(".{name}.");
    let replaced = padded.replace(&format!(".{from}."), &format!(".{to}."));
    replaced[1..replaced.len() - 1].to_string()
}

/// Hugging Face's name of a parameter that both have as one tensor.
fn hf_name(name: &str) -> String {
    let mut out = match BEGINNINGS.iter().find_map(|(ours, theirs)| Some((theirs, name.strip_prefix(ours)?))) {
        Some((theirs, rest)) => format!("{theirs}{rest}"),
        None => name.to_string(),
    };
    if out.starts_with("vision_encoder.neck.") {
        return out.replace(".conv.", ".");
    }
    let of_masks = out.strip_prefix("memory_encoder.mask_downsampler.encoder.");
    if let Some((index, end)) = of_masks.and_then(|rest| rest.split_once('.')) {
        let at = match index.parse::<usize>() {
            Ok(FINAL_CONV) => "final_conv".to_string(),
            Ok(i) if i % 3 == 0 => format!("layers.{}.conv", i / 3),
            Ok(i) => format!("layers.{}.layer_norm", i / 3),
            Err(_) => index.to_string(),
        };
        return format!("memory_encoder.mask_downsampler.{at}.{end}");
    }
    for (ours, theirs) in PARTS {
        out = replace(&out, ours, theirs);
    }
    if HEADS.iter().any(|head| format!(".{out}").contains(&format!(".{head}."))) {
        // The numbers of hypernetworks stay: only what follows `layers` moves.
        for (ours, theirs) in [("layers.0", "proj_in"), ("layers.1", "layers.0"), ("layers.2", "proj_out")] {
            let moved = replace(&out, ours, theirs);
            if moved != out {
                return moved;
            }
        }
    }
    for number in ["", "1", "2", "3", "4"] {
        out = replace(&out, &format!("norm{number}"), &format!("layer_norm{number}"));
    }
    out
}

/// The parameters `names` under their official names, from either layout.
///
/// # Errors
/// When it is no SAM-2 model. What is missing is left out: loading says so.
pub fn to_upstream<'a>(dict: &StateDict, names: impl IntoIterator<Item = &'a str>) -> Result<StateDict> {
    let mut out = StateDict::of(&dict.origin, dict.metadata.clone());
    if is_official(dict) {
        let prefix = if dict.names().any(|n| n.starts_with("model.")) { "model." } else { "" };
        for name in names {
            if let Some(tensor) = dict.get(&format!("{prefix}{name}")) {
                out.insert(name, tensor.clone())?;
            }
        }
        return Ok(out);
    }
    if !is_hf(dict) {
        let cause = "no SAM-2 model: neither `image_encoder.trunk.patch_embed.proj.weight` nor \
                     `vision_encoder.backbone.patch_embed.projection.weight`";
        return Err(Error::checkpoint(&dict.origin, cause));
    }
    let points = dict.get(POINTS_HF).map(|all| split(all, LABELS)).transpose()?.unwrap_or_default();
    for name in names {
        let found: Option<Tensor> = if let Some(rest) = name.strip_prefix(POINTS) {
            rest.strip_suffix(".weight").and_then(|i| points.get(i.parse::<usize>().ok()?).cloned())
        } else if name == MATRIX {
            MATRIX_HF.iter().find_map(|name| dict.get(name)).cloned()
        } else {
            dict.get(&hf_name(name)).cloned()
        };
        if let Some(tensor) = found {
            out.insert(name, tensor)?;
        }
    }
    Ok(out)
}

/// An official dictionary under Hugging Face's names.
///
/// # Errors
/// When one of the four embeddings of points is missing.
pub fn to_hf(dict: &StateDict) -> Result<StateDict> {
    let mut out = StateDict::of(&dict.origin, dict.metadata.clone());
    out.metadata.insert("format".into(), "pt".into()); // transformers insists on it
    for (name, tensor) in dict.iter() {
        if name == MATRIX {
            for theirs in MATRIX_HF {
                out.insert(theirs, tensor.clone())?;
            }
        } else if !name.starts_with(POINTS) {
            out.insert(hf_name(name), tensor.clone())?;
        }
    }
    let points: Vec<&Tensor> =
        (0..LABELS).map(|i| dict.require(&format!("{POINTS}{i}.weight"))).collect::<Result<_>>()?;
    out.insert(POINTS_HF, join(&points)?)?;
    Ok(out)
}

/// Writes a folder in the layout of `transformers`, from official names: weights, `config.json` and the files of the processors; makes the
/// folder.
///
/// # Errors
/// [`Error::Io`]; [`Error::Checkpoint`] when an embedding of points is missing.
pub fn save(folder: impl AsRef<Path>, config: &HfConfig, weights: &StateDict) -> Result<()> {
    hf::write(folder.as_ref(), config, to_hf(weights)?)?;
    config.processors().iter().try_for_each(|(name, settings)| hf::write_json(&folder.as_ref().join(name), settings))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_every_part() {
        for (ours, theirs) in [
            ("image_encoder.trunk.blocks.3.norm1.weight", "vision_encoder.backbone.blocks.3.layer_norm1.weight"),
            ("image_encoder.trunk.blocks.3.mlp.layers.1.bias", "vision_encoder.backbone.blocks.3.mlp.proj_out.bias"),
            ("image_encoder.trunk.blocks.1.proj.weight", "vision_encoder.backbone.blocks.1.proj.weight"),
            ("image_encoder.neck.convs.2.conv.bias", "vision_encoder.neck.convs.2.bias"),
            ("memory_attention.norm.bias", "memory_attention.layer_norm.bias"),
            (
                "memory_attention.layers.2.self_attn.out_proj.weight",
                "memory_attention.layers.2.self_attn.o_proj.weight",
            ),
            ("memory_attention.layers.2.linear1.weight", "memory_attention.layers.2.linear1.weight"),
            ("memory_encoder.out_proj.weight", "memory_encoder.projection.weight"),
            ("memory_encoder.fuser.layers.1.gamma", "memory_encoder.memory_fuser.layers.1.scale"),
            (
                "memory_encoder.mask_downsampler.encoder.4.bias",
                "memory_encoder.mask_downsampler.layers.1.layer_norm.bias",
            ),
            ("memory_encoder.mask_downsampler.encoder.12.bias", "memory_encoder.mask_downsampler.final_conv.bias"),
            (
                "sam_mask_decoder.transformer.layers.1.mlp.layers.0.weight",
                "mask_decoder.transformer.layers.1.mlp.proj_in.weight",
            ),
            (
                "sam_mask_decoder.transformer.norm_final_attn.bias",
                "mask_decoder.transformer.layer_norm_final_attn.bias",
            ),
            (
                "sam_mask_decoder.output_hypernetworks_mlps.2.layers.1.weight",
                "mask_decoder.output_hypernetworks_mlps.2.layers.0.weight",
            ),
            (
                "sam_mask_decoder.output_hypernetworks_mlps.0.layers.0.weight",
                "mask_decoder.output_hypernetworks_mlps.0.proj_in.weight",
            ),
            ("sam_mask_decoder.output_upscaling.1.bias", "mask_decoder.upscale_layer_norm.bias"),
            ("sam_prompt_encoder.mask_downscaling.3.weight", "prompt_encoder.mask_embed.conv2.weight"),
            ("obj_ptr_proj.layers.2.weight", "object_pointer_proj.proj_out.weight"),
            ("obj_ptr_tpos_proj.bias", "temporal_positional_encoding_projection_layer.bias"),
            ("no_mem_embed", "no_memory_embedding"),
            ("mask_downsample.weight", "mask_downsample.weight"),
        ] {
            assert_eq!(hf_name(ours), theirs);
        }
    }

    #[test]
    fn there_and_back() {
        let mut dict = StateDict::new();
        let tensor = |value: f32| Tensor::from_slice(&[value; 2], [1, 2], &crate::Device::Cpu).unwrap();
        let names: Vec<String> = (0..4)
            .map(|i| format!("{POINTS}{i}.weight"))
            .chain([MATRIX.into(), "image_encoder.trunk.patch_embed.proj.weight".into(), "no_obj_ptr".into()])
            .collect();
        for (i, name) in names.iter().enumerate() {
            dict.insert(name, tensor(i as f32)).unwrap();
        }
        let hf = to_hf(&dict).unwrap();
        assert!(is_hf(&hf) && is_official(&dict) && !is_hf(&dict));
        assert_eq!(**hf.get(POINTS_HF).unwrap().shape(), [4, 2]);
        assert!(MATRIX_HF.iter().all(|name| hf.contains(name)));
        let back = to_upstream(&hf, names.iter().map(String::as_str)).unwrap();
        let mut below = StateDict::new();
        below.extend("model.", &dict).unwrap();
        let bare = to_upstream(&below, names.iter().map(String::as_str)).unwrap();
        for (name, tensor) in dict.iter() {
            for other in [&back, &bare] {
                assert_eq!(other.get(name).unwrap().to_f64().unwrap(), tensor.to_f64().unwrap(), "{name}");
            }
        }
        assert!(to_upstream(&StateDict::new(), []).is_err());
    }
}
