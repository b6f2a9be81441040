//! Every knob of a pre-training run with its default: flags, help text and config.toml are made from this struct.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Preset, Sizes, load};
use crate::data::pairs::Columns;
use crate::data::text::{Eos, Lower, Punctuation, Settings};
use crate::data::transforms::Interpolation;
use crate::optim::Rules;
use crate::recipes::mae::config::{check_positive, check_ranges, parse_size};
use crate::{Error, Result};

/// What pairs are compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Loss {
    /// Every pair by itself: SigLIP.
    Sigmoid,
    /// Every row and column as a whole: CLIP.
    Softmax,
}

/// What takes the steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Optimizer {
    /// Two moments for each weight.
    #[value(name = "adamw")]
    AdamW,
    /// Rows and columns of the second moment, as SigLIP was trained: the same result in less memory.
    Adafactor,
    /// The sign of a mean gradient, with one moment; its defaults are those of SigLiT on four chips.
    Lion,
}

/// Where the bias of the logits starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BiasInit {
    /// At the logarithm of the odds of a positive in a batch of n, `ln(1 / (n - 1))`.
    Auto,
    /// At a number.
    At(f64),
}

impl BiasInit {
    /// For a batch of `n`.
    pub fn value(self, n: usize) -> f64 {
        match self {
            Self::Auto => -(n.saturating_sub(1).max(1) as f64).ln(),
            Self::At(value) => value,
        }
    }
}

impl FromStr for BiasInit {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let value = text.parse().ok().filter(|v: &f64| v.is_finite());
        value.map(Self::At).ok_or_else(|| "expected a number or auto".to_string())
    }
}

impl fmt::Display for BiasInit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::At(value) => write!(f, "{value}"),
        }
    }
}

impl Serialize for BiasInit {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BiasInit {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Everything a pre-training run depends on: the flags of `ocellus pretrain siglip` and the contents of config.toml.
///
/// Defaults are those of SigLIP (Zhai et al. 2023, section 4 and appendix C). Its decay of 1e-4 is not multiplied by the
/// learning rate of 1e-3; that of AdamW is, so the same decay is 0.1 here. Lion's 1e-7 beside a rate of 1e-4 is 1e-3 in the same way.
#[derive(Clone, Debug, clap::Args, Serialize, Deserialize)]
pub struct Config {
    /// Image-caption pairs: a folder of .tar shards, one .tar, a .tsv, .csv or .jsonl table, COCO captions .json, or a folder
    /// of images with captions beside them
    #[arg(required = false, required_unless_present = "resume")]
    pub data: PathBuf,
    /// Run folder to create: config.toml, metrics.jsonl, tensorboard, checkpoints, model.safetensors
    #[arg(long, short, default_value = "runs/siglip")]
    pub out: PathBuf,
    /// Tokenizer: a sentencepiece .model or a tokenizer.json, as `ocellus tokenizer train` makes it
    #[arg(long, required = false, required_unless_present = "resume")]
    pub tokenizer: PathBuf,
    /// Key of the caption in .json and .jsonl files, and the name of a table's column [default: caption; in tables and .jsonl
    /// files also title, text]
    #[arg(long)]
    pub caption: Option<String>,
    /// Key of the image file in .jsonl files, and the name of a table's column [default: the usual ones]
    #[arg(long)]
    pub image_column: Option<String>,
    /// Folder from which the paths of a table or of COCO captions count [default: that of the file]
    #[arg(long, value_name = "FOLDER")]
    pub images: Option<PathBuf>,
    /// Sizes of the model: micro, tiny, small, base, large, so400m, giant-opt
    #[arg(long, default_value = "base", conflicts_with = "init")]
    pub preset: Preset,
    /// Image side in pixels [default: the preset's, or that of --init]
    #[arg(long, value_parser = parse_size)]
    pub image_size: Option<[usize; 2]>,
    /// Patch side in pixels [default: the preset's]
    #[arg(long, conflicts_with = "init")]
    pub patch_size: Option<usize>,
    /// Tokens of a caption, end and padding included [default: the preset's]
    #[arg(long, conflicts_with = "init")]
    pub context_len: Option<usize>,
    /// Lower-casing of captions
    #[arg(long, value_enum, default_value = "ascii", conflicts_with = "init")]
    pub lower: Lower,
    /// Punctuation of captions
    #[arg(long, value_enum, default_value = "keep", conflicts_with = "init")]
    pub punctuation: Punctuation,
    /// Id that fills short captions up: 1, the end-of-text id, in SigLIP, 0 in SigLIP 2
    #[arg(long, default_value_t = 1, conflicts_with = "init")]
    pub pad: u32,
    /// Loss: sigmoid (SigLIP) or softmax (CLIP)
    #[arg(long, value_enum, default_value = "sigmoid")]
    pub loss: Loss,
    /// Where the scale of the logits starts [default: 10, for softmax 1/0.07]
    #[arg(long, conflicts_with = "init")]
    pub scale_init: Option<f64>,
    /// Where the bias of the logits starts; auto: the logarithm of the odds of a positive, better than -10 in small batches
    #[arg(long, default_value = "-10", allow_hyphen_values = true, conflicts_with = "init")]
    pub bias_init: BiasInit,
    /// Passes over the data
    #[arg(long, default_value_t = 30)]
    pub epochs: u64,
    /// Updates of linear warm-up [default: 100 or 3 % of all, whichever is more, at most half of all]
    #[arg(long)]
    pub warmup_steps: Option<u64>,
    /// Pairs per forward pass
    #[arg(long, default_value_t = 64)]
    pub batch_size: usize,
    /// Forward passes per update; the loss is that of all pairs of batch-size x accum-iter images, its gradient exact
    #[arg(long, default_value_t = 1)]
    pub accum_iter: u64,
    /// Learning rate at the end of the warm-up, whatever the batch [default: 1e-3, of lion 1e-4]
    #[arg(long)]
    pub lr: Option<f64>,
    /// Where the cosine ends
    #[arg(long, default_value_t = 0.0)]
    pub min_lr: f64,
    /// Decoupled weight decay of matrices; embeddings, positions, biases and norms have none [default: 0.1, of lion 1e-3]
    #[arg(long)]
    pub weight_decay: Option<f64>,
    /// What takes the steps
    #[arg(long, value_enum, default_value = "adamw")]
    pub optimizer: Optimizer,
    /// Decay of the first moment
    #[arg(long, default_value_t = 0.9)]
    pub beta1: f64,
    /// Decay of the second moment, of adafactor the largest, of lion that of the one it has [default: 0.95, of lion 0.99]
    #[arg(long)]
    pub beta2: Option<f64>,
    /// Largest global gradient norm; larger gradients are scaled down
    #[arg(long, default_value_t = 1.0)]
    pub clip_grad: f64,
    /// Smallest share of the image's area in a random crop [default: no crop, the whole image squashed to the size]
    #[arg(long)]
    pub crop_min: Option<f64>,
    /// Probability of a mirrored crop; captions may tell left from right
    #[arg(long, default_value_t = 0.0)]
    pub mirror: f64,
    /// How the whole image is resized
    #[arg(long, value_enum, default_value = "bicubic")]
    pub interpolation: Interpolation,
    /// Weights of both towers to start from: a run, a Hugging Face folder, safetensors, .npz; sizes, what happens to captions and
    /// the numbers of the logits are theirs
    #[arg(long)]
    pub init: Option<PathBuf>,
    /// Weights of the image tower alone to start from: SigLIP's, or the encoder of a masked autoencoder
    #[arg(long, conflicts_with = "init")]
    pub init_image: Option<PathBuf>,
    /// Do not train what --init or --init-image gave the image tower (LiT)
    #[arg(long)]
    pub freeze_image: bool,
    /// Factor of the image tower's learning rate: 0.1 for a pre-trained one
    #[arg(long, default_value_t = 1.0)]
    pub image_lr_scale: f64,
    /// Weight decay of the image tower: 0 for a pre-trained one [default: that of all]
    #[arg(long)]
    pub image_weight_decay: Option<f64>,
    /// Seed of initial values, order, captions and crops: one seed, one result
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Stop at the first pair that cannot be used instead of counting and naming them
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
    /// Class folders of images: at the end of each epoch, the accuracy of zero-shot classification
    #[arg(long)]
    pub zero_shot: Option<PathBuf>,
    /// Names of the classes, as for `ocellus eval zero-shot` [default: the folders' names]
    #[arg(long, requires = "zero_shot")]
    pub classes: Option<PathBuf>,
    /// Other image-caption pairs: at the end of each epoch, how often an image finds its caption and a caption its image
    #[arg(long)]
    pub retrieval: Option<PathBuf>,
    /// Type kernels compute in: what `--dtype` was when the run began, for the runs that continue it.
    #[arg(skip)]
    pub dtype: Option<String>,
}

impl Config {
    /// Sizes of a model with as many token ids as the tokenizer has.
    pub fn sizes(&self, vocab_size: usize) -> Sizes {
        let sizes = self.preset.sizes(self.image_size, self.patch_size);
        Sizes { vocab_size, context_len: self.context_len.unwrap_or(sizes.context_len), ..sizes }
    }

    /// What happens to captions, cut or padded to `len` ids.
    pub fn text(&self, len: usize) -> Settings {
        Settings { max_len: len, eos: Eos::Sticky, pad: self.pad, lower: self.lower, punctuation: self.punctuation }
    }

    /// Where images and captions are found. Flags of its own: clap has no nested group beside --resume.
    pub fn columns(&self) -> Columns {
        let Self { caption, image_column, images, .. } = self.clone();
        Columns { caption, image_column, images }
    }

    /// Pairs of an update.
    pub fn effective_batch(&self) -> usize {
        self.batch_size.saturating_mul(self.accum_iter as usize)
    }

    /// Where the scale of the logits starts.
    pub fn scale(&self) -> f64 {
        self.scale_init.unwrap_or(if self.loss == Loss::Sigmoid { 10.0 } else { 1.0 / 0.07 })
    }

    /// The learning rate used.
    pub fn learning_rate(&self) -> f64 {
        self.lr.unwrap_or(if self.optimizer == Optimizer::Lion { 1e-4 } else { 1e-3 })
    }

    /// The weight decay used, which the learning rate multiplies.
    pub fn weight_decay(&self) -> f64 {
        self.weight_decay.unwrap_or(if self.optimizer == Optimizer::Lion { 1e-3 } else { 0.1 })
    }

    /// The decay of the second moment used.
    pub fn beta2(&self) -> f64 {
        self.beta2.unwrap_or(if self.optimizer == Optimizer::Lion { 0.99 } else { 0.95 })
    }

    /// Updates of warm-up among `total`.
    pub fn warmup(&self, total: u64) -> u64 {
        self.warmup_steps.unwrap_or_else(|| ((u128::from(total) * 3 / 100) as u64).max(100).min(total / 2))
    }

    /// Learning rates and decays.
    pub fn rules(&self) -> Rules {
        let image = self.image_weight_decay.unwrap_or(self.weight_decay());
        Rules::image_text(self.weight_decay(), self.image_lr_scale, image)
    }

    /// Refuses values no run can use, naming key and value. Sizes only where they do not come from weights to start from.
    ///
    /// # Errors
    /// [`Error::Config`] with the first one.
    pub fn check(&self) -> Result<()> {
        check_positive(&[
            ("epochs", self.epochs),
            ("batch_size", self.batch_size as u64),
            ("accum_iter", self.accum_iter),
            ("save_every", self.save_every),
            ("log_every", self.log_every),
        ])?;
        check_ranges(&[
            ("scale_init", self.scale(), 1e-6..=1e6),
            ("bias_init", self.bias_init.value(self.effective_batch()), -1e6..=1e6),
            ("lr", self.learning_rate(), 0.0..=1e3),
            ("min_lr", self.min_lr, 0.0..=1e3),
            ("weight_decay", self.weight_decay(), 0.0..=1e3),
            ("image_weight_decay", self.image_weight_decay.unwrap_or(0.0), 0.0..=1e3),
            ("image_lr_scale", self.image_lr_scale, 0.0..=1e3),
            ("beta1", self.beta1, 0.0..=0.999_999),
            ("beta2", self.beta2(), 0.0..=0.999_999_9),
            ("clip_grad", self.clip_grad, 1e-12..=f64::INFINITY),
            ("crop_min", self.crop_min.unwrap_or(1.0), 1e-3..=1.0),
            ("mirror", self.mirror, 0.0..=1.0),
        ])?;
        if self.mirror > 0.0 && self.crop_min.is_none() {
            return Err(Error::config("mirror", self.mirror, "0 without --crop-min: only crops are mirrored"));
        }
        if self.freeze_image && self.init.is_none() && self.init_image.is_none() {
            let expected = "--init or --init-image beside it: a tower that knows nothing cannot stay as it is";
            return Err(Error::config("freeze_image", true, expected));
        }
        if self.init.is_none() {
            let sizes = self.sizes(1);
            sizes.check()?;
            load::to_hf(&sizes)?; // how the weights are written at the end
        }
        Ok(())
    }
}
