//! `config.json` of `Sam2VideoModel` and, to read, of `Sam2Model`, and the files of their processors.
//!
//! Defaults are those of `transformers`, which are the sizes of SAM 2.1's tiny model. Source: `configuration_sam2.py`,
//! `configuration_sam2_video.py` and `convert_sam2_video_to_hf.py` of transformers 4.57 and 5.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::super::hf::{file, number_or_pair, pair};
use crate::{Error, Result};

/// The file. Keys that are absent have the defaults of `transformers`; other keys are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HfConfig {
    /// Trunk and neck.
    pub vision_config: VisionConfig,
    /// Points, boxes and masks.
    pub prompt_encoder_config: PromptConfig,
    /// Masks of prompts.
    pub mask_decoder_config: DecoderConfig,
    /// Rows and columns of the input.
    #[serde(deserialize_with = "pair", serialize_with = "number_or_pair")]
    pub image_size: [usize; 2],
    /// Memories of frames, the current one counted.
    pub num_maskmem: usize,
    /// Factor of a mask's sigmoid on its way into memory.
    pub sigmoid_scale_for_mem_enc: f32,
    /// Added to it.
    pub sigmoid_bias_for_mem_enc: f32,
    /// Whether memories of absent objects are marked.
    pub enable_occlusion_spatial_embedding: bool,
    /// Whether prompts may get several masks.
    pub multimask_output_in_sam: bool,
    /// Fewest points of a prompt that gets several.
    pub multimask_min_pt_num: usize,
    /// Most points of a prompt that gets several.
    pub multimask_max_pt_num: usize,
    /// Whether frames without a prompt get several.
    pub multimask_output_for_tracking: bool,
    /// Most pointers that are attended to.
    pub max_object_pointers_in_encoder: usize,
    /// Most conditioning frames that are attended to; -1 for all.
    pub max_cond_frame_num: i64,
    /// Whether pointers have a code of their time.
    pub enable_temporal_pos_encoding_for_object_pointers: bool,
    /// Channels of memory attention.
    pub memory_attention_hidden_size: usize,
    /// Its layers.
    pub memory_attention_num_layers: usize,
    /// Its heads.
    pub memory_attention_num_attention_heads: usize,
    /// Hidden units of its feed-forward networks.
    pub memory_attention_feed_forward_hidden_size: usize,
    /// Rows and columns of its map.
    pub memory_attention_rope_feat_sizes: [usize; 2],
    /// Channels of features on their way into memory.
    pub memory_encoder_hidden_size: usize,
    /// Channels of memories.
    pub memory_encoder_output_channels: usize,
    /// Channels of masks on their way into memory.
    pub mask_downsampler_embed_dim: usize,
    /// Channels of the blocks that fuse both.
    pub memory_fuser_embed_dim: usize,
    /// Their hidden units.
    pub memory_fuser_intermediate_dim: usize,
    /// Everything else.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Trunk and neck.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VisionConfig {
    /// The trunk.
    pub backbone_config: BackboneConfig,
    /// Channels of its maps, the coarsest first.
    pub backbone_channel_list: Vec<usize>,
    /// Rows and columns of the maps that are used, the finest first.
    pub backbone_feature_sizes: Vec<[usize; 2]>,
    /// Channels of the neck's maps.
    pub fpn_hidden_size: usize,
    /// Everything else.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// The trunk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BackboneConfig {
    /// Channels of the first stage.
    pub hidden_size: usize,
    /// Rows and columns of the input.
    #[serde(deserialize_with = "pair")]
    pub image_size: [usize; 2],
    /// Rows and columns of the position table that is resized to the map.
    pub window_positional_embedding_background_size: [usize; 2],
    /// Stages, after the first, that begin with pooling.
    pub num_query_pool_stages: usize,
    /// Blocks of each stage.
    pub blocks_per_stage: Vec<usize>,
    /// Channels of each stage.
    pub embed_dim_per_stage: Vec<usize>,
    /// Heads of each stage.
    pub num_attention_heads_per_stage: Vec<usize>,
    /// Window of each stage.
    pub window_size_per_stage: Vec<usize>,
    /// Blocks that attend over the whole map.
    pub global_attention_blocks: Vec<usize>,
    /// Everything else.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Points, boxes and masks as prompts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PromptConfig {
    /// Channels.
    pub hidden_size: usize,
    /// Rows and columns of the input.
    #[serde(deserialize_with = "pair", serialize_with = "number_or_pair")]
    pub image_size: [usize; 2],
    /// Everything else.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Masks of prompts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DecoderConfig {
    /// Channels.
    pub hidden_size: usize,
    /// Hidden units of the transformer's MLPs.
    pub mlp_dim: usize,
    /// Its heads.
    pub num_attention_heads: usize,
    /// Hidden units of the head that predicts IoU.
    pub iou_head_hidden_dim: usize,
    /// Everything else.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// `model_type` of the model with memory, and of that of single images.
const VIDEO: &str = "sam2_video";
const IMAGE: &str = "sam2";

/// Stages of the trunk.
const STAGES: usize = 4;

/// Keys that say nothing about what is computed here, whatever their values.
const FREE: [&str; 6] = [
    "architectures",
    "dtype",
    "initializer_range",
    "memory_attention_dropout",
    "memory_attention_rope_dropout",
    "memory_fuser_layer_scale_init_value",
];

fn map(value: Value) -> Map<String, Value> {
    if let Value::Object(map) = value { map } else { Map::new() }
}

impl Default for HfConfig {
    fn default() -> Self {
        Self {
            vision_config: VisionConfig::default(),
            prompt_encoder_config: PromptConfig::default(),
            mask_decoder_config: DecoderConfig::default(),
            image_size: [1024; 2],
            num_maskmem: 7,
            sigmoid_scale_for_mem_enc: 20.0,
            sigmoid_bias_for_mem_enc: -10.0,
            enable_occlusion_spatial_embedding: true,
            multimask_output_in_sam: true,
            multimask_min_pt_num: 0,
            multimask_max_pt_num: 1,
            multimask_output_for_tracking: true,
            max_object_pointers_in_encoder: 16,
            max_cond_frame_num: -1,
            enable_temporal_pos_encoding_for_object_pointers: true,
            memory_attention_hidden_size: 256,
            memory_attention_num_layers: 4,
            memory_attention_num_attention_heads: 1,
            memory_attention_feed_forward_hidden_size: 2048,
            memory_attention_rope_feat_sizes: [64; 2],
            memory_encoder_hidden_size: 256,
            memory_encoder_output_channels: 64,
            mask_downsampler_embed_dim: 256,
            memory_fuser_embed_dim: 256,
            memory_fuser_intermediate_dim: 1024,
            other: map(json!({
                "architectures": ["Sam2VideoModel"],
                "model_type": VIDEO,
                "dtype": "float32",
                "initializer_range": 0.02,
                "mask_downsampler_hidden_act": "gelu",
                "mask_downsampler_kernel_size": 3,
                "mask_downsampler_padding": 1,
                "mask_downsampler_stride": 2,
                "mask_downsampler_total_stride": 16,
                "memory_attention_downsample_rate": 1,
                "memory_attention_dropout": 0.1,
                "memory_attention_feed_forward_hidden_act": "relu",
                "memory_attention_rope_dropout": 0.1,
                "memory_fuser_hidden_act": "gelu",
                "memory_fuser_kernel_size": 7,
                "memory_fuser_layer_scale_init_value": 1e-6,
                "memory_fuser_num_layers": 2,
                "memory_fuser_padding": 3,
            })),
        }
    }
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self {
            backbone_config: BackboneConfig::default(),
            backbone_channel_list: vec![768, 384, 192, 96],
            backbone_feature_sizes: vec![[256; 2], [128; 2], [64; 2]],
            fpn_hidden_size: 256,
            other: map(json!({
                "model_type": "sam2_vision_model",
                "fpn_kernel_size": 1,
                "fpn_padding": 0,
                "fpn_stride": 1,
                "fpn_top_down_levels": [2, 3],
                "hidden_act": "gelu",
                "initializer_range": 0.02,
                "layer_norm_eps": 1e-6,
                "num_feature_levels": 3,
            })),
        }
    }
}

impl Default for BackboneConfig {
    fn default() -> Self {
        Self {
            hidden_size: 96,
            image_size: [1024; 2],
            window_positional_embedding_background_size: [7; 2],
            num_query_pool_stages: 3,
            blocks_per_stage: vec![1, 2, 7, 2],
            embed_dim_per_stage: vec![96, 192, 384, 768],
            num_attention_heads_per_stage: vec![1, 2, 4, 8],
            window_size_per_stage: vec![8, 4, 14, 7],
            global_attention_blocks: vec![5, 7, 9],
            other: map(json!({
                "model_type": "sam2_hiera_det_model",
                "hidden_act": "gelu",
                "initializer_range": 0.02,
                "layer_norm_eps": 1e-6,
                "mlp_ratio": 4.0,
                "num_channels": 3,
                "patch_kernel_size": [7, 7],
                "patch_padding": [3, 3],
                "patch_stride": [4, 4],
                "query_stride": [2, 2],
            })),
        }
    }
}

impl Default for PromptConfig {
    fn default() -> Self {
        Self {
            hidden_size: 256,
            image_size: [1024; 2],
            other: map(json!({
                "hidden_act": "gelu",
                "layer_norm_eps": 1e-6,
                "mask_input_channels": 16,
                "num_point_embeddings": 4,
                "patch_size": 16,
                "scale": 1,
            })),
        }
    }
}

impl Default for DecoderConfig {
    fn default() -> Self {
        Self {
            hidden_size: 256,
            mlp_dim: 2048,
            num_attention_heads: 8,
            iou_head_hidden_dim: 256,
            other: map(json!({
                "attention_downsample_rate": 2,
                "dynamic_multimask_stability_delta": 0.05,
                "dynamic_multimask_stability_thresh": 0.98,
                "dynamic_multimask_via_stability": true,
                "hidden_act": "gelu",
                "iou_head_depth": 3,
                "num_hidden_layers": 2,
                "num_multimask_outputs": 3,
            })),
        }
    }
}

/// Whether two values are the same, whole numbers being those of fractions too.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        _ => a == b,
    }
}

impl HfConfig {
    /// Reads `config.json`, given itself or its folder.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Checkpoint`] for other models, and for parts that are not known here.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = file(path.as_ref(), "config.json");
        let text = std::fs::read(&path).map_err(Error::io(&path))?;
        let config: Self = serde_json::from_slice(&text).map_err(|e| Error::checkpoint(&path, e.to_string()))?;
        config.check().map_err(|cause| Error::checkpoint(&path, cause))?;
        Ok(config)
    }

    /// Whether the model has a memory.
    fn is_video(&self) -> bool {
        self.other.get("model_type").is_none_or(|kind| kind == VIDEO)
    }

    fn check(&self) -> std::result::Result<(), String> {
        if let Some(kind) = self.other.get("model_type").filter(|kind| **kind != VIDEO && **kind != IMAGE) {
            return Err(format!("`model_type` is {kind}, expected {VIDEO} or {IMAGE}"));
        }
        self.check_fixed()?;
        let vision = &self.vision_config;
        let trunk = &vision.backbone_config;
        let doubled = |first: usize| (0..STAGES).map(|stage| first.saturating_mul(1 << stage)).collect::<Vec<_>>();
        let heads = trunk.num_attention_heads_per_stage.first().copied().unwrap_or_default();
        for (key, given, expected) in [
            ("embed_dim_per_stage", &trunk.embed_dim_per_stage, doubled(trunk.hidden_size)),
            ("num_attention_heads_per_stage", &trunk.num_attention_heads_per_stage, doubled(heads)),
        ] {
            if *given != expected {
                return Err(format!("`vision_config.backbone_config.{key}` is {given:?}, expected {expected:?}"));
            }
        }
        let width = vision.fpn_hidden_size;
        let of_memory = [
            ("memory_attention_hidden_size", self.memory_attention_hidden_size, width),
            ("memory_encoder_hidden_size", self.memory_encoder_hidden_size, width),
            ("mask_downsampler_embed_dim", self.mask_downsampler_embed_dim, width),
            ("memory_fuser_embed_dim", self.memory_fuser_embed_dim, width),
            ("memory_fuser_intermediate_dim", self.memory_fuser_intermediate_dim, width.saturating_mul(4)),
        ];
        let widths = [
            ("prompt_encoder_config.hidden_size", self.prompt_encoder_config.hidden_size, width),
            ("mask_decoder_config.hidden_size", self.mask_decoder_config.hidden_size, width),
        ];
        let all = widths.iter().chain(of_memory.iter().filter(|_| self.is_video()));
        if let Some((key, given, expected)) = all.clone().find(|(_, given, expected)| given != expected) {
            return Err(format!("`{key}` is {given}, expected {expected}, as `vision_config.fpn_hidden_size` has it"));
        }
        let [h, w] = self.prompt_encoder_config.image_size;
        let stated = [("vision_config.backbone_config.image_size", trunk.image_size), ("image_size", self.image_size)];
        for (key, given) in stated.into_iter().take(if self.is_video() { 2 } else { 1 }) {
            if given != [h, w] || h != w {
                return Err(format!(
                    "`{key}` is {given:?}, expected a square as in `prompt_encoder_config.image_size`, {:?}",
                    [h, w]
                ));
            }
        }
        // A damaged file may ask for anything.
        let most = |key: &str, given: usize, most: usize| match given {
            given if (1..=most).contains(&given) => Ok(()),
            _ => Err(format!("`{key}` is {given}, expected 1 to {most}")),
        };
        most("vision_config.fpn_hidden_size", width, 4096)?;
        most("vision_config.backbone_config.hidden_size", trunk.hidden_size, 4096)?;
        most("prompt_encoder_config.image_size", h, 1 << 14)?;
        most("memory_encoder_output_channels", self.memory_encoder_output_channels, 4096)?;
        for (key, given) in [
            ("num_maskmem", self.num_maskmem),
            ("max_object_pointers_in_encoder", self.max_object_pointers_in_encoder),
            ("memory_attention_num_layers", self.memory_attention_num_layers),
            ("memory_attention_num_attention_heads", self.memory_attention_num_attention_heads),
            ("mask_decoder_config.num_attention_heads", self.mask_decoder_config.num_attention_heads),
        ] {
            most(key, given, 1024)?;
        }
        for (key, given) in [
            ("memory_attention_feed_forward_hidden_size", self.memory_attention_feed_forward_hidden_size),
            ("mask_decoder_config.mlp_dim", self.mask_decoder_config.mlp_dim),
            ("mask_decoder_config.iou_head_hidden_dim", self.mask_decoder_config.iou_head_hidden_dim),
        ] {
            most(key, given, 1 << 15)?;
        }
        for (key, list) in
            [("blocks_per_stage", &trunk.blocks_per_stage), ("window_size_per_stage", &trunk.window_size_per_stage)]
        {
            if list.len() != STAGES || !list.iter().all(|given| (1..=1024).contains(given)) {
                let expected = format!("{STAGES} numbers from 1 to 1024");
                return Err(format!("`vision_config.backbone_config.{key}` is {list:?}, expected {expected}"));
            }
        }
        for given in trunk.window_positional_embedding_background_size {
            most("vision_config.backbone_config.window_positional_embedding_background_size", given, 1024)?;
        }
        Ok(())
    }

    /// Keys whose values are fixed here.
    fn check_fixed(&self) -> std::result::Result<(), String> {
        let (usual, vision) = (Self::default(), &self.vision_config);
        let usual_vision = &usual.vision_config;
        for (section, given, usual) in [
            ("", &self.other, &usual.other),
            ("vision_config.", &vision.other, &usual_vision.other),
            ("vision_config.backbone_config.", &vision.backbone_config.other, &usual_vision.backbone_config.other),
            ("prompt_encoder_config.", &self.prompt_encoder_config.other, &usual.prompt_encoder_config.other),
            ("mask_decoder_config.", &self.mask_decoder_config.other, &usual.mask_decoder_config.other),
        ] {
            let of_kind = |key: &str| section.is_empty() && key == "model_type" || key.starts_with("dynamic_multimask");
            for (key, expected) in usual.iter().filter(|(key, _)| !FREE.contains(&key.as_str()) && !of_kind(key)) {
                if let Some(given) = given.get(key).filter(|given| !same(given, expected)) {
                    return Err(format!("`{section}{key}` is {given}, expected {expected}"));
                }
            }
        }
        // Its name before transformers 5, and since.
        let theta = [
            self.other.get("memory_attention_rope_theta"),
            self.other.get("rope_parameters").map(|p| &p["rope_theta"]),
        ];
        match theta.into_iter().flatten().find(|theta| !theta.is_null() && theta.as_f64() != Some(1e4)) {
            Some(theta) => Err(format!("the base of rotary positions, `rope_theta`, is {theta}, expected 10000")),
            None => Ok(()),
        }
    }

    /// What the processors of `transformers` do to pictures, frames and points, by the file's name.
    pub fn processors(&self) -> [(&'static str, Value); 3] {
        let [height, width] = self.image_size;
        let pixels = json!({
            "do_convert_rgb": true,
            "do_normalize": true,
            "do_rescale": true,
            "do_resize": true,
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
            "processor_class": "Sam2VideoProcessor",
            "resample": 2,
            "rescale_factor": 1.0 / 255.0,
            "size": {"height": height, "width": width},
        });
        let with = |more: Value| Value::Object(map(pixels.clone()).into_iter().chain(map(more)).collect());
        let mask_size = json!({"height": height / 4, "width": width / 4});
        let image = json!({"image_processor_type": "Sam2ImageProcessorFast", "mask_size": mask_size});
        [
            ("preprocessor_config.json", with(image)),
            ("video_preprocessor_config.json", with(json!({"video_processor_type": "Sam2VideoVideoProcessor"}))),
            (
                "processor_config.json",
                json!({"point_pad_value": -10, "processor_class": "Sam2VideoProcessor", "target_size": height}),
            ),
        ]
    }
}
