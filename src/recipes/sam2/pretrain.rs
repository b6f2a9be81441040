//! Every knob of training with its default: flags, help text and config.toml are made from this struct.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::config::{Options, Preset, Sizes};
use crate::data::clip_augment::ClipAugment;
use crate::data::videos::MAX_OBJECTS;
use crate::optim::Rules;
use crate::optim::groups::{Group, LayerDecay};
use crate::recipes::mae::config::{check_positive, check_ranges};
use crate::{Error, Result};

/// Everything a run depends on: the flags of `ocellus pretrain sam2` and the contents of config.toml.
///
/// Defaults are those of joint training on images and videos (Ravi et al. 2024, appendix D.2), for one clip at a time.
#[derive(Clone, Debug, clap::Args, Serialize, Deserialize)]
pub struct Config {
    /// Folder of videos with masks: DAVIS, MOSE, SA-V (frames extracted), SA-1B, or `data synth --video`; the layout is seen
    #[arg(required = false, required_unless_present = "resume")]
    pub data: PathBuf,
    /// Run folder to create: config.toml, metrics.jsonl, tensorboard, checkpoints, pictures, model.safetensors
    #[arg(long, short, default_value = "runs/sam2")]
    pub out: PathBuf,
    /// Sizes of the model: micro, tiny, small, base_plus, large
    #[arg(long, default_value = "tiny")]
    pub preset: Preset,
    /// Image side in pixels, a multiple of 32 that the windows of the trunk fit [default: the preset's]
    #[arg(long)]
    pub image_size: Option<usize>,
    /// Frames of a clip
    #[arg(long, default_value_t = 8)]
    pub frames: usize,
    /// Objects of a clip at most, up to 64: what images of SA-1B are trained with, at --frames 1
    #[arg(long, default_value_t = 3)]
    pub max_objects: usize,
    /// Passes over the videos
    #[arg(long, default_value_t = 40)]
    pub epochs: u64,
    /// Epochs of linear warm-up [default: a twentieth of the epochs]
    #[arg(long)]
    pub warmup_epochs: Option<f64>,
    /// Clips per update: their gradients are added up one by one
    #[arg(long, default_value_t = 1)]
    pub accum_iter: u64,
    /// Learning rate of all but the image encoder
    #[arg(long, default_value_t = 3e-4)]
    pub lr: f64,
    /// Learning rate of the image encoder's last layer
    #[arg(long, default_value_t = 6e-5)]
    pub vision_lr: f64,
    /// Where the cosine ends, as a part of the learning rate
    #[arg(long, default_value_t = 0.1)]
    pub min_lr_ratio: f64,
    /// Factor of the learning rate from one block of the trunk to the one before it [default: the preset's]
    #[arg(long)]
    pub layer_decay: Option<f64>,
    /// Decoupled weight decay of all but biases and norms
    #[arg(long, default_value_t = 0.1)]
    pub weight_decay: f64,
    /// Largest global gradient norm; larger gradients are scaled down
    #[arg(long, default_value_t = 0.1)]
    pub clip_grad: f64,
    /// Stochastic depth of the trunk's last block; earlier ones have less [default: the preset's]
    #[arg(long)]
    pub drop_path: Option<f64>,
    /// Probability of clicks or boxes as prompts; else the objects' masks
    #[arg(long, default_value_t = 0.5)]
    pub point_prob: f64,
    /// Probability that a prompt is a box, where it is not a mask
    #[arg(long, default_value_t = 0.5)]
    pub box_prob: f64,
    /// Probability that a correction is drawn from the whole object, as if nothing had been found
    #[arg(long, default_value_t = 0.1)]
    pub from_truth_prob: f64,
    /// Clicks that correct a frame
    #[arg(long, default_value_t = 7)]
    pub corrections: usize,
    /// Frames with a prompt at most
    #[arg(long, default_value_t = 2)]
    pub prompted_frames: usize,
    /// Frames that are corrected at most
    #[arg(long, default_value_t = 2)]
    pub corrected_frames: usize,
    /// Probability of a clip that runs backwards
    #[arg(long, default_value_t = 0.5)]
    pub reverse: f64,
    /// Probability of a mirrored clip
    #[arg(long, default_value_t = 0.5)]
    pub mirror: f64,
    /// Largest turn of a clip, in degrees
    #[arg(long, default_value_t = 25.0)]
    pub rotate: f64,
    /// Largest shear of a clip, in degrees
    #[arg(long, default_value_t = 20.0)]
    pub shear: f64,
    /// Weights to start from: official .pt, safetensors, a Hugging Face folder or a run
    #[arg(long)]
    pub init: Option<PathBuf>,
    /// Unseen videos: at the end, J&F of following the masks of the first frame
    #[arg(long)]
    pub val: Option<PathBuf>,
    /// Seed of initial values, order, clips and prompts: one seed, one result
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Stop at the first video that cannot be read, or has no frames or masks, instead of counting and naming them
    #[arg(long)]
    pub strict: bool,
    /// Keep only what goes into each part and compute the rest again in the backward pass: less memory, a third more time
    #[arg(long)]
    #[serde(default)] // runs that began before there was a choice
    pub recompute: bool,
    /// Updates between checkpoints; one is always written at the end and on Ctrl-C
    #[arg(long, default_value_t = 500)]
    pub save_every: u64,
    /// Checkpoints kept
    #[arg(long, default_value_t = 2)]
    pub keep: usize,
    /// Updates between lines of metrics.jsonl
    #[arg(long, default_value_t = 10)]
    pub log_every: u64,
    /// Type kernels compute in: what `--dtype` was when the run began, for the runs that continue it.
    #[arg(skip)]
    pub dtype: Option<String>,
}

/// Patterns of the parameters that not every clip uses.
pub(super) mod unused {
    /// For masks as prompts.
    pub const MASK_INPUT: &str = "mask_downsample.*";
    /// For prompts that are not masks.
    pub const NO_MEMORY: &str = "no_mem_embed";
    /// For corrections.
    pub const MASK_PROMPT: &str = "sam_prompt_encoder.mask_downscaling.*";
    /// For frames without a prompt.
    pub const MEMORY: [&str; 7] = [
        "memory_attention.*",
        "memory_encoder.*",
        "maskmem_tpos_enc",
        "obj_ptr_proj.*",
        "obj_ptr_tpos_proj.*",
        "no_obj_ptr",
        "no_obj_embed_spatial",
    ];
}

/// Rates and decay by name: everything but biases and layer norms decays (the norms of convolutions do); the trunk of
/// `depth` blocks learns at `layer_decay^(depth + 1 - i)` of the image encoder's rate, which is `vision` of the
/// others', its position tables at all of it. What the clips of a step did not use is not part of the step.
/// Source: `training/optimizer.py` and the public configurations.
pub fn rules(weight_decay: f64, vision: f64, layer_decay: f64, depth: usize) -> Rules {
    let group = |lr_scale: f64| Group { lr_scale, weight_decay };
    let undone = layer_decay.powi(depth as i32 + 1).recip(); // `pos_embed` is of the first layer
    Rules {
        weight_decay,
        no_decay: vec![
            "*bias*",
            "image_encoder.trunk.blocks.*.norm*",
            "memory_attention.*norm*",
            "sam_mask_decoder.transformer.*norm*",
        ],
        vectors_decay: true,
        layers: Some(LayerDecay { decay: layer_decay, depth, root: "image_encoder.trunk." }),
        parts: vec![("image_encoder.trunk.pos_embed", group(vision * undone)), ("image_encoder.*", group(vision))],
        optional: [&[unused::MASK_INPUT, unused::NO_MEMORY, unused::MASK_PROMPT][..], &unused::MEMORY].concat(),
        ..Rules::default()
    }
}

impl Config {
    /// Sizes of the model.
    pub fn sizes(&self) -> Sizes {
        let sizes = self.preset.sizes();
        Sizes { image_size: self.image_size.unwrap_or(sizes.image_size), ..sizes }
    }

    /// How the model is used.
    pub fn options(&self) -> Options {
        Options::default()
    }

    /// What clips go through.
    pub fn augment(&self) -> ClipAugment {
        let usual = ClipAugment::new(self.sizes().image_size, self.frames, self.max_objects);
        ClipAugment { mirror: self.mirror, rotate: self.rotate, shear: self.shear, ..usual }
    }

    /// Warm-up in epochs.
    pub fn warmup(&self) -> f64 {
        self.warmup_epochs.unwrap_or(self.epochs as f64 / 20.0)
    }

    /// [`rules`] of the configuration.
    pub fn rules(&self) -> Rules {
        let depth = self.sizes().trunk.stages.iter().sum();
        let decay = self.layer_decay.unwrap_or_else(|| self.preset.layer_decay());
        rules(self.weight_decay, self.vision_lr / self.lr, decay, depth)
    }

    /// Refuses values no run can use, naming key and value.
    ///
    /// # Errors
    /// The first of them.
    pub fn check(&self) -> Result<()> {
        check_positive(&[
            ("frames", self.frames as u64),
            ("max_objects", self.max_objects as u64),
            ("prompted_frames", self.prompted_frames as u64),
            ("epochs", self.epochs),
            ("accum_iter", self.accum_iter),
            ("save_every", self.save_every),
            ("log_every", self.log_every),
        ])?;
        let whole = 0.0..=1.0;
        check_ranges(&[
            ("lr", self.lr, 1e-12..=1e3),
            ("vision_lr", self.vision_lr, 0.0..=1e3),
            ("min_lr_ratio", self.min_lr_ratio, whole.clone()),
            ("layer_decay", self.layer_decay.unwrap_or(1.0), 1e-3..=1.0),
            ("weight_decay", self.weight_decay, 0.0..=1e3),
            ("clip_grad", self.clip_grad, 1e-12..=f64::MAX),
            ("drop_path", self.drop_path.unwrap_or(0.0), 0.0..=0.99),
            ("point_prob", self.point_prob, whole.clone()),
            ("box_prob", self.box_prob, whole.clone()),
            ("from_truth_prob", self.from_truth_prob, whole.clone()),
            ("reverse", self.reverse, whole.clone()),
            ("mirror", self.mirror, whole),
            ("rotate", self.rotate, 0.0..=80.0),
            ("shear", self.shear, 0.0..=60.0),
            ("warmup_epochs", self.warmup(), 0.0..=self.epochs as f64),
        ])?;
        if self.max_objects > MAX_OBJECTS {
            return Err(Error::config("max_objects", self.max_objects, format!("at most {MAX_OBJECTS}")));
        }
        Ok(())
    }
}
