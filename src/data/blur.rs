//! Gaussian blur of 8-bit images.

use super::image::Image;
use crate::device::host::simd;

/// Pixels on each side of the middle.
const RADIUS: usize = 4;
const TAPS: usize = 2 * RADIUS + 1;

/// Weights `exp(-k² / 2σ²)` for `k` from -4 to 4, of sum 1.
fn weights(sigma: f64) -> [f32; TAPS] {
    let raw: [f64; TAPS] = std::array::from_fn(|i| (-0.5 * ((i as f64 - RADIUS as f64) / sigma).powi(2)).exp());
    let sum: f64 = raw.iter().sum();
    raw.map(|w| (w / sum) as f32)
}

/// Place `at` on a line of `len` pixels that goes on mirrored past its first and last one, which are not repeated.
fn mirrored(at: isize, len: usize) -> usize {
    let period = 2 * (len as isize - 1);
    let at = if period == 0 { 0 } else { at.rem_euclid(period) };
    at.min(period - at) as usize
}

/// Blurs with 9 x 9 weights of standard deviation `sigma` > 0, in pixels, separated into rows and columns; beyond the border
/// the image is mirrored, however small it is. Sums are f32, rounded once to a byte, ties to even.
///
/// Source: torchvision's `GaussianBlur`.
pub fn gaussian(image: &Image, sigma: f64) -> Image {
    let (width, height, weights) = (image.width, image.height, weights(sigma));
    let mut data = vec![0u8; image.data.len()];
    simd(
        #[inline(always)]
        || {
            let rows = across(image, &weights);
            down(&rows, width * 3, &weights, &mut data);
        },
    );
    Image { width, height, data }
}

/// Values treated at once: two registers of AVX2, one of AVX-512.
const LANES: usize = 16;

/// The weighted sum of the values of all `taps`, which are as long as `out`, at each place.
#[inline(always)] // so that it is compiled for the vector width that `simd` found
fn sums<T: Copy>(taps: [&[f32]; TAPS], weights: &[f32; TAPS], to: impl Fn(f32) -> T, out: &mut [T]) {
    let (strips, rest) = out.as_chunks_mut::<LANES>();
    let from = strips.len() * LANES;
    for (at, strip) in strips.iter_mut().enumerate() {
        let mut sums = [0.0f32; LANES];
        for (tap, &weight) in taps.iter().zip(weights) {
            if let Some(values) = tap[at * LANES..].first_chunk::<LANES>() {
                for lane in 0..LANES {
                    sums[lane] += weight * values[lane];
                }
            }
        }
        for lane in 0..LANES {
            strip[lane] = to(sums[lane]);
        }
    }
    for (i, value) in rest.iter_mut().enumerate() {
        let sum = taps.iter().zip(weights).fold(0.0, |sum, (tap, weight)| sum + weight * tap[from + i]);
        *value = to(sum);
    }
}

/// Every row blurred, `[H, W, 3]`.
#[inline(always)] // as above
fn across(image: &Image, weights: &[f32; TAPS]) -> Vec<f32> {
    let len = image.width * 3;
    let mut out = vec![0.0; image.data.len()];
    let mut wide = vec![0.0f32; len + 6 * RADIUS];
    for (row, out) in image.data.chunks_exact(len).zip(out.chunks_exact_mut(len)) {
        for (x, pixel) in wide.chunks_exact_mut(3).enumerate() {
            let from = mirrored(x as isize - RADIUS as isize, image.width) * 3;
            for (value, &byte) in pixel.iter_mut().zip(&row[from..from + 3]) {
                *value = f32::from(byte);
            }
        }
        sums(std::array::from_fn(|k| &wide[3 * k..3 * k + len]), weights, |sum| sum, out);
    }
    out
}

/// Every column of rows of `len` values blurred.
#[inline(always)] // as above
fn down(rows: &[f32], len: usize, weights: &[f32; TAPS], out: &mut [u8]) {
    let height = rows.len() / len;
    for (y, out) in out.chunks_exact_mut(len).enumerate() {
        let row = |k: usize| &rows[mirrored((y + k) as isize - RADIUS as isize, height) * len..][..len];
        sums(std::array::from_fn(row), weights, |sum| sum.round_ties_even() as u8, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::fixtures::noise;

    #[test]
    fn the_border_is_mirrored_without_its_pixel() {
        assert_eq!((-5..9).map(|i| mirrored(i, 4)).collect::<Vec<_>>(), [1, 2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1, 2]);
        assert_eq!((-4..5).map(|i| mirrored(i, 2)).collect::<Vec<_>>(), [0, 1, 0, 1, 0, 1, 0, 1, 0]);
        assert!((-4..5).all(|i| mirrored(i, 1) == 0));
    }

    /// One bright pixel shows the product of the weights of its row and column.
    #[test]
    fn a_point_becomes_a_bell() {
        let mut image = Image::filled(11, 11, [0; 3]);
        image.data[(5 * 11 + 5) * 3 + 1] = 255;
        let out = gaussian(&image, 1.0);
        let total: f64 = (-4..=4).map(|k| (-0.5 * f64::from(k * k)).exp()).sum();
        for y in 0..11usize {
            for x in 0..11usize {
                let (dx, dy) = (x as f64 - 5.0, y as f64 - 5.0);
                let inside = dx.abs() <= 4.0 && dy.abs() <= 4.0;
                let value = 255.0 * (-0.5 * (dx * dx + dy * dy)).exp() / (total * total);
                let expected = if inside { value.round_ties_even() as u8 } else { 0 };
                assert_eq!(out.pixel(x, y), [0, expected, 0], "{x}, {y}");
            }
        }
        assert_eq!(out.pixel(5, 5)[1], 41); // 255 / 2π = 40.6
    }

    /// Against the sum over the square, in f64; where that is all but a tie either byte will do.
    #[test]
    fn rows_and_columns_make_the_square() {
        for (width, height, sigma) in
            [(1, 1, 2.0), (2, 3, 0.7), (7, 7, 2.0), (5, 40, 1.3), (33, 17, 0.1), (32, 32, 1.9)]
        {
            let image = noise(width, height);
            let out = gaussian(&image, sigma);
            let line: Vec<f64> = (-4..=4).map(|k| (-0.5 * (f64::from(k) / sigma).powi(2)).exp()).collect();
            let total: f64 = line.iter().sum::<f64>().powi(2);
            for (at, &byte) in out.data.iter().enumerate() {
                let (y, x, channel) = (at / 3 / width, at / 3 % width, at % 3);
                let mut sum = 0.0;
                for (j, a) in line.iter().enumerate() {
                    for (i, b) in line.iter().enumerate() {
                        let from =
                            mirrored((y + j) as isize - 4, height) * width + mirrored((x + i) as isize - 4, width);
                        sum += a * b * f64::from(image.data[from * 3 + channel]);
                    }
                }
                let exact = sum / total;
                assert!((f64::from(byte) - exact).abs() <= 0.5 + 1e-3, "{width} x {height}, {sigma}: {byte}, {exact}");
            }
        }
    }

    #[test]
    fn a_constant_image_and_the_smallest_sigma_change_nothing() {
        let flat = Image::filled(9, 5, [3, 130, 255]);
        assert_eq!(gaussian(&flat, 2.0), flat);
        assert_eq!(gaussian(&noise(20, 13), 0.1), noise(20, 13));
    }
}
