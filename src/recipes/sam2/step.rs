//! One training step: a clip, simulated prompts and corrections, the loss of all answers.

use super::clicks::{self, BoxNoise};
use super::clip::{Clip, Need};
use super::load;
use super::model::Sam2;
use super::pretrain::{Config, unused};
use super::prompt::{Label, Points};
use crate::checkpoint::StateDict;
use crate::data::augment::{IMAGENET_MEAN, IMAGENET_STD};
use crate::data::binary_mask::BinaryMask;
use crate::data::{Batch, Image, Purpose, Stream};
use crate::nn::{Builder, Drops, Module};
use crate::ops::mask_loss::Weights;
use crate::optim::Rules;
use crate::recipes::{Found, Inputs, Numbers, Task};
use crate::{DType, Device, Error, Grads, Result, Tape, Tensor};

/// Draws what a model does.
pub type Draw = Box<dyn Fn(&Sam2) -> Result<Image> + Send>;

/// Training of one model.
pub struct Pretrain {
    /// The model.
    pub model: Sam2,
    config: Config,
    weights: Weights,
    pictures: Option<Draw>,
}

/// A clip on the device and what decides its prompts.
pub struct PretrainInputs {
    clip: Clip,
    /// Objects of each frame on the host.
    truth: Vec<Vec<BinaryMask>>,
    drops: Vec<Drops>,
    rng: Stream,
}

impl Inputs for PretrainInputs {
    fn tensors(&mut self) -> Vec<&mut Tensor> {
        let mut all = vec![&mut self.clip.images];
        all.extend(&mut self.clip.targets);
        all
    }
}

impl Pretrain {
    /// A model with initial weights. `pictures`: draws what it does, with every checkpoint.
    ///
    /// # Errors
    /// When the configuration cannot be used.
    pub fn new(config: &Config, device: &Device, dtype: DType, pictures: Option<Draw>) -> Result<Self> {
        config.check()?;
        let builder = Builder::new(device, dtype, config.seed);
        let mut model = Sam2::new(&builder, &config.sizes(), &config.options())?;
        model.set_recompute(config.recompute);
        model.no_mem_pos_enc.trainable = false; // in the checkpoints, used by nothing
        Ok(Self { model, config: config.clone(), weights: Weights::default(), pictures })
    }

    /// Frames that get a prompt and frames that are corrected; whether prompts are points.
    fn plan(&self, rng: &mut Stream, frames: usize) -> (Vec<usize>, Vec<usize>, bool) {
        let by_points = rng.chance(self.config.point_prob) || frames == 1;
        let mut others: Vec<usize> = (1..frames).collect();
        rng.shuffle(&mut others);
        let most = self.config.prompted_frames.min(frames);
        // Masks on every frame would leave nothing to learn.
        let first = (1 + rng.below(most)).min(if by_points { frames } else { frames - 1 });
        let mut prompted = vec![0];
        prompted.extend(others.drain(..first - 1));
        if !by_points {
            return (prompted, vec![], false);
        }
        let most = self.config.corrected_frames.min(frames);
        let count = if most > first { first + rng.below(most - first + 1) } else { most };
        let corrected = prompted.iter().chain(&others).take(count).copied().collect();
        (prompted, corrected, true)
    }
}

impl Task for Pretrain {
    type Value = u8;
    type Inputs = PretrainInputs;

    fn module(&mut self) -> &mut dyn Module {
        &mut self.model
    }

    fn weights(&self) -> Result<StateDict> {
        let mut weights = StateDict::from_params(self.model.params())?;
        load::mark(&mut weights, &self.model)?;
        Ok(weights)
    }

    fn inputs(&mut self, batch: &Batch<u8>) -> Result<PretrainInputs> {
        let augment = self.config.augment();
        let (side, frames) = (augment.side, augment.frames);
        let pixels = side * side;
        if batch.images.len() != augment.values() {
            let expected = format!("{}: one clip", augment.values());
            return Err(Error::argument("sam2", "batch", "length", batch.images.len().to_string(), expected));
        }
        let (images, masks) = batch.images.split_at(frames * pixels * 3);
        let normalised =
            |(i, &x): (usize, &u8)| ((f64::from(x) / 255.0 - IMAGENET_MEAN[i % 3]) / IMAGENET_STD[i % 3]) as f32;
        let images: Vec<f32> = images.iter().enumerate().map(normalised).collect();
        let like = self.model.no_obj_ptr.value();
        let device = like.device().clone();
        let images = Tensor::from_slice(&images, [frames, side, side, 3], &Device::Cpu)?;
        let images = images.cast(like.dtype())?.to_device(&device)?;
        // An object that the first frame does not show cannot be asked for.
        let of_object: Vec<&[u8]> = masks.chunks_exact(frames * pixels).collect();
        let seen: Vec<&[u8]> = of_object.into_iter().filter(|m| m[..pixels].contains(&1)).collect();
        let (mut targets, mut truth) = (Vec::new(), Vec::new());
        for frame in 0..frames {
            let parts: Vec<&[u8]> = seen.iter().map(|m| &m[frame * pixels..][..pixels]).collect();
            targets.push(Tensor::from_slice(&parts.concat(), [seen.len(), pixels], &device)?);
            let mask = |part: &&[u8]| BinaryMask::new(side, side, part.iter().map(|&x| x != 0).collect());
            truth.push(parts.iter().map(mask).collect::<Result<Vec<_>>>()?);
        }
        if seen.is_empty() {
            return Err(Error::value("sam2", "objects", 0, "an object in the first frame of a clip"));
        }
        let mut rng = Stream::new(self.config.seed, Purpose::CLICK, batch.epoch, batch.step_in_epoch);
        let (prompted, corrected, by_points) = self.plan(&mut rng, frames);
        let clip = Clip {
            images,
            targets,
            prompted,
            corrected,
            by_points,
            corrections: self.config.corrections,
            corrected_as_prompted: true,
        };
        let drops = self.drops(batch, frames, &device)?;
        Ok(PretrainInputs { clip, truth, drops, rng })
    }

    fn micro_step(&mut self, inputs: &PretrainInputs, scale: f64, grads: &mut Grads) -> Result<Found> {
        let (tape, objects) = (Tape::new(), inputs.truth[0].len() as f64);
        let mut prompts = Prompts { config: &self.config, truth: &inputs.truth, rng: inputs.rng.clone() };
        let (clip, weights) = (&inputs.clip, &self.weights);
        let mut points = |need: Need| prompts.points(need);
        let found = self.model.clip_loss(&tape, clip, weights, objects, &inputs.drops, &mut points)?;
        tape.backward_scaled(&found.loss, scale, grads)?;
        self.check_reached(clip, grads)?;
        let mut terms = found.terms.iter();
        let mut sum = terms.next().ok_or_else(|| Error::value("sam2", "clip", 0, "at least one answer"))?.clone();
        for more in terms {
            sum = crate::ops::add::forward(&sum, more)?;
        }
        // The loss is a sum over answers, of which clips have different numbers: what is reported is the mean.
        let answers: usize = found.answers.iter().map(|(_, steps)| steps.len()).sum();
        let loss = crate::ops::scale::forward(found.loss.value(), 1.0 / answers.max(1) as f32)?;
        let count = Tensor::full([1], answers as f32, sum.device())?;
        let none = Tape::no_grad();
        let (sum, count) = (crate::Var::constant(sum), crate::Var::constant(count));
        let statistics = crate::ops::concat::concat(&none, &[&sum, &count], 0)?;
        Ok(Found { loss, statistics: Some(statistics.value().clone()) })
    }

    /// Prompts follow from what the model answered: which clicks there are, and so which operations.
    fn records(&self) -> bool {
        false
    }

    fn notes(&mut self, statistics: &[f64]) -> Result<Numbers> {
        let [mask, dice, iou, class, answers] = statistics[..] else { return Ok(vec![]) };
        let each = |sum: f64| sum / answers;
        Ok(vec![
            ("loss_mask", each(mask)),
            ("loss_dice", each(dice)),
            ("loss_iou", each(iou)),
            ("loss_class", each(class)),
            ("answers", answers),
        ])
    }

    fn picture(&self) -> Result<Option<(&'static str, Image)>> {
        self.pictures.as_ref().map(|draw| Ok(("masks", draw(&self.model)?))).transpose()
    }
}

impl Pretrain {
    /// What a clip like this does not use has no gradient, and the step leaves it out; anything else without one is an
    /// error.
    fn check_reached(&self, clip: &Clip, grads: &Grads) -> Result<()> {
        let mut optional = vec![if clip.by_points { unused::MASK_INPUT } else { unused::NO_MEMORY }];
        if clip.by_points && (clip.corrected.is_empty() || clip.corrections == 0) {
            optional.push(unused::MASK_PROMPT);
        }
        if clip.prompted.len() == clip.len() {
            optional.extend(unused::MEMORY); // no frame looks at the memory
        }
        let rules = Rules { optional, ..Rules::default() };
        grads.check_complete(self.model.params().into_iter().filter(|p| !rules.is_optional(p.name())))
    }

    /// Factors of the trunk's branches for each frame: rate `drop_path · i / (depth - 1)` for block `i`.
    fn drops(&self, batch: &Batch<u8>, frames: usize, device: &Device) -> Result<Vec<Drops>> {
        let rate = self.config.drop_path.unwrap_or_else(|| self.config.preset.drop_path());
        let depth = self.model.image_encoder.trunk.blocks.len();
        if rate == 0.0 {
            return Ok(vec![]);
        }
        let mut rng = Stream::new(self.config.seed, Purpose::DROP, batch.epoch, batch.step_in_epoch);
        let mut factors = |rate: f64| -> Result<Option<Tensor>> {
            let keep = 1.0 - rate;
            let factor = |kept: bool| if kept { (1.0 / keep) as f32 } else { 0.0 };
            let all: Vec<f32> = (0..frames).map(|_| factor(rng.chance(keep))).collect();
            Ok(Some(Tensor::from_slice(&all, [frames], device)?))
        };
        let block = |i: usize| {
            let rate = rate * i as f64 / depth.saturating_sub(1).max(1) as f64;
            if rate == 0.0 {
                return Ok(Drops::default());
            }
            Ok(Drops { attn: factors(rate)?, mlp: factors(rate)? })
        };
        (0..depth).map(block).collect()
    }
}

/// Simulated prompts of a clip.
struct Prompts<'a> {
    config: &'a Config,
    truth: &'a [Vec<BinaryMask>],
    rng: Stream,
}

impl Prompts<'_> {
    fn points(&mut self, need: Need) -> Result<Points> {
        let truth = &self.truth[need.frame];
        if need.step == 0 && self.rng.chance(self.config.box_prob) {
            let mut coords = Vec::new();
            for mask in truth {
                let uniform = [(); 4].map(|()| self.rng.unit_f32());
                coords.extend(clicks::noisy_box(mask, uniform, BoxNoise::default()));
            }
            let labels = truth.iter().flat_map(|_| [Label::TopLeft, Label::BottomRight]).collect();
            return Points::new(coords, labels, truth.len());
        }
        let whole = need.step == 0 || self.rng.chance(self.config.from_truth_prob);
        let logits = need.masks.filter(|_| !whole).map(|m| m.cast(DType::F32)?.to_vec::<f32>()).transpose()?;
        let (mut coords, mut labels) = (Vec::new(), Vec::new());
        for (o, mask) in truth.iter().enumerate() {
            let (w, h) = (mask.width(), mask.height());
            let predicted = match &logits {
                Some(all) => Some(BinaryMask::above(w, h, &all[o * w * h..][..w * h], 0.0)?),
                None => None,
            };
            let click = clicks::uniform_one(mask, predicted.as_ref(), self.rng.unit())?;
            coords.push([click.x as f32, click.y as f32]);
            labels.push(Label::new(click.label.into())?);
        }
        Points::new(coords, labels, truth.len())
    }
}
