//! Objects followed through videos from their first masks, and how well (J & F).
//!
//! Source: the semi-supervised protocol of DAVIS (Pont-Tuset et al. 2017, arXiv 1704.00675) and of SA-V (Ravi et al. 2024, arXiv
//! 2408.00714, appendix E); `tools/vos_inference.py`.

use std::collections::BTreeMap;

use super::video_masks::{BOUNDARY, Scores, contour, radius, region};
use crate::data::Image;
use crate::data::augment::Normalise;
use crate::data::binary_mask::BinaryMask;
use crate::data::videos::{Video, Videos};
use crate::recipes::sam2::image::pixels;
use crate::recipes::sam2::transforms::{frame, mask_of_frame};
use crate::recipes::sam2::video::FrameMasks;
use crate::recipes::sam2::{Sam2, Video as Tracker, VideoOptions};
use crate::{DType, Error, Result, Tensor};

/// A frame as the model reads it.
///
/// # Errors
/// When the picture is empty.
pub fn model_frame(model: &Sam2, image: &Image) -> Result<Tensor> {
    pixels(model, &frame(image, model.sizes().image_size, &Normalise::imagenet())?)
}

/// A mask as the model reads it, `[1, S, S, 1]`.
///
/// # Errors
/// When the mask is empty of pixels.
pub fn model_mask(model: &Sam2, mask: &BinaryMask) -> Result<Tensor> {
    let (side, like) = (model.sizes().image_size, model.no_obj_ptr.value());
    let resized = mask_of_frame(mask, side)?;
    let values: Vec<f32> = resized.pixels().iter().map(|&p| f32::from(u8::from(p))).collect();
    Tensor::from_slice(&values, [1, side, side, 1], &crate::Device::Cpu)?.cast(like.dtype())?.to_device(like.device())
}

/// Masks of a frame, by object.
///
/// # Errors
/// When the logits are not of whole pictures.
pub fn masks_of(found: &FrameMasks) -> Result<BTreeMap<i64, BinaryMask>> {
    let [objects, _, h, w] = found.masks.dims("video", "masks")?;
    let logits = found.masks.cast(DType::F32)?.to_vec::<f32>()?;
    let each = (0..objects).zip(&found.objects);
    each.map(|(at, &id)| Ok((id, BinaryMask::above(w, h, &logits[at * h * w..][..h * w], 0.0)?))).collect()
}

/// Some frames and the objects of the first of them.
#[derive(Clone, Debug)]
pub struct Start {
    /// At least one.
    pub frames: Vec<Image>,
    /// Objects of the first.
    pub masks: Vec<BinaryMask>,
}

impl Start {
    /// Frames of a video.
    ///
    /// # Errors
    /// When one cannot be read, or the first shows no object.
    pub fn new(video: &Video, frames: &[usize]) -> Result<Self> {
        let first = *frames.first().ok_or_else(|| Error::value("video", "frames", 0, "at least one"))?;
        let masks: Vec<BinaryMask> =
            video.masks()?.objects(first)?.into_values().filter(|mask| mask.area() > 0).collect();
        if masks.is_empty() {
            let cause = "no object in the first frame with masks".to_string();
            return Err(Error::Dataset { path: video.frames[first].clone(), cause });
        }
        Ok(Self { frames: frames.iter().map(|&at| video.frame(at)).collect::<Result<_>>()?, masks })
    }
}

/// Masks of the objects in the frames after the first.
///
/// # Errors
/// When the model refuses a frame.
pub fn follow(model: &Sam2, start: &Start) -> Result<Vec<Vec<BinaryMask>>> {
    let size = [start.frames[0].height, start.frames[0].width];
    let mut tracker = Tracker::new(model, size, Some(start.frames.len()), VideoOptions::default());
    let mut out = Vec::new();
    for (at, image) in start.frames.iter().enumerate() {
        let image = model_frame(model, image)?;
        if at == 0 {
            for (object, mask) in start.masks.iter().enumerate() {
                tracker.add_mask(0, &image, object as i64, &model_mask(model, mask)?)?;
            }
        }
        let found = masks_of(&tracker.step(at as i64, &image, false)?)?;
        if at > 0 {
            out.push(found.into_values().collect());
        }
    }
    Ok(out)
}

/// Scores of the objects of a video.
#[derive(Clone, Debug, PartialEq)]
pub struct VideoScores {
    /// The video.
    pub name: String,
    /// Of each object that is seen in a frame that counts, by number.
    pub objects: Vec<(u16, Scores)>,
    /// Frames per second: reading a frame and tracking the objects into it.
    pub frames_per_second: f64,
}

/// Told of each frame and its masks, by object.
pub type Seen<'a> = &'a mut dyn FnMut(usize, &Image, &BTreeMap<i64, BinaryMask>) -> Result<()>;

/// Follows every object from the first frame that shows its mask, and scores all frames with masks but the first and the last.
///
/// # Errors
/// When a frame or mask cannot be read.
pub fn evaluate(model: &Sam2, video: &Video, options: VideoOptions, seen: Seen) -> Result<VideoScores> {
    let given = video.masks()?;
    let annotated = given.annotated();
    let mut firsts: BTreeMap<u16, usize> = BTreeMap::new();
    for &at in annotated {
        for id in given.seen(at)? {
            firsts.entry(id).or_insert(at);
        }
    }
    let start = firsts.values().copied().min().ok_or_else(|| Error::Dataset {
        path: video.frames[0].clone(),
        cause: "no frame of the video shows an object".into(),
    })?;
    let first = video.frame(start)?;
    let size = [first.height, first.width];
    let empty = BinaryMask::new(first.width, first.height, vec![false; first.width * first.height])?;
    let mut tracker = Tracker::new(model, size, Some(video.frames.len()), options);
    let mut scored: BTreeMap<u16, Object> = firsts.keys().map(|&id| (id, Object::default())).collect();
    let (mut tracked, mut seconds) = (0usize, 0.0);
    // The first and the last frame with masks do not count.
    let counts = annotated.get(1..annotated.len().saturating_sub(1)).unwrap_or(&[]);
    for at in 0..video.frames.len() {
        let truth = given.objects(at)?;
        let mut masks = BTreeMap::new();
        if at >= start {
            let begun = std::time::Instant::now();
            let image = video.frame(at)?;
            let input = model_frame(model, &image)?;
            for (&id, _) in firsts.iter().filter(|(_, first)| **first == at) {
                tracker.add_mask(at as i64, &input, id.into(), &model_mask(model, &truth[&id])?)?;
            }
            masks = masks_of(&tracker.step(at as i64, &input, false)?)?;
            (tracked, seconds) = (tracked + 1, seconds + begun.elapsed().as_secs_f64());
            seen(at, &image, &masks)?;
        }
        if counts.contains(&at) {
            for (id, object) in &mut scored {
                object.frame(truth.get(id).unwrap_or(&empty), masks.get(&i64::from(*id)).unwrap_or(&empty))?;
            }
        }
    }
    let objects = scored.into_iter().filter_map(|(id, object)| Some((id, object.scores()?))).collect();
    Ok(VideoScores { name: video.name.clone(), objects, frames_per_second: tracked as f64 / f64::max(seconds, 1e-9) })
}

/// The scores of an object so far: [`video_masks::object`](super::video_masks::object) frame by frame, which holds no masks.
#[derive(Debug, Default)]
struct Object {
    frames: Vec<Scores>,
    there: bool,
}

impl Object {
    /// One more frame that counts. Frames before the object is seen, in truth or prediction, do not.
    fn frame(&mut self, truth: &BinaryMask, predicted: &BinaryMask) -> Result<()> {
        if self.frames.is_empty() && truth.area() + predicted.area() == 0 {
            return Ok(());
        }
        let near = radius([truth.height(), truth.width()], BOUNDARY);
        self.frames.push(Scores { j: region(truth, predicted)?, f: contour(truth, predicted, near)? });
        self.there |= truth.area() > 0;
        Ok(())
    }

    /// The mean; `None` for an object that no frame shows.
    fn scores(&self) -> Option<Scores> {
        Scores::mean(&self.frames).filter(|_| self.there)
    }
}

/// The mean over the objects of all videos; `None` when none counts.
pub fn mean(all: &[VideoScores]) -> Option<Scores> {
    let scores: Vec<Scores> = all.iter().flat_map(|v| v.objects.iter().map(|(_, s)| *s)).collect();
    Scores::mean(&scores)
}

/// How well a model follows the objects of all videos.
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_all(model: &Sam2, videos: &Videos, options: VideoOptions) -> Result<Vec<VideoScores>> {
    videos.videos.iter().map(|video| evaluate(model, video, options, &mut |_, _, _| Ok(()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::video_masks::object;

    #[test]
    fn scores_frame_by_frame_are_those_of_all_frames() {
        let mask = |from: usize, to: usize| {
            let inside = |t: usize| (from..to).contains(&(t % 24)) && (4..15).contains(&(t / 24));
            BinaryMask::new(24, 20, (0..480).map(inside).collect()).unwrap()
        };
        // Not seen at first; found too early in the second video; never there in the third.
        for (truth, found) in [
            ([(0, 0), (0, 0), (3, 9), (4, 10), (5, 11)], [(0, 0), (0, 0), (3, 8), (6, 12), (0, 0)]),
            ([(0, 0), (0, 0), (3, 9), (4, 10), (5, 11)], [(0, 0), (2, 4), (3, 9), (0, 0), (5, 11)]),
            ([(1, 5), (0, 0), (0, 0), (0, 0), (2, 9)], [(1, 5), (0, 0), (3, 8), (0, 0), (0, 0)]),
        ] {
            let [truth, found] = [truth, found].map(|v| v.map(|(from, to)| mask(from, to)));
            let mut each = Object::default();
            (1..4).for_each(|at| each.frame(&truth[at], &found[at]).unwrap());
            assert_eq!(each.scores(), object(&truth, &found, BOUNDARY).unwrap());
        }
    }
}
