//! Resizing as `tf.image.resize` does it in f32, for weights whose training used it; result truncated to 8 bits.
//!
//! Centres of pixels lie at halves: output x of n out of m inputs reads at c = (x + 1/2)·m/n - 1/2. Without antialiasing a
//! smaller image is made of the inputs around c only; with it, the kernel is stretched as in [`super::resize`], but weights
//! stay fractions and nothing is rounded between the passes.

use super::image::Image;
use super::resize::Filter;
use crate::{Error, Result};

/// Bilinear without antialiasing, as big_vision's `resize` op: operation by operation in f32, because what is truncated
/// afterwards shows every rounding.
///
/// # Errors
/// Sides of 0 or too many pixels.
pub fn bilinear(image: &Image, width: usize, height: usize) -> Result<Image> {
    check(width, height)?;
    let (columns, rows) = (neighbours(image.width, width), neighbours(image.height, height));
    let mut data = Vec::with_capacity(width * height * 3);
    for &(top, bottom, down) in &rows {
        for &(left, right, along) in &columns {
            let [a, b] = [top, bottom].map(|y| [image.pixel(left, y), image.pixel(right, y)]);
            for channel in 0..3 {
                let across = |row: [[u8; 3]; 2]| {
                    let [left, right] = row.map(|pixel| f32::from(pixel[channel]));
                    left + (right - left) * along
                };
                let (top, bottom) = (across(a), across(b));
                data.push((top + (bottom - top) * down) as u8);
            }
        }
    }
    Image::new(width, height, data)
}

/// For each output the two inputs around it and the share of the second.
fn neighbours(input: usize, output: usize) -> Vec<(usize, usize, f32)> {
    let scale = input as f32 / output as f32;
    let of = |x: usize| {
        let at = (x as f32 + 0.5) * scale - 0.5;
        let first = at.floor();
        let inside = |at: f32| (at.max(0.0) as usize).min(input - 1);
        (inside(first), inside(at.ceil()), at - first)
    };
    (0..output).map(of).collect()
}

/// With antialiasing, bilinear or bicubic (a = -1/2).
///
/// # Errors
/// Sides of 0 or too many pixels.
pub fn antialiased(image: &Image, width: usize, height: usize, filter: Filter) -> Result<Image> {
    check(width, height)?;
    let (columns, rows) = (taps(image.width, width, filter), taps(image.height, height, filter));
    let mut wide = Vec::with_capacity(image.height * width * 3); // [input height, width, 3]
    for row in image.data.chunks_exact(image.width * 3) {
        for (first, weights) in &columns {
            for channel in 0..3 {
                let values = row[first * 3 + channel..].iter().step_by(3);
                wide.push(weights.iter().zip(values).map(|(w, v)| w * f64::from(*v)).sum::<f64>());
            }
        }
    }
    let len = width * 3;
    let mut data = Vec::with_capacity(len * height);
    for (first, weights) in &rows {
        for at in 0..len {
            let values = wide[first * len + at..].iter().step_by(len);
            let sum: f64 = weights.iter().zip(values).map(|(w, v)| w * v).sum();
            // Weights that miss 1 by a rounding must not turn a plain 200 into 199.
            data.push((sum + 1e-5).clamp(0.0, 255.0) as u8);
        }
    }
    Image::new(width, height, data)
}

/// For each output its first input and weights of sum 1.
pub(super) fn taps(input: usize, output: usize, filter: Filter) -> Vec<(usize, Vec<f64>)> {
    let scale = input as f64 / output as f64;
    let stretch = scale.max(1.0);
    let reach = filter.support() * stretch;
    let of = |x: usize| {
        let centre = (x as f64 + 0.5) * scale - 0.5;
        let first = (centre - reach).ceil().max(0.0) as usize;
        let end = ((centre + reach).floor() as usize + 1).min(input);
        let weights: Vec<f64> = (first..end).map(|i| filter.weight((i as f64 - centre) / stretch)).collect();
        let sum: f64 = weights.iter().sum();
        (first, weights.into_iter().map(|w| w / sum).collect())
    };
    (0..output).map(of).collect()
}

fn check(width: usize, height: usize) -> Result<()> {
    if width == 0 || height == 0 || width.checked_mul(height).is_none_or(|pixels| pixels > super::decode::MAX_PIXELS) {
        let expected = format!("both at least 1, their product at most {}", super::decode::MAX_PIXELS);
        return Err(Error::value("tf_resize", "width, height", format!("{width}, {height}"), expected));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::fixtures::noise;

    #[test]
    fn values_lie_between_neighbours_and_are_truncated() {
        let image = Image::new(2, 1, vec![0, 10, 255, 4, 11, 0]).unwrap();
        // Reads at -1/4, 1/4, 3/4, 5/4.
        let out = bilinear(&image, 4, 1).unwrap();
        assert_eq!(out.data, [0, 10, 255, 1, 10, 191, 3, 10, 63, 4, 11, 0]);
        assert_eq!(bilinear(&noise(9, 7), 9, 7).unwrap(), noise(9, 7));
    }

    #[test]
    fn only_antialiasing_sees_all_pixels_of_a_shrunk_image() {
        let mut image = Image::filled(64, 64, [0; 3]);
        image.data[..3].fill(255);
        assert!(bilinear(&image, 4, 4).unwrap().data.iter().all(|v| *v == 0));
        assert!(antialiased(&image, 2, 2, Filter::Bilinear).unwrap().data.iter().all(|v| *v <= 1));
        let bright = Image::filled(64, 64, [200, 7, 255]);
        for (width, height) in [(3, 5), (64, 1), (100, 90)] {
            for filter in [Filter::Bilinear, Filter::Bicubic] {
                let out = antialiased(&bright, width, height, filter).unwrap();
                assert_eq!(out, Image::filled(width, height, [200, 7, 255]));
            }
            assert_eq!(bilinear(&bright, width, height).unwrap(), Image::filled(width, height, [200, 7, 255]));
        }
    }

    #[test]
    fn impossible_sizes_are_errors() {
        for (width, height) in [(0, 4), (4, 0), (usize::MAX, 2), (1 << 20, 1 << 20)] {
            assert!(bilinear(&noise(4, 4), width, height).is_err());
            assert!(antialiased(&noise(4, 4), width, height, Filter::Bicubic).is_err());
        }
    }
}
