//! The multi-crop transform of self-distillation: two large views of an image and some small ones, each cropped, mirrored
//! and changed in colour on its own.
//!
//! Sources: Caron et al. 2020, arXiv 2006.09882 (multi-crop); dinov2 at b8931f7, `data/augmentations.py`, whose operations are
//! torchvision's on Pillow images.

use super::augment::{CropParams, CropRange};
use super::image::Image;
use super::resize::Filter;
use super::rng::Stream;
use super::{blur, colour, hue};
use crate::{Error, Result};

const OP: &str = "multi_crop";

/// Which views are blurred how often. In DINOv2 the probabilities are inverted, and that is how the released models were
/// trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum BlurCompat {
    /// As released: the first global view never, the second with probability 0.9, local ones with 0.5.
    Official,
    /// As meant: the first global view always, the second with probability 0.1, local ones with 0.5.
    Intended,
    /// No view: standard deviations of up to 2 pixels leave nothing of views of 16.
    None,
}

/// The views of one image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MultiCrop {
    /// Sides of a global view.
    pub global_size: usize,
    /// Sides of a local view.
    pub local_size: usize,
    /// Number of local views.
    pub locals: usize,
    /// Area of a global view over that of the image, (lowest, highest).
    pub global_scale: (f64, f64),
    /// The same of a local view.
    pub local_scale: (f64, f64),
    /// Probability that left and right are exchanged.
    pub mirror: f64,
    /// Probability that the colours of a view change.
    pub jitter: f64,
    /// Which views are blurred.
    pub blur: BlurCompat,
    /// Probability that values from 128 on are inverted in the second global view.
    pub solarize: f64,
}

/// Global views of an image.
pub const GLOBALS: usize = 2;

/// How a kind of view is made.
struct Kind {
    size: usize,
    range: CropRange,
    /// Probability of other colours.
    jitter: f64,
    /// Probability of a blur.
    blur: f64,
    /// Probability that values from 128 on are inverted.
    solarize: f64,
}

/// What is drawn for one view.
#[derive(Clone, Debug, PartialEq)]
struct View {
    crop: CropParams,
    /// In the order they are applied.
    jitter: Option<[Jitter; 4]>,
    gray: bool,
    /// Standard deviation in pixels.
    blur: Option<f64>,
    solarize: bool,
}

/// One change of colour.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Jitter {
    /// [`colour::brightness`].
    Brightness(f32),
    /// [`colour::contrast`].
    Contrast(f32),
    /// [`colour::saturation`].
    Saturation(f32),
    /// [`hue::turn`].
    Hue(f64),
}

impl Jitter {
    /// All four in a random order.
    fn draw(rng: &mut Stream) -> [Self; 4] {
        let mut factor = |strength: f64| rng.uniform(1.0 - strength, 1.0 + strength) as f32;
        let (brightness, contrast, saturation) = (factor(0.4), factor(0.4), factor(0.2));
        let turn = rng.uniform(-0.1, 0.1);
        let mut all =
            [Self::Brightness(brightness), Self::Contrast(contrast), Self::Saturation(saturation), Self::Hue(turn)];
        rng.shuffle(&mut all);
        all
    }

    fn apply(self, image: &mut Image) {
        match self {
            Self::Brightness(factor) => colour::brightness(image, factor),
            Self::Contrast(factor) => colour::contrast(image, factor),
            Self::Saturation(factor) => colour::saturation(image, factor),
            Self::Hue(part) => hue::turn(image, part),
        }
    }
}

impl View {
    fn draw(rng: &mut Stream, image: &Image, kind: &Kind) -> Self {
        let crop = CropParams::draw(rng, image.width, image.height, &kind.range);
        let jitter = rng.chance(kind.jitter).then(|| Jitter::draw(rng));
        let gray = rng.chance(0.2);
        let blur = rng.chance(kind.blur).then(|| rng.uniform(0.1, 2.0));
        Self { crop, jitter, gray, blur, solarize: rng.chance(kind.solarize) }
    }

    fn apply(&self, image: &Image, size: usize) -> Result<Image> {
        let mut out = self.crop.apply(image, size, size, Filter::Bicubic)?;
        self.jitter.iter().flatten().for_each(|change| change.apply(&mut out));
        if self.gray {
            colour::saturation(&mut out, 0.0);
        }
        if let Some(sigma) = self.blur {
            out = blur::gaussian(&out, sigma);
        }
        if self.solarize {
            colour::solarize(&mut out, 128);
        }
        Ok(out)
    }
}

impl MultiCrop {
    /// Two views of 224 pixels with 32 % to all of the area, eight of `local_size` (98 for patches of 14, 96 for patches of 16)
    /// with 5 % to 32 %.
    pub fn dinov2(local_size: usize) -> Self {
        Self {
            global_size: 224,
            local_size,
            locals: 8,
            global_scale: (0.32, 1.0),
            local_scale: (0.05, 0.32),
            mirror: 0.5,
            jitter: 0.8,
            blur: BlurCompat::Official,
            solarize: 0.2,
        }
    }

    /// An error unless the sizes are positive and the ranges are ranges.
    pub fn check(&self) -> Result<()> {
        for (arg, size) in [("global_size", self.global_size), ("local_size", self.local_size)] {
            if size == 0 || size > 1 << 14 {
                return Err(Error::value(OP, arg, size, "from 1 to 16384 pixels"));
            }
        }
        for (arg, (low, high)) in [("global_scale", self.global_scale), ("local_scale", self.local_scale)] {
            if !(low > 0.0 && low <= high && high <= 1.0) {
                return Err(Error::value(OP, arg, format!("({low}, {high})"), "0 < lowest <= highest <= 1"));
            }
        }
        for (arg, p) in [("mirror", self.mirror), ("jitter", self.jitter), ("solarize", self.solarize)] {
            if !(0.0..=1.0).contains(&p) {
                return Err(Error::value(OP, arg, p, "a probability"));
            }
        }
        Ok(())
    }

    /// Bytes of a sample: two global views and the local ones.
    pub fn bytes(&self) -> usize {
        3 * (GLOBALS * self.global_size.pow(2) + self.locals * self.local_size.pow(2))
    }

    /// The views of an image as planes `[3, S, S]`, one after the other: two global ones, then the local ones.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn apply(&self, image: &Image, rng: &mut Stream) -> Result<Vec<u8>> {
        self.check()?;
        let mut out = Vec::with_capacity(self.bytes());
        for number in 0..GLOBALS + self.locals {
            let kind = self.kind(number);
            out.extend(View::draw(rng, image, &kind).apply(image, kind.size)?.to_planes());
        }
        Ok(out)
    }

    /// How view `number` is made.
    fn kind(&self, number: usize) -> Kind {
        let (size, scale) = match number < GLOBALS {
            true => (self.global_size, self.global_scale),
            false => (self.local_size, self.local_scale),
        };
        let blur = match (self.blur, number) {
            (BlurCompat::Official, 0) => 0.0,
            (BlurCompat::Official, 1) => 0.9,
            (BlurCompat::Intended, 0) => 1.0,
            (BlurCompat::Intended, 1) => 0.1,
            (BlurCompat::None, _) => 0.0,
            _ => 0.5,
        };
        let solarize = if number == 1 { self.solarize } else { 0.0 };
        let range = CropRange { scale, mirror: self.mirror, ..CropRange::PRETRAIN };
        Kind { size, range, jitter: self.jitter, blur, solarize }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::fixtures::noise;
    use crate::data::rng::Purpose;

    fn stream(index: u64) -> Stream {
        Stream::new(3, Purpose::TEST, 0, index)
    }

    /// Share of views, of 4000, for which `f` holds.
    fn share(crop: &MultiCrop, number: usize, f: impl Fn(&View) -> bool) -> f64 {
        let image = noise(40, 30);
        let kind = crop.kind(number);
        let mut rng = stream(number as u64);
        (0..4000).filter(|_| f(&View::draw(&mut rng, &image, &kind))).count() as f64 / 4000.0
    }

    #[test]
    fn every_change_comes_as_often_as_it_should() {
        // Five standard deviations of a share of 4000 are at most 0.04.
        let near = |share: f64, expected: f64| {
            let exact = expected == 0.0 || expected == 1.0;
            assert!((share - expected).abs() <= if exact { 0.0 } else { 0.04 }, "{share}, expected {expected}");
        };
        let official = MultiCrop::dinov2(98);
        let intended = MultiCrop { blur: BlurCompat::Intended, ..official };
        for (crop, blurs) in [(official, [0.0, 0.9, 0.5, 0.5]), (intended, [1.0, 0.1, 0.5, 0.5])] {
            for (number, blur) in blurs.into_iter().enumerate() {
                near(share(&crop, number, |v| v.blur.is_some()), blur);
                near(share(&crop, number, |v| v.solarize), if number == 1 { 0.2 } else { 0.0 });
                near(share(&crop, number, |v| v.jitter.is_some()), 0.8);
                near(share(&crop, number, |v| v.gray), 0.2);
                near(share(&crop, number, |v| v.crop.mirror), 0.5);
            }
        }
        let plain = MultiCrop { blur: BlurCompat::None, jitter: 0.0, solarize: 0.0, mirror: 0.0, ..official };
        for number in 0..4 {
            near(share(&plain, number, |v| v.blur.is_some() || v.jitter.is_some() || v.solarize || v.crop.mirror), 0.0);
        }
        // Each of four comes first in a quarter of them.
        near(share(&official, 0, |v| matches!(v.jitter, Some([Jitter::Hue(_), ..]))), 0.8 / 4.0);
        near(share(&official, 0, |v| matches!(v.jitter, Some([.., Jitter::Contrast(_)]))), 0.8 / 4.0);
        near(share(&official, 1, |v| v.blur.is_some_and(|sigma| sigma < 1.05)), 0.45);
    }

    #[test]
    fn draws_stay_in_their_ranges() {
        let (image, crop) = (noise(400, 300), MultiCrop::dinov2(98));
        let mut rng = stream(9);
        for number in [0, 1, 2] {
            let kind = crop.kind(number);
            let (low, high) = if number < 2 { (0.32, 1.0) } else { (0.05, 0.32) };
            for _ in 0..500 {
                let view = View::draw(&mut rng, &image, &kind);
                let area = (view.crop.rect.width * view.crop.rect.height) as f64 / 120_000.0;
                assert!(area > 0.97 * low && area < 1.03 * high, "{area}"); // a pixel more or less
                assert!(view.blur.is_none_or(|sigma| (0.1..2.0).contains(&sigma)));
                for change in view.jitter.iter().flatten() {
                    assert!(match *change {
                        Jitter::Brightness(x) | Jitter::Contrast(x) => (0.6..=1.4).contains(&x),
                        Jitter::Saturation(x) => (0.8..=1.2).contains(&x),
                        Jitter::Hue(x) => (-0.1..=0.1).contains(&x),
                    });
                }
            }
        }
    }

    #[test]
    fn views_lie_one_after_the_other_and_repeat_with_their_stream() {
        let crop = MultiCrop { global_size: 14, local_size: 7, locals: 3, ..MultiCrop::dinov2(98) };
        for image in [noise(32, 32), noise(50, 20), noise(1, 1), noise(3, 200)] {
            let out = crop.apply(&image, &mut stream(1)).unwrap();
            assert_eq!(out.len(), 3 * (2 * 14 * 14 + 3 * 7 * 7));
            assert_eq!(out.len(), crop.bytes());
            assert_eq!(out, crop.apply(&image, &mut stream(1)).unwrap());
        }
        let image = noise(32, 32);
        let all = crop.apply(&image, &mut stream(1)).unwrap();
        assert_ne!(all, crop.apply(&image, &mut stream(2)).unwrap());
        // The second view, drawn after the first.
        let mut rng = stream(1);
        View::draw(&mut rng, &image, &crop.kind(0));
        let second = View::draw(&mut rng, &image, &crop.kind(1)).apply(&image, 14).unwrap();
        assert_eq!(all[3 * 14 * 14..][..3 * 14 * 14], second.to_planes());
    }

    /// By hand, in the order of the recipe.
    #[test]
    fn a_view_is_its_changes_in_order() {
        let image = noise(20, 20);
        let crop = CropParams { rect: image.rect(), mirror: true };
        let jitter = Some([Jitter::Hue(0.08), Jitter::Contrast(1.3), Jitter::Brightness(0.7), Jitter::Saturation(1.1)]);
        let view = View { crop, jitter, gray: true, blur: Some(0.8), solarize: true };
        let mut by_hand = image.mirrored();
        hue::turn(&mut by_hand, 0.08);
        colour::contrast(&mut by_hand, 1.3);
        colour::brightness(&mut by_hand, 0.7);
        colour::saturation(&mut by_hand, 1.1);
        colour::saturation(&mut by_hand, 0.0);
        let mut by_hand = blur::gaussian(&by_hand, 0.8);
        colour::solarize(&mut by_hand, 128);
        let out = view.apply(&image, 20).unwrap();
        assert_eq!(out, by_hand);
        assert!(out.data.chunks_exact(3).all(|p| p[0] == p[1] && p[1] == p[2] && p[0] < 128));
        let plain = View { jitter: None, gray: false, blur: None, solarize: false, ..view };
        assert_eq!(plain.apply(&image, 20).unwrap(), image.mirrored());
    }

    #[test]
    fn unusable_settings_are_errors() {
        let crop = MultiCrop::dinov2(96);
        let text = |crop: MultiCrop| crop.apply(&noise(4, 4), &mut stream(0)).unwrap_err().to_string();
        let zero = text(MultiCrop { local_size: 0, ..crop });
        assert_eq!(zero, "multi_crop: `local_size` has value 0, expected from 1 to 16384 pixels");
        let range = text(MultiCrop { global_scale: (0.5, 0.25), ..crop });
        assert_eq!(range, "multi_crop: `global_scale` has value (0.5, 0.25), expected 0 < lowest <= highest <= 1");
        assert!(MultiCrop { local_scale: (f64::NAN, 0.2), ..crop }.check().is_err());
        assert!(MultiCrop { locals: 0, ..crop }.check().is_ok());
    }
}
