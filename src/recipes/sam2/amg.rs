//! Masks of everything in a picture: where to click, and which of the masks to keep.
//!
//! A grid of clicks on the picture, and if wanted on crops of it, gives several masks each. Kept are those that the
//! model finds good, that hardly change with the threshold, and that are not cut off by their crop; of masks with much
//! the same box the best. Source: sam2 at 2b90b9f, `automatic_mask_generator.py` and `utils/amg.py`, after Kirillov et
//! al. 2023, arXiv 2304.02643, appendix B.

use crate::data::{BinaryMask, Rect};
use crate::{Error, Result};

const OP: &str = "amg";

/// Centres of `per_side²` equal cells as (x, y) in [0, 1], row by row.
pub fn point_grid(per_side: usize) -> Vec<[f64; 2]> {
    let place = |i: usize| (2 * i + 1) as f64 / (2 * per_side) as f64;
    (0..per_side).flat_map(|y| (0..per_side).map(move |x| [place(x), place(y)])).collect()
}

/// The grids of the picture and of `layers` layers of crops, with `scale` times fewer points on a side from one to the
/// next.
///
/// # Errors
/// A scale of 0.
pub fn point_grids(per_side: usize, layers: u32, scale: usize) -> Result<Vec<Vec<[f64; 2]>>> {
    if scale == 0 {
        return Err(Error::value(OP, "scale", 0, "at least 1"));
    }
    Ok((0..=layers).map(|layer| point_grid(scale.checked_pow(layer).map_or(0, |fewer| per_side / fewer))).collect())
}

/// A part of a picture that is looked at by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crop {
    /// Where it is.
    pub rect: Rect,
    /// Its layer; 0 is the whole picture.
    pub layer: u32,
}

/// The picture `[height, width]` and its crops, column by column: `2^i` on a side in layer i, neighbours in the first
/// layer sharing `overlap` of the picture's shorter side, in the next half of that, and so on.
///
/// # Errors
/// A share outside [0, 1), or crops so many that some are empty.
pub fn crops([height, width]: [usize; 2], layers: u32, overlap: f64) -> Result<Vec<Crop>> {
    if !(0.0..1.0).contains(&overlap) {
        return Err(Error::value(OP, "overlap", overlap, "a number in [0, 1)"));
    }
    let mut all = vec![Crop { rect: Rect { left: 0, top: 0, width, height }, layer: 0 }];
    for layer in 1..=layers {
        let too_many = || {
            let expected = format!("so few that none of 2^{layer} crops on a side of {height} x {width} is empty");
            Error::value(OP, "layers", layers, expected)
        };
        let count = 2usize.checked_pow(layer).filter(|n| *n <= height.min(width)).ok_or_else(too_many)?;
        let shared = (overlap * height.min(width) as f64 * (2.0 / count as f64)) as usize;
        // First pixel and length of each crop on a side.
        let along = |side: usize| -> Vec<(usize, usize)> {
            let length = (shared * (count - 1) + side).div_ceil(count);
            (0..count).map(|i| i * (length - shared)).map(|at| (at, length.min(side.saturating_sub(at)))).collect()
        };
        for (left, width) in along(width) {
            for (top, height) in along(height) {
                if width == 0 || height == 0 {
                    return Err(too_many());
                }
                all.push(Crop { rect: Rect { left, top, width, height }, layer });
            }
        }
    }
    Ok(all)
}

/// How little a mask changes with the threshold: logits above `threshold + offset` over those above `threshold -
/// offset`. NaN where there are neither, which no comparison lets pass.
pub fn stability(logits: &[f32], threshold: f32, offset: f32) -> f64 {
    let above = |limit: f32| logits.iter().filter(|v| **v > limit).count() as f64;
    above(threshold + offset) / above(threshold - offset)
}

/// A box: left, top, right, bottom.
pub type Corners = [f32; 4];

/// First column, first row, last column and last row of a mask; zeros if it is empty.
pub fn box_of(mask: &BinaryMask) -> Corners {
    mask.bounds().map_or([0.0; 4], |all| all.map(|v| v as f32))
}

/// A box of a crop in the picture.
pub fn uncrop_box([left, top, right, bottom]: Corners, crop: Rect) -> Corners {
    let [x, y] = [crop.left as f32, crop.top as f32];
    [left + x, top + y, right + x, bottom + y]
}

/// A point of a crop in the picture.
pub fn uncrop_point([x, y]: [f32; 2], crop: Rect) -> [f32; 2] {
    [x + crop.left as f32, y + crop.top as f32]
}

/// A mask of a crop in the picture `[height, width]`, nothing being inside elsewhere.
///
/// # Errors
/// A mask of another size than the crop, or a crop that is not inside the picture.
pub fn uncrop_mask(mask: &BinaryMask, crop: Rect, [height, width]: [usize; 2]) -> Result<BinaryMask> {
    if [mask.height(), mask.width()] != [crop.height, crop.width] {
        let given = [mask.height(), mask.width()];
        return Err(Error::shape(OP, "mask", &given, format!("[{}, {}], the crop's", crop.height, crop.width)));
    }
    let inside = |first: usize, length: usize, side| first.checked_add(length).is_some_and(|end| end <= side);
    if !inside(crop.left, crop.width, width) || !inside(crop.top, crop.height, height) {
        return Err(Error::value(OP, "crop", format!("{crop:?}"), format!("a part of {height} x {width}")));
    }
    let mut pixels = vec![false; height * width];
    for (y, row) in mask.pixels().chunks_exact(crop.width).enumerate() {
        pixels[(crop.top + y) * width + crop.left..][..crop.width].copy_from_slice(row);
    }
    BinaryMask::new(width, height, pixels)
}

/// Whether a side of the crop's box `corners` is within `tolerance` of the crop's edge on that side where this is not
/// also that near to the edge of the picture `[height, width]`: the mask may go on outside.
pub fn near_crop_edge(corners: Corners, crop: Rect, [height, width]: [usize; 2], tolerance: f32) -> bool {
    let edges = |r: Rect| [r.left, r.top, r.left + r.width, r.top + r.height].map(|v| v as f32);
    let picture = edges(Rect { left: 0, top: 0, width, height });
    let sides = uncrop_box(corners, crop).into_iter().zip(edges(crop).into_iter().zip(picture));
    let near = |a: f32, b: f32| (a - b).abs() <= tolerance;
    sides.into_iter().any(|(side, (crop, picture))| near(side, crop) && !near(side, picture))
}

/// Boxes to keep, best score first and equal scores in order: a box goes if its overlap with a better one that stays,
/// common area over that of either, is above `threshold`. Their area is that between the corners.
///
/// # Errors
/// When there are not as many scores as boxes.
pub fn suppress(boxes: &[Corners], scores: &[f32], threshold: f64) -> Result<Vec<usize>> {
    if scores.len() != boxes.len() {
        let expected = format!("{}, one for each box", boxes.len());
        return Err(Error::argument(OP, "scores", "length", scores.len().to_string(), expected));
    }
    let mut order: Vec<usize> = (0..boxes.len()).collect();
    order.sort_by(|a, b| (scores[*b] + 0.0).total_cmp(&(scores[*a] + 0.0))); // -0 + 0 is 0, whose order is that of 0
    let mut kept: Vec<usize> = Vec::new();
    for at in order {
        // A comparison with NaN, of two boxes without area, is false.
        if !kept.iter().any(|better| overlap(boxes[*better], boxes[at]) > threshold) {
            kept.push(at);
        }
    }
    Ok(kept)
}

fn overlap(a: Corners, b: Corners) -> f64 {
    let [a, b] = [a, b].map(|corners| corners.map(f64::from));
    let area = |c: [f64; 4]| (c[2] - c[0]) * (c[3] - c[1]);
    let side = |low: usize| (a[low + 2].min(b[low + 2]) - a[low].max(b[low])).max(0.0);
    let common = side(0) * side(1);
    common / (area(a) + area(b) - common)
}

/// Which masks are good enough.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quality {
    /// Predicted IoU that a mask must exceed.
    pub predicted_iou: f32,
    /// Least stability.
    pub stability: f64,
    /// Logits above it are inside.
    pub threshold: f32,
    /// How far the threshold is moved for the stability.
    pub offset: f32,
}

impl Default for Quality {
    fn default() -> Self {
        Self { predicted_iou: 0.8, stability: 0.95, threshold: 0.0, offset: 1.0 }
    }
}

impl Quality {
    /// Whether a mask is good enough by its predicted IoU.
    pub fn good(&self, predicted_iou: f32) -> bool {
        self.predicted_iou <= 0.0 || predicted_iou > self.predicted_iou
    }

    /// The [stability] of a mask of these logits.
    pub fn stability_of(&self, logits: &[f32]) -> f64 {
        stability(logits, self.threshold, self.offset)
    }

    /// Whether a mask is good enough by its stability.
    pub fn stable(&self, stability: f64) -> bool {
        self.stability <= 0.0 || stability >= self.stability
    }
}

/// Logits `[objects, pixels]` with each pixel left to the object that has the largest there, the first of equal ones:
/// those of the others become at most -10.
///
/// # Errors
/// Logits that are no whole planes.
pub fn without_overlap(logits: &mut [f32], pixels: usize) -> Result<()> {
    if pixels == 0 || !logits.len().is_multiple_of(pixels) {
        let expected = format!("a multiple of {pixels}, at least 1");
        return Err(Error::argument(OP, "logits", "length", logits.len().to_string(), expected));
    }
    let objects = logits.len() / pixels;
    for at in 0..pixels {
        let first = |best: usize, object: usize| {
            if logits[object * pixels + at] > logits[best * pixels + at] { object } else { best }
        };
        let winner = (1..objects).fold(0, first);
        for object in (0..objects).filter(|object| *object != winner) {
            let logit = &mut logits[object * pixels + at];
            *logit = logit.min(-10.0);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::rng::{Purpose, Stream};

    fn rect([left, top, right, bottom]: [usize; 4]) -> Rect {
        Rect { left, top, width: right - left, height: bottom - top }
    }

    #[test]
    fn points_are_the_centres_of_cells() {
        assert_eq!(point_grid(2), [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]);
        let sizes = |grids: Vec<Vec<_>>| grids.iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(sizes(point_grids(8, 3, 3).unwrap()), [64, 4, 0, 0]);
        assert_eq!(sizes(point_grids(3, 2, 1).unwrap()), [9, 9, 9]);
        assert!(point_grids(8, 3, 0).is_err());
    }

    #[test]
    fn crops_cover_the_picture_and_share_their_borders() {
        let all = crops([30, 40], 1, 0.2).unwrap(); // 6 pixels shared
        let expected = [[0, 0, 40, 30], [0, 0, 23, 18], [0, 12, 23, 30], [17, 0, 40, 18], [17, 12, 40, 30]];
        assert_eq!(all.iter().map(|c| c.rect).collect::<Vec<_>>(), expected.map(rect));
        let deep = crops([123, 77], 3, 512.0 / 1500.0).unwrap();
        assert_eq!(deep.iter().filter(|c| c.layer == 3).count(), 64);
        for layer in 0..=3 {
            let of = deep.iter().filter(|c| c.layer == layer).map(|c| c.rect);
            let mut seen = vec![false; 123 * 77];
            for r in of {
                assert!(r.left + r.width <= 77 && r.top + r.height <= 123);
                (0..r.width * r.height).for_each(|i| seen[(r.top + i / r.width) * 77 + r.left + i % r.width] = true);
            }
            assert!(seen.into_iter().all(|s| s));
        }
        assert!(crops([30, 40], 1, 1.0).is_err() && crops([30, 40], 1, f64::NAN).is_err());
        assert!(
            crops([30, 40], 5, 0.0).is_err() && crops([5, 4], 2, 0.0).is_err() && crops([30, 40], 99, 0.0).is_err()
        );
    }

    #[test]
    fn stability_compares_two_thresholds() {
        assert_eq!(stability(&[2.0, 1.0, 0.0, -0.5, -1.0], 0.0, 1.0), 0.25);
        let quality = Quality { stability: 0.25, ..Quality::default() };
        assert_eq!(quality.stability_of(&[2.0, 1.0, 0.0, 0.0]), 0.25);
        assert!(quality.good(0.81) && !quality.good(0.8) && !quality.good(f32::NAN));
        assert!(quality.stable(0.25) && !quality.stable(0.24));
        assert!(!quality.stable(quality.stability_of(&[-3.0])) && stability(&[-3.0], 0.0, 1.0).is_nan());
        assert!(Quality { stability: 0.0, ..quality }.stable(f64::NAN));
    }

    #[test]
    fn boxes_at_the_edge_of_a_crop_are_cut_off() {
        let crop = rect([20, 0, 60, 50]);
        let near = |corners| near_crop_edge(corners, crop, [80, 100], 3.0);
        assert!(!near([5.0, 1.0, 30.0, 40.0])); // the picture ends there too
        assert!(near([3.0, 10.0, 30.0, 40.0]) && !near([3.5, 10.0, 30.0, 40.0]));
        assert!(near([10.0, 10.0, 30.0, 47.0]) && near([10.0, 10.0, 39.0, 20.0]));
        assert_eq!(uncrop_box([1.0, 2.0, 3.0, 4.0], rect([20, 7, 30, 30])), [21.0, 9.0, 23.0, 11.0]);
        assert_eq!(uncrop_point([1.0, 2.0], rect([20, 7, 30, 30])), [21.0, 9.0]);
        let mask = BinaryMask::new(2, 1, vec![true, false]).unwrap();
        let whole = uncrop_mask(&mask, rect([1, 2, 3, 3]), [3, 4]).unwrap();
        assert_eq!((whole.area(), box_of(&whole)), (1, [1.0, 2.0, 1.0, 2.0]));
        assert_eq!(box_of(&whole.of(|_| false)), [0.0; 4]);
        assert!(uncrop_mask(&mask, rect([3, 2, 5, 3]), [3, 4]).is_err());
        assert!(uncrop_mask(&mask, rect([1, 2, 3, 4]), [4, 4]).is_err());
    }

    #[test]
    fn of_boxes_alike_the_best_stays() {
        let boxes = [[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 8.0], [20.0, 0.0, 30.0, 10.0], [5.0, 5.0, 5.0, 5.0]];
        assert_eq!(suppress(&boxes, &[0.5, 0.9, 0.9, 0.1], 0.7).unwrap(), [1, 2, 3]);
        assert_eq!(suppress(&boxes, &[0.5, 0.9, 0.9, 0.1], 0.8).unwrap(), [1, 2, 0, 3]); // 0.8 is not above it
        assert!(suppress(&boxes, &[0.5], 0.7).is_err());
        let mut rng = Stream::new(5, Purpose::TEST, 0, 0);
        let mut draw = || rng.below(8) as f32;
        let boxes: Vec<Corners> = (0..60)
            .map(|_| [draw(), draw(), draw(), draw()])
            .map(|[x, y, w, h]| [x, y, x + w + 1.0, y + h + 1.0])
            .collect();
        let scores: Vec<f32> = (0..60).map(|_| draw() / 8.0).collect();
        let kept = suppress(&boxes, &scores, 0.4).unwrap();
        assert!(kept.is_sorted_by(|a, b| scores[*a] > scores[*b] || scores[*a] == scores[*b] && a < b));
        for (i, a) in kept.iter().enumerate() {
            assert!(kept[..i].iter().all(|b| overlap(boxes[*a], boxes[*b]) <= 0.4));
        }
        let gone = (0..60).filter(|i| !kept.contains(i));
        assert!(gone.clone().count() > 0);
        for i in gone {
            assert!(kept.iter().any(|b| scores[*b] >= scores[i] && overlap(boxes[i], boxes[*b]) > 0.4));
        }
    }

    #[test]
    fn a_pixel_goes_to_one_object() {
        let mut logits = [1.0, -20.0, 5.0, 2.0, -30.0, 5.0];
        without_overlap(&mut logits, 3).unwrap();
        assert_eq!(logits, [-10.0, -20.0, 5.0, 2.0, -30.0, -10.0]);
        without_overlap(&mut logits[..3], 3).unwrap();
        assert_eq!(logits[0], -10.0);
        assert!(without_overlap(&mut logits, 4).is_err() && without_overlap(&mut logits, 0).is_err());
        without_overlap(&mut [], 4).unwrap();
    }
}
