//! RandAugment as the fine-tuning recipe uses it, `rand-m9-mstd0.5-inc1`: two of fifteen operations, drawn with
//! replacement, each applied with probability 1/2 at a magnitude drawn from N(9, 0.5²) and cut to 0..10.
//!
//! "inc" selects the variants whose effect grows with the magnitude m: posterize keeps 4 - trunc(0.4·m) bits,
//! solarize inverts from 256 - trunc(25.6·m) on, colour, contrast, brightness and sharpness take the factor 1 ±
//! 0.09·m. The other arguments: rotation ±3·m degrees, shear ±0.03·m, translation ±0.045·m of the side,
//! solarize-add trunc(11·m). Uncovered pixels get the fill colour.
//!
//! Sources: Cubuk et al. 2019, arXiv 1909.13719; the parameters are those of timm 0.3.2, with which the recipe was
//! published.

use super::augment::IMAGENET_MEAN;
use super::image::Image;
use super::resize::Filter;
use super::rng::Stream;
use super::{affine, colour};
use crate::{Error, Result};

/// One operation with its argument.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    /// [`colour::auto_contrast`].
    AutoContrast,
    /// [`colour::equalize`].
    Equalize,
    /// [`colour::invert`].
    Invert,
    /// [`affine::rotate`], degrees.
    Rotate(f64),
    /// [`colour::posterize`], bits kept.
    Posterize(u32),
    /// [`colour::solarize`], threshold.
    Solarize(u32),
    /// [`colour::solarize_add`], what is added.
    SolarizeAdd(u32),
    /// [`colour::saturation`], factor.
    Colour(f32),
    /// [`colour::contrast`], factor.
    Contrast(f32),
    /// [`colour::brightness`], factor.
    Brightness(f32),
    /// [`colour::sharpness`], factor.
    Sharpness(f32),
    /// [`affine::shear_x`], factor.
    ShearX(f64),
    /// [`affine::shear_y`], factor.
    ShearY(f64),
    /// [`affine::translate_x`], part of the width.
    TranslateX(f64),
    /// [`affine::translate_y`], part of the height.
    TranslateY(f64),
}

/// Number of operations to draw from.
const CHANGES: usize = 15;
/// Largest magnitude.
const MAX_LEVEL: f64 = 10.0;

impl Change {
    /// Operation number `which` at magnitude `level`; the sign, where there is one, is drawn.
    fn at_level(rng: &mut Stream, which: usize, level: f64) -> Self {
        let part = level / MAX_LEVEL;
        let mut signed = |v: f64| if rng.chance(0.5) { -v } else { v };
        match which {
            0 => Self::AutoContrast,
            1 => Self::Equalize,
            2 => Self::Invert,
            3 => Self::Rotate(signed(30.0 * part)),
            4 => Self::Posterize(4 - (4.0 * part) as u32),
            5 => Self::Solarize(256 - (256.0 * part) as u32),
            6 => Self::SolarizeAdd((110.0 * part) as u32),
            7 => Self::Colour((1.0 + signed(0.9 * part)) as f32),
            8 => Self::Contrast((1.0 + signed(0.9 * part)) as f32),
            9 => Self::Brightness((1.0 + signed(0.9 * part)) as f32),
            10 => Self::Sharpness((1.0 + signed(0.9 * part)) as f32),
            11 => Self::ShearX(signed(0.3 * part)),
            12 => Self::ShearY(signed(0.3 * part)),
            13 => Self::TranslateX(signed(0.45 * part)),
            _ => Self::TranslateY(signed(0.45 * part)),
        }
    }

    /// The changed image.
    pub fn apply(self, image: &Image, filter: Filter, fill: [u8; 3]) -> Image {
        let coloured = |f: &dyn Fn(&mut Image)| {
            let mut out = image.clone();
            f(&mut out);
            out
        };
        match self {
            Self::AutoContrast => coloured(&colour::auto_contrast),
            Self::Equalize => coloured(&colour::equalize),
            Self::Invert => coloured(&colour::invert),
            Self::Posterize(bits) => coloured(&|i| colour::posterize(i, bits)),
            Self::Solarize(threshold) => coloured(&|i| colour::solarize(i, threshold)),
            Self::SolarizeAdd(add) => coloured(&|i| colour::solarize_add(i, add)),
            Self::Colour(factor) => coloured(&|i| colour::saturation(i, factor)),
            Self::Contrast(factor) => coloured(&|i| colour::contrast(i, factor)),
            Self::Brightness(factor) => coloured(&|i| colour::brightness(i, factor)),
            Self::Sharpness(factor) => coloured(&|i| colour::sharpness(i, factor)),
            Self::Rotate(degrees) => affine::rotate(image, degrees, filter, fill),
            Self::ShearX(factor) => affine::shear_x(image, factor, filter, fill),
            Self::ShearY(factor) => affine::shear_y(image, factor, filter, fill),
            Self::TranslateX(fraction) => affine::translate_x(image, fraction, filter, fill),
            Self::TranslateY(fraction) => affine::translate_y(image, fraction, filter, fill),
        }
    }
}

/// Settings of RandAugment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RandAugment {
    /// Operations drawn for each image.
    pub count: usize,
    /// Mean magnitude, 0 to 10.
    pub magnitude: f64,
    /// Standard deviation of the magnitude.
    pub deviation: f64,
    /// Probability that a drawn operation is applied.
    pub probability: f64,
    /// Interpolation of the geometric operations; `None` to draw bilinear or bicubic for each.
    pub filter: Option<Filter>,
    /// Colour of pixels that come from outside.
    pub fill: [u8; 3],
}

impl Default for RandAugment {
    /// `rand-m9-mstd0.5-inc1` with bicubic interpolation and the ImageNet mean as fill, as in the recipe.
    fn default() -> Self {
        let fill = IMAGENET_MEAN.map(|mean| (255.0 * mean).round_ties_even() as u8);
        Self { count: 2, magnitude: 9.0, deviation: 0.5, probability: 0.5, filter: Some(Filter::Bicubic), fill }
    }
}

impl RandAugment {
    /// Reads a setting such as `rand-m9-mstd0.5-inc1`: `m` magnitude, `n` count, `mstd` deviation, `p` probability,
    /// `inc1` (which may not be missing: only the growing variants exist here).
    pub fn parse(text: &str) -> Result<Self> {
        let bad = || {
            Error::config("rand_augment", format!("`{text}`"), "such as `rand-m9-mstd0.5-inc1` (m, n, mstd, p; inc1)")
        };
        let mut sections = text.split('-');
        if sections.next() != Some("rand") {
            return Err(bad());
        }
        let (mut settings, mut growing) = (Self::default(), false);
        settings.deviation = 0.0;
        for section in sections {
            let split = section.find(|c: char| !c.is_ascii_alphabetic()).ok_or_else(bad)?;
            let (key, value) = section.split_at(split);
            let value: f64 = value.parse().map_err(|_| bad())?;
            match key {
                "m" if (0.0..=MAX_LEVEL).contains(&value) => settings.magnitude = value,
                "n" if (0.0..=100.0).contains(&value) && value.fract() == 0.0 => settings.count = value as usize,
                "mstd" if (0.0..=100.0).contains(&value) => settings.deviation = value,
                "p" if (0.0..=1.0).contains(&value) => settings.probability = value,
                "inc" if value == 1.0 => growing = true,
                _ => return Err(bad()),
            }
        }
        if growing { Ok(settings) } else { Err(bad()) }
    }

    /// Draws the operations for one image, in the order in which they are applied.
    pub fn draw(&self, rng: &mut Stream) -> Vec<(Change, Filter)> {
        let mut changes = Vec::new();
        for _ in 0..self.count {
            let which = rng.below(CHANGES);
            if !rng.chance(self.probability) {
                continue;
            }
            let level = (self.magnitude + self.deviation * rng.normal()).clamp(0.0, MAX_LEVEL);
            let change = Change::at_level(rng, which, level);
            let either = || if rng.chance(0.5) { Filter::Bilinear } else { Filter::Bicubic };
            changes.push((change, self.filter.unwrap_or_else(either)));
        }
        changes
    }

    /// Applies drawn operations.
    pub fn apply(&self, image: Image, changes: &[(Change, Filter)]) -> Image {
        changes.iter().fold(image, |image, (change, filter)| change.apply(&image, *filter, self.fill))
    }
}

#[cfg(test)]
mod tests;
