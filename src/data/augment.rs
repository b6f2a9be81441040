//! Crops, mirror and colour normalisation: drawing the parameters and applying them are two steps, so that a
//! recorded draw can be replayed.

use super::image::{Image, Rect};
use super::resize::{Filter, resize};
use super::rng::Stream;
use crate::{Error, Result};

/// Mean of the ImageNet training set per channel, in units of [0, 1].
pub const IMAGENET_MEAN: [f64; 3] = [0.485, 0.456, 0.406];
/// Standard deviation of the ImageNet training set per channel, in units of [0, 1].
pub const IMAGENET_STD: [f64; 3] = [0.229, 0.224, 0.225];

/// What a random crop may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CropRange {
    /// Area of the crop over the area of the image, (lowest, highest).
    pub scale: (f64, f64),
    /// Width over height, (lowest, highest); drawn uniformly in the logarithm.
    pub ratio: (f64, f64),
    /// Probability that left and right are exchanged.
    pub mirror: f64,
}

impl CropRange {
    /// Pre-training: 20 % to all of the area.
    pub const PRETRAIN: Self = Self { scale: (0.2, 1.0), ratio: (3.0 / 4.0, 4.0 / 3.0), mirror: 0.5 };
    /// Supervised training: 8 % to all of the area.
    pub const SUPERVISED: Self = Self { scale: (0.08, 1.0), ..Self::PRETRAIN };

    /// An error unless 0 < lowest <= highest everywhere and `mirror` is a probability.
    pub fn check(&self, op: &'static str) -> Result<()> {
        for (arg, (low, high)) in [("scale", self.scale), ("ratio", self.ratio)] {
            if !(low > 0.0 && low <= high && high.is_finite()) || (arg == "scale" && high > 1.0) {
                let expected = if arg == "scale" { "0 < lowest <= highest <= 1" } else { "0 < lowest <= highest" };
                return Err(Error::value(op, arg, format!("({low}, {high})"), expected));
            }
        }
        if !(0.0..=1.0).contains(&self.mirror) {
            return Err(Error::value(op, "mirror", self.mirror, "a probability"));
        }
        Ok(())
    }

    fn draw_aspect(&self, rng: &mut Stream) -> f64 {
        rng.uniform(self.ratio.0.ln(), self.ratio.1.ln()).exp()
    }
}

/// One drawn crop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CropParams {
    /// What is kept, in pixels of the source.
    pub rect: Rect,
    /// Whether left and right are exchanged after resizing.
    pub mirror: bool,
}

impl CropParams {
    /// Random resized crop (the algorithm of torchvision's `RandomResizedCrop`): up to ten times an area and an
    /// aspect ratio are drawn, `w = round(sqrt(area·ratio))`, `h = round(sqrt(area/ratio))`, and taken if they fit;
    /// else the largest centred rectangle whose aspect ratio lies in the range.
    pub fn draw(rng: &mut Stream, width: usize, height: usize, range: &CropRange) -> Self {
        let area = (width * height) as f64;
        for _ in 0..10 {
            let target = area * rng.uniform(range.scale.0, range.scale.1);
            let aspect = range.draw_aspect(rng);
            let w = (target * aspect).sqrt().round_ties_even() as usize;
            let h = (target / aspect).sqrt().round_ties_even() as usize;
            if (1..=width).contains(&w) && (1..=height).contains(&h) {
                return Self::place(rng, width, height, w, h, range);
            }
        }
        let aspect = width as f64 / height as f64;
        let (mut w, mut h) = (width, height);
        if aspect < range.ratio.0 {
            h = ((width as f64 / range.ratio.0).round_ties_even() as usize).clamp(1, height);
        } else if aspect > range.ratio.1 {
            w = ((height as f64 * range.ratio.1).round_ties_even() as usize).clamp(1, width);
        }
        let rect = Rect { left: (width - w) / 2, top: (height - h) / 2, width: w, height: h };
        Self { rect, mirror: rng.chance(range.mirror) }
    }

    /// The simpler random crop of the linear probe: one draw, sides clipped to the image.
    pub fn draw_once(rng: &mut Stream, width: usize, height: usize, range: &CropRange) -> Self {
        let target = (width * height) as f64 * rng.uniform(range.scale.0, range.scale.1);
        let aspect = range.draw_aspect(rng);
        let w = ((target * aspect).sqrt().round_ties_even() as usize).clamp(1, width);
        let h = ((target / aspect).sqrt().round_ties_even() as usize).clamp(1, height);
        Self::place(rng, width, height, w, h, range)
    }

    fn place(rng: &mut Stream, width: usize, height: usize, w: usize, h: usize, range: &CropRange) -> Self {
        let top = rng.below(height - h + 1);
        let left = rng.below(width - w + 1);
        Self { rect: Rect { left, top, width: w, height: h }, mirror: rng.chance(range.mirror) }
    }

    /// Cuts, resizes to `width` x `height` and mirrors.
    pub fn apply(&self, image: &Image, width: usize, height: usize, filter: Filter) -> Result<Image> {
        let out = resize(image, self.rect, width, height, filter)?;
        Ok(if self.mirror { out.mirrored() } else { out })
    }
}

/// What evaluation resizes to before it cuts the middle `size` out: trunc(size·256/224) up to 224, larger sizes are
/// used whole.
pub fn evaluation_side(size: usize) -> usize {
    if size <= 224 { size * 256 / 224 } else { size }
}

/// Resizes the short side to `side`, the other one to trunc(side·long/short), bicubic.
pub fn resize_short_side(image: &Image, side: usize) -> Result<Image> {
    resize_to_cover(image, side, side)
}

/// Resizes in proportion until `width` x `height` is just covered: one side fits, the other is truncated, bicubic.
fn resize_to_cover(image: &Image, width: usize, height: usize) -> Result<Image> {
    let product = |a: usize, b: usize| {
        a.checked_mul(b).ok_or_else(|| Error::value("resize", "side", width.max(height), "a length in pixels"))
    };
    let (width, height) = if product(image.width, height)? <= product(image.height, width)? {
        (width, product(width, image.height)? / image.width)
    } else {
        (product(height, image.width)? / image.height, height)
    };
    resize(image, image.rect(), width, height, Filter::Bicubic)
}

/// The middle of an image: offsets are round((side - crop)/2), halves to even. Where the image is smaller, black is
/// added.
pub fn centre_crop(image: &Image, width: usize, height: usize) -> Result<Image> {
    if width == 0 || height == 0 {
        return Err(Error::value("centre_crop", "width, height", format!("{width}, {height}"), "both at least 1"));
    }
    // Padding first, to at least the crop: half of the missing pixels (rounded down) before, the rest after.
    let (padded_width, padded_height) = (image.width.max(width), image.height.max(height));
    let (before_x, before_y) = ((padded_width - image.width) / 2, (padded_height - image.height) / 2);
    let offset = |side: usize, crop: usize| ((side - crop) as f64 / 2.0).round_ties_even() as usize;
    let (left, top) = (offset(padded_width, width), offset(padded_height, height));
    let mut out = Image::filled(width, height, [0; 3]);
    for (y, row) in out.data.chunks_exact_mut(width * 3).enumerate() {
        let Some(source_y) = (y + top).checked_sub(before_y).filter(|&y| y < image.height) else { continue };
        let skip = before_x.saturating_sub(left); // columns of padding inside the crop
        let from = left.saturating_sub(before_x);
        let len = (width - skip).min(image.width - from);
        let at = (source_y * image.width + from) * 3;
        row[skip * 3..(skip + len) * 3].copy_from_slice(&image.data[at..at + len * 3]);
    }
    Ok(out)
}

/// Evaluation: resized until the [`evaluation_side`] of both sides is just covered, middle `height` x `width`.
pub fn evaluation_crop(image: &Image, [height, width]: [usize; 2]) -> Result<Image> {
    centre_crop(&resize_to_cover(image, evaluation_side(width), evaluation_side(height))?, width, height)
}

/// Bytes to normalised floats: `(v/255 - mean) / std` per channel, from a table computed in f64.
#[derive(Clone, Debug)]
pub struct Normalise {
    table: Box<[[f32; 256]; 3]>,
}

impl Normalise {
    /// For these means and standard deviations, in units of [0, 1].
    pub fn new(mean: [f64; 3], std: [f64; 3]) -> Result<Self> {
        if mean.iter().chain(&std).any(|v| !v.is_finite()) || std.iter().any(|&s| s <= 0.0) {
            let expected = "finite means, finite positive standard deviations";
            return Err(Error::value("normalise", "mean, std", format!("{mean:?}, {std:?}"), expected));
        }
        Ok(Self::of(mean, std))
    }

    /// With the statistics of ImageNet.
    pub fn imagenet() -> Self {
        Self::of(IMAGENET_MEAN, IMAGENET_STD)
    }

    fn of(mean: [f64; 3], std: [f64; 3]) -> Self {
        let mut table = Box::new([[0.0; 256]; 3]);
        for (channel, values) in table.iter_mut().enumerate() {
            for (byte, value) in values.iter_mut().enumerate() {
                *value = ((byte as f64 / 255.0 - mean[channel]) / std[channel]) as f32;
            }
        }
        Self { table }
    }

    /// Planes `[3, H, W]` of an image.
    pub fn apply(&self, image: &Image) -> Vec<f32> {
        let mut out = Vec::with_capacity(image.data.len());
        for (channel, table) in self.table.iter().enumerate() {
            out.extend(image.data[channel..].iter().step_by(3).map(|&v| table[usize::from(v)]));
        }
        out
    }

    /// Images already in planes, `[.., 3, pixels]` with `pixels` values a plane.
    pub fn apply_planes(&self, planes: &[u8], pixels: usize) -> Vec<f32> {
        let mut out = Vec::with_capacity(planes.len());
        for (at, plane) in planes.chunks(pixels.max(1)).enumerate() {
            out.extend(plane.iter().map(|&v| self.table[at % 3][usize::from(v)]));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::data::fixtures::noise;
    use crate::data::rng::Purpose;

    #[test]
    fn centre_crop_pads_what_is_missing() {
        let image = noise(3, 2);
        let out = centre_crop(&image, 2, 5).unwrap(); // one column less, rows padded by 1 above and 2 below
        assert_eq!(out.pixel(0, 1), image.pixel(0, 0)); // round(1/2) = 0: halves to even
        assert_eq!(out.pixel(1, 2), image.pixel(1, 1));
        assert_eq!([out.pixel(0, 0), out.pixel(0, 3), out.pixel(1, 4)], [[0; 3]; 3]);
        let wide = centre_crop(&image, 8, 2).unwrap();
        assert_eq!(
            (wide.pixel(1, 0), wide.pixel(2, 0), wide.pixel(4, 1)),
            ([0; 3], image.pixel(0, 0), image.pixel(2, 1))
        );
        assert_eq!(centre_crop(&image, 3, 2).unwrap(), image);
        assert!(centre_crop(&image, 0, 2).is_err());
    }

    #[test]
    fn evaluation_sides() {
        assert_eq!([32, 64, 96, 224, 225, 448].map(evaluation_side), [36, 73, 109, 256, 225, 448]);
        for (height, width) in [(32, 32), (32, 8), (8, 64)] {
            let out = evaluation_crop(&noise(90, 41), [height, width]).unwrap();
            assert_eq!((out.width, out.height), (width, height));
        }
        // No black borders: a white image stays white whichever side decides.
        let white = Image::filled(90, 41, [255; 3]);
        assert!(evaluation_crop(&white, [50, 7]).unwrap().data.iter().all(|&v| v == 255));
        assert!(evaluation_crop(&white, [7, 50]).unwrap().data.iter().all(|&v| v == 255));
        assert_eq!(resize_short_side(&noise(90, 41), 36).map(|i| (i.width, i.height)).unwrap(), (79, 36));
    }

    #[test]
    fn unusable_ranges_are_errors() {
        assert!(CropRange::PRETRAIN.check("test").is_ok());
        for range in [
            CropRange { scale: (0.0, 1.0), ..CropRange::PRETRAIN },
            CropRange { scale: (0.5, 0.2), ..CropRange::PRETRAIN },
            CropRange { scale: (0.5, 1.5), ..CropRange::PRETRAIN },
            CropRange { ratio: (f64::NAN, 1.0), ..CropRange::PRETRAIN },
            CropRange { mirror: 1.5, ..CropRange::PRETRAIN },
        ] {
            assert!(range.check("test").is_err(), "{range:?}");
        }
        assert!(Normalise::new([0.0; 3], [1.0, 0.0, 1.0]).is_err());
        let half = Normalise::new([0.5; 3], [0.5; 3]).unwrap();
        assert_eq!(half.apply(&Image::filled(1, 1, [0, 255, 51])), [-1.0, 1.0, -0.6]);
        let (image, normalise) = (noise(5, 3), Normalise::imagenet());
        assert_eq!(normalise.apply_planes(&image.to_planes(), 15), normalise.apply(&image));
    }

    #[test]
    fn areas_and_aspects_cover_the_range() {
        let mut rng = Stream::new(1, Purpose::TEST, 0, 0);
        let crops: Vec<_> = (0..2000).map(|_| CropParams::draw(&mut rng, 400, 300, &CropRange::PRETRAIN)).collect();
        let area = |c: &CropParams| (c.rect.width * c.rect.height) as f64 / 120_000.0;
        let aspect = |c: &CropParams| c.rect.width as f64 / c.rect.height as f64;
        // A pixel more or less on each side changes these by under 2 %.
        assert!(crops.iter().all(|c| area(c) > 0.195 && area(c) <= 1.0 && (0.74..1.35).contains(&aspect(c))));
        assert!(crops.iter().any(|c| area(c) < 0.25) && crops.iter().any(|c| area(c) > 0.9));
        let mirrored = crops.iter().filter(|c| c.mirror).count();
        assert!((850..1150).contains(&mirrored), "{mirrored}"); // 1000 +- 6.7 standard deviations
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn crops_lie_inside_any_image(width in 1usize..400, height in 1usize..400, seed: u64, low in 0.01..1.0f64) {
            let image = Image::filled(width, height, [0; 3]);
            let range = CropRange { scale: (low, 1.0), ..CropRange::SUPERVISED };
            let mut rng = Stream::new(seed, Purpose::TEST, 0, 0);
            CropParams::draw(&mut rng, width, height, &range).rect.check_inside("draw", &image).unwrap();
            CropParams::draw_once(&mut rng, width, height, &range).rect.check_inside("draw_once", &image).unwrap();
        }
    }
}
