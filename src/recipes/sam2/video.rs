//! Objects through a video, frame by frame, in bounded memory.
//!
//! Frames are given one at a time, so a stream works as well as a file. Kept are memories of frames that a frame to come may
//! read: those near the current one and near frames with prompts (see [`Video::step`]); a video's length costs nothing.
//!
//! Source: Ravi et al. 2024, arXiv 2408.00714, section 4; `sam2/sam2_video_predictor.py`.

use std::collections::BTreeMap;

use super::amg::without_overlap;
use super::bank::{Bank, Kept};
use super::frames::Now;
use super::model::{Answer, Features, Mode, NO_OBJ_SCORE, Sam2};
use super::prompt::Points;
use super::regions::Repair;
use super::track::Ask;
use crate::nn::PerSize;
use crate::ops::resample::{Plan, resample};
use crate::{DType, Error, Result, Tape, Tensor, Var};

/// Bounds of the logits of an earlier answer when they are a prompt.
const CLAMP: f32 = 32.0;

/// Switches of the predictor, under upstream's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VideoOptions {
    /// Whether each pixel belongs to one object at most.
    pub non_overlap_masks: bool,
    /// Largest hole of a small mask that is filled, in its pixels; 0 for none. Memories of tracked frames are made before.
    pub fill_hole_area: usize,
    /// Whether a frame that is corrected after it was tracked is a conditioning frame from then on.
    pub add_all_frames_to_correct_as_cond: bool,
}

/// The answer about one object in one frame.
#[derive(Clone, Debug)]
pub struct ObjectFrame {
    /// Logits `[1, 1, S/4, S/4]`.
    pub masks: Tensor,
    /// Logit `[1, 1]`: whether the object is there.
    pub score: Tensor,
    /// `[1, C]`.
    pub pointer: Tensor,
    /// `[1, h, w, mem_dim]`, rounded to bf16 as it is stored; `None` before memories are made.
    pub memory: Option<Tensor>,
}

#[derive(Debug, Default)]
struct Object {
    points: BTreeMap<i64, Points>,
    /// Answers to prompts whose memories are not made yet; `true` for conditioning frames.
    fresh: BTreeMap<i64, (bool, ObjectFrame)>,
    kept: BTreeMap<i64, ObjectFrame>,
    bank: Bank,
    /// Frames that were tracked, and whether backwards.
    tracked: BTreeMap<i64, bool>,
}

/// Masks of all objects in one frame.
#[derive(Clone, Debug)]
pub struct FrameMasks {
    /// The frame.
    pub frame: i64,
    /// Objects, in the order in which they were added.
    pub objects: Vec<i64>,
    /// Logits at the size of the video, `[O, 1, H, W]` f32: above 0 inside.
    pub masks: Tensor,
}

/// A video and its objects.
#[derive(Debug)]
pub struct Video<'a> {
    model: &'a Sam2,
    options: VideoOptions,
    /// Rows and columns of the video.
    size: [usize; 2],
    frames: Option<usize>,
    objects: Vec<(i64, Object)>,
    features: Option<(i64, Features)>,
    to_video: PerSize<Plan>,
}

impl<'a> Video<'a> {
    /// A video of `frames` frames, unknown for a stream, of this size.
    pub fn new(model: &'a Sam2, size: [usize; 2], frames: Option<usize>, options: VideoOptions) -> Self {
        Self { model, options, size, frames, objects: vec![], features: None, to_video: PerSize::default() }
    }

    /// Objects, in the order in which they were added.
    pub fn objects(&self) -> Vec<i64> {
        self.objects.iter().map(|(id, _)| *id).collect()
    }

    /// The last answer about an object in a frame, if it is still kept.
    pub fn answer(&self, object: i64, frame: i64) -> Option<&ObjectFrame> {
        let (_, object) = self.objects.iter().find(|(id, _)| *id == object)?;
        object.fresh.get(&frame).map(|(_, answer)| answer).or_else(|| object.kept.get(&frame))
    }

    /// Frames whose memories are kept, of all objects together.
    pub fn kept(&self) -> usize {
        self.objects.iter().map(|(_, object)| object.bank.len()).sum()
    }

    /// Forgets an object.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn remove(&mut self, object: i64) -> Result<()> {
        let at = self.objects.iter().position(|(id, _)| *id == object);
        let at = at.ok_or_else(|| Error::value("video", "object", object, format!("one of {:?}", self.objects())))?;
        self.objects.remove(at);
        Ok(())
    }

    fn object(&mut self, id: i64) -> usize {
        self.objects.iter().position(|(known, _)| *known == id).unwrap_or_else(|| {
            self.objects.push((id, Object::default()));
            self.objects.len() - 1
        })
    }

    fn check(&self, frame: i64) -> Result<()> {
        if frame < 0 || self.frames.is_some_and(|n| frame as u64 >= n as u64) {
            let expected = self.frames.map_or("0 or more".into(), |n| format!("from 0 to {}", n.saturating_sub(1)));
            return Err(Error::value("video", "frame", frame, expected));
        }
        Ok(())
    }

    fn features(&mut self, frame: i64, image: &Tensor) -> Result<Features> {
        match &self.features {
            Some((at, features)) if *at == frame => Ok(features.clone()),
            _ => {
                let features = self.model.encode(&Tape::no_grad(), &Var::constant(image.clone()), &[])?;
                self.features = Some((frame, features.clone()));
                Ok(features)
            }
        }
    }

    /// Adds points or a box, in pixels of the model's input (a box is its two corners, first), for an object in a frame whose
    /// normalised image is `[1, S, S, 3]`. `replace` forgets earlier points of the object in the frame. Returns the masks of all
    /// objects in the frame.
    ///
    /// # Errors
    /// When the frame is none of the video.
    pub fn add_points(
        &mut self,
        frame: i64,
        image: &Tensor,
        object: i64,
        points: &Points,
        replace: bool,
    ) -> Result<FrameMasks> {
        self.check(frame)?;
        if points.prompts != 1 {
            return Err(Error::value("video", "points", points.prompts, "one prompt, for one object"));
        }
        let features = self.features(frame, image)?; // of an image that does not fit nothing is left
        let at = self.object(object);
        let all = match self.objects[at].1.points.get(&frame) {
            Some(old) if !replace => old.then(points)?,
            _ => points.clone(),
        };
        let previous = self.previous(at, frame)?;
        self.prompt(at, frame, &features, Ask { points: Some(&all), previous: previous.as_ref(), ..Ask::default() })?;
        self.objects[at].1.points.insert(frame, all);
        self.masks(frame)
    }

    /// Adds the mask of an object in a frame: `[1, S, S, 1]` of zeros and ones. Returns the masks of all objects in the frame.
    ///
    /// # Errors
    /// When the frame is none of the video, or the mask has another size.
    pub fn add_mask(&mut self, frame: i64, image: &Tensor, object: i64, mask: &Tensor) -> Result<FrameMasks> {
        self.check(frame)?;
        let side = self.model.sizes().image_size;
        if **mask.shape() != [1, side, side, 1] {
            return Err(Error::shape("video", "mask", mask.shape(), format!("[1, {side}, {side}, 1]")));
        }
        let features = self.features(frame, image)?;
        let at = self.object(object);
        self.prompt(at, frame, &features, Ask { masks: Some(mask), ..Ask::default() })?;
        self.objects[at].1.points.remove(&frame);
        self.masks(frame)
    }

    /// The logits of the last answer as a prompt.
    fn previous(&self, at: usize, frame: i64) -> Result<Option<Var>> {
        let object = &self.objects[at].1;
        let answer = object.fresh.get(&frame).map(|(_, answer)| answer).or_else(|| object.kept.get(&frame));
        answer.map(|answer| clamped(&answer.masks)).transpose()
    }

    fn prompt(&mut self, at: usize, frame: i64, features: &Features, ask: Ask) -> Result<()> {
        let object = &self.objects[at].1;
        let tracked = object.tracked.get(&frame).copied();
        let ask = Ask { initial: tracked.is_none(), ..ask };
        let now = Now { frame, video: self.frames, reverse: tracked.unwrap_or(false) };
        let (tape, mode) = (Tape::no_grad(), Mode::Evaluate);
        let answer = self.model.track(&tape, features, &object.bank, now, ask, 1, mode)?;
        // A frame that had a prompt stays one, corrected or not.
        let stays = object.bank.is_prompted(frame);
        let conditioning = ask.initial || stays || self.options.add_all_frames_to_correct_as_cond;
        let holes = self.options.fill_hole_area;
        self.objects[at].1.fresh.insert(frame, (conditioning, kept(&answer, None, holes)?));
        Ok(())
    }

    /// Makes the memories of frames that got prompts since the last call. [`step`](Self::step) does it by itself as long as it
    /// is given frames with prompts in turn; before the first step of a video call it with `image` of each such frame.
    ///
    /// # Errors
    /// What `image` fails with.
    pub fn remember(&mut self, mut image: impl FnMut(i64) -> Result<Tensor>) -> Result<()> {
        let frames: Vec<i64> = {
            let fresh = self.objects.iter().flat_map(|(_, object)| object.fresh.keys().copied());
            let all: std::collections::BTreeSet<i64> = fresh.collect();
            all.into_iter().collect()
        };
        for frame in frames {
            let features = match &self.features {
                Some((at, features)) if *at == frame => features.clone(),
                _ => self.features(frame, &image(frame)?)?,
            };
            for (_, object) in &mut self.objects {
                let Some((conditioning, mut answer)) = object.fresh.remove(&frame) else { continue };
                // From the small mask again, and as the answer to a prompt, whatever it was.
                let tape = Tape::no_grad();
                let masks = self.model.enlarge(&tape, &Var::constant(answer.masks.clone()))?;
                let score = Var::constant(answer.score.clone());
                let memory = self.model.remember(&tape, &features, &masks, &score, true, Mode::Evaluate)?;
                let memory = stored(memory.value())?;
                let of_bank = Kept {
                    memory: Some(Var::constant(memory.clone())),
                    obj_ptr: Var::constant(answer.pointer.clone()),
                };
                if conditioning {
                    object.bank.condition(frame, of_bank);
                } else {
                    object.bank.track(frame, of_bank);
                }
                answer.memory = Some(memory);
                object.kept.insert(frame, answer);
            }
        }
        Ok(())
    }

    /// Tracks all objects into a frame. Frames with prompts are not computed again.
    ///
    /// Forgets memories that no frame after this one can read: those farther than the bank reaches from this frame and from
    /// every frame with a prompt.
    ///
    /// # Errors
    /// When the frame is none of the video, an object has no prompt yet, or [`remember`](Self::remember) was not called after one.
    pub fn step(&mut self, frame: i64, image: &Tensor, reverse: bool) -> Result<FrameMasks> {
        self.check(frame)?;
        if self.objects.iter().any(|(_, object)| !object.fresh.is_empty()) {
            self.remember(|at| {
                let expected = format!("frame {at}, which has a prompt without a memory: call `remember` first");
                if at == frame { Ok(image.clone()) } else { Err(Error::value("video", "frame", frame, expected)) }
            })?;
        }
        let features = self.features(frame, image)?;
        let now = Now { frame, video: self.frames, reverse };
        let (tape, mode) = (Tape::no_grad(), Mode::Evaluate);
        let (reach, holes) = (self.reach(), self.options.fill_hole_area);
        for (_, object) in &mut self.objects {
            if !object.bank.is_prompted(frame) {
                let answer = self.model.track(&tape, &features, &object.bank, now, Ask::default(), 1, mode)?;
                let (masks, scores) = (&answer.high_res_masks, &answer.object_scores);
                let memory = self.model.remember(&tape, &features, masks, scores, false, mode)?;
                let memory = stored(memory.value())?;
                let of_bank = Kept { memory: Some(Var::constant(memory.clone())), obj_ptr: answer.obj_ptr.clone() };
                object.bank.track(frame, of_bank);
                object.kept.insert(frame, kept(&answer, Some(memory), holes)?);
            }
            object.tracked.insert(frame, reverse);
            let prompted = object.bank.prompted();
            let near = |at: i64| at.abs_diff(frame) <= reach || prompted.iter().any(|p| p.abs_diff(at) <= reach);
            object.bank.retain(near);
            object.kept.retain(|at, _| near(*at));
            object.tracked.retain(|at, _| near(*at)); // what is forgotten begins anew when it gets a prompt
        }
        self.masks(frame)
    }

    /// Frames that a memory or a pointer may be away from the frame that reads it.
    fn reach(&self) -> u64 {
        let options = self.model.options();
        let maps = self.model.sizes().num_maskmem * options.memory_temporal_stride_for_eval;
        maps.max(options.max_obj_ptrs_in_encoder) as u64
    }

    /// Masks of all objects in a frame at the video's size; those without an answer are empty.
    fn masks(&self, frame: i64) -> Result<FrameMasks> {
        let side = self.model.sizes().image_size / 4;
        let device = self.model.no_obj_ptr.value().device().clone();
        let empty = Tensor::full([1, 1, side, side], NO_OBJ_SCORE, &device)?;
        let [h, w] = self.size;
        let plan = self.to_video.get(h, w, &device, || Plan::bilinear([side, side], [h, w], &device))?;
        let mut all: Vec<f32> = Vec::with_capacity(self.objects.len() * h * w);
        for (id, _) in &self.objects {
            let masks = self.answer(*id, frame).map_or_else(|| Ok(empty.clone()), |a| a.masks.cast(DType::F32))?;
            let masks = Var::constant(masks.reshape([1, side, side, 1])?);
            all.extend(resample(&Tape::no_grad(), &masks, &plan)?.value().to_vec::<f32>()?);
        }
        if self.options.non_overlap_masks {
            without_overlap(&mut all, h * w)?;
        }
        let masks = Tensor::from_slice(&all, [self.objects.len(), 1, h, w], &crate::Device::Cpu)?;
        Ok(FrameMasks { frame, objects: self.objects(), masks })
    }
}

fn kept(answer: &Answer, memory: Option<Tensor>, holes: usize) -> Result<ObjectFrame> {
    Ok(ObjectFrame {
        masks: filled(answer.low_res_masks.value(), holes)?,
        score: answer.object_scores.value().clone(),
        pointer: answer.obj_ptr.value().clone(),
        memory,
    })
}

/// Logits `[1, 1, h, w]` without holes of up to `area` pixels.
fn filled(masks: &Tensor, area: usize) -> Result<Tensor> {
    if area == 0 {
        return Ok(masks.clone());
    }
    let [_, _, h, w] = masks.dims("video", "masks")?;
    let mut values = masks.cast(DType::F32)?.to_vec::<f32>()?;
    Repair::video(area).apply(&mut values, [h, w])?;
    let filled = Tensor::from_slice(&values, masks.shape().clone(), &crate::Device::Cpu)?;
    filled.cast(masks.dtype())?.to_device(masks.device())
}

/// Rounded to bf16, in the model's dtype.
fn stored(memory: &Tensor) -> Result<Tensor> {
    memory.cast(DType::BF16)?.cast(memory.dtype())
}

/// Logits `[1, 1, h, w]` as a mask prompt `[1, h, w, 1]`.
fn clamped(masks: &Tensor) -> Result<Var> {
    let [objects, _, h, w] = masks.dims("video", "masks")?;
    let values: Vec<f32> = masks.cast(DType::F32)?.to_vec::<f32>()?.iter().map(|x| x.clamp(-CLAMP, CLAMP)).collect();
    let values = Tensor::from_slice(&values, [objects, h, w, 1], &crate::Device::Cpu)?.cast(masks.dtype())?;
    Ok(Var::constant(values.to_device(masks.device())?))
}
