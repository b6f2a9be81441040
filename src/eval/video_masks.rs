//! J & F of tracked objects: overlap of regions and of outlines (Perazzi et al. 2016, "A benchmark dataset and
//! evaluation methodology for video object segmentation", as in the SA-V benchmark: sam2 at 2b90b9f,
//! `sav_dataset/utils/sav_benchmark.py`).
//!
//! J of a frame is the IoU of the masks. F is the harmonic mean of precision and recall of outline pixels, one being
//! found if the other outline comes within a radius of it. Both are averaged over the frames of an object, then over
//! all objects of all videos. Frames before an object is first seen, in truth or prediction, do not count.

use crate::data::BinaryMask;
use crate::data::distance::{Border, squared};
use crate::{Error, Result};

const OP: &str = "video_masks";

/// Radius of the outlines as a share of the picture's diagonal.
pub const BOUNDARY: f64 = 0.008;

/// J and F, of a frame or averaged; from 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Scores {
    /// Overlap of regions.
    pub j: f64,
    /// Overlap of outlines.
    pub f: f64,
}

impl Scores {
    /// The mean of both.
    pub fn j_and_f(self) -> f64 {
        (self.j + self.f) / 2.0
    }

    /// Averages; `None` of nothing.
    pub fn mean(all: &[Self]) -> Option<Self> {
        let of = |value: fn(&Self) -> f64| all.iter().map(value).sum::<f64>() / all.len() as f64;
        (!all.is_empty()).then(|| Self { j: of(|s| s.j), f: of(|s| s.f) })
    }
}

/// Pixels common to both over pixels of either; 1 if both are empty.
///
/// # Errors
/// Masks of different sizes.
pub fn region(truth: &BinaryMask, predicted: &BinaryMask) -> Result<f64> {
    predicted.check_size(OP, "predicted", truth)?;
    let common = truth.pixels().iter().zip(predicted.pixels()).filter(|(a, b)| **a && **b).count();
    let either = truth.area() + predicted.area() - common;
    Ok(if either == 0 { 1.0 } else { common as f64 / either as f64 })
}

/// The outline of a mask: pixels that differ from that to the right, below, or to the right below, where outside the
/// picture is outside the mask. In the last row only the one to the right counts, in the last column only the one
/// below, in the last pixel none.
pub fn outline(mask: &BinaryMask) -> BinaryMask {
    let (width, height) = (mask.width(), mask.height());
    let inside = |x: usize, y: usize| x < width && y < height && mask.pixels()[y * width + x];
    mask.of(|i| {
        let (x, y) = (i % width, i / width);
        let differs = |right: usize, down: usize| inside(x, y) != inside(x + right, y + down);
        match (x + 1 == width, y + 1 == height) {
            (false, false) => differs(1, 0) || differs(0, 1) || differs(1, 1),
            (false, true) => differs(1, 0),
            (true, false) => differs(0, 1),
            (true, true) => false,
        }
    })
}

/// Radius within which outlines match in a picture `[height, width]`: `share` of its diagonal, rounded up.
pub fn radius([height, width]: [usize; 2], share: f64) -> usize {
    (share * ((height * height + width * width) as f64).sqrt()).ceil() as usize
}

/// All pixels within `radius` of those of a mask.
pub fn dilated(mask: &BinaryMask, radius: usize) -> BinaryMask {
    let (near, limit) = (squared(mask, Border::Open), (radius as u64).saturating_pow(2));
    // Without any pixel the distance is the largest number there is.
    mask.of(|i| near[i] <= limit && near[i] < u64::MAX)
}

/// The harmonic mean of the shares of outline pixels, of the prediction and of the truth, that are within `radius` of
/// the other outline: 1 if there is no outline, 0 if one has none.
///
/// # Errors
/// Masks of different sizes.
pub fn contour(truth: &BinaryMask, predicted: &BinaryMask, radius: usize) -> Result<f64> {
    predicted.check_size(OP, "predicted", truth)?;
    let [truth, predicted] = [truth, predicted].map(outline);
    let found = |outline: &BinaryMask, other: &BinaryMask| {
        let near = dilated(other, radius);
        let count = near.pixels().iter().zip(outline.pixels()).filter(|(near, pixel)| **near && **pixel).count();
        count as f64 / outline.area() as f64
    };
    Ok(match [truth.area(), predicted.area()] {
        [0, 0] => 1.0,
        [0, _] | [_, 0] => 0.0,
        _ => {
            let (precision, recall) = (found(&predicted, &truth), found(&truth, &predicted));
            let sum = precision + recall;
            if sum == 0.0 { 0.0 } else { 2.0 * precision * recall / sum }
        }
    })
}

/// J and F of each frame that counts: those from the first on in which the object is, in truth or prediction.
/// `boundary` is the radius of the outlines as a share of the diagonal, [`BOUNDARY`].
///
/// # Errors
/// When there are not as many predictions as frames, or of other sizes.
pub fn frames(truth: &[BinaryMask], predicted: &[BinaryMask], boundary: f64) -> Result<Vec<Scores>> {
    if truth.len() != predicted.len() {
        let expected = format!("{}, one for each frame", truth.len());
        return Err(Error::argument(OP, "predicted", "length", predicted.len().to_string(), expected));
    }
    let pairs = truth.iter().zip(predicted).skip_while(|(truth, predicted)| truth.area() + predicted.area() == 0);
    let of = |(truth, predicted): (&BinaryMask, &BinaryMask)| {
        let near = radius([truth.height(), truth.width()], boundary);
        Ok(Scores { j: region(truth, predicted)?, f: contour(truth, predicted, near)? })
    };
    pairs.map(of).collect()
}

/// Averages of an object over the frames that count, without the first and the last of those given: the first has the
/// prompt. `None` for one that is nowhere in their truth.
///
/// # Errors
/// As [`frames`].
pub fn object(truth: &[BinaryMask], predicted: &[BinaryMask], boundary: f64) -> Result<Option<Scores>> {
    let scores = frames(inner(truth), inner(predicted), boundary)?;
    let there = inner(truth).iter().any(|mask| mask.area() > 0);
    Ok(Scores::mean(&scores).filter(|_| there))
}

/// All but the first and the last.
fn inner(all: &[BinaryMask]) -> &[BinaryMask] {
    all.get(1..all.len().saturating_sub(1)).unwrap_or(&[])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::rng::{Purpose, Stream};

    fn mask(text: &str) -> BinaryMask {
        let rows: Vec<&str> = text.split_whitespace().collect();
        BinaryMask::new(rows[0].len(), rows.len(), rows.concat().bytes().map(|b| b == b'#').collect()).unwrap()
    }

    /// A disk in a picture of 97 x 83.
    fn disk(x: i64, y: i64, radius: i64) -> BinaryMask {
        let inside = |i: i64| (i % 97 - x).pow(2) + (i / 97 - y).pow(2) <= radius * radius;
        BinaryMask::new(97, 83, (0..97 * 83).map(inside).collect()).unwrap()
    }

    #[test]
    fn the_outline_lies_half_a_pixel_towards_the_origin() {
        assert_eq!(outline(&mask("..... .##.. .##.. .....")), mask("###.. #.#.. ###.. ....."));
        // The last row looks to the right only, the last column down only, the corner nowhere.
        assert_eq!(outline(&mask("### ### ###")), mask("... ... ..."));
        assert_eq!(outline(&mask("..# ... #.#")), mask(".## ### ##."));
        assert_eq!(outline(&mask("#.##")), mask("##.."));
        assert_eq!(outline(&mask("# . # #")), mask("# # . ."));
        assert_eq!(outline(&mask("#")), mask("."));
    }

    #[test]
    fn radius_and_disk() {
        assert_eq!((radius([480, 854], BOUNDARY), radius([3, 4], 0.2), radius([1, 1], BOUNDARY)), (8, 1, 1));
        let dot = mask("..... ..... ..#.. ..... .....");
        assert_eq!(dilated(&dot, 2), mask("..#.. .###. ##### .###. ..#.."));
        assert_eq!(dilated(&dot, 0), dot);
        assert_eq!(dilated(&mask("..."), usize::MAX), mask("..."));
    }

    #[test]
    fn scores_computed_by_hand() {
        let (truth, predicted) = (mask("....... .##.... .##.... ......."), mask("....... ...##.. ...##.. ......."));
        assert_eq!(region(&truth, &predicted).unwrap(), 0.0);
        // Outlines of 8 pixels each, columns 0 to 2 and 2 to 4, with column 2 in common.
        assert_eq!(contour(&truth, &predicted, 0).unwrap(), 3.0 / 8.0);
        assert_eq!(contour(&truth, &predicted, 1).unwrap(), 5.0 / 8.0);
        assert_eq!(contour(&truth, &predicted, 2).unwrap(), 1.0);
        let half = mask("....... .##.... ....... .......");
        assert_eq!(region(&truth, &half).unwrap(), 0.5);
        // Its outline is rows 0 and 1, 6 pixels of which (1, 1) is not the other's; of whose 8 those of row 2 are not
        // found.
        assert_eq!(contour(&truth, &half, 0).unwrap(), 2.0 * (5.0 / 6.0) * (5.0 / 8.0) / (5.0 / 6.0 + 5.0 / 8.0));
        let none = mask("....... ....... ....... .......");
        assert_eq!((region(&none, &none).unwrap(), contour(&none, &none, 1).unwrap()), (1.0, 1.0));
        for (a, b) in [(&truth, &none), (&none, &truth)] {
            assert_eq!((region(a, b).unwrap(), contour(a, b, 9).unwrap()), (0.0, 0.0));
        }
        assert!(region(&none, &mask("...")).is_err() && contour(&none, &mask("..."), 1).is_err());
    }

    #[test]
    fn scores_are_shares_and_f_is_symmetric() {
        let mut rng = Stream::new(2, Purpose::TEST, 0, 0);
        for (width, height) in [(1, 1), (1, 7), (13, 1), (17, 11)] {
            for share in [0.0, 0.1, 0.6, 1.0] {
                let mut draw = || (0..width * height).map(|_| rng.chance(share)).collect();
                let [a, b] = [draw(), draw()].map(|pixels| BinaryMask::new(width, height, pixels).unwrap());
                for radius in 0..3 {
                    let f = contour(&a, &b, radius).unwrap();
                    assert!((0.0..=1.0).contains(&f) && (0.0..=1.0).contains(&region(&a, &b).unwrap()));
                    assert_eq!(f, contour(&b, &a, radius).unwrap());
                    assert_eq!((contour(&a, &a, radius).unwrap(), region(&a, &a).unwrap()), (1.0, 1.0));
                }
            }
        }
    }

    #[test]
    fn a_shift_within_the_radius_costs_no_f() {
        let (truth, shifted) = (disk(45, 40, 25), disk(48, 40, 25));
        assert_eq!(contour(&truth, &shifted, 3).unwrap(), 1.0);
        assert!(contour(&truth, &shifted, 2).unwrap() < 1.0 && region(&truth, &shifted).unwrap() < 0.93);
        assert_eq!(contour(&truth, &disk(45, 40, 20), 2).unwrap(), 0.0);
    }

    #[test]
    fn frames_count_from_the_first_sight_without_the_ends() {
        let (here, gone) = (mask("##.. ##.."), mask(".... ...."));
        let truth = [&here, &gone, &here, &here, &gone, &gone].map(Clone::clone);
        let predicted = [&gone, &gone, &here, &gone, &gone, &here].map(Clone::clone);
        let all = frames(&truth, &predicted, BOUNDARY).unwrap();
        assert_eq!(all.iter().map(|s| s.j).collect::<Vec<_>>(), [0.0, 1.0, 1.0, 0.0, 1.0, 0.0]);
        // Of frames 1 to 4 the first has nothing to see yet.
        let mean = object(&truth, &predicted, BOUNDARY).unwrap().unwrap();
        assert_eq!(mean, Scores { j: 2.0 / 3.0, f: 2.0 / 3.0 });
        assert_eq!(object(&truth[4..], &truth[..2], BOUNDARY).unwrap(), None);
        let absent = [&gone, &gone, &gone].map(Clone::clone);
        assert_eq!(object(&absent, &truth[1..4], BOUNDARY).unwrap(), None); // seen by mistake only
        assert!(frames(&truth, &predicted[1..], BOUNDARY).is_err());
        let over = Scores::mean(&[mean, Scores { j: 1.0, f: 0.0 }]).unwrap();
        assert!((over.j - 5.0 / 6.0).abs() < 1e-12 && (over.j_and_f() - 7.0 / 12.0).abs() < 1e-12);
        assert_eq!(Scores::mean(&[]), None);
    }
}
