//! Every knob of the recipe with its default: flags, help text and config.toml are made from these structs.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::block::swiglu_hidden;
use super::model::{LossSettings, Targets};
use super::preset::{Preset, Usual};
use super::schedule::{Curve, Schedules, scaled_lr};
use super::{FfnKind, HeadSizes, Sizes, Start};
use crate::data::block_masking::BlockMasking;
use crate::data::multi_crop::{BlurCompat, MultiCrop};
use crate::ops::adamw::Hyper;
use crate::optim::Rules;
use crate::recipes::mae::config::{check_positive, check_ranges};
use crate::{Error, Result};

/// Everything a run depends on: the flags of `ocellus pretrain dinov2` and `distill`, and the contents of config.toml.
///
/// Defaults are the official ones (`ssl_default_config.yaml`, for large and giant `vitl14.yaml` and `vitg14.yaml`), times counted
/// in shares of the run, but for these: Sinkhorn-Knopp and a head for patches of its own for all presets.
#[derive(Clone, Debug, clap::Args, Serialize, Deserialize)]
pub struct Config {
    /// Folder of images: JPEG, PNG, WebP, with or without class folders
    #[arg(required = false, required_unless_present = "resume")]
    pub data: PathBuf,
    /// Run folder to create: config.toml, metrics.jsonl, tensorboard, checkpoints, pictures, model.safetensors
    #[arg(long, short, default_value = "runs/dinov2")]
    pub out: PathBuf,
    /// Sizes of the model: micro, tiny, small, base, large, giant
    #[arg(long, default_value = "base")]
    pub preset: Preset,
    /// Side of the global crops in pixels [default: the preset's]
    #[arg(long)]
    pub image_size: Option<usize>,
    /// Side of the local crops in pixels [default: the preset's]
    #[arg(long)]
    pub local_size: Option<usize>,
    /// Patch side in pixels; divides both crops [default: the preset's]
    #[arg(long)]
    pub patch_size: Option<usize>,
    /// Register tokens; the official models have 0 or 4
    #[arg(long, default_value_t = 0)]
    pub registers: usize,
    /// Local crops of an image
    #[arg(long, default_value_t = 8)]
    pub local_crops: usize,
    /// Prototypes of the heads [default: the preset's]
    #[arg(long)]
    pub prototypes: Option<usize>,
    /// Width of the heads' bottleneck [default: the preset's]
    #[arg(long)]
    pub bottleneck: Option<usize>,
    /// That of the head for patches [default: 256 for large and giant, else bottleneck]
    #[arg(long)]
    pub ibot_bottleneck: Option<usize>,
    /// Hidden units of the heads [default: the preset's]
    #[arg(long)]
    pub head_hidden: Option<usize>,
    /// Linear layers of the heads before the prototypes [default: 3]
    #[arg(long)]
    pub head_layers: Option<usize>,
    /// One head for class tokens and patches instead of one for each
    #[arg(long)]
    pub shared_head: bool,
    /// What keeps the teacher's targets spread: Sinkhorn-Knopp, a running mean, or nothing
    #[arg(long, value_enum, default_value_t = Targets::Sinkhorn)]
    pub targets: Targets,
    /// Weight of the loss on class tokens
    #[arg(long, default_value_t = 1.0)]
    pub dino_weight: f64,
    /// Weight of KoLeo, which spreads features; 0 leaves it out
    #[arg(long, default_value_t = 0.1)]
    pub koleo_weight: f64,
    /// Weight of the loss on hidden patches; 0 leaves masks out
    #[arg(long, default_value_t = 1.0)]
    pub ibot_weight: f64,
    /// Share of the global crops that have hidden patches
    #[arg(long, default_value_t = 0.5)]
    pub mask_probability: f64,
    /// Least share of hidden patches in such a crop
    #[arg(long, default_value_t = 0.1)]
    pub mask_min: f64,
    /// Largest share of hidden patches
    #[arg(long, default_value_t = 0.5)]
    pub mask_max: f64,
    /// Share of the sequences that each branch of a block leaves out [default: 0.3; 0.4 for large and giant; 0 for micro and in
    /// distillation]
    #[arg(long)]
    pub drop_path: Option<f64>,
    /// First value of LayerScale [default: 1e-5; 1 for micro and tiny, whose short runs would spend their time on leaving 0]
    #[arg(long)]
    pub layer_scale: Option<f32>,
    /// Standard deviation of the linear layers' first weights [default: 0.02; for micro and tiny Xavier's, for the same reason]
    #[arg(long)]
    pub weight_std: Option<f64>,
    /// Passes over the data
    #[arg(long, default_value_t = 100)]
    pub epochs: u64,
    /// Share of the run in which the learning rate rises [default: 0.1; 0.16 for large and giant]
    #[arg(long)]
    pub warmup: Option<f64>,
    /// Images per update
    #[arg(long, default_value_t = 64)]
    pub batch_size: usize,
    /// Learning rate for 1024 images; the rate used is base-lr x sqrt(batch-size / 1024) [default: 4e-3; 2e-4 for large and
    /// giant; in distillation that of 1e-3 for 2048 images]
    #[arg(long)]
    pub base_lr: Option<f64>,
    /// Learning rate itself, instead of base-lr
    #[arg(long)]
    pub lr: Option<f64>,
    /// Where the cosine of the learning rate ends
    #[arg(long, default_value_t = 1e-6)]
    pub min_lr: f64,
    /// Decoupled weight decay at the start; biases, norms and layer scales have none
    #[arg(long, default_value_t = 0.04)]
    pub weight_decay: f64,
    /// Weight decay at the end [default: 0.4; 0.2 for large and giant, 0.04 for micro]
    #[arg(long)]
    pub weight_decay_end: Option<f64>,
    /// Factor of the learning rate from one block to the one before it [default: 0.9; 1 for large, giant and micro]
    #[arg(long)]
    pub layer_decay: Option<f64>,
    /// Factor of the patch embedding's learning rate [default: 0.2; 1 for micro]
    #[arg(long)]
    pub patch_embed_lr: Option<f64>,
    /// Largest gradient norm of backbone and heads, each on its own; inf for no limit
    #[arg(long, default_value_t = 3.0)]
    pub clip_grad: f64,
    /// Share of the teacher that stays in an update, at the start; it ends at 1 [default: 0.992; 0.994 for large and giant]
    #[arg(long)]
    pub momentum: Option<f64>,
    /// Temperature of the teacher at the start
    #[arg(long, default_value_t = 0.04)]
    pub teacher_temp_start: f64,
    /// Temperature of the teacher after its warm-up
    #[arg(long, default_value_t = 0.07)]
    pub teacher_temp: f64,
    /// Share of the run in which the teacher's temperature rises [default: 0.3; 0.06 for large and giant]
    #[arg(long)]
    pub teacher_temp_warmup: Option<f64>,
    /// Temperature of the student
    #[arg(long, default_value_t = 0.1)]
    pub student_temp: f64,
    /// Share of the run in which the prototypes rest [default: 0.01; 0.002 for large and giant]
    #[arg(long)]
    pub freeze_last_layer: Option<f64>,
    /// Smallest share of the image's area in a global crop
    #[arg(long, default_value_t = 0.32)]
    pub global_min: f64,
    /// Smallest share in a local crop; the largest is the smallest of a global one
    #[arg(long, default_value_t = 0.05)]
    pub local_min: f64,
    /// Probability of a mirrored crop
    #[arg(long, default_value_t = 0.5)]
    pub mirror: f64,
    /// Probability that the colours of a crop change
    #[arg(long, default_value_t = 0.8)]
    pub jitter: f64,
    /// Probability that bright values are inverted in the second global crop; 0 for bright things on a dark ground
    #[arg(long, default_value_t = 0.2)]
    pub solarize: f64,
    /// How often crops are blurred, by up to 2 pixels: as the released models saw it, as it was meant, or never, which suits
    /// small images
    #[arg(long, value_enum, default_value_t = BlurCompat::Official)]
    pub blur: BlurCompat,
    /// Start from a run of this recipe or upstream's teacher checkpoint, heads and all (for a phase at a higher resolution), or
    /// from a backbone in official or Hugging Face weights. Width, depth, feed-forward kind, registers and patch size are those of
    /// the weights
    #[arg(long)]
    pub init: Option<PathBuf>,
    /// Updates in a row that a loss or gradient that is not finite may cost before the run ends
    #[arg(long, default_value_t = 2)]
    pub skip_non_finite: u64,
    /// Bad looks in a row after which a collapsed run is stopped; 0 never stops it. It is looked at with every log line
    #[arg(long, default_value_t = 5)]
    pub collapse_patience: u32,
    /// Seed of initial values, order, crops, masks and stochastic depth: one seed, one result
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
    /// Steps between lines of metrics.jsonl, and looks for a collapse
    #[arg(long, default_value_t = 10)]
    pub log_every: u64,
    /// Class folder of unseen images: at the end, k-NN accuracy of the features against those of random weights
    #[arg(long)]
    pub knn: Option<PathBuf>,
    /// A run of this recipe whose teacher is distilled.
    #[arg(skip)]
    pub teacher: Option<PathBuf>,
    /// Type kernels compute in: what `--dtype` was when the run began, for the runs that continue it.
    #[arg(skip)]
    pub dtype: Option<String>,
}

/// Learning rate of distillation for 2048 images (arXiv 2304.07193, table 16).
const DISTILL_LR: f64 = 1e-3;

impl Config {
    /// Sizes of the backbone.
    pub fn sizes(&self) -> Sizes {
        let p = &self.preset;
        let [embed_dim, depth, num_heads] = p.sizes;
        let hidden = 4 * embed_dim;
        Sizes {
            image_size: self.image_size.unwrap_or(p.image),
            patch_size: self.patch_size.unwrap_or(p.patch),
            embed_dim,
            depth,
            num_heads,
            ffn: p.ffn,
            hidden: if p.ffn == FfnKind::Mlp { hidden } else { swiglu_hidden(hidden) },
            registers: self.registers,
            // As the released models, without and with registers.
            interpolate_offset: if self.registers == 0 { 0.1 } else { 0.0 },
            interpolate_antialias: self.registers > 0,
        }
    }

    /// Sizes of the head for class tokens and, if it is another, that for patches.
    pub fn heads(&self) -> (HeadSizes, Option<HeadSizes>) {
        let [hidden, bottleneck, prototypes] = self.preset.head;
        let (bottleneck, layers) = (self.bottleneck.unwrap_or(bottleneck), self.head_layers.unwrap_or(3));
        let head = HeadSizes {
            // A single layer has no hidden units: what stands there is what sizes read from weights have.
            hidden: if layers == 1 { bottleneck } else { self.head_hidden.unwrap_or(hidden) },
            bottleneck,
            prototypes: self.prototypes.unwrap_or(prototypes),
            layers,
        };
        let usual = self.preset.usual().ibot_bottleneck.filter(|_| self.bottleneck.is_none());
        let bottleneck = self.ibot_bottleneck.or(usual).unwrap_or(bottleneck);
        let patches = HeadSizes { bottleneck, hidden: if layers == 1 { bottleneck } else { head.hidden }, ..head };
        (head, (!self.shared_head && self.ibot_weight > 0.0).then_some(patches))
    }

    /// What the loss is made of.
    pub fn loss(&self) -> LossSettings {
        LossSettings {
            targets: self.targets,
            student_temp: self.student_temp,
            dino: self.dino_weight,
            koleo: self.koleo_weight,
            ibot: self.ibot_weight,
        }
    }

    /// Whether patches are hidden from the student.
    pub fn masks(&self) -> bool {
        self.ibot_weight > 0.0 && self.teacher.is_none()
    }

    /// Rate of stochastic depth.
    pub fn drop_path(&self) -> f64 {
        self.drop_path.unwrap_or(if self.teacher.is_some() { 0.0 } else { self.preset.usual().drop_path })
    }

    /// Values that the student starts with.
    pub fn start(&self) -> Start {
        let usual = if self.preset.is_small() { Start::SMALL } else { Start::OFFICIAL };
        Start { gamma: self.layer_scale.unwrap_or(usual.gamma), weight_std: self.weight_std.or(usual.weight_std) }
    }

    /// The learning rate used.
    pub fn learning_rate(&self) -> f64 {
        let base = if self.teacher.is_some() { DISTILL_LR * 2f64.sqrt().recip() } else { self.preset.usual().base_lr };
        self.lr.unwrap_or_else(|| scaled_lr(self.base_lr.unwrap_or(base), self.batch_size))
    }

    /// The views of an image.
    pub fn multi_crop(&self) -> MultiCrop {
        MultiCrop {
            global_size: self.sizes().image_size,
            local_size: self.local_size.unwrap_or(self.preset.local),
            locals: self.local_crops,
            global_scale: (self.global_min, 1.0),
            local_scale: (self.local_min, self.global_min),
            mirror: self.mirror,
            jitter: self.jitter,
            blur: self.blur,
            solarize: self.solarize,
        }
    }

    /// What decides hidden patches.
    ///
    /// # Errors
    /// When a crop has no whole patch.
    pub fn masking(&self) -> Result<BlockMasking> {
        let sizes = self.sizes();
        BlockMasking::new([sizes.image_size; 2], sizes.patch_size)
    }

    /// The preset's values where none are set.
    fn usual(&self) -> Usual {
        let usual = self.preset.usual();
        Usual {
            warmup: self.warmup.unwrap_or(usual.warmup),
            layer_decay: self.layer_decay.unwrap_or(usual.layer_decay),
            patch_embed_lr: self.patch_embed_lr.unwrap_or(usual.patch_embed_lr),
            weight_decay_end: self.weight_decay_end.unwrap_or(usual.weight_decay_end),
            momentum: self.momentum.unwrap_or(usual.momentum),
            teacher_temp_warmup: self.teacher_temp_warmup.unwrap_or(usual.teacher_temp_warmup),
            freeze_last_layer: self.freeze_last_layer.unwrap_or(usual.freeze_last_layer),
            ..usual
        }
    }

    /// The schedules of a run of so many updates.
    pub fn schedules(&self, total: u64) -> Schedules {
        let share = |part: f64| (part * total as f64).round() as u64;
        let (lr, usual) = (self.learning_rate(), self.usual());
        Schedules {
            lr: Curve { start: 0.0, base: lr, end: self.min_lr, warmup: share(usual.warmup), total },
            weight_decay: Curve::cosine(self.weight_decay, usual.weight_decay_end, total),
            momentum: Curve::cosine(usual.momentum, 1.0, total),
            teacher_temp: Curve::line(self.teacher_temp_start, self.teacher_temp, share(usual.teacher_temp_warmup)),
            freeze_last_layer: share(usual.freeze_last_layer),
        }
    }

    /// Constants of AdamW.
    pub fn hyper(&self) -> Hyper {
        Hyper { beta1: 0.9, beta2: 0.999, eps: 1e-8 }
    }

    /// Factors of the parameters; the schedule's decay multiplies a weight decay of 1.
    pub fn rules(&self, depth: usize) -> Rules {
        let usual = self.usual();
        let mut rules = Rules::self_supervised(1.0, usual.layer_decay, depth, usual.patch_embed_lr);
        if self.teacher.is_some() {
            rules.average = Some(("student.", "average."));
        }
        rules
    }

    /// Refuses values no run can use, naming key and value.
    ///
    /// # Errors
    /// The first that it meets.
    pub fn check(&self) -> Result<()> {
        let ((head, patches), usual) = (self.heads(), self.usual());
        check_positive(&[
            ("epochs", self.epochs),
            ("batch_size", self.batch_size as u64),
            ("save_every", self.save_every),
            ("log_every", self.log_every),
            ("head_hidden", head.hidden as u64),
            ("head_layers", head.layers as u64),
            ("bottleneck", head.bottleneck as u64),
            ("ibot_bottleneck", patches.map_or(1, |head| head.bottleneck as u64)),
            ("prototypes", head.prototypes as u64),
        ])?;
        let tiny = 1e-6;
        check_ranges(&[
            ("dino_weight", self.dino_weight, 0.0..=1e6),
            ("koleo_weight", self.koleo_weight, 0.0..=1e6),
            ("ibot_weight", self.ibot_weight, 0.0..=1e6),
            ("mask_probability", self.mask_probability, 0.0..=1.0),
            ("mask_min", self.mask_min, 0.0..=1.0),
            ("mask_max", self.mask_max, self.mask_min..=1.0),
            ("drop_path", self.drop_path(), 0.0..=0.999),
            ("layer_scale", f64::from(self.start().gamma), 0.0..=1e3),
            ("weight_std", self.weight_std.unwrap_or(tiny), tiny..=1e3),
            ("warmup", usual.warmup, 0.0..=1.0),
            ("lr", self.learning_rate(), 0.0..=1e3),
            ("min_lr", self.min_lr, 0.0..=1e3),
            ("weight_decay", self.weight_decay, 0.0..=1e3),
            ("weight_decay_end", usual.weight_decay_end, 0.0..=1e3),
            ("layer_decay", usual.layer_decay, tiny..=1.0),
            ("patch_embed_lr", usual.patch_embed_lr, 0.0..=1e3),
            ("clip_grad", self.clip_grad, 1e-12..=f64::INFINITY),
            ("momentum", usual.momentum, 0.0..=1.0),
            ("teacher_temp_start", self.teacher_temp_start, 1e-3..=1e3),
            ("teacher_temp", self.teacher_temp, 1e-3..=1e3),
            ("teacher_temp_warmup", usual.teacher_temp_warmup, 0.0..=1.0),
            ("student_temp", self.student_temp, 1e-3..=1e3),
            ("freeze_last_layer", usual.freeze_last_layer, 0.0..=1.0),
            ("mirror", self.mirror, 0.0..=1.0),
            ("jitter", self.jitter, 0.0..=1.0),
            ("solarize", self.solarize, 0.0..=1.0),
            ("global_min", self.global_min, 1e-3..=1.0),
            ("local_min", self.local_min, 1e-4..=self.global_min),
        ])?;
        if self.teacher.is_some() {
            let given = [("prototypes", self.prototypes.is_some()), ("shared_head", self.shared_head)];
            if let Some((key, _)) = given.iter().find(|(_, given)| *given) {
                return Err(Error::config(*key, "given", "not given: the student has the teacher's"));
            }
        }
        if self.dino_weight == 0.0 {
            return Err(Error::config("dino_weight", 0, "above 0: the class token's head would get no gradient"));
        }
        let (sizes, crops) = (self.sizes(), self.multi_crop());
        crops.check()?;
        sizes.grid()?;
        if self.local_crops > 0 {
            let expected = format!("a multiple of the patch size {}", sizes.patch_size);
            sizes
                .grid_of([crops.local_size; 2])
                .map_err(|_| Error::config("local_size", crops.local_size, expected))?;
        }
        if self.masks() && (2 * self.batch_size) as f64 * self.mask_probability < 1.0 {
            let expected = format!("at least {}: one crop of a batch has hidden patches", 0.5 / self.batch_size as f64);
            return Err(Error::config("mask_probability", self.mask_probability, expected));
        }
        if self.masks() && ((sizes.grid()?.0.pow(2)) as f64 * self.mask_max) < 1.0 {
            return Err(Error::config("mask_max", self.mask_max, "a share of at least one patch"));
        }
        Ok(())
    }

    /// What does not suit a data set of so many images: said at the start, not found out after days. `prototypes`: of the
    /// student's head.
    pub fn advice(&self, images: usize, prototypes: usize) -> Vec<String> {
        let batch = self.batch_size;
        let mut all = vec![];
        // In distillation they are the teacher's.
        if self.teacher.is_none() && prototypes > images {
            all.push(format!(
                "{prototypes} prototypes for {images} images: most can never stand for one; try --prototypes {}",
                (images / 8).next_power_of_two().max(64)
            ));
        }
        // Official runs have 16 to 21 prototypes for each class token of a global batch.
        if self.teacher.is_none() && self.targets == Targets::Sinkhorn && prototypes > 64 * 2 * batch {
            all.push(format!(
                "{prototypes} prototypes for {} class tokens a batch: Sinkhorn-Knopp gives each an even share of the batch, \
                 so targets are spread over {} prototypes each; try --prototypes {} or a larger batch",
                2 * batch,
                prototypes / (2 * batch),
                (32 * batch).next_power_of_two()
            ));
        }
        if batch < 2 && self.koleo_weight > 0.0 {
            all.push("KoLeo spreads the images of a batch, and a batch of 1 has nothing to spread".into());
        }
        if batch < 4 {
            all.push(format!("a batch of {batch}: targets are balanced over {} class tokens only", 2 * batch));
        }
        all
    }
}
