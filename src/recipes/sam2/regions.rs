//! Connected parts of masks, and what becomes of small ones.

use crate::data::BinaryMask;
use crate::{Error, Result};

/// Parts of a mask whose pixels touch, by sides or corners.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Components {
    /// Part of each pixel, from 1 on in the order in which they are met in reading; 0 outside the mask. `[H, W]`.
    pub labels: Vec<usize>,
    /// Pixels of each part; first those outside the mask.
    pub areas: Vec<usize>,
}

impl Components {
    /// The parts of `mask`.
    pub fn of(mask: &BinaryMask) -> Self {
        let (width, height) = (mask.width(), mask.height());
        let mut labels = vec![0; width * height];
        let mut areas = vec![width * height];
        let mut open = Vec::new();
        for start in 0..labels.len() {
            if !mask.pixels()[start] || labels[start] != 0 {
                continue;
            }
            let label = areas.len();
            areas.push(0);
            labels[start] = label;
            open.push(start);
            while let Some(at) = open.pop() {
                areas[label] += 1;
                let (x, y) = (at % width, at / width);
                for beside in (y.max(1) - 1)..(y + 2).min(height) {
                    for near in (x.max(1) - 1)..(x + 2).min(width) {
                        let pixel = beside * width + near;
                        if mask.pixels()[pixel] && labels[pixel] == 0 {
                            labels[pixel] = label;
                            open.push(pixel);
                        }
                    }
                }
            }
            areas[0] -= areas[label];
        }
        Self { labels, areas }
    }

    /// Whether a pixel is in a part of at most `area` pixels.
    fn small(&self, pixel: usize, area: usize) -> bool {
        self.labels[pixel] != 0 && self.areas[self.labels[pixel]] <= area
    }
}

/// What of a mask is small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Small {
    /// Parts of the outside.
    Holes,
    /// Parts of the mask.
    Islands,
}

/// Fills holes, or removes islands, of fewer than `area` pixels; `None` if there are none. Where all islands are that
/// small the largest stays, of equally large ones the first met in reading.
pub fn remove_small(mask: &BinaryMask, area: usize, what: Small) -> Option<BinaryMask> {
    let most = area.checked_sub(1)?;
    let parts = match what {
        Small::Holes => Components::of(&mask.of(|i| !mask.pixels()[i])),
        Small::Islands => Components::of(mask),
    };
    if parts.areas[1..].iter().all(|area| *area > most) {
        return None;
    }
    if what == Small::Holes {
        return Some(mask.of(|i| mask.pixels()[i] || parts.small(i, most)));
    }
    let largest = parts.areas[1..].iter().max().copied().unwrap_or(0);
    if largest > most {
        return Some(mask.of(|i| mask.pixels()[i] && !parts.small(i, most)));
    }
    let kept = parts.areas[1..].iter().position(|area| *area == largest).map(|at| at + 1);
    Some(mask.of(|i| Some(parts.labels[i]) == kept))
}

/// What becomes of small parts of scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Repair {
    /// Scores above it are inside.
    pub threshold: f32,
    /// Largest hole that is filled; 0 for none.
    pub holes: usize,
    /// Scores that filled holes get.
    pub inside: f32,
    /// Largest island that is removed; 0 for none.
    pub islands: usize,
    /// Scores that removed islands get.
    pub outside: f32,
}

impl Repair {
    /// Of a video's low-resolution masks: holes become 0.1.
    pub fn video(holes: usize) -> Self {
        Self { threshold: 0.0, holes, inside: 0.1, islands: 0, outside: 0.0 }
    }

    /// Of an image's low-resolution masks: holes become the threshold + 10, islands the threshold - 10.
    pub fn image(threshold: f32, holes: usize, islands: usize) -> Self {
        Self { threshold, holes, inside: threshold + 10.0, islands, outside: threshold - 10.0 }
    }

    /// Repairs planes `[.., H, W]` in place. Holes and islands are those of the scores as they came.
    ///
    /// # Errors
    /// Scores that are no whole planes.
    pub fn apply(&self, scores: &mut [f32], [height, width]: [usize; 2]) -> Result<()> {
        let pixels = height.checked_mul(width).filter(|p| *p > 0 && scores.len().is_multiple_of(*p));
        let pixels = pixels.ok_or_else(|| {
            let expected = format!("a multiple of {height} x {width}, both at least 1");
            Error::argument("repair", "scores", "length", scores.len().to_string(), expected)
        })?;
        for plane in scores.chunks_exact_mut(pixels) {
            let parts = |most: usize, pixels: Vec<bool>| -> Result<Option<Components>> {
                let mask = BinaryMask::new(width, height, pixels)?;
                Ok((most > 0).then(|| Components::of(&mask)))
            };
            let holes = parts(self.holes, plane.iter().map(|v| *v <= self.threshold).collect())?;
            let islands = parts(self.islands, plane.iter().map(|v| *v > self.threshold).collect())?;
            for (i, score) in plane.iter_mut().enumerate() {
                if holes.as_ref().is_some_and(|parts| parts.small(i, self.holes)) {
                    *score = self.inside;
                } else if islands.as_ref().is_some_and(|parts| parts.small(i, self.islands)) {
                    *score = self.outside;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(text: &str) -> BinaryMask {
        let rows: Vec<&str> = text.split_whitespace().collect();
        BinaryMask::new(rows[0].len(), rows.len(), rows.concat().bytes().map(|b| b == b'#').collect()).unwrap()
    }

    #[test]
    fn corners_connect() {
        let parts = Components::of(&mask("#..## .#..# #.... ...##"));
        assert_eq!(parts.labels, [1, 0, 0, 2, 2, 0, 1, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 3, 3]);
        assert_eq!(parts.areas, [12, 3, 3, 2]);
        let snake = mask("####. ....# #..#. #.#.. .#...");
        assert_eq!(Components::of(&snake).areas, [15, 10]);
        assert_eq!(Components::of(&mask("...")).areas, [3]);
    }

    #[test]
    fn small_parts_vanish_and_the_largest_stays() {
        let ring = mask("####.. #..#.# ####.. ......");
        assert_eq!(remove_small(&ring, 3, Small::Holes), Some(mask("####.. ####.# ####.. ......")));
        assert_eq!(remove_small(&ring, 2, Small::Holes), None);
        assert_eq!(remove_small(&ring, 2, Small::Islands), Some(mask("####.. #..#.. ####.. ......")));
        assert_eq!(remove_small(&ring, 1, Small::Islands), None);
        assert_eq!(remove_small(&ring, 0, Small::Islands), None);
        assert_eq!(remove_small(&mask("##.## ..... .###."), 9, Small::Islands), Some(mask("..... ..... .###.")));
        assert_eq!(remove_small(&mask("##.##"), 9, Small::Islands), Some(mask("##...")));
        assert_eq!(remove_small(&mask("....."), 9, Small::Islands), None);
        assert_eq!(remove_small(&mask("....."), 9, Small::Holes), Some(mask("#####")));
    }

    #[test]
    fn scores_of_small_parts_are_replaced() {
        let scores = |text: &str| mask(text).pixels().iter().map(|p| if *p { 3.0 } else { -2.0 }).collect::<Vec<f32>>();
        let mut both = [scores("####. #..#. ####. ....#"), scores(".#... ..... ...## ...##")].concat();
        let mut filled = both.clone();
        Repair::video(2).apply(&mut filled, [4, 5]).unwrap();
        assert_eq!((filled[6], filled[7], filled[9]), (0.1, 0.1, -2.0));
        assert_eq!(filled[20..], both[20..]);
        Repair::image(0.5, 2, 1).apply(&mut both, [4, 5]).unwrap();
        assert_eq!((both[6], both[19], both[21], both[39]), (10.5, 3.0, -9.5, 3.0)); // (4, 3) touches the ring's corner
        assert!(Repair::video(2).apply(&mut [0.0; 7], [2, 2]).is_err());
        assert!(Repair::video(2).apply(&mut [], [0, 2]).is_err());
    }
}
