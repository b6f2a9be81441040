//! Clips of videos for training.

use std::path::PathBuf;
use std::sync::Arc;

use super::{MAX_OBJECTS, Masks, Video, Videos, fault};
use crate::data::folder::Source;
use crate::data::image::Image;
use crate::data::object_bits;
use crate::data::rng::Stream;
use crate::{Error, Result};

/// Clips of videos for training: annotated frames that follow each other, and objects that are seen in the first.
#[derive(Clone, Debug)]
pub struct Clips {
    videos: Arc<Videos>,
    /// Frames of a clip.
    pub frames: usize,
    /// Objects of a clip at most.
    pub objects: usize,
    /// Probability of a clip that runs backwards.
    pub reverse: f64,
}

/// Beginnings that are tried before a video counts as one without an object.
const TRIES: usize = 8;

impl Clips {
    /// Clips of `frames` frames and at most `objects` objects.
    ///
    /// # Errors
    /// When there are more objects than a clip can hold, or every video has fewer annotated frames. Single ones are
    /// left out, with a warning; those whose list of masks is to be read first are found when their turn comes.
    pub fn new(mut videos: Videos, frames: usize, objects: usize, reverse: f64) -> Result<Self> {
        if !(1..=MAX_OBJECTS).contains(&objects) {
            return Err(Error::config("max_objects", objects, format!("1 to {MAX_OBJECTS}")));
        }
        let all = videos.videos.len();
        let most = videos.videos.iter().map(Video::annotated_at_most).max().unwrap_or(0);
        videos.videos.retain(|v| v.annotated_at_most() >= frames.max(1));
        if videos.videos.is_empty() {
            let cause = format!("at most {most} frames with masks in a video, a clip has {frames}");
            return Err(fault(&videos.root, cause));
        }
        if videos.videos.len() < all {
            tracing::warn!(
                "{} of {all} videos are left out: fewer than {frames} frames with masks",
                all - videos.videos.len()
            );
        }
        Ok(Self { videos: Arc::new(videos), frames, objects, reverse })
    }

    /// What tells this data from another.
    pub fn identity(&self) -> String {
        self.videos.identity()
    }

    /// The masks of a video with frames enough for a clip.
    fn masks<'a>(&self, video: &'a Video) -> Result<Masks<'a>> {
        let masks = video.masks()?;
        let found = masks.annotated().len();
        if found < self.frames {
            let cause = format!("{found} of its frames have all their masks, a clip has {}", self.frames);
            return Err(fault(&home(video), cause));
        }
        Ok(masks)
    }

    /// Frames and objects of a random clip.
    fn draw(&self, video: &Video, masks: &Masks, rng: &mut Stream) -> Result<(Vec<usize>, Vec<u16>)> {
        let annotated = masks.annotated();
        for _ in 0..TRIES {
            let start = rng.below(annotated.len() - self.frames + 1);
            let mut frames = annotated[start..start + self.frames].to_vec();
            if rng.chance(self.reverse) {
                frames.reverse();
            }
            let mut seen = masks.seen(frames[0])?;
            if seen.is_empty() {
                continue;
            }
            rng.shuffle(&mut seen);
            seen.truncate(self.objects);
            return Ok((frames, seen));
        }
        Err(fault(&home(video), format!("no object in the first frame of {TRIES} clips")))
    }

    /// A clip as one picture: its frames below each other, then for each frame the pictures whose bits are its objects.
    fn stacked(&self, video: &Video, masks: &Masks, frames: &[usize], chosen: &[u16]) -> Result<Image> {
        let (mut pixels, mut bits, mut size) = (Vec::new(), Vec::new(), None);
        let pictures = object_bits::pictures(self.objects);
        for &at in frames {
            let image = video.frame(at)?;
            let [w, h] = *size.get_or_insert([image.width, image.height]);
            let wrong = |what: &str, given: [usize; 2]| {
                fault(
                    &video.frames[at],
                    format!("{what} of {} x {}, the first frame has {w} x {h}", given[0], given[1]),
                )
            };
            if [image.width, image.height] != [w, h] {
                return Err(wrong("a frame", [image.width, image.height]));
            }
            pixels.extend_from_slice(&image.data);
            let mut of_frame = vec![0u8; pictures * w * h * 3];
            let place = |number: u16| chosen.iter().position(|&c| c == number);
            masks.each(
                at,
                |number| place(number).is_some(),
                |number, mask| {
                    if [mask.width(), mask.height()] != [w, h] {
                        return Err(wrong("a mask", [mask.width(), mask.height()]));
                    }
                    place(number).into_iter().for_each(|object| object_bits::mark(&mut of_frame, object, &mask));
                    Ok(())
                },
            )?;
            bits.append(&mut of_frame);
        }
        pixels.append(&mut bits);
        let [width, height] = size.unwrap_or_default();
        Ok(Image { width, height: (1 + pictures) * frames.len() * height, data: pixels })
    }
}

/// The folder of a video's frames, or the picture of a video of one.
fn home(video: &Video) -> PathBuf {
    match video.frames.as_slice() {
        [picture] => picture.clone(),
        frames => frames[0].parent().map_or_else(|| frames[0].clone(), PathBuf::from),
    }
}

impl Source for Clips {
    fn len(&self) -> usize {
        self.videos.videos.len()
    }

    fn label(&self, _index: usize) -> i32 {
        -1
    }

    fn name(&self, index: usize) -> PathBuf {
        home(&self.videos.videos[index])
    }

    fn load(&self, index: usize) -> Result<Arc<Image>> {
        let video = &self.videos.videos[index];
        let masks = self.masks(video)?;
        let frames = &masks.annotated()[..self.frames];
        let mut seen = masks.seen(frames[0])?;
        seen.truncate(self.objects);
        Ok(Arc::new(self.stacked(video, &masks, frames, &seen)?))
    }

    fn sample(&self, index: usize, rng: &mut Stream) -> Result<Arc<Image>> {
        let video = &self.videos.videos[index];
        let masks = self.masks(video)?;
        let (frames, seen) = self.draw(video, &masks, rng)?;
        Ok(Arc::new(self.stacked(video, &masks, &frames, &seen)?))
    }

    /// The first frame of the clip that is drawn.
    fn sample_name(&self, index: usize, rng: &mut Stream) -> PathBuf {
        let video = &self.videos.videos[index];
        let mut first = || {
            let masks = self.masks(video).ok()?;
            let (frames, _) = self.draw(video, &masks, rng).ok()?;
            Some(video.frames[frames[0]].clone())
        };
        first().unwrap_or_else(|| home(video))
    }
}
