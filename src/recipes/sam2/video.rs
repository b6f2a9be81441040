//! Objects through a video, frame by frame, in bounded memory.
//!
//! Frames are given one at a time, so a stream works as well as a file. Kept are memories of frames that a frame to
//! come may read: those near the current one and near frames with prompts (see [`Video::step`]); a video's length costs
//! nothing. Objects do not see each other, but are computed together: up to 16 in one pass, which bounds the memory of
//! many.
//!
//! Source: Ravi et al. 2024, arXiv 2408.00714, section 4; `sam2/sam2_video_predictor.py`.

use std::collections::{BTreeMap, BTreeSet};

use super::amg::without_overlap;
use super::bank::{Bank, Kept};
use super::frames::{Now, Reads};
use super::group::{MAX_BATCH, apart, beside, each, groups};
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
    /// Largest hole of a small mask that is filled, in its pixels; 0 for none. Memories of tracked frames are made
    /// before.
    pub fill_hole_area: usize,
    /// Whether a frame that is corrected after it was tracked is a conditioning frame from then on.
    pub add_all_frames_to_correct_as_cond: bool,
}

/// The answer about one object in one frame, or about several: then the first extent is their number.
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

impl Object {
    fn answer(&self, frame: i64) -> Option<&ObjectFrame> {
        self.fresh.get(&frame).map(|(_, answer)| answer).or_else(|| self.kept.get(&frame))
    }

    /// Keeps an answer, its memory among the conditioning ones or those tracked.
    fn keep(&mut self, frame: i64, conditioning: bool, answer: ObjectFrame) {
        let memory = answer.memory.clone().map(Var::constant);
        let kept = Kept { memory, obj_ptr: Var::constant(answer.pointer.clone()) };
        if conditioning {
            self.bank.condition(frame, kept);
        } else {
            self.bank.track(frame, kept);
        }
        self.kept.insert(frame, answer);
    }
}

/// Features of a frame, and the image they were made of.
#[derive(Debug)]
struct Seen {
    frame: i64,
    image: Tensor,
    features: Features,
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
    /// Passes of the model that they took: one for a prompt; in a step one for up to 16 objects that read equally many
    /// memories, as those prompted in the same frame do, and none for objects with a prompt in this frame.
    pub passes: usize,
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
    features: Option<Seen>,
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
        self.known(object)?.answer(frame)
    }

    fn known(&self, id: i64) -> Option<&Object> {
        self.objects.iter().find(|(known, _)| *known == id).map(|(_, object)| object)
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

    fn check(&self, frame: i64) -> Result<()> {
        if frame < 0 || self.frames.is_some_and(|n| frame as u64 >= n as u64) {
            let expected = self.frames.map_or("0 or more".into(), |n| format!("from 0 to {}", n.saturating_sub(1)));
            return Err(Error::value("video", "frame", frame, expected));
        }
        Ok(())
    }

    /// Features of a frame, those that are held if they are of this very image.
    fn features(&mut self, frame: i64, image: &Tensor) -> Result<Features> {
        match &self.features {
            Some(seen) if seen.frame == frame && same(&seen.image, image) => Ok(seen.features.clone()),
            _ => {
                let features = self.model.encode(&Tape::no_grad(), &Var::constant(image.clone()), &[])?;
                self.features = Some(Seen { frame, image: image.clone(), features: features.clone() });
                Ok(features)
            }
        }
    }

    /// Adds points or a box, in pixels of the model's input (a box is its two corners, first), for an object in a frame
    /// whose normalised image is `[1, S, S, 3]`. `replace` forgets earlier points of the object in the frame. Returns
    /// the masks of all objects in the frame.
    ///
    /// The features of the last frame are held, and with them its image: the same tensor, or on the CPU an equal one,
    /// is not encoded again; another image of the frame is.
    ///
    /// # Errors
    /// When the frame is none of the video, or the image has another size. The objects and their prompts are as before
    /// then, whatever failed.
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
        let features = self.features(frame, image)?;
        let all = match self.known(object).and_then(|known| known.points.get(&frame)) {
            Some(old) if !replace => old.then(points)?,
            _ => points.clone(),
        };
        let previous = self.answer(object, frame).map(|answer| clamped(&answer.masks)).transpose()?;
        let ask = Ask { points: Some(&all), previous: previous.as_ref(), ..Ask::default() };
        let answer = self.prompt(object, frame, &features, ask)?;
        self.accept(object, frame, answer, Some(all))
    }

    /// Adds the mask of an object in a frame: `[1, S, S, 1]` of zeros and ones. Returns the masks of all objects in the
    /// frame.
    ///
    /// # Errors
    /// When the frame is none of the video, or image or mask have another size. The objects and their prompts are as
    /// before then, whatever failed.
    pub fn add_mask(&mut self, frame: i64, image: &Tensor, object: i64, mask: &Tensor) -> Result<FrameMasks> {
        self.check(frame)?;
        let side = self.model.sizes().image_size;
        if **mask.shape() != [1, side, side, 1] {
            return Err(Error::shape("video", "mask", mask.shape(), format!("[1, {side}, {side}, 1]")));
        }
        let features = self.features(frame, image)?;
        let answer = self.prompt(object, frame, &features, Ask { masks: Some(mask), ..Ask::default() })?;
        self.accept(object, frame, answer, None)
    }

    /// The answer to a prompt, and whether its frame is a conditioning one from then on. Changes nothing.
    fn prompt(&self, id: i64, frame: i64, features: &Features, ask: Ask) -> Result<(bool, ObjectFrame)> {
        let new = Object::default();
        let object = self.known(id).unwrap_or(&new);
        let tracked = object.tracked.get(&frame).copied();
        let ask = Ask { initial: tracked.is_none(), ..ask };
        let now = Now { frame, video: self.frames, reverse: tracked.unwrap_or(false) };
        let answer = self.model.track(&Tape::no_grad(), features, &object.bank, now, ask, 1, Mode::Evaluate)?;
        // A frame that had a prompt stays one, corrected or not.
        let stays = object.bank.is_prompted(frame);
        let conditioning = ask.initial || stays || self.options.add_all_frames_to_correct_as_cond;
        Ok((conditioning, kept(&answer, None, self.options.fill_hole_area)?))
    }

    /// Takes the answer to a prompt over, with all points of the frame if it was by points; nothing of it if the masks
    /// cannot be made.
    fn accept(
        &mut self,
        id: i64,
        frame: i64,
        answer: (bool, ObjectFrame),
        points: Option<Points>,
    ) -> Result<FrameMasks> {
        let before = self.objects.len();
        let at = self.objects.iter().position(|(known, _)| *known == id).unwrap_or(before);
        if at == before {
            self.objects.push((id, Object::default()));
        }
        let object = &mut self.objects[at].1;
        let points = put(&mut object.points, frame, points);
        let fresh = put(&mut object.fresh, frame, Some(answer));
        let masks = self.masks(frame, 1);
        if masks.is_err() {
            let object = &mut self.objects[at].1;
            put(&mut object.points, frame, points);
            put(&mut object.fresh, frame, fresh);
            self.objects.truncate(before);
        }
        masks
    }

    /// Makes the memories of frames that got prompts since the last call. [`step`](Self::step) does it by itself as
    /// long as it is given frames with prompts in turn; before the first step of a video call it with `image`, which is
    /// asked for each such frame whose features are not held.
    ///
    /// # Errors
    /// What `image` fails with.
    pub fn remember(&mut self, image: impl FnMut(i64) -> Result<Tensor>) -> Result<()> {
        self.remember_with(None, image)
    }

    /// As [`remember`](Self::remember), with an image of a frame that holds whatever was seen of it before.
    fn remember_with(
        &mut self,
        given: Option<(i64, &Tensor)>,
        mut image: impl FnMut(i64) -> Result<Tensor>,
    ) -> Result<()> {
        let fresh = self.objects.iter().flat_map(|(_, object)| object.fresh.keys().copied());
        let frames: BTreeSet<i64> = fresh.collect();
        for frame in frames {
            let features = match (given, &self.features) {
                (Some((at, image)), _) if at == frame => self.features(frame, image)?,
                (_, Some(seen)) if seen.frame == frame => seen.features.clone(),
                _ => self.features(frame, &image(frame)?)?,
            };
            let has = |at: &usize| self.objects[*at].1.fresh.contains_key(&frame);
            let objects: Vec<usize> = (0..self.objects.len()).filter(has).collect();
            for part in objects.chunks(MAX_BATCH) {
                self.remember_part(frame, &features, part)?;
            }
        }
        Ok(())
    }

    /// Makes the memories of some objects that got prompts in a frame: from the small masks again, and as the answers
    /// to prompts, whatever they were.
    fn remember_part(&mut self, frame: i64, features: &Features, objects: &[usize]) -> Result<()> {
        let fresh = objects.iter().filter_map(|&at| self.objects[at].1.fresh.get(&frame));
        let (masks, scores): (Vec<&Tensor>, Vec<&Tensor>) = fresh.map(|(_, a)| (&a.masks, &a.score)).unzip();
        let (tape, masks) = (Tape::no_grad(), Var::constant(beside(&masks)?));
        let (masks, scores) = (self.model.enlarge(&tape, &masks)?, Var::constant(beside(&scores)?));
        let memories = self.model.remember(&tape, features, &masks, &scores, true, Mode::Evaluate)?;
        for (&at, memory) in objects.iter().zip(apart(&stored(memories.value())?)?) {
            let object = &mut self.objects[at].1;
            if let Some((conditioning, answer)) = object.fresh.remove(&frame) {
                object.keep(frame, conditioning, ObjectFrame { memory: Some(memory), ..answer });
            }
        }
        Ok(())
    }

    /// Tracks all objects into a frame: in one pass those that read equally many memories, up to 16 of them. An
    /// object's masks do not depend on which others there are, but for rounding. Frames with prompts are not computed
    /// again.
    ///
    /// Forgets memories that no frame after this one can read: those farther than the bank reaches from this frame and
    /// from every frame with a prompt.
    ///
    /// # Errors
    /// When the frame is none of the video, or [`remember`](Self::remember) was not called after a prompt in another.
    /// No object is tracked then.
    pub fn step(&mut self, frame: i64, image: &Tensor, reverse: bool) -> Result<FrameMasks> {
        self.check(frame)?;
        self.remember_with(Some((frame, image)), |at| {
            let expected = format!("frame {at}, which has a prompt without a memory: call `remember` first");
            Err(Error::value("video", "frame", frame, expected))
        })?;
        let features = self.features(frame, image)?;
        let (passes, answers) = self.follow(&features, Now { frame, video: self.frames, reverse })?;
        for (at, answer) in answers {
            self.objects[at].1.keep(frame, false, answer);
        }
        let reach = self.reach();
        for (_, object) in &mut self.objects {
            object.tracked.insert(frame, reverse);
            let prompted = object.bank.prompted();
            let near = |at: i64| at.abs_diff(frame) <= reach || prompted.iter().any(|p| p.abs_diff(at) <= reach);
            object.bank.retain(near);
            object.kept.retain(|at, _| near(*at));
            object.tracked.retain(|at, _| near(*at)); // what is forgotten begins anew when it gets a prompt
        }
        self.masks(frame, passes)
    }

    /// The number of passes, and the answers about the objects that have no prompt in the frame, by place.
    fn follow(&self, features: &Features, now: Now) -> Result<(usize, Vec<(usize, ObjectFrame)>)> {
        let (tape, mode) = (Tape::no_grad(), Mode::Evaluate);
        let rules = self.model.rules(mode);
        let mut waiting = Vec::with_capacity(self.objects.len());
        for (at, (_, object)) in self.objects.iter().enumerate() {
            if !object.bank.is_prompted(now.frame) {
                waiting.push((at, object.bank.reads(&rules, now)?));
            }
        }
        let groups = groups(waiting);
        let mut answers = Vec::with_capacity(self.objects.len());
        for group in &groups {
            let banks = group.objects.iter().map(|&at| &self.objects[at].1.bank);
            let of: Vec<(&Bank, &Reads)> = banks.zip(&group.reads).collect();
            let answer = self.model.follow(&tape, features, &of, mode)?;
            let (masks, scores) = (&answer.high_res_masks, &answer.object_scores);
            let memory = self.model.remember(&tape, features, masks, scores, false, mode)?;
            let all = kept(&answer, Some(stored(memory.value())?), self.options.fill_hole_area)?;
            answers.extend(group.objects.iter().copied().zip(each(&all)?));
        }
        Ok((groups.len(), answers))
    }

    /// Frames that a memory or a pointer may be away from the frame that reads it.
    fn reach(&self) -> u64 {
        let options = self.model.options();
        let maps = self.model.sizes().num_maskmem * options.memory_temporal_stride_for_eval;
        maps.max(options.max_obj_ptrs_in_encoder) as u64
    }

    /// Masks of all objects in a frame at the video's size; those without an answer are empty.
    fn masks(&self, frame: i64, passes: usize) -> Result<FrameMasks> {
        let side = self.model.sizes().image_size / 4;
        let device = self.model.no_obj_ptr.value().device().clone();
        let empty = Tensor::full([1, 1, side, side], NO_OBJ_SCORE, &device)?;
        let [h, w] = self.size;
        let plan = self.to_video.get(h, w, &device, || Plan::bilinear([side, side], [h, w], &device))?;
        let mut all: Vec<f32> = Vec::with_capacity(self.objects.len() * h * w);
        for objects in self.objects.chunks(MAX_BATCH) {
            let small = objects.iter().map(|(_, object)| match object.answer(frame) {
                Some(answer) => answer.masks.cast(DType::F32),
                None => Ok(empty.clone()),
            });
            let small: Vec<Tensor> = small.collect::<Result<_>>()?;
            let small = beside(&small.iter().collect::<Vec<_>>())?.reshape([objects.len(), side, side, 1])?;
            all.extend(resample(&Tape::no_grad(), &Var::constant(small), &plan)?.value().to_vec::<f32>()?);
        }
        if self.options.non_overlap_masks {
            without_overlap(&mut all, h * w)?;
        }
        let masks = Tensor::from_slice(&all, [self.objects.len(), 1, h, w], &crate::Device::Cpu)?;
        Ok(FrameMasks { frame, objects: self.objects(), masks, passes })
    }
}

/// Puts a value where another or none was, or takes it away; returns what was there.
fn put<T>(map: &mut BTreeMap<i64, T>, at: i64, value: Option<T>) -> Option<T> {
    match value {
        Some(value) => map.insert(at, value),
        None => map.remove(&at),
    }
}

/// Whether two images are the same: one tensor, whose values nobody can change while two hold it, or on a host equal
/// values. On a GPU equal copies count as different, since comparing them means to wait for both.
fn same(a: &Tensor, b: &Tensor) -> bool {
    let alike = a.shape() == b.shape() && a.dtype() == b.dtype() && a.device() == b.device();
    let equal = || matches!((a.storage().host(), b.storage().host()), (Some(a), Some(b)) if a == b);
    alike && (a.ptr() == b.ptr() || equal())
}

fn kept(answer: &Answer, memory: Option<Tensor>, holes: usize) -> Result<ObjectFrame> {
    Ok(ObjectFrame {
        masks: filled(answer.low_res_masks.value(), holes)?,
        score: answer.object_scores.value().clone(),
        pointer: answer.obj_ptr.value().clone(),
        memory,
    })
}

/// Logits `[O, 1, h, w]` without holes of up to `area` pixels.
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
