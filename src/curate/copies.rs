//! A descriptor that finds copies of an image without a model: colours of 8 x 8 cells and the gradients of a grey picture of
//! 16 x 16.
//!
//! ```text
//! c = colours of the cells less the mean of their channel        [8, 8, 3]
//! g = (p(x+1, y) - p(x-1, y), p(x, y+1) - p(x, y-1))             [2, 14, 14], p the grey picture
//! d = (c / |c|, g / |g|) / sqrt(2)
//! ```
//!
//! A picture this small is the same whatever the size, the file format and its quality; colours say where things lie,
//! gradients tell apart pictures that are alike from afar. What a small picture does not forgive is a shift, as cropping
//! brings about: so an image is searched for by five views, the whole and the whole less 5 % on one side. A part of an image
//! agrees with the view that lacks what was cut. An image of one colour has no descriptor (zeros) and no copies.

use crate::Result;
use crate::data::resize::{Filter, resize};
use crate::data::{Image, Rect};

/// Side of the small pictures.
const SIDE: usize = 16;
const CELLS: usize = SIDE / 2;
const COLOURS: usize = CELLS * CELLS * 3;
const INNER: usize = SIDE - 2;

/// The whole image, and without a strip at the left, the right, the top, the bottom.
pub const VIEWS: usize = 5;
/// Bytes of a small picture.
pub const THUMBNAIL: usize = SIDE * SIDE * 3;
/// What is cut off, over the side of the image.
const STRIP: f64 = 0.05;
/// Contrast below which there is nothing to compare: mean square, in grey levels, of colours or gradients.
const FLAT: f64 = 0.25;

/// The views of an image as small pictures: `[VIEWS, 16, 16, 3]`.
///
/// # Errors
/// None of an image with pixels.
pub fn views(image: &Image) -> Result<Vec<u8>> {
    let Rect { left, top, width, height } = image.rect();
    let strip = |side: usize| ((STRIP * side as f64).round() as usize).min(side - 1);
    let (column, row) = (strip(width), strip(height));
    let rects = [
        Rect { left, top, width, height },
        Rect { left: column, top, width: width - column, height },
        Rect { left, top, width: width - column, height },
        Rect { left, top: row, width, height: height - row },
        Rect { left, top, width, height: height - row },
    ];
    let mut all = Vec::with_capacity(VIEWS * THUMBNAIL);
    for rect in rects {
        all.extend(resize(image, rect, SIDE, SIDE, Filter::Bicubic)?.data);
    }
    Ok(all)
}

/// The descriptor of a small picture `[16, 16, 3]`: unit length, or zeros.
pub fn descriptor(thumbnail: &[u8]) -> Vec<f32> {
    let value = |x: usize, y: usize, channel: usize| f64::from(thumbnail[(y * SIDE + x) * 3 + channel]);
    let mut colours = Vec::with_capacity(COLOURS);
    for channel in 0..3 {
        for (x, y) in grid(CELLS) {
            let cell = [(0, 0), (1, 0), (0, 1), (1, 1)].map(|(i, j)| value(2 * x + i, 2 * y + j, channel));
            colours.push(cell.iter().sum::<f64>() / 4.0);
        }
    }
    for plane in colours.chunks_exact_mut(CELLS * CELLS) {
        let mean = plane.iter().sum::<f64>() / plane.len() as f64;
        plane.iter_mut().for_each(|v| *v -= mean);
    }
    let grey = |x: usize, y: usize| 0.299 * value(x, y, 0) + 0.587 * value(x, y, 1) + 0.114 * value(x, y, 2);
    let across = grid(INNER).map(|(x, y)| grey(x + 2, y + 1) - grey(x, y + 1));
    let down = grid(INNER).map(|(x, y)| grey(x + 1, y + 2) - grey(x + 1, y));
    let mut gradients: Vec<f64> = across.chain(down).collect();
    let parts = [unit(&mut colours), unit(&mut gradients)].iter().filter(|any| **any).count();
    let scale = 1.0 / (parts.max(1) as f64).sqrt();
    colours.iter().chain(&gradients).map(|v| (v * scale) as f32).collect()
}

/// Columns and rows of a square, row by row.
fn grid(side: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..side * side).map(move |i| (i % side, i / side))
}

/// Scales to length 1; what is flat becomes zeros. Whether there was anything.
fn unit(values: &mut [f64]) -> bool {
    let squares: f64 = values.iter().map(|v| v * v).sum();
    let any = squares > FLAT * values.len() as f64;
    let scale = if any { 1.0 / squares.sqrt() } else { 0.0 };
    values.iter_mut().for_each(|v| *v *= scale);
    any
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::synth;

    fn scene(index: usize) -> Image {
        synth::Config::default().picture(synth::Split::Train, index).0.image
    }

    /// Largest product of a view of the one with the whole of the other.
    fn similarity(a: &Image, b: &Image) -> f32 {
        let whole = descriptor(&views(b).unwrap()[..THUMBNAIL]);
        let dot = |view: &[u8]| descriptor(view).iter().zip(&whole).map(|(a, b)| a * b).sum::<f32>();
        views(a).unwrap().chunks_exact(THUMBNAIL).map(dot).fold(f32::NEG_INFINITY, f32::max)
    }

    #[test]
    fn a_hand_made_picture() {
        // Left half black, right half white: colours are -1 and 1 of equal length, gradients 255 in two columns.
        let half: Vec<u8> = (0..SIDE * SIDE).flat_map(|i| [if i % SIDE < SIDE / 2 { 0 } else { 255 }; 3]).collect();
        let found = descriptor(&half);
        let colour = 1.0 / (2.0 * COLOURS as f64).sqrt();
        let gradient = 1.0 / (2.0 * (2 * INNER) as f64).sqrt();
        for channel in 0..3 {
            for (x, y) in grid(CELLS) {
                let expected = if x < CELLS / 2 { -colour } else { colour };
                assert!((f64::from(found[channel * CELLS * CELLS + y * CELLS + x]) - expected).abs() < 1e-6);
            }
        }
        for (x, y) in grid(INNER) {
            let expected = if x == 6 || x == 7 { gradient } else { 0.0 };
            assert!((f64::from(found[COLOURS + y * INNER + x]) - expected).abs() < 1e-6, "{x} {y}");
            assert_eq!(found[COLOURS + INNER * INNER + y * INNER + x], 0.0);
        }
        assert_eq!(descriptor(&[77; THUMBNAIL]), [0.0; COLOURS + 2 * INNER * INNER]);
    }

    #[test]
    fn copies_are_near_and_others_are_not() {
        let image = scene(3);
        let smaller = resize(&image, image.rect(), 37, 41, Filter::Bicubic).unwrap();
        assert!(similarity(&image, &smaller) > 0.995 && similarity(&smaller, &image) > 0.995);
        for (left, top, width, height) in [(3, 0, 61, 64), (0, 0, 61, 64), (0, 3, 64, 61), (0, 0, 64, 61)] {
            let part = image.crop(Rect { left, top, width, height }).unwrap();
            assert!(similarity(&image, &part) > 0.995, "{left} {top} {}", similarity(&image, &part));
        }
        for other in (0..40).filter(|i| *i != 3) {
            assert!(similarity(&image, &scene(other)) < 0.9, "{other}");
        }
    }

    #[test]
    fn images_of_a_pixel_have_views() {
        for (width, height) in [(1, 1), (1, 50), (200, 1)] {
            assert_eq!(views(&Image::filled(width, height, [9, 200, 3])).unwrap().len(), VIEWS * THUMBNAIL);
        }
    }
}
