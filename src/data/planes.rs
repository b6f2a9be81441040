//! Resizing of planes of f32 `[.., H, W]`: masks, logits, maps of patches, pictures that are no longer bytes.
//!
//! Pixel centres lie at halves: output x of n out of m inputs reads at `c = (x + 1/2)·m/n - 1/2`. Beyond the middle of
//! the outer pixels their value stays.

use super::decode::MAX_PIXELS;
use super::resize::Filter;
use super::tf_resize;
use crate::{Error, Result};

/// For each of `length` outputs the two of `inputs` it lies between and the share of the second.
pub fn taps(length: usize, inputs: usize) -> Vec<(usize, usize, f32)> {
    let last = inputs.saturating_sub(1);
    let tap = |at: usize| {
        let place = ((at as f64 + 0.5) * inputs as f64 / length as f64 - 0.5).clamp(0.0, last as f64);
        (place as usize, (place as usize + 1).min(last), place.fract() as f32)
    };
    (0..length).map(tap).collect()
}

/// Planes `[.., rows, columns]` at the size `[height, width]`, between the two nearest inputs on each axis also when
/// shrinking: PyTorch's bilinear `interpolate` with `align_corners=False`.
///
/// # Errors
/// Sides of 0 or too many pixels, or values that are no whole planes.
pub fn bilinear(planes: &[f32], old: [usize; 2], new: [usize; 2]) -> Result<Vec<f32>> {
    check(planes, old, new)?;
    let ([rows, columns], [height, width]) = (old, new);
    let (across, down) = (taps(width, columns), taps(height, rows));
    let mut out = Vec::with_capacity(planes.len() / (rows * columns) * height * width);
    for plane in planes.chunks_exact(rows * columns) {
        for &(top, bottom, share_down) in &down {
            let [top, bottom] = [top, bottom].map(|row| &plane[row * columns..][..columns]);
            out.extend(across.iter().map(|&(left, right, share)| {
                let row = |values: &[f32]| values[left] * (1.0 - share) + values[right] * share;
                row(top) * (1.0 - share_down) + row(bottom) * share_down
            }));
        }
    }
    Ok(out)
}

/// Planes at another size with the kernel stretched by the factor of shrinking, so that all inputs count: PyTorch's
/// `interpolate` with `antialias=True` (bicubic: a = -1/2). Columns first, nothing rounded in between.
///
/// # Errors
/// As [`bilinear`].
pub fn antialiased(planes: &[f32], old: [usize; 2], new: [usize; 2], filter: Filter) -> Result<Vec<f32>> {
    check(planes, old, new)?;
    let ([rows, columns], [height, width]) = (old, new);
    let weights = |inputs, outputs| -> Vec<(usize, Vec<f32>)> {
        let narrow = |(first, weights): (usize, Vec<f64>)| (first, weights.iter().map(|w| *w as f32).collect());
        tf_resize::taps(inputs, outputs, filter).into_iter().map(narrow).collect()
    };
    let (across, down) = (weights(columns, width), weights(rows, height));
    let mut out = vec![0.0; planes.len() / (rows * columns) * height * width];
    let mut wide = Vec::with_capacity(rows * width); // [rows, width]
    for (plane, out) in planes.chunks_exact(rows * columns).zip(out.chunks_exact_mut(height * width)) {
        wide.clear();
        for row in plane.chunks_exact(columns) {
            let sum = |(first, w): &(usize, Vec<f32>)| w.iter().zip(&row[*first..]).map(|(w, v)| w * v).sum::<f32>();
            wide.extend(across.iter().map(sum));
        }
        for ((first, weights), out) in down.iter().zip(out.chunks_exact_mut(width)) {
            for (weight, row) in weights.iter().zip(wide[first * width..].chunks_exact(width)) {
                out.iter_mut().zip(row).for_each(|(sum, value)| *sum += weight * value);
            }
        }
    }
    Ok(out)
}

fn check(planes: &[f32], old: [usize; 2], new: [usize; 2]) -> Result<()> {
    let op = "planes";
    for (arg, [height, width]) in [("old", old), ("new", new)] {
        if width.checked_mul(height).is_none_or(|pixels| !(1..=MAX_PIXELS).contains(&pixels)) {
            let expected = format!("both at least 1, their product at most {MAX_PIXELS}");
            return Err(Error::value(op, arg, format!("[{height}, {width}]"), expected));
        }
    }
    if !planes.len().is_multiple_of(old[0] * old[1]) {
        let expected = format!("a multiple of {} x {}", old[0], old[1]);
        return Err(Error::argument(op, "planes", "length", planes.len().to_string(), expected));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::fixtures::noise;
    use crate::data::tf_resize;

    #[test]
    fn patches_are_blended_between_their_middles() {
        let blend = |map: &[f32], old, new| bilinear(map, old, new).unwrap();
        assert_eq!(blend(&[0.0, 4.0], [1, 2], [1, 8]), [0.0, 0.0, 0.5, 1.5, 2.5, 3.5, 4.0, 4.0]);
        assert_eq!(blend(&[7.0, 8.0], [1, 1], [2, 2]), [7.0, 7.0, 7.0, 7.0, 8.0, 8.0, 8.0, 8.0]);
        assert_eq!(blend(&[1.0, 2.0, 3.0, 4.0], [2, 2], [2, 2]), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(blend(&[9.0, 1.0, 8.0, 7.0, 4.0, 6.0], [1, 6], [1, 2]), [1.0, 4.0]);
        assert_eq!(taps(3, 6), [(0, 1, 0.5), (2, 3, 0.5), (4, 5, 0.5)]);
    }

    #[test]
    fn only_antialiasing_sees_all_inputs() {
        let mut spot = vec![0.0f32; 8];
        spot[0] = 64.0;
        assert_eq!(bilinear(&spot, [1, 8], [1, 2]).unwrap(), [0.0, 0.0]);
        // Centre 1.5, reach 4: weights 0.625 at 0 of 0.625 + 0.875 + 0.875 + 0.625 + 0.375 + 0.125.
        let out = antialiased(&spot, [1, 8], [1, 2], Filter::Bilinear).unwrap();
        assert!((out[0] - 64.0 * 0.625 / 3.5).abs() < 1e-5 && out[1] == 0.0, "{out:?}");
        assert_eq!(antialiased(&spot, [2, 4], [2, 4], Filter::Bilinear).unwrap(), spot);
    }

    #[test]
    fn planes_are_resized_as_pictures_are() {
        let image = noise(23, 17);
        let planes: Vec<f32> = image.to_planes().into_iter().map(f32::from).collect();
        for (width, height) in [(7, 30), (40, 5), (23, 17)] {
            let size = [height, width];
            let smooth = antialiased(&planes, [17, 23], size, Filter::Bilinear).unwrap();
            let bytes = tf_resize::antialiased(&image, width, height, Filter::Bilinear).unwrap().to_planes();
            assert!(smooth.iter().zip(bytes).all(|(v, b)| (v - 0.5 - f32::from(b)).abs() < 0.501));
            let plain = bilinear(&planes, [17, 23], size).unwrap();
            let bytes = tf_resize::bilinear(&image, width, height).unwrap().to_planes();
            assert!(plain.iter().zip(bytes).all(|(v, b)| (v - 0.5 - f32::from(b)).abs() < 0.501));
        }
    }

    #[test]
    fn impossible_sizes_are_errors() {
        for (len, old, new) in
            [(4, [2, 2], [0, 1]), (0, [0, 2], [2, 2]), (5, [2, 2], [2, 2]), (4, [2, 2], [usize::MAX, 2])]
        {
            assert!(bilinear(&vec![0.0; len], old, new).is_err());
            assert!(antialiased(&vec![0.0; len], old, new, Filter::Bicubic).is_err());
        }
    }
}
