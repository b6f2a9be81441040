//! Resizing of 8-bit images with exactly the bytes that Pillow 13 gives.
//!
//! Separable filter, stretched by the scale factor when shrinking (so it also removes what the smaller image cannot
//! show). For output position x of n out of m inputs, s = m / n, S = max(s, 1), centre c = (x + 1/2)·s:
//!
//! ```text
//! w_i = f((i - c + 1/2) / S)   for inputs i within the support of c, normalised to sum 1
//! ```
//!
//! then rounded to integers of 22 fractional bits. Each pass rounds its sums to 8 bits. Bicubic is Keys' kernel with
//! a = -1/2:
//!
//! ```text
//! f(t) = (a+2)|t|^3 - (a+3)|t|^2 + 1      |t| < 1
//! f(t) = a|t|^3 - 5a|t|^2 + 8a|t| - 4a    |t| < 2
//! ```
//!
//! Pass order as in Pillow 13: vertical first when the height shrinks by more than twice what the width shrinks, else
//! horizontal first. Because of the 8-bit value between the passes the order is visible (by 1 or 2).
//!
//! Both passes keep the innermost loop over independent outputs with one weight: rows are long vectors in the
//! vertical pass; the horizontal pass takes 16 rows at a time, turned so that the 16 values of a column lie side by
//! side.

use super::image::{Image, Rect};
use crate::{Error, Result};

/// Interpolation kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Triangle, support 1.
    Bilinear,
    /// Keys' cubic with a = -1/2, support 2.
    Bicubic,
}

impl Filter {
    pub(super) fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    pub(super) fn weight(self, t: f64) -> f64 {
        const A: f64 = -0.5;
        let t = t.abs();
        match self {
            Self::Bilinear if t < 1.0 => 1.0 - t,
            Self::Bicubic if t < 1.0 => ((A + 2.0) * t - (A + 3.0)) * t * t + 1.0,
            Self::Bicubic if t < 2.0 => (((t - 5.0) * t + 8.0) * t - 4.0) * A,
            _ => 0.0,
        }
    }
}

/// Fractional bits of a weight: 8 bits of value and 2 of overshoot stay free in an i32.
const FRACTION: u32 = 32 - 8 - 2;
const HALF: i32 = 1 << (FRACTION - 1);

/// The weights of one pass.
struct Taps {
    /// First input of each output.
    first: Vec<usize>,
    /// End of each output's weights in `weights`; they start where the previous output's end.
    end: Vec<usize>,
    /// Integer weights, one output after the other.
    weights: Vec<i32>,
}

impl Taps {
    fn new(input: usize, output: usize, filter: Filter) -> Self {
        let scale = input as f64 / output as f64;
        let stretch = scale.max(1.0);
        let support = filter.support() * stretch;
        let (mut first, mut end) = (Vec::with_capacity(output), Vec::with_capacity(output));
        let mut weights = Vec::new();
        let mut row = Vec::new();
        for x in 0..output {
            let centre = (x as f64 + 0.5) * scale;
            let low = (centre - support + 0.5).max(0.0) as usize;
            let high = ((centre + support + 0.5) as usize).min(input);
            row.clear();
            row.extend((low..high).map(|i| filter.weight((i as f64 - centre + 0.5) * (1.0 / stretch))));
            let sum: f64 = row.iter().sum();
            first.push(low);
            weights.extend(row.iter().map(|w| {
                let scaled = w / sum * f64::from(1u32 << FRACTION);
                (scaled + 0.5f64.copysign(scaled)) as i32
            }));
            end.push(weights.len());
        }
        Self { first, end, weights }
    }

    /// For each output its first input and its weights.
    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        self.first.iter().enumerate().map(|(x, &first)| {
            let start = if x == 0 { 0 } else { self.end[x - 1] };
            (first, &self.weights[start..self.end[x]])
        })
    }
}

/// Resizes the part of `image` inside `region` to `width` x `height`. Pixels outside the region are not looked at,
/// so this is the same as cropping first.
pub fn resize(image: &Image, region: Rect, width: usize, height: usize, filter: Filter) -> Result<Image> {
    region.check_inside("resize", image)?;
    if width == 0 || height == 0 || width.checked_mul(height).is_none_or(|pixels| pixels > super::decode::MAX_PIXELS) {
        let expected = format!("both at least 1, their product at most {}", super::decode::MAX_PIXELS);
        return Err(Error::value("resize", "width, height", format!("{width}, {height}"), expected));
    }
    let source = Rows {
        data: &image.data[(region.top * image.width + region.left) * 3..],
        stride: image.width * 3,
        width: region.width,
        height: region.height,
    };
    let horizontal = |rows: Rows| {
        let taps = Taps::new(rows.width, width, filter);
        pulp::Arch::new().dispatch(HorizontalPass { rows, taps: &taps })
    };
    let vertical = |rows: Rows| {
        let taps = Taps::new(rows.height, height, filter);
        pulp::Arch::new().dispatch(VerticalPass { rows, taps: &taps })
    };
    let fewer_rows = region.height.saturating_sub(height) as i64;
    let data = match (region.width != width, region.height != height) {
        (false, false) => return image.crop(region),
        (true, false) => horizontal(source),
        (false, true) => vertical(source),
        (true, true) if fewer_rows > 0 && fewer_rows > 2 * (region.width as i64 - width as i64) => {
            horizontal(Rows { data: &vertical(source), stride: region.width * 3, width: region.width, height })
        }
        (true, true) => vertical(Rows { data: &horizontal(source), stride: width * 3, width, height: region.height }),
    };
    Ok(Image { width, height, data })
}

/// A view of `[height, width, 3]` pixels whose rows lie `stride` bytes apart.
#[derive(Clone, Copy)]
struct Rows<'a> {
    data: &'a [u8],
    stride: usize,
    width: usize,
    height: usize,
}

impl Rows<'_> {
    fn row(&self, y: usize) -> &[u8] {
        &self.data[y * self.stride..][..self.width * 3]
    }
}

#[inline(always)] // so that it is compiled for the vector width that `dispatch` found
fn to_byte(sum: i32) -> u8 {
    (sum >> FRACTION).clamp(0, 255) as u8
}

/// Values treated at once: one AVX-512 register of i32, two of AVX2.
const LANES: usize = 16;

#[inline(always)] // as above
fn accumulate(sums: &mut [i32; LANES], values: &[u8; LANES], weight: i32) {
    for lane in 0..LANES {
        sums[lane] += i32::from(values[lane]) * weight;
    }
}

/// A pass as a type, because a plain closure would not be compiled for the vector width that `dispatch` finds.
struct VerticalPass<'a> {
    rows: Rows<'a>,
    taps: &'a Taps,
}

impl pulp::NullaryFnOnce for VerticalPass<'_> {
    type Output = Vec<u8>;

    #[inline(always)]
    fn call(self) -> Vec<u8> {
        vertical_pass(self.rows, self.taps)
    }
}

#[inline(always)] // as above
fn vertical_pass(rows: Rows, taps: &Taps) -> Vec<u8> {
    let len = rows.width * 3;
    let mut out = vec![0u8; taps.first.len() * len];
    for (out_row, (first, weights)) in out.chunks_exact_mut(len).zip(taps.iter()) {
        let (strips, rest) = out_row.as_chunks_mut::<LANES>();
        let from = strips.len() * LANES;
        for (at, strip) in strips.iter_mut().enumerate() {
            let mut sums = [HALF; LANES];
            for (k, &weight) in weights.iter().enumerate() {
                if let Some(values) = rows.row(first + k)[at * LANES..].first_chunk() {
                    accumulate(&mut sums, values, weight);
                }
            }
            for lane in 0..LANES {
                strip[lane] = to_byte(sums[lane]);
            }
        }
        for (i, value) in rest.iter_mut().enumerate() {
            let mut sum = HALF;
            for (k, &weight) in weights.iter().enumerate() {
                sum += i32::from(rows.row(first + k)[from + i]) * weight;
            }
            *value = to_byte(sum);
        }
    }
    out
}

/// See [`VerticalPass`].
struct HorizontalPass<'a> {
    rows: Rows<'a>,
    taps: &'a Taps,
}

impl pulp::NullaryFnOnce for HorizontalPass<'_> {
    type Output = Vec<u8>;

    #[inline(always)]
    fn call(self) -> Vec<u8> {
        horizontal_pass(self.rows, self.taps)
    }
}

#[inline(always)] // as above
fn horizontal_pass(rows: Rows, taps: &Taps) -> Vec<u8> {
    let out_row = taps.first.len() * 3;
    let mut out = vec![0u8; rows.height * out_row];
    let mut columns = vec![[[0u8; LANES]; 3]; rows.width]; // [width, 3, lanes]
    for (block, out_block) in out.chunks_mut(out_row * LANES).enumerate() {
        for lane in 0..out_block.len() / out_row {
            for (column, pixel) in columns.iter_mut().zip(rows.row(block * LANES + lane).chunks_exact(3)) {
                (column[0][lane], column[1][lane], column[2][lane]) = (pixel[0], pixel[1], pixel[2]);
            }
        }
        for (x, (first, weights)) in taps.iter().enumerate() {
            let (mut r, mut g, mut b) = ([HALF; LANES], [HALF; LANES], [HALF; LANES]);
            for (pixel, &weight) in columns[first..].iter().zip(weights) {
                accumulate(&mut r, &pixel[0], weight);
                accumulate(&mut g, &pixel[1], weight);
                accumulate(&mut b, &pixel[2], weight);
            }
            let mut bytes = [[0u8; LANES]; 3];
            for (bytes, sum) in bytes.iter_mut().zip([r, g, b]) {
                for lane in 0..LANES {
                    bytes[lane] = to_byte(sum[lane]);
                }
            }
            for (lane, out_row) in out_block.chunks_exact_mut(out_row).enumerate() {
                out_row[x * 3..x * 3 + 3].copy_from_slice(&[bytes[0][lane], bytes[1][lane], bytes[2][lane]]);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::Filter::{Bicubic, Bilinear};
    use super::*;
    use crate::data::fixtures::{checksum, noise};

    /// Width, height, new width, new height, filter, checksum of what Pillow 13.0.0 makes of the noise image.
    const PILLOW: &[(usize, usize, usize, usize, Filter, u64)] = &[
        (40, 56, 16, 16, Bicubic, 0x496bf7fbb69b5936),
        (56, 40, 16, 16, Bicubic, 0x2a454daf02733364),
        (33, 200, 30, 20, Bicubic, 0xc3265384c64a3e6d),
        (200, 33, 20, 30, Bicubic, 0xfdb6f267a3b26759),
        (1, 1, 5, 3, Bicubic, 0x929e83b30f584778),
        (7, 9, 7, 30, Bicubic, 0x380b3bb4a390ab2a),
        (9, 7, 30, 7, Bilinear, 0xf8a5632f4fa261ff),
        (64, 64, 64, 64, Bicubic, 0x9fb6c6c1cf946b73),
        (500, 375, 224, 224, Bicubic, 0xda824daab21927a6),
        (8, 8, 64, 64, Bicubic, 0x96649cfd6f672b71),
        (8, 8, 64, 64, Bilinear, 0x4343f0df6517cc61),
        (8, 12, 4, 9, Bicubic, 0x039dd41ac3bab57f),
        (139, 13, 134, 1, Bilinear, 0x99f61f6726210164),
        (2, 122, 102, 5, Bicubic, 0xf7bc0d0cfe65dff0),
        (5, 112, 130, 90, Bilinear, 0x4604680e502b9c40),
        (8, 42, 18, 147, Bicubic, 0x83fe548fec3f8a1f),
        (17, 23, 3, 76, Bicubic, 0x74761176bf58cc8f),
        (4, 85, 17, 10, Bicubic, 0xe5964d45c175333a),
        (20, 105, 20, 87, Bicubic, 0xb926dbcaab05f312),
        (97, 134, 20, 130, Bicubic, 0x53edacb559574d77),
        (78, 134, 18, 149, Bicubic, 0xee5b8de835013fe2),
        (13, 120, 72, 1, Bicubic, 0xd89182b0b27fe71d),
        (117, 19, 48, 68, Bicubic, 0xcc98bc92338eae07),
        (4, 10, 62, 6, Bicubic, 0xcff35e8df594b2b1),
        (83, 8, 3, 116, Bicubic, 0x4bd0c8a0ae803d7c),
        (4, 11, 9, 20, Bicubic, 0xd1f55f75ca9e2d3d),
        (133, 89, 108, 2, Bicubic, 0x98048076b8a737f3),
        (123, 18, 133, 18, Bicubic, 0x7bccc27fb00d3e81),
        (19, 8, 51, 19, Bicubic, 0xb5d6f78fb1cc500a),
        (44, 6, 30, 65, Bicubic, 0x52806e4e1a23bd4b),
        (12, 4, 62, 2, Bilinear, 0xbfeebdaf4c9da1b1),
        (19, 64, 135, 122, Bicubic, 0x8276a6032c12d35e),
        (2, 4, 16, 129, Bicubic, 0x0255216c94a2f395),
        (6, 99, 78, 49, Bicubic, 0x00adf319bcb8be2b),
        (4, 13, 96, 139, Bilinear, 0x1df9c0ab15a98334),
        (2, 128, 108, 1, Bilinear, 0x5dc2fe89d60ccb17),
        (19, 8, 84, 18, Bicubic, 0x3ac962f20bf28208),
        (136, 4, 2, 61, Bicubic, 0x7940ce8cd09e4168),
        (17, 13, 11, 124, Bilinear, 0xf42078c9afd16fde),
        (10, 19, 4, 16, Bilinear, 0x1b9bc5942f81ad10),
        (6, 64, 101, 102, Bilinear, 0xec2ca17c3097811e),
        (22, 61, 107, 5, Bicubic, 0x2065f7b8741153c7),
        (128, 17, 5, 150, Bicubic, 0x643fbf3492325386),
        (76, 150, 7, 123, Bicubic, 0xb7397e6a8fc96f6d),
        (146, 83, 108, 53, Bilinear, 0x0e4c105566324443),
        (8, 3, 15, 56, Bicubic, 0xa465f83d7bc37ce0),
        (7, 10, 12, 6, Bilinear, 0xd852807cafc94aba),
        (3, 9, 116, 8, Bicubic, 0xe2dbb471d7d633ff),
    ];

    #[test]
    fn bytes_are_those_of_pillow() {
        for &(width, height, new_width, new_height, filter, expected) in PILLOW {
            let image = noise(width, height);
            let out = resize(&image, image.rect(), new_width, new_height, filter).unwrap();
            let case = format!("{width} x {height} -> {new_width} x {new_height} {filter:?}");
            assert_eq!(checksum(&out.data), expected, "{case}");
        }
    }

    #[test]
    fn a_region_is_resized_as_if_it_had_been_cropped() {
        let image = noise(70, 50);
        let region = Rect { left: 9, top: 4, width: 37, height: 41 };
        let part = image.crop(region).unwrap();
        for (width, height) in [(16, 16), (60, 9), (37, 20), (80, 41), (37, 41)] {
            let direct = resize(&image, region, width, height, Bicubic).unwrap();
            assert_eq!(direct, resize(&part, part.rect(), width, height, Bicubic).unwrap());
        }
    }

    #[test]
    fn a_constant_image_stays_constant() {
        let image = Image::filled(23, 17, [3, 130, 255]);
        let out = resize(&image, image.rect(), 40, 5, Bicubic).unwrap();
        assert_eq!(out, Image::filled(40, 5, [3, 130, 255]));
    }

    #[test]
    fn impossible_sizes_are_errors() {
        let image = noise(4, 4);
        for (width, height) in [(0, 4), (4, 0), (usize::MAX, 2), (1 << 20, 1 << 20)] {
            assert!(resize(&image, image.rect(), width, height, Bicubic).is_err());
        }
        assert!(resize(&image, Rect { left: 3, top: 0, width: 2, height: 2 }, 4, 4, Bicubic).is_err());
    }
}
