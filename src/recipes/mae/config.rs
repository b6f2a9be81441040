//! Every knob of the recipe with its default: flags, help text and config.toml are made from these structs.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::data::masks::kept;
use crate::nn::vit::VitConfig;
use crate::optim::schedule::scaled_lr;
use crate::{Error, Result};

/// Sizes of encoder and decoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sizes {
    /// Image height and width in pixels.
    pub image_size: [usize; 2],
    /// Patch side in pixels.
    pub patch_size: usize,
    /// Image channels.
    pub in_chans: usize,
    /// Encoder width.
    pub embed_dim: usize,
    /// Encoder blocks.
    pub depth: usize,
    /// Encoder heads.
    pub num_heads: usize,
    /// Hidden units of the encoder's MLPs.
    pub hidden: usize,
    /// Decoder width.
    pub decoder_embed_dim: usize,
    /// Decoder blocks.
    pub decoder_depth: usize,
    /// Decoder heads.
    pub decoder_num_heads: usize,
    /// Hidden units of the decoder's MLPs.
    pub decoder_hidden: usize,
    /// LayerNorm eps.
    pub eps: f32,
}

impl Sizes {
    /// Sizes of the encoder's trunk.
    pub fn vit(&self) -> VitConfig {
        VitConfig {
            image: self.image_size,
            patch: self.patch_size,
            channels: self.in_chans,
            dim: self.embed_dim,
            depth: self.depth,
            heads: self.num_heads,
            hidden: self.hidden,
            eps: self.eps,
        }
    }
}

/// Named sizes: the paper's three, and small ones for small machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preset {
    name: &'static str,
    image: usize,
    patch: usize,
    encoder: [usize; 3], // width, depth, heads
    decoder: [usize; 3],
}

const PRESETS: [Preset; 6] = [
    Preset { name: "micro", image: 32, patch: 4, encoder: [96, 6, 3], decoder: [64, 2, 4] },
    Preset { name: "tiny", image: 224, patch: 16, encoder: [192, 12, 3], decoder: [128, 4, 4] },
    Preset { name: "small", image: 224, patch: 16, encoder: [384, 12, 6], decoder: [256, 4, 8] },
    Preset { name: "base", image: 224, patch: 16, encoder: [768, 12, 12], decoder: [512, 8, 16] },
    Preset { name: "large", image: 224, patch: 16, encoder: [1024, 24, 16], decoder: [512, 8, 16] },
    Preset { name: "huge", image: 224, patch: 14, encoder: [1280, 32, 16], decoder: [512, 8, 16] },
];

impl Preset {
    /// All names, smallest first.
    pub fn names() -> Vec<&'static str> {
        PRESETS.iter().map(|p| p.name).collect()
    }

    /// The preset with this encoder width.
    pub fn of_width(dim: usize) -> Option<Self> {
        PRESETS.into_iter().find(|p| p.encoder[0] == dim)
    }

    /// Sizes at the preset's own image (height, width) and patch size unless others are given.
    pub fn sizes(&self, image_size: Option<[usize; 2]>, patch_size: Option<usize>) -> Sizes {
        let [embed_dim, depth, num_heads] = self.encoder;
        let [decoder_embed_dim, decoder_depth, decoder_num_heads] = self.decoder;
        Sizes {
            image_size: image_size.unwrap_or([self.image; 2]),
            patch_size: patch_size.unwrap_or(self.patch),
            in_chans: 3,
            embed_dim,
            depth,
            num_heads,
            hidden: 4 * embed_dim,
            decoder_embed_dim,
            decoder_depth,
            decoder_num_heads,
            decoder_hidden: 4 * decoder_embed_dim,
            eps: 1e-6,
        }
    }
}

impl FromStr for Preset {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self> {
        let found = PRESETS.into_iter().find(|p| p.name == name);
        found.ok_or_else(|| Error::config("preset", name, format!("one of {}", Self::names().join(", "))))
    }
}

impl Serialize for Preset {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name)
    }
}

impl<'de> Deserialize<'de> for Preset {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// `64` as a square, `64x32` as height and width.
pub fn parse_size(text: &str) -> std::result::Result<[usize; 2], String> {
    let side = |text: &str| text.parse().map_err(|_| "expected pixels, as in 64, or height x width, as in 64x32");
    match text.split_once('x') {
        Some((h, w)) => Ok([side(h)?, side(w)?]),
        None => Ok([side(text)?; 2]),
    }
}

/// Refuses the first count that is 0.
pub fn check_positive(counts: &[(&str, u64)]) -> Result<()> {
    match counts.iter().find(|(_, count)| *count == 0) {
        Some((key, _)) => Err(Error::config(*key, 0, "at least 1")),
        None => Ok(()),
    }
}

/// Refuses the first value outside its range.
pub fn check_ranges(values: &[(&str, f64, RangeInclusive<f64>)]) -> Result<()> {
    match values.iter().find(|(_, value, range)| !range.contains(value)) {
        Some((key, value, range)) => Err(Error::config(*key, value, format!("{} to {}", range.start(), range.end()))),
        None => Ok(()),
    }
}

/// Everything a pre-training run depends on: the flags of `ocellus pretrain mae` and the contents of config.toml.
///
/// Defaults are the official ones (He et al. 2021, appendix A.1).
#[derive(Clone, Debug, clap::Args, Serialize, Deserialize)]
pub struct Config {
    /// Folder of images: JPEG, PNG, WebP, with or without class folders
    #[arg(required = false, required_unless_present = "resume")]
    pub data: PathBuf,
    /// Run folder to create: config.toml, metrics.jsonl, tensorboard, checkpoints, pictures, model.safetensors
    #[arg(long, short, default_value = "runs/mae")]
    pub out: PathBuf,
    /// Sizes of the model: micro, tiny, small, base, large, huge
    #[arg(long, default_value = "base")]
    pub preset: Preset,
    /// Image side in pixels, or height x width as in 64x32 [default: the preset's]
    #[arg(long, value_parser = parse_size)]
    pub image_size: Option<[usize; 2]>,
    /// Patch side in pixels; divides both image sides [default: the preset's]
    #[arg(long)]
    pub patch_size: Option<usize>,
    /// Share of the patches that is removed
    #[arg(long, default_value_t = 0.75)]
    pub mask_ratio: f64,
    /// Predict raw pixels instead of pixels normalised per patch: poorer features, truer pictures
    #[arg(long)]
    pub raw_pixels: bool,
    /// Passes over the data
    #[arg(long, default_value_t = 800)]
    pub epochs: u64,
    /// Epochs of linear warm-up [default: 40, at most a twentieth of the epochs]
    #[arg(long)]
    pub warmup_epochs: Option<f64>,
    /// Images per forward pass
    #[arg(long, default_value_t = 64)]
    pub batch_size: usize,
    /// Forward passes per update; the gradient equals that of one batch of batch-size x accum-iter images
    #[arg(long, default_value_t = 1)]
    pub accum_iter: u64,
    /// Learning rate per 256 images; the rate used is blr x batch-size x accum-iter / 256
    #[arg(long, default_value_t = 1.5e-4)]
    pub blr: f64,
    /// Learning rate itself, instead of blr
    #[arg(long)]
    pub lr: Option<f64>,
    /// Where the cosine ends
    #[arg(long, default_value_t = 0.0)]
    pub min_lr: f64,
    /// Decoupled weight decay of matrices and tokens; biases and norms have none
    #[arg(long, default_value_t = 0.05)]
    pub weight_decay: f64,
    /// Decay of the first moment
    #[arg(long, default_value_t = 0.9)]
    pub beta1: f64,
    /// Decay of the second moment
    #[arg(long, default_value_t = 0.95)]
    pub beta2: f64,
    /// Largest global gradient norm; larger gradients are scaled down [default: no limit]
    #[arg(long)]
    pub clip_grad: Option<f64>,
    /// Smallest share of the image's area in a random crop
    #[arg(long, default_value_t = 0.2)]
    pub crop_min: f64,
    /// Probability of a mirrored crop
    #[arg(long, default_value_t = 0.5)]
    pub mirror: f64,
    /// Weights to start from: official .pth, safetensors or a Hugging Face folder
    #[arg(long)]
    pub init: Option<PathBuf>,
    /// Seed of initial values, order, crops and masks: one seed, one result
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Stop at the first unreadable image instead of counting and naming them
    #[arg(long)]
    pub strict: bool,
    /// Keep only block inputs and compute the rest again in the backward pass: less memory, a third more time
    #[arg(long)]
    pub recompute: bool,
    /// Steps between checkpoints; one is always written at the end and on Ctrl-C
    #[arg(long, default_value_t = 500)]
    pub save_every: u64,
    /// Checkpoints kept
    #[arg(long, default_value_t = 2)]
    pub keep: usize,
    /// Steps between lines of metrics.jsonl
    #[arg(long, default_value_t = 10)]
    pub log_every: u64,
    /// Class folder of unseen images: at the end, k-NN accuracy of the features against those of random weights
    #[arg(long)]
    pub knn: Option<PathBuf>,
    /// Type kernels compute in: what `--dtype` was when the run began, for the runs that continue it.
    #[arg(skip)]
    pub dtype: Option<String>,
}

impl Config {
    /// Sizes of the model.
    pub fn sizes(&self) -> Sizes {
        self.preset.sizes(self.image_size, self.patch_size)
    }

    /// The learning rate used: `lr`, or `blr` scaled by the effective batch.
    pub fn learning_rate(&self) -> f64 {
        self.lr.unwrap_or_else(|| scaled_lr(self.blr, self.batch_size * self.accum_iter as usize))
    }

    /// Warm-up in epochs.
    pub fn warmup(&self) -> f64 {
        self.warmup_epochs.unwrap_or((self.epochs as f64 / 20.0).min(40.0))
    }

    /// Refuses values no run can use, naming key and value.
    pub fn check(&self) -> Result<()> {
        check_positive(&[
            ("epochs", self.epochs),
            ("batch_size", self.batch_size as u64),
            ("accum_iter", self.accum_iter),
            ("save_every", self.save_every),
            ("log_every", self.log_every),
        ])?;
        check_ranges(&[
            ("mask_ratio", self.mask_ratio, 0.0..=1.0),
            ("crop_min", self.crop_min, 1e-3..=1.0),
            ("mirror", self.mirror, 0.0..=1.0),
            ("beta1", self.beta1, 0.0..=0.999_999),
            ("beta2", self.beta2, 0.0..=0.999_999_9),
            ("blr", self.blr, 0.0..=1e3),
            ("lr", self.learning_rate(), 0.0..=1e3),
            ("min_lr", self.min_lr, 0.0..=1e3),
            ("weight_decay", self.weight_decay, 0.0..=1e3),
            ("warmup_epochs", self.warmup(), 0.0..=self.epochs as f64),
            ("clip_grad", self.clip_grad.unwrap_or(1.0), 1e-12..=f64::MAX),
        ])?;
        let patches = self.sizes().vit().patches()?;
        let keep = kept(patches, self.mask_ratio)?;
        if keep == 0 || keep == patches {
            let expected = format!("a ratio that keeps 1 to {} of the {patches} patches, not {keep}", patches - 1);
            return Err(Error::config("mask_ratio", self.mask_ratio, expected));
        }
        Ok(())
    }
}
