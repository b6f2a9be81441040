//! From pictures and prompts to the model's resolution and back.
//!
//! The model sees a square: the aspect ratio is not kept, and coordinates are stretched with the picture. Single images
//! and frames of videos are resized in different ways, as in the code the published weights are used with. Source: sam2
//! at 2b90b9f, `utils/transforms.py` and `utils/misc.py`.

use super::regions::Repair;
use crate::data::augment::Normalise;
use crate::data::planes::{antialiased, bilinear};
use crate::data::resize::{Filter, resize};
use crate::data::{BinaryMask, Image};
use crate::{Error, Result};

/// A single image as planes `[3, side, side]`: bilinear with antialiasing, in floats.
///
/// # Errors
/// A side of 0 or too many pixels.
pub fn image(image: &Image, side: usize, normalise: &Normalise) -> Result<Vec<f32>> {
    // The weights of a pixel add up to 1, so that it makes no difference what comes first.
    antialiased(&normalise.apply(image), [image.height, image.width], [side; 2], Filter::Bilinear)
}

/// A frame of a video as planes `[3, side, side]`: Pillow's bicubic, in bytes.
///
/// # Errors
/// As [`image()`].
pub fn frame(image: &Image, side: usize, normalise: &Normalise) -> Result<Vec<f32>> {
    Ok(normalise.apply(&resize(image, image.rect(), side, side, Filter::Bicubic)?))
}

/// Points (x, y) in pixels of a picture `[height, width]`, or in [0, 1] without it, in pixels of the model. Boxes are
/// two points.
///
/// # Errors
/// A picture with a side of 0.
pub fn points(points: &[[f32; 2]], picture: Option<[usize; 2]>, side: usize) -> Result<Vec<[f32; 2]>> {
    let [height, width] = picture.unwrap_or([1, 1]);
    if height == 0 || width == 0 {
        return Err(Error::value("points", "picture", format!("[{height}, {width}]"), "both sides at least 1"));
    }
    let place = |v: f32, length: usize| v / length as f32 * side as f32;
    Ok(points.iter().map(|[x, y]| [place(*x, width), place(*y, height)]).collect())
}

/// Mask prompts `[.., H, W]` at another size: bilinear with antialiasing.
///
/// # Errors
/// Sides of 0 or too many pixels, or values that are no whole planes.
pub fn mask_prompts(masks: &[f32], old: [usize; 2], new: [usize; 2]) -> Result<Vec<f32>> {
    antialiased(masks, old, new, Filter::Bilinear)
}

/// A mask that a user gives for a frame, at the model's resolution: at least half inside.
///
/// # Errors
/// A side of 0 or too many pixels.
pub fn mask_of_frame(mask: &BinaryMask, side: usize) -> Result<BinaryMask> {
    let values: Vec<f32> = mask.pixels().iter().map(|p| f32::from(u8::from(*p))).collect();
    let resized = mask_prompts(&values, [mask.height(), mask.width()], [side; 2])?;
    BinaryMask::new(side, side, resized.into_iter().map(|v| v >= 0.5).collect())
}

/// Logits `[.., H, W]` in the size of the picture: repaired in their own size, then bilinear without antialiasing, also
/// when shrinking.
///
/// # Errors
/// As [`mask_prompts`].
pub fn output_masks(mut logits: Vec<f32>, old: [usize; 2], picture: [usize; 2], repair: &Repair) -> Result<Vec<f32>> {
    repair.apply(&mut logits, old)?;
    bilinear(&logits, old, picture)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> Normalise {
        Normalise::new([0.0; 3], [1.0 / 255.0; 3]).unwrap()
    }

    #[test]
    fn images_and_frames_are_squares_resized_in_different_ways() {
        let picture = Image::new(4, 1, [0, 0, 90, 30].iter().flat_map(|v| [*v, 9, 200]).collect()).unwrap();
        // Centre 1, reach 2: weights 3/4, 3/4, 1/4 at inputs 0, 1, 2.
        let still = image(&picture, 2, &plain()).unwrap();
        let near = |a: f32, b: f32| (a - b).abs() < 1e-3;
        assert!(near(still[0], 90.0 / 7.0) && near(still[1], (3.0 * 90.0 + 3.0 * 30.0) / 7.0), "{still:?}");
        assert!(near(still[0], still[2]) && near(still[4], 9.0) && near(still[11], 200.0));
        let moving = frame(&picture, 2, &plain()).unwrap();
        assert!(moving.iter().all(|v| near(*v, v.round())) && !near(moving[0], still[0].round()), "{moving:?}");
        assert!(image(&picture, 0, &plain()).is_err() && frame(&picture, 0, &plain()).is_err());
    }

    #[test]
    fn points_are_stretched_with_the_picture() {
        let corners = [[0.0, 10.0], [40.0, 5.0]];
        assert_eq!(points(&corners, Some([10, 40]), 32).unwrap(), [[0.0, 32.0], [32.0, 16.0]]);
        assert_eq!(points(&[[0.5, 0.25]], None, 32).unwrap(), [[16.0, 8.0]]);
        assert!(points(&corners, Some([10, 0]), 32).is_err());
    }

    #[test]
    fn half_a_pixel_is_inside() {
        let halves = BinaryMask::new(2, 1, vec![true, false]).unwrap();
        assert_eq!(mask_of_frame(&halves, 1).unwrap().pixels(), [true]);
        let mask = BinaryMask::new(4, 1, vec![true, true, false, false]).unwrap();
        assert_eq!(mask_of_frame(&mask, 2).unwrap().pixels(), [true, false, true, false]);
    }

    #[test]
    fn masks_are_repaired_before_they_are_resized() {
        let logits = vec![1.0, 1.0, 1.0, 1.0, -4.0, 1.0, 1.0, 1.0, 1.0];
        let rough = output_masks(logits.clone(), [3, 3], [3, 3], &Repair::image(0.0, 0, 0)).unwrap();
        assert_eq!(rough, logits);
        let smooth = output_masks(logits, [3, 3], [1, 1], &Repair::image(0.0, 1, 0)).unwrap();
        assert_eq!(smooth, [10.0]); // the middle alone
    }
}
