//! One augmentation for all frames of a clip, and for its masks.
//!
//! Source: `training/dataset/transforms.py` of the SAM 2 code: mirror, rotation and shear, square, colours, and a
//! little more colour frame by frame.

use super::affine;
use super::colour;
use super::image::{Image, Rect};
use super::object_bits;
use super::planes::antialiased;
use super::resize::{Filter, resize};
use super::rng::Stream;
use crate::{Error, Result};

/// How much a clip is changed. The default is upstream's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClipAugment {
    /// Rows and columns of the result.
    pub side: usize,
    /// Frames in the picture that a clip comes as.
    pub frames: usize,
    /// Objects in its masks.
    pub objects: usize,
    /// Probability of a mirrored clip.
    pub mirror: f64,
    /// Largest turn, in degrees.
    pub rotate: f64,
    /// Largest shear, in degrees.
    pub shear: f64,
    /// Largest change of brightness, contrast and saturation of the clip, as parts of 1.
    pub jitter: [f64; 3],
    /// The same of each frame.
    pub frame_jitter: [f64; 3],
    /// Probability of a clip without colours.
    pub gray: f64,
}

/// What is outside of a turned picture.
const FILL: [u8; 3] = [123, 116, 103];

impl ClipAugment {
    /// Upstream's, at this size.
    pub fn new(side: usize, frames: usize, objects: usize) -> Self {
        Self {
            side,
            frames,
            objects,
            mirror: 0.5,
            rotate: 25.0,
            shear: 20.0,
            jitter: [0.1, 0.03, 0.03],
            frame_jitter: [0.1, 0.05, 0.05],
            gray: 0.05,
        }
    }

    /// Bytes of a result: frames `[T, S, S, 3]`, then masks `[O, T, S, S]` of zeros and ones.
    pub fn values(&self) -> usize {
        self.side * self.side * self.frames * (3 + self.objects)
    }

    /// Changes a clip that comes as one picture: frames below each other, then pictures whose bits are objects
    /// ([`object_bits`]).
    ///
    /// # Errors
    /// When the picture is not that of so many frames, or its first frame shows no object at the size of the result.
    pub fn apply(&self, clip: &Image, rng: &mut Stream) -> Result<Vec<u8>> {
        let of_frame = object_bits::pictures(self.objects);
        let pieces = (1 + of_frame) * self.frames;
        if pieces == 0 || !clip.height.is_multiple_of(pieces) {
            let expected = format!("a multiple of {pieces}: {} frames and their masks", self.frames);
            return Err(Error::value("clip", "height", clip.height, expected));
        }
        let height = clip.height / pieces;
        let piece = |i: usize| clip.crop(Rect { left: 0, top: i * height, width: clip.width, height });
        let mut frames = (0..self.frames).map(piece).collect::<Result<Vec<_>>>()?;
        let mut masks = (self.frames..pieces).map(piece).collect::<Result<Vec<_>>>()?;
        if rng.chance(self.mirror) {
            frames.iter_mut().chain(&mut masks).for_each(|image| *image = image.mirrored());
        }
        self.turn(&mut frames, &mut masks, rng);
        let square = |images: Vec<Image>, filter: Filter| -> Result<Vec<Image>> {
            images.iter().map(|image| resize(image, image.rect(), self.side, self.side, filter)).collect()
        };
        let mut frames = square(frames, Filter::Bilinear)?;
        let masks = masks.chunks(of_frame.max(1)).map(|masks| self.planes(masks)).collect::<Result<Vec<_>>>()?;
        if masks.first().is_none_or(|first| first.iter().all(|plane| !plane.contains(&1))) {
            let expected = format!("one that is still seen at {} x {} pixels", self.side, self.side);
            return Err(Error::value("clip", "objects of the first frame", "none", expected));
        }
        let factor = |rng: &mut Stream, range: f64| (1.0 + rng.uniform(-range, range)) as f32;
        let of_clip = self.jitter.map(|range| factor(rng, range));
        let gray = rng.chance(self.gray);
        for frame in &mut frames {
            jitter(frame, of_clip);
            if gray {
                colour::saturation(frame, 0.0);
            }
            jitter(frame, self.frame_jitter.map(|range| factor(rng, range)));
        }
        let mut out = Vec::with_capacity(self.values());
        frames.iter().for_each(|frame| out.extend_from_slice(&frame.data));
        for object in 0..self.objects {
            masks.iter().for_each(|planes| out.extend_from_slice(&planes[object]));
        }
        Ok(out)
    }

    /// The pictures of bits of a frame as a plane of zeros and ones for each object, at the size of the result: at
    /// least half inside.
    fn planes(&self, bits: &[Image]) -> Result<Vec<Vec<u8>>> {
        let old = bits.first().map_or([0; 2], |bits| [bits.height, bits.width]);
        let bits: Vec<&[u8]> = bits.iter().map(|bits| bits.data.as_slice()).collect();
        let plane = |object: usize| {
            let Some(values) = object_bits::plane(&bits, object) else { return Ok(vec![0; self.side * self.side]) };
            let resized = antialiased(&values, old, [self.side; 2], Filter::Bilinear)?;
            Ok(resized.into_iter().map(|v| u8::from(v >= 0.5)).collect())
        };
        (0..self.objects).map(plane).collect()
    }

    /// Turns and shears, unless an object of the first frame would be lost.
    fn turn(&self, frames: &mut [Image], masks: &mut [Image], rng: &mut Stream) {
        let angle = rng.uniform(-self.rotate, self.rotate);
        let shear = rng.uniform(-self.shear, self.shear);
        if angle == 0.0 && shear == 0.0 {
            return;
        }
        let of_frame = object_bits::pictures(self.objects).min(masks.len());
        // A picture of bits cannot be interpolated: each pixel is taken whole.
        let turned: Vec<Image> = masks.iter().map(|mask| affine::turn(mask, angle, shear, None, [0; 3])).collect();
        let present = |all: &[Image]| -> Vec<[u8; 3]> {
            all[..of_frame].iter().map(|image| object_bits::present(&image.data)).collect()
        };
        if present(&turned) != present(masks) {
            return;
        }
        masks.clone_from_slice(&turned);
        let filter = Some(Filter::Bilinear);
        frames.iter_mut().for_each(|frame| *frame = affine::turn(frame, angle, shear, filter, FILL));
    }
}

fn jitter(image: &mut Image, [brightness, contrast, saturation]: [f32; 3]) {
    colour::brightness(image, brightness);
    colour::contrast(image, contrast);
    colour::saturation(image, saturation);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::rng::Purpose;

    /// Two frames with a bright square, which is the object of the first bit, and one of the second bit in the corner.
    fn clip() -> Image {
        let (side, frames) = (16, 2);
        let mut data = Vec::new();
        for _ in 0..frames {
            data.extend((0..side * side).flat_map(|t| [if inside(t, side) { 250 } else { 10 }; 3]));
        }
        for _ in 0..frames {
            data.extend(
                (0..side * side)
                    .flat_map(|t| [u8::from(inside(t, side)) | u8::from(t % side < 3 && t / side < 3) << 1, 0, 0]),
            );
        }
        Image { width: side, height: 2 * frames * side, data }
    }

    fn inside(t: usize, side: usize) -> bool {
        (5..11).contains(&(t % side)) && (5..11).contains(&(t / side))
    }

    #[test]
    fn masks_move_with_the_pixels() {
        let augment = ClipAugment { mirror: 0.5, ..ClipAugment::new(32, 2, 2) };
        for index in 0..12 {
            let out = augment.apply(&clip(), &mut Stream::new(1, Purpose::TEST, 0, index)).unwrap();
            assert_eq!(out.len(), augment.values());
            let (pixels, masks) = out.split_at(2 * 32 * 32 * 3);
            let mut agree = 0;
            for t in 0..32 * 32 {
                agree += usize::from((pixels[3 * t] > 128) == (masks[t] == 1));
            }
            assert!(agree > 900, "{agree} of 1024 pixels of clip {index}"); // all but those on borders
            // The corner's object is in the first frame whatever happened.
            assert!(masks[2 * 32 * 32..3 * 32 * 32].contains(&1));
        }
    }

    #[test]
    fn one_stream_one_result_and_other_heights_are_refused() {
        let augment = ClipAugment::new(16, 2, 1);
        let draw = |index| augment.apply(&clip(), &mut Stream::new(1, Purpose::TEST, 0, index)).unwrap();
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
        let three = ClipAugment::new(16, 3, 1);
        assert!(three.apply(&clip(), &mut Stream::new(1, Purpose::TEST, 0, 0)).is_err());
    }
}
