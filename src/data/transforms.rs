//! The recipes' ways from a decoded image to the values of one sample: functions for [`super::loader::Loader`].
//!
//! `size` is height and width. Those of bytes give planes `[3, H, W]`; the device normalises them while it gathers
//! patches.

use super::augment::{CropParams, CropRange, Normalise, evaluation_crop};
use super::image::{Image, Rect};
use super::rand_augment::RandAugment;
use super::random_erase::{RandomErase, erase};
use super::resize::{Filter, resize};
use super::rng::Stream;
use super::tf_resize;
use crate::{Error, Result};

/// Pre-training: random resized crop (bicubic) and mirror.
pub fn pretrain(size: [usize; 2], range: CropRange) -> Result<impl Fn(&Image, &mut Stream) -> Result<Vec<u8>> + Clone> {
    let [height, width] = check_size("pretrain", size)?;
    range.check("pretrain")?;
    Ok(move |image: &Image, rng: &mut Stream| {
        let crop = CropParams::draw(rng, image.width, image.height, &range);
        Ok(crop.apply(image, width, height, Filter::Bicubic)?.to_planes())
    })
}

/// Linear probe: as [`pretrain`] with a single draw of the crop.
pub fn probe(size: [usize; 2], range: CropRange) -> Result<impl Fn(&Image, &mut Stream) -> Result<Vec<u8>> + Clone> {
    let [height, width] = check_size("probe", size)?;
    range.check("probe")?;
    Ok(move |image: &Image, rng: &mut Stream| {
        let crop = CropParams::draw_once(rng, image.width, image.height, &range);
        Ok(crop.apply(image, width, height, Filter::Bicubic)?.to_planes())
    })
}

/// Evaluation: short side resized, middle cut out ([`evaluation_crop`]). Draws nothing.
pub fn evaluate(size: [usize; 2]) -> Result<impl Fn(&Image, &mut Stream) -> Result<Vec<u8>> + Clone> {
    check_size("evaluate", size)?;
    Ok(move |image: &Image, _: &mut Stream| Ok(evaluation_crop(image, size)?.to_planes()))
}

/// How [`squash`] interpolates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// Pillow's bicubic, as Hugging Face and open_clip.
    Bicubic,
    /// TensorFlow's bilinear without antialiasing, as big_vision.
    Bilinear,
}

/// Image towers of image-text models: the whole image in the size asked for, whatever its aspect ratio. Draws nothing. The
/// device normalises with mean and standard deviation 1/2, values are then in [-1, 1].
pub fn squash(
    size: [usize; 2],
    interpolation: Interpolation,
) -> Result<impl Fn(&Image, &mut Stream) -> Result<Vec<u8>> + Clone> {
    check_size("squash", size)?;
    Ok(move |image: &Image, _: &mut Stream| Ok(interpolation.apply(image, size)?.to_planes()))
}

/// Zero-shot classification as big_vision has it for ImageNet: the whole image in sides of `trunc(side / 0.875)`, whatever its
/// aspect ratio, then the middle of the size asked for (offsets rounded down). Draws nothing. Source: big_vision at 0127fb6,
/// `configs/proj/image_text/common.py`.
pub fn squash_centre(
    size: [usize; 2],
    interpolation: Interpolation,
) -> Result<impl Fn(&Image, &mut Stream) -> Result<Vec<u8>> + Clone> {
    let [height, width] = check_size("squash_centre", size)?;
    let large = size.map(|side| (side as f64 / 0.875) as usize);
    let middle = Rect { left: (large[1] - width) / 2, top: (large[0] - height) / 2, width, height };
    Ok(move |image: &Image, _: &mut Stream| Ok(interpolation.apply(image, large)?.crop(middle)?.to_planes()))
}

impl Interpolation {
    /// The whole image in `[height, width]`.
    pub fn apply(self, image: &Image, [height, width]: [usize; 2]) -> Result<Image> {
        match self {
            Self::Bicubic => resize(image, image.rect(), width, height, Filter::Bicubic),
            Self::Bilinear => tf_resize::bilinear(image, width, height),
        }
    }
}

/// Settings of supervised training beside size and crop.
#[derive(Clone, Debug, Default)]
pub struct Finetune {
    /// Colour and geometric operations on the crop; `None` for none.
    pub rand_augment: Option<RandAugment>,
    /// Erasing of a part of the normalised sample; `None` for none.
    pub random_erase: Option<RandomErase>,
}

/// Fine-tuning: random resized crop, mirror, RandAugment, normalisation, random erasing; planes `[3, H, W]` of
/// floats. Mixing of the batch follows outside, with [`super::mixup`].
pub fn finetune(
    size: [usize; 2],
    range: CropRange,
    settings: Finetune,
    normalise: Normalise,
) -> Result<impl Fn(&Image, &mut Stream) -> Result<Vec<f32>> + Clone> {
    let [height, width] = check_size("finetune", size)?;
    range.check("finetune")?;
    settings.random_erase.as_ref().map_or(Ok(()), RandomErase::check)?;
    Ok(move |image: &Image, rng: &mut Stream| {
        let crop = CropParams::draw(rng, image.width, image.height, &range);
        let mut image = crop.apply(image, width, height, Filter::Bicubic)?;
        if let Some(augment) = &settings.rand_augment {
            let changes = augment.draw(rng);
            image = augment.apply(image, &changes);
        }
        let mut values = normalise.apply(&image);
        if let Some(rect) = settings.random_erase.and_then(|settings| settings.draw(rng, width, height)) {
            erase(rng, &mut values, width, height, rect)?;
        }
        Ok(values)
    })
}

fn check_size(op: &'static str, size: [usize; 2]) -> Result<[usize; 2]> {
    // The square of the largest side is well within what `resize` accepts.
    match size.iter().find(|side| !(1..=8192).contains(*side)) {
        None => Ok(size),
        Some(side) => Err(Error::value(op, "size", side, "1 to 8192 pixels")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::fixtures::noise;
    use crate::data::rng::Purpose;

    #[test]
    fn samples_have_the_size_asked_for_and_depend_on_the_stream_alone() {
        let image = noise(50, 37);
        let stream = |index| Stream::new(1, Purpose::AUGMENT, 0, index);
        let train = pretrain([24, 16], CropRange::PRETRAIN).unwrap();
        let first = train(&image, &mut stream(0)).unwrap();
        assert_eq!(first.len(), 3 * 24 * 16);
        assert_eq!(first, train(&image, &mut stream(0)).unwrap());
        assert_ne!(first, train(&image, &mut stream(1)).unwrap());
        assert_eq!(probe([8, 8], CropRange::SUPERVISED).unwrap()(&image, &mut stream(0)).unwrap().len(), 3 * 64);
        let fixed = evaluate([24, 16]).unwrap();
        assert_eq!(fixed(&image, &mut stream(0)).unwrap(), fixed(&image, &mut stream(1)).unwrap());
    }

    #[test]
    fn squashing_keeps_the_whole_image() {
        let image = noise(50, 37);
        let mut stream = Stream::new(1, Purpose::AUGMENT, 0, 0);
        let bicubic = squash([24, 16], Interpolation::Bicubic).unwrap()(&image, &mut stream).unwrap();
        let bilinear = squash([24, 16], Interpolation::Bilinear).unwrap()(&image, &mut stream).unwrap();
        assert_eq!(bicubic, resize(&image, image.rect(), 16, 24, Filter::Bicubic).unwrap().to_planes());
        assert_eq!(bilinear, tf_resize::bilinear(&image, 16, 24).unwrap().to_planes());
        assert!(bicubic != bilinear && stream.position() == 0);
    }

    #[test]
    fn the_middle_of_the_squashed_image() {
        let image = noise(50, 37);
        let mut stream = Stream::new(1, Purpose::AUGMENT, 0, 0);
        // trunc(24 / 0.875) = 27 and trunc(16 / 0.875) = 18: rounded down, 1 above and 1 at the left.
        let whole = Interpolation::Bicubic.apply(&image, [27, 18]).unwrap();
        let middle = whole.crop(Rect { left: 1, top: 1, width: 16, height: 24 }).unwrap();
        let given = squash_centre([24, 16], Interpolation::Bicubic).unwrap()(&image, &mut stream).unwrap();
        assert!(given == middle.to_planes() && stream.position() == 0);
    }

    #[test]
    fn fine_tuning_changes_more_than_the_crop_and_stays_finite() {
        let image = noise(50, 37);
        let plain = finetune([16, 24], CropRange::SUPERVISED, Finetune::default(), Normalise::imagenet()).unwrap();
        let recipe =
            Finetune { rand_augment: Some(RandAugment::default()), random_erase: Some(RandomErase::default()) };
        let full = finetune([16, 24], CropRange::SUPERVISED, recipe, Normalise::imagenet()).unwrap();
        let mut changed = 0;
        for index in 0..100 {
            let stream = || Stream::new(1, Purpose::AUGMENT, 0, index);
            let values = full(&image, &mut stream()).unwrap();
            assert_eq!(values, full(&image, &mut stream()).unwrap());
            assert!(values.len() == 3 * 16 * 24 && values.iter().all(|v| v.is_finite()));
            changed += usize::from(values != plain(&image, &mut stream()).unwrap());
        }
        // Unchanged where neither operation (1/4) nor the erasing (3/4) came, and where an operation found nothing
        // to do.
        assert!((60..98).contains(&changed), "{changed}");
    }

    #[test]
    fn unusable_settings_are_errors() {
        assert!(evaluate([8, 0]).is_err());
        assert!(pretrain([10_000, 8], CropRange::PRETRAIN).is_err());
        assert!(probe([8, 8], CropRange { scale: (0.5, 0.1), ..CropRange::PRETRAIN }).is_err());
    }
}
