//! Sizes and switches of the model, with those of the released checkpoints.

use serde::{Deserialize, Serialize};

use super::decoder::Stability;
use crate::nn::hiera::HieraSizes;
use crate::{Error, Result};

/// Sizes of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sizes {
    /// Rows and columns of the input.
    pub image_size: usize,
    /// Of the trunk.
    pub trunk: HieraSizes,
    /// Channels of features, tokens and pointers.
    pub hidden_dim: usize,
    /// Channels of memories.
    pub mem_dim: usize,
    /// Layers of memory attention.
    pub memory_layers: usize,
    /// Hidden units of its feed-forward networks.
    pub memory_hidden: usize,
    /// Its heads.
    pub memory_heads: usize,
    /// Heads of the decoder's transformer.
    pub decoder_heads: usize,
    /// Hidden units of its MLPs.
    pub decoder_mlp_dim: usize,
    /// Hidden units of the head that predicts IoU.
    pub iou_head_hidden_dim: usize,
    /// Memories of frames, the current one counted.
    pub num_maskmem: usize,
    /// Whether pointers have a projected code of their time, and absent objects a mark in their memories: SAM 2.1.
    pub occlusion_embedding: bool,
    /// Whether there is a projection of pointers' codes of time: SAM 2.1.
    pub project_pointer_time: bool,
}

/// The released models, and one for small machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// For small machines and small pictures: 96 pixels, 1 million parameters.
    Micro,
    /// 38.9 million parameters.
    Tiny,
    /// 46.1 million.
    Small,
    /// 80.9 million.
    BasePlus,
    /// 224 million.
    Large,
}

impl Preset {
    /// All, smallest first.
    pub const ALL: [Self; 5] = [Self::Micro, Self::Tiny, Self::Small, Self::BasePlus, Self::Large];

    /// The name of the upstream files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Micro => "micro",
            Self::Tiny => "tiny",
            Self::Small => "small",
            Self::BasePlus => "base_plus",
            Self::Large => "large",
        }
    }

    /// Sizes of the SAM 2.1 model.
    pub fn sizes(self) -> Sizes {
        let (embed_dim, num_heads, stages, windows, global, background) = match self {
            Self::Micro => return Self::micro(),
            Self::Tiny => (96, 1, [1, 2, 7, 2], [8, 4, 14, 7], [5, 7, 9], 7),
            Self::Small => (96, 1, [1, 2, 11, 2], [8, 4, 14, 7], [7, 10, 13], 7),
            Self::BasePlus => (112, 2, [2, 3, 16, 3], [8, 4, 14, 7], [12, 16, 20], 14),
            Self::Large => (144, 2, [2, 6, 36, 4], [8, 4, 16, 8], [23, 33, 43], 7),
        };
        Sizes {
            image_size: 1024,
            trunk: HieraSizes {
                embed_dim,
                num_heads,
                stages: stages.into(),
                q_pool: 3,
                window_spec: windows.into(),
                global_att_blocks: global.into(),
                window_pos_embed_bkg_spatial_size: [background, background],
            },
            hidden_dim: 256,
            mem_dim: 64,
            memory_layers: 4,
            memory_hidden: 2048,
            memory_heads: 1,
            decoder_heads: 8,
            decoder_mlp_dim: 2048,
            iou_head_hidden_dim: 256,
            num_maskmem: 7,
            occlusion_embedding: true,
            project_pointer_time: true,
        }
    }
}

impl Preset {
    fn micro() -> Sizes {
        Sizes {
            image_size: 96,
            trunk: HieraSizes {
                embed_dim: 24,
                num_heads: 1,
                stages: vec![1, 2, 3, 1],
                q_pool: 3,
                window_spec: vec![8, 4, 6, 3],
                global_att_blocks: vec![5],
                window_pos_embed_bkg_spatial_size: [6, 6],
            },
            hidden_dim: 64,
            mem_dim: 16,
            memory_layers: 2,
            memory_hidden: 128,
            memory_heads: 1,
            decoder_heads: 4,
            decoder_mlp_dim: 128,
            iou_head_hidden_dim: 64,
            num_maskmem: 7,
            occlusion_embedding: true,
            project_pointer_time: true,
        }
    }

    /// Factor of the learning rate from one block of the trunk to the one before it.
    pub fn layer_decay(self) -> f64 {
        match self {
            Self::Micro => 1.0,
            Self::Tiny | Self::Small => 0.8,
            Self::BasePlus => 0.9,
            Self::Large => 0.925,
        }
    }

    /// Stochastic depth of the trunk's last block.
    pub fn drop_path(self) -> f64 {
        match self {
            Self::Micro => 0.0,
            Self::Tiny | Self::Small => 0.1,
            Self::BasePlus => 0.2,
            Self::Large => 0.3,
        }
    }
}

impl Serialize for Preset {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Preset {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl std::str::FromStr for Preset {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|p| p.name() == name).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|p| p.name()).collect();
            Error::config("preset", name, names.join(", "))
        })
    }
}

impl std::fmt::Display for Preset {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// How the model is used, under the names of upstream's `SAM2Base`; the default is that of the released models' training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Factor of a mask's sigmoid on its way into memory.
    pub sigmoid_scale_for_mem_enc: f32,
    /// Added to it.
    pub sigmoid_bias_for_mem_enc: f32,
    /// Whether masks of prompted frames enter memory as 0 or 1; never in training.
    pub binarize_mask_from_pts_for_mem_enc: bool,
    /// Most conditioning frames that are attended to; all without.
    pub max_cond_frames_in_attn: Option<usize>,
    /// Whether prompts may get several masks.
    pub multimask_output_in_sam: bool,
    /// Fewest points of a prompt that gets several.
    pub multimask_min_pt_num: usize,
    /// Most points of a prompt that gets several.
    pub multimask_max_pt_num: usize,
    /// Whether frames without a prompt get several.
    pub multimask_output_for_tracking: bool,
    /// Whether the pointer is made from the chosen mask's token, or always from the single mask's.
    pub use_multimask_token_for_obj_ptr: bool,
    /// Whether predicted IoUs end in a sigmoid.
    pub iou_prediction_use_sigmoid: bool,
    /// Frames between memories, in evaluation.
    pub memory_temporal_stride_for_eval: usize,
    /// Most pointers that are attended to.
    pub max_obj_ptrs_in_encoder: usize,
    /// Whether pointers have a code of their time.
    pub add_tpos_enc_to_obj_ptrs: bool,
    /// Whether times of conditioning frames have a sign.
    pub use_signed_tpos_enc_to_obj_ptrs: bool,
    /// Whether, in evaluation, only pointers of conditioning frames that were passed count.
    pub only_obj_ptrs_in_the_past_for_eval: bool,
    /// When, in evaluation, a single mask gives way to the best of several.
    pub stability: Option<Stability>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            sigmoid_scale_for_mem_enc: 20.0,
            sigmoid_bias_for_mem_enc: -10.0,
            binarize_mask_from_pts_for_mem_enc: false,
            max_cond_frames_in_attn: None,
            multimask_output_in_sam: true,
            multimask_min_pt_num: 0,
            multimask_max_pt_num: 1,
            multimask_output_for_tracking: true,
            use_multimask_token_for_obj_ptr: true,
            iou_prediction_use_sigmoid: true,
            memory_temporal_stride_for_eval: 1,
            max_obj_ptrs_in_encoder: 16,
            add_tpos_enc_to_obj_ptrs: true,
            use_signed_tpos_enc_to_obj_ptrs: true,
            only_obj_ptrs_in_the_past_for_eval: true,
            stability: None,
        }
    }
}

impl Options {
    /// Whether a prompt of so many points gets several masks; `prompted`: on a frame that begins with a prompt.
    pub fn several(&self, prompted: bool, points: usize) -> bool {
        self.multimask_output_in_sam
            && (prompted || self.multimask_output_for_tracking)
            && (self.multimask_min_pt_num..=self.multimask_max_pt_num).contains(&points)
    }
}
