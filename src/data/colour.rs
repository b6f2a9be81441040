//! Colour operations on 8-bit images with exactly the bytes that Pillow 13 gives (its `ImageOps` and `ImageEnhance`).

use super::image::Image;

/// Replaces every value of each channel by a table's entry.
fn map(image: &mut Image, tables: &[[u8; 256]; 3]) {
    for pixel in image.data.chunks_exact_mut(3) {
        for (value, table) in pixel.iter_mut().zip(tables) {
            *value = table[usize::from(*value)];
        }
    }
}

fn map_all(image: &mut Image, f: impl Fn(u8) -> u8) {
    let mut table = [0; 256];
    for (value, entry) in (0..=255).zip(&mut table) {
        *entry = f(value);
    }
    for value in &mut image.data {
        *value = table[usize::from(*value)];
    }
}

fn histograms(image: &Image) -> [[usize; 256]; 3] {
    let mut counts = [[0; 256]; 3];
    for pixel in image.data.chunks_exact(3) {
        for (&value, count) in pixel.iter().zip(&mut counts) {
            count[usize::from(value)] += 1;
        }
    }
    counts
}

/// Stretches each channel so that its smallest value becomes 0 and its largest 255.
pub fn auto_contrast(image: &mut Image) {
    let tables = histograms(image).map(|counts| {
        let used = |&v: &usize| counts[v] > 0;
        let (low, high) = ((0..256).find(used).unwrap_or(0), (0..256).rev().find(used).unwrap_or(255));
        let scale = if high > low { 255.0 / (high - low) as f64 } else { 1.0 };
        let offset = if high > low { -(low as f64) * scale } else { 0.0 };
        std::array::from_fn(|v| (v as f64 * scale + offset).clamp(0.0, 255.0) as u8)
    });
    map(image, &tables);
}

/// Makes the values of each channel about equally frequent: v becomes (step/2 + number of values below v) / step,
/// with the step that spreads all but the most intense value over 255 levels.
pub fn equalize(image: &mut Image) {
    let tables = histograms(image).map(|counts| {
        let last = counts.iter().rev().find(|&&n| n > 0).copied().unwrap_or(0);
        let step = (counts.iter().sum::<usize>() - last) / 255;
        let mut below = 0;
        std::array::from_fn(|v| {
            let level = (step / 2 + below).checked_div(step).unwrap_or(v);
            below += counts[v];
            level.min(255) as u8
        })
    });
    map(image, &tables);
}

/// Every value v becomes 255 - v.
pub fn invert(image: &mut Image) {
    map_all(image, |v| 255 - v);
}

/// Values of at least `threshold` are inverted.
pub fn solarize(image: &mut Image, threshold: u32) {
    map_all(image, |v| if u32::from(v) < threshold { v } else { 255 - v });
}

/// `add` is added to values below 128.
pub fn solarize_add(image: &mut Image, add: u32) {
    map_all(image, |v| if v < 128 { (u32::from(v) + add).min(255) as u8 } else { v });
}

/// Keeps the `bits` highest bits of every value.
pub fn posterize(image: &mut Image, bits: u32) {
    let mask = 0xffu8.checked_shl(8 - bits.min(8)).unwrap_or(0);
    map_all(image, |v| v & mask);
}

/// Luma of Rec. 601 in 16-bit fixed point.
fn luma(pixel: &[u8]) -> u8 {
    let [r, g, b] = [0, 1, 2].map(|i| u32::from(pixel[i]));
    ((r * 19_595 + g * 38_470 + b * 7_471 + 0x8000) >> 16) as u8
}

/// From `plain` (factor 0) over `value` (factor 1) and beyond, cut to a byte.
fn blend(plain: u8, value: u8, factor: f32) -> u8 {
    let (from, to) = (f32::from(plain), f32::from(value));
    (from + factor * (to - from)).clamp(0.0, 255.0) as u8
}

/// Saturation: 0 gives a gray image, 1 the same image.
pub fn saturation(image: &mut Image, factor: f32) {
    for pixel in image.data.chunks_exact_mut(3) {
        let gray = luma(pixel);
        for value in pixel {
            *value = blend(gray, *value, factor);
        }
    }
}

/// Contrast: 0 gives the mean gray everywhere, 1 the same image.
pub fn contrast(image: &mut Image, factor: f32) {
    let sum: u64 = image.data.chunks_exact(3).map(|pixel| u64::from(luma(pixel))).sum();
    let mean = (sum as f64 / (image.width * image.height) as f64 + 0.5) as u8;
    map_all(image, |v| blend(mean, v, factor));
}

/// Brightness: 0 gives black, 1 the same image.
pub fn brightness(image: &mut Image, factor: f32) {
    map_all(image, |v| blend(0, v, factor));
}

/// Sharpness: 0 gives a smoothed image (3x3 mean with weight 5 in the middle, the border as it is), 1 the same image.
pub fn sharpness(image: &mut Image, factor: f32) {
    let source = image.data.clone();
    let stride = image.width * 3;
    for y in 0..image.height {
        for at in y * stride..(y + 1) * stride {
            let x = at % stride / 3;
            let border = x == 0 || y == 0 || x + 1 == image.width || y + 1 == image.height;
            let smooth = if border { source[at] } else { smoothed(&source, at, stride) };
            image.data[at] = blend(smooth, source[at], factor);
        }
    }
}

/// Sums in f32, in Pillow's order: rows from below, each row's three products added first.
fn smoothed(source: &[u8], at: usize, stride: usize) -> u8 {
    const EDGE: f32 = 1.0 / 13.0;
    const MIDDLE: f32 = 5.0 / 13.0;
    let row = |at: usize, middle: f32| {
        let [a, b, c] = [at - 3, at, at + 3].map(|i| f32::from(source[i]));
        a * EDGE + b * middle + c * EDGE
    };
    (0.5 + row(at + stride, EDGE) + row(at, MIDDLE) + row(at - stride, EDGE)).clamp(0.0, 255.0) as u8
}
