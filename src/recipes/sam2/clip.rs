//! The loss of a clip: prompts on some frames, corrections, memories between them.
//!
//! Everything random is an input: which frames get a prompt, which are corrected, and every click.
//!
//! Source: Ravi et al. 2024, arXiv 2408.00714, appendix D.2; `training/model/sam2.py`, `training/loss_fns.py`.

use super::bank::{Bank, Kept};
use super::frames::Now;
use super::model::{Answer, Mode, Prompt, Sam2, enlarged};
use super::prompt::Points;
use super::track::Ask;
use crate::nn::Drops;
use crate::ops::add::add;
use crate::ops::cast::cast;
use crate::ops::mask_loss::{Weights, mask_loss};
use crate::ops::resample::Plan;
use crate::{Error, Result, Tape, Tensor, Var};

/// Frames and what is asked about them.
#[derive(Clone, Debug)]
pub struct Clip {
    /// Normalised images `[T, S, S, 3]`.
    pub images: Tensor,
    /// Objects of each frame, `[O, S · S]` bytes that are zero outside.
    pub targets: Vec<Tensor>,
    /// Frames that begin with a prompt, in the order in which they are looked at.
    pub prompted: Vec<usize>,
    /// Frames that are corrected, click by click.
    pub corrected: Vec<usize>,
    /// Prompts are points, or boxes; otherwise the objects' masks.
    pub by_points: bool,
    /// Clicks of a correction.
    pub corrections: usize,
    /// Whether a corrected frame counts as one with a prompt.
    pub corrected_as_prompted: bool,
}

/// Where a prompt is needed.
#[derive(Clone, Copy, Debug)]
pub struct Need<'a> {
    /// The frame.
    pub frame: usize,
    /// 0 for a prompt, from 1 for corrections.
    pub step: usize,
    /// Logits of the masks so far, `[O, 1, S, S]`.
    pub masks: Option<&'a Tensor>,
}

/// What a clip gave.
#[derive(Debug)]
pub struct Outcome {
    /// The sum over steps and frames of the weighted parts.
    pub loss: Var,
    /// The same for each part without its weight, `[4]` each: mask, dice, IoU, class.
    pub terms: Vec<Tensor>,
    /// Answers of each frame, in the order in which the frames were looked at.
    pub answers: Vec<(usize, Vec<Answer>)>,
}

impl Clip {
    /// Frames.
    pub fn len(&self) -> usize {
        self.targets.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }

    fn objects(&self) -> Result<usize> {
        let frames = self.images.shape().first().copied().unwrap_or(0);
        if frames != self.len() || self.is_empty() {
            let expected = format!("targets for {frames} frames, at least one");
            return Err(Error::value("sam2", "targets", self.len(), expected));
        }
        let wrong = self.prompted.iter().chain(&self.corrected).find(|frame| **frame >= frames);
        if let Some(frame) = wrong {
            return Err(Error::value("sam2", "frame", frame, format!("below {frames}")));
        }
        if self.prompted.is_empty() {
            return Err(Error::value("sam2", "prompted", "no frame", "at least one"));
        }
        Ok(self.targets[0].shape()[0])
    }
}

impl Sam2 {
    /// The loss of a clip, divided by `objects`. `points` gives points for all objects where they are needed.
    ///
    /// # Errors
    /// When the parts of the clip do not fit each other, or what `points` fails with.
    pub fn clip_loss(
        &self,
        tape: &Tape,
        clip: &Clip,
        weights: &Weights,
        objects: f64,
        drops: &[Drops],
        points: &mut dyn FnMut(Need) -> Result<Points>,
    ) -> Result<Outcome> {
        let count = clip.objects()?;
        let all = self.encode(tape, &Var::constant(clip.images.clone()), drops)?;
        let (mut bank, mut loss) = (Bank::default(), None::<Var>);
        let (mut terms, mut answers) = (Vec::new(), Vec::new());
        let others = (0..clip.len()).filter(|frame| !clip.prompted.contains(frame));
        for frame in clip.prompted.iter().copied().chain(others) {
            let features = all.of(tape, frame)?;
            let initial = clip.prompted.contains(&frame);
            let now = Now { frame: frame as i64, video: Some(clip.len()), reverse: false };
            let given = match initial && clip.by_points {
                true => Some(points(Need { frame, step: 0, masks: None })?),
                false => None,
            };
            let mask = match initial && !clip.by_points {
                true => Some(self.as_mask(&clip.targets[frame])?),
                false => None,
            };
            let ask = Ask { points: given.as_ref(), masks: mask.as_ref(), previous: None, initial };
            let steps = if clip.corrected.contains(&frame) && mask.is_none() {
                let seen = self.seen(tape, &features, &bank, now, ask, count, Mode::Train)?;
                self.corrected(tape, &seen, &features.high_res, frame, ask, clip.corrections, count, points)?
            } else {
                vec![self.track(tape, &features, &bank, now, ask, count, Mode::Train)?]
            };
            for answer in &steps {
                let (step, parts) = self.step_loss(tape, answer, &clip.targets[frame], weights, objects)?;
                terms.push(parts);
                loss = Some(match loss {
                    None => step,
                    Some(sum) => add(tape, &sum, &step)?,
                });
            }
            if let Some(last) = steps.last() {
                let (masks, scores) = (&last.high_res_masks, &last.object_scores);
                let prompted = ask.points.is_some() || ask.masks.is_some();
                let memory = self.remember(tape, &features, masks, scores, prompted, Mode::Train)?;
                let kept = Kept { memory: Some(memory), obj_ptr: last.obj_ptr.clone() };
                if initial || (clip.corrected_as_prompted && clip.corrected.contains(&frame)) {
                    bank.condition(now.frame, kept);
                } else {
                    bank.track(now.frame, kept);
                }
            }
            answers.push((frame, steps));
        }
        let loss = loss.ok_or_else(|| Error::value("sam2", "clip", "no frame", "at least one"))?;
        Ok(Outcome { loss, terms, answers })
    }

    /// The answers to a prompt and to each correction of it, on the same features. The mask so far is part of each prompt, and
    /// gradients flow through it.
    #[expect(clippy::too_many_arguments, reason = "one call, in one place")]
    fn corrected(
        &self,
        tape: &Tape,
        seen: &Var,
        high_res: &[Var; 2],
        frame: usize,
        ask: Ask,
        corrections: usize,
        objects: usize,
        points: &mut dyn FnMut(Need) -> Result<Points>,
    ) -> Result<Vec<Answer>> {
        let mut prompt = Prompt { points: ask.points.cloned(), ..Prompt::default() };
        let mut answers: Vec<Answer> = Vec::new();
        for step in 0..=corrections {
            if let Some(last) = answers.last() {
                let clicks = points(Need { frame, step, masks: Some(last.high_res_masks.value()) })?;
                prompt.points = Some(match &prompt.points {
                    None => clicks,
                    Some(before) => before.then(&clicks)?,
                });
                let [_, _, h, w] = last.low_res_masks.value().dims("sam2", "masks")?;
                prompt.mask = Some(last.low_res_masks.reshape([objects, h, w, 1])?);
            }
            let several = self.options().several(ask.initial, prompt.points.as_ref().map_or(0, Points::count));
            answers.push(self.answer(tape, seen, high_res, &prompt, objects, several, Mode::Train)?);
        }
        Ok(answers)
    }

    /// Loss of one answer, all its masks at the size of the input.
    fn step_loss(
        &self,
        tape: &Tape,
        answer: &Answer,
        targets: &Tensor,
        weights: &Weights,
        objects: f64,
    ) -> Result<(Var, Tensor)> {
        let (masks, plan) = match answer.chosen {
            None => (&answer.high_res_masks, None),
            Some(_) => (&answer.all.masks, Some(self.enlargement(&answer.all.masks)?)),
        };
        let (targets, weights) = (targets.clone(), *weights);
        let loss = move |plan: &Option<Plan>, tape: &Tape, v: &[Var]| {
            let masks = match plan {
                None => v[0].clone(),
                Some(plan) => enlarged(plan, tape, &v[0])?,
            };
            let [count, several, h, w] = masks.value().dims("sam2", "masks")?;
            // Masks and losses are in full precision, whatever the model computes in.
            let full = |x: &Var| cast(tape, x, x.value().dtype().accumulate());
            let masks = full(&masks)?.reshape([count, several, h * w])?;
            let (loss, parts) = mask_loss(tape, &masks, &full(&v[1])?, &full(&v[2])?, &targets, &weights, objects)?;
            Ok([loss, Var::constant(parts)])
        };
        let inputs = [masks, &answer.all.ious, &answer.object_scores];
        let [loss, parts] = self.run(tape, &plan, inputs, loss)?;
        Ok((loss, parts.value().clone()))
    }

    /// Targets `[O, S · S]` as masks `[O, S, S, 1]` of zeros and ones.
    fn as_mask(&self, targets: &Tensor) -> Result<Tensor> {
        let side = self.sizes().image_size;
        let inside: Vec<f32> = targets.to_vec::<u8>()?.iter().map(|&x| f32::from(u8::from(x != 0))).collect();
        let like = self.no_obj_ptr.value();
        let mask = Tensor::from_slice(&inside, [targets.shape()[0], side, side, 1], &crate::Device::Cpu)?;
        mask.cast(like.dtype())?.to_device(like.device())
    }
}
