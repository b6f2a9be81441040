//! Simulated prompts: clicks where a prediction is wrong, boxes around an object. All randomness is an argument.
//!
//! Source: sam2 at 2b90b9f, `sam2_utils.py`; the click at the centre of an error is that of RITM (Sofiiuk et al. 2021,
//! arXiv 2102.06583).

use crate::data::BinaryMask;
use crate::data::distance::{Border, squared};
use crate::{Error, Result};

const OP: &str = "clicks";

/// What a point of a prompt says.
pub mod label {
    /// Nothing: the point only fills a place.
    pub const PADDING: i32 = -1;
    /// The object is not here.
    pub const NEGATIVE: i32 = 0;
    /// The object is here.
    pub const POSITIVE: i32 = 1;
    /// Corner of a box with the smallest coordinates.
    pub const TOP_LEFT: i32 = 2;
    /// Corner of a box with the largest.
    pub const BOTTOM_RIGHT: i32 = 3;
}

/// A click.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Click {
    /// Column.
    pub x: usize,
    /// Row.
    pub y: usize,
    /// [`label::POSITIVE`] or [`label::NEGATIVE`].
    pub label: i32,
}

impl Click {
    fn at(pixel: usize, width: usize, positive: bool) -> Self {
        let label = if positive { label::POSITIVE } else { label::NEGATIVE };
        Self { x: pixel % width, y: pixel / width, label }
    }
}

/// Pixels that a click may say something about: `[too much, too little]`, wrongly inside and wrongly outside.
fn errors(truth: &BinaryMask, predicted: Option<&BinaryMask>) -> Result<[BinaryMask; 2]> {
    if let Some(predicted) = predicted {
        predicted.check_size(OP, "predicted", truth)?;
    }
    let inside = |i: usize| predicted.is_some_and(|mask| mask.pixels()[i]);
    Ok([truth.of(|i| inside(i) && !truth.pixels()[i]), truth.of(|i| truth.pixels()[i] && !inside(i))])
}

/// [`errors`], or where there is none, the background for a negative click.
fn candidates(truth: &BinaryMask, predicted: Option<&BinaryMask>) -> Result<[BinaryMask; 2]> {
    let [too_much, too_little] = errors(truth, predicted)?;
    if too_much.area() + too_little.area() > 0 {
        return Ok([too_much, too_little]);
    }
    Ok([truth.of(|i| !truth.pixels()[i]), too_little])
}

/// Clicks on wrong pixels, each where its own noise is the largest: `noise` is `[clicks, H, W, 2]`, uniform in [0, 1),
/// its last axis being that of negative and positive clicks. Of equal noise the first counts. Without a prediction all
/// of the object is wrong; where nothing is wrong, the click is a negative one on the background, and where there is no
/// background either, on the first pixel.
///
/// # Errors
/// A prediction of another size, or noise of another length.
pub fn uniform(truth: &BinaryMask, predicted: Option<&BinaryMask>, noise: &[f32]) -> Result<Vec<Click>> {
    let [negative, positive] = candidates(truth, predicted)?;
    let each = 2 * truth.pixels().len();
    if !noise.len().is_multiple_of(each) {
        let expected = format!("a multiple of {} x {} x 2", truth.height(), truth.width());
        return Err(Error::argument(OP, "noise", "length", noise.len().to_string(), expected));
    }
    let click = |noise: &[f32]| {
        let (mut best, mut largest) = (0, 0.0);
        for (at, pair) in noise.as_chunks::<2>().0.iter().enumerate() {
            for (channel, mask) in [&negative, &positive].into_iter().enumerate() {
                if mask.pixels()[at] && pair[channel] > largest {
                    (best, largest) = (2 * at + channel, pair[channel]);
                }
            }
        }
        Click::at(best / 2, truth.width(), best % 2 == 1)
    };
    Ok(noise.chunks_exact(each).map(click).collect())
}

/// A click with the distribution of [`uniform`]'s from a single number `u` in [0, 1): that of number `⌊u n⌋` of the n
/// pixels it may be on.
///
/// # Errors
/// A prediction of another size, or a `u` outside [0, 1).
pub fn uniform_one(truth: &BinaryMask, predicted: Option<&BinaryMask>, u: f64) -> Result<Click> {
    if !(0.0..1.0).contains(&u) {
        return Err(Error::value(OP, "u", u, "a number in [0, 1)"));
    }
    let [negative, positive] = candidates(truth, predicted)?;
    let open = |i: &usize| negative.pixels()[*i] || positive.pixels()[*i];
    let count = negative.area() + positive.area();
    let rank = ((u * count as f64) as usize).min(count.saturating_sub(1)); // the product may be rounded up to the count
    let at = (0..truth.pixels().len()).filter(open).nth(rank).unwrap_or(0);
    Ok(Click::at(at, truth.width(), positive.pixels()[at]))
}

/// The click furthest inside an error: where the distance to the nearest pixel that is no such error, the outside of
/// the picture included, is the largest. What is missing wins over what is too much only if it is strictly larger; of
/// equal distances the first pixel counts. Where nothing is wrong it is a negative click on the first pixel.
///
/// # Errors
/// A prediction of another size.
pub fn centre(truth: &BinaryMask, predicted: Option<&BinaryMask>) -> Result<Click> {
    let deepest = |error: &BinaryMask| {
        let depth = squared(&error.of(|i| !error.pixels()[i]), Border::Framed);
        let first = |best: (usize, u64), (at, d): (usize, &u64)| if *d > best.1 { (at, *d) } else { best };
        depth.iter().enumerate().fold((0, 0), first)
    };
    let [(much, too_much), (little, too_little)] = errors(truth, predicted)?.each_ref().map(deepest);
    let positive = too_little > too_much;
    Ok(Click::at(if positive { little } else { much }, truth.width(), positive))
}

/// Left, top, right and bottom of the object, all inside it; `[W, H, -1, -1]` if there is none.
pub fn mask_to_box(mask: &BinaryMask) -> [i64; 4] {
    mask.bounds().map_or([mask.width() as i64, mask.height() as i64, -1, -1], |all| all.map(|v| v as i64))
}

/// How far the corners of a simulated box are from those of the object.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BoxNoise {
    /// Share of the side.
    pub share: f32,
    /// Pixels at most.
    pub bound: f32,
}

impl Default for BoxNoise {
    fn default() -> Self {
        Self { share: 0.1, bound: 20.0 }
    }
}

/// The box of an object with each coordinate moved by `(2 u - 1) min(share · side, bound)`, u of `uniform` being
/// numbers in [0, 1), and kept on the picture: top left and bottom right, of labels [`label::TOP_LEFT`] and
/// [`label::BOTTOM_RIGHT`]. A share of 0 moves nothing.
pub fn noisy_box(mask: &BinaryMask, uniform: [f32; 4], noise: BoxNoise) -> [[f32; 2]; 2] {
    let exact = mask_to_box(mask).map(|v| v as f32);
    let pairs = |[left, top, right, bottom]: [f32; 4]| [[left, top], [right, bottom]];
    if noise.share <= 0.0 {
        return pairs(exact);
    }
    let size = [exact[2] - exact[0], exact[3] - exact[1]];
    let last = [mask.width(), mask.height()].map(|side| (side - 1) as f32);
    let moved = |i: usize| {
        let reach = (size[i % 2] * noise.share).min(noise.bound);
        (exact[i] + (2.0 * uniform[i] - 1.0) * reach).clamp(0.0, last[i % 2])
    };
    pairs([0, 1, 2, 3].map(moved))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `#` inside, rows apart by spaces.
    fn mask(text: &str) -> BinaryMask {
        let rows: Vec<&str> = text.split_whitespace().collect();
        BinaryMask::new(rows[0].len(), rows.len(), rows.concat().bytes().map(|b| b == b'#').collect()).unwrap()
    }

    #[test]
    fn the_largest_noise_of_a_wrong_pixel_is_clicked() {
        let (truth, predicted) = (mask("##.. ##.. ...."), mask(".##. .##. ...."));
        let mut noise = vec![0.9; 24];
        assert_eq!(uniform(&truth, Some(&predicted), &noise).unwrap(), [Click { x: 0, y: 0, label: 1 }]);
        noise[2 * 6] = 0.95; // (2, 1), too much, and
        noise[2 * 2 + 1] = 0.99; // (2, 0), where the positive channel says nothing
        assert_eq!(uniform(&truth, Some(&predicted), &noise).unwrap(), [Click { x: 2, y: 1, label: 0 }]);
        noise.extend([0.5; 24]);
        noise[24 + 2 * 4 + 1] = 0.6;
        assert_eq!(uniform(&truth, Some(&predicted), &noise).unwrap()[1], Click { x: 0, y: 1, label: 1 });
        noise[24 + 2 * 11] = 0.7; // background counts when nothing is wrong
        assert_eq!(uniform(&truth, Some(&truth), &noise).unwrap()[1], Click { x: 3, y: 2, label: 0 });
        assert_eq!(uniform(&truth, None, &noise).unwrap()[1], Click { x: 0, y: 1, label: 1 });
        assert_eq!(uniform(&truth, None, &[]).unwrap(), []);
        let full = mask("## ##");
        assert_eq!(uniform(&full, Some(&full), &[0.3; 8]).unwrap(), [Click { x: 0, y: 0, label: 0 }]);
        assert!(uniform(&truth, None, &[0.0; 23]).is_err() && uniform(&truth, Some(&full), &noise).is_err());
    }

    #[test]
    fn one_number_reaches_every_wrong_pixel_once() {
        let (truth, predicted) = (mask("##.. ##.. ...."), mask(".##. .##. ...."));
        let all: Vec<Click> =
            (0..4).map(|i| uniform_one(&truth, Some(&predicted), (f64::from(i) + 0.5) / 4.0).unwrap()).collect();
        let expected = [(0, 0, 1), (2, 0, 0), (0, 1, 1), (2, 1, 0)].map(|(x, y, label)| Click { x, y, label });
        assert_eq!(all, expected);
        assert_eq!(uniform_one(&truth, Some(&truth), 0.999).unwrap(), Click { x: 3, y: 2, label: 0 });
        assert_eq!(uniform_one(&mask("#"), Some(&mask("#")), 0.5).unwrap(), Click { x: 0, y: 0, label: 0 });
        assert!(uniform_one(&truth, None, 1.0).is_err() && uniform_one(&truth, None, f64::NAN).is_err());
    }

    #[test]
    fn the_deepest_error_is_clicked() {
        let truth = mask("..... .###. .###. .###. .....");
        assert_eq!(centre(&truth, None).unwrap(), Click { x: 2, y: 2, label: 1 });
        // Equally deep: too much wins.
        let aside = mask("###...... ###...... ###...... ......###");
        let other = mask("......### ......### ......### .........");
        assert_eq!(centre(&other, Some(&aside)).unwrap(), Click { x: 1, y: 1, label: 0 });
        // The outside of the picture is not deep.
        assert_eq!(centre(&mask("### ### ###"), None).unwrap(), Click { x: 1, y: 1, label: 1 });
        assert_eq!(centre(&truth, Some(&truth)).unwrap(), Click { x: 0, y: 0, label: 0 });
        assert!(centre(&truth, Some(&aside)).is_err());
    }

    #[test]
    fn boxes_move_by_a_share_of_their_sides_and_stay_on_the_picture() {
        let object = mask("..... .###. .#... .....");
        assert_eq!(mask_to_box(&object), [1, 1, 3, 2]);
        assert_eq!(mask_to_box(&object.of(|_| false)), [5, 4, -1, -1]);
        let noise = BoxNoise { share: 0.5, bound: 0.75 };
        assert_eq!(noisy_box(&object, [0.0, 0.5, 1.0, 1.0], noise), [[0.25, 1.0], [3.75, 2.5]]);
        assert_eq!(noisy_box(&object, [0.9; 4], BoxNoise { share: 0.0, ..noise }), [[1.0, 1.0], [3.0, 2.0]]);
        let wide = BoxNoise { share: 9.0, bound: 20.0 };
        assert_eq!(noisy_box(&object, [0.0, 0.0, 1.0, 1.0], wide), [[0.0, 0.0], [4.0, 3.0]]);
        assert_eq!(noisy_box(&object.of(|_| false), [1.0; 4], noise), [[2.0, 1.5], [0.0, 0.0]]);
    }
}
