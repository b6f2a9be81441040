//! Random erasing: a rectangle of the normalised sample is replaced by standard normal noise, a number of its own
//! for each value.
//!
//! Source: Zhong et al. 2017, arXiv 1708.04896, with the rectangle's law of timm: up to ten times an area and an
//! aspect ratio (in the logarithm) are drawn, `h = round(sqrt(area·ratio))`, `w = round(sqrt(area/ratio))`, and
//! taken if both are smaller than the image.

use super::image::Rect;
use super::rng::Stream;
use crate::{Error, Result};

/// Settings of random erasing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RandomErase {
    /// Probability that a rectangle is erased.
    pub probability: f64,
    /// Area of the rectangle over that of the image: from, to.
    pub area: (f64, f64),
    /// Height over width: from, to.
    pub ratio: (f64, f64),
}

impl Default for RandomErase {
    /// The fine-tuning recipe: probability 0.25, area 2 % to a third, aspect ratio 0.3 to 1/0.3.
    fn default() -> Self {
        Self { probability: 0.25, area: (0.02, 1.0 / 3.0), ratio: (0.3, 1.0 / 0.3) }
    }
}

impl RandomErase {
    /// An error unless the settings can be drawn from.
    pub fn check(&self) -> Result<()> {
        if !(0.0..=1.0).contains(&self.probability) {
            return Err(Error::value("random_erase", "probability", self.probability, "0 to 1"));
        }
        for (arg, (low, high)) in [("area", self.area), ("ratio", self.ratio)] {
            if !(low > 0.0 && low <= high && high.is_finite()) {
                return Err(Error::value("random_erase", arg, format!("({low}, {high})"), "0 < from <= to"));
            }
        }
        Ok(())
    }

    /// Draws the rectangle for an image, if one is to be erased.
    pub fn draw(&self, rng: &mut Stream, width: usize, height: usize) -> Option<Rect> {
        if !rng.chance(self.probability) {
            return None;
        }
        for _ in 0..10 {
            let target = (width * height) as f64 * rng.uniform(self.area.0, self.area.1);
            let ratio = rng.uniform(self.ratio.0.ln(), self.ratio.1.ln()).exp();
            let h = (target * ratio).sqrt().round_ties_even() as usize;
            let w = (target / ratio).sqrt().round_ties_even() as usize;
            if w < width && h < height {
                let top = rng.below(height - h + 1);
                let left = rng.below(width - w + 1);
                return Some(Rect { left, top, width: w, height: h });
            }
        }
        None
    }
}

/// Fills `rect` of planes `[C, height, width]` with standard normal numbers. The rectangle must lie inside (it may
/// be empty).
pub fn erase(rng: &mut Stream, values: &mut [f32], width: usize, height: usize, rect: Rect) -> Result<()> {
    let inside = |first: usize, len: usize, side: usize| first.checked_add(len).is_some_and(|end| end <= side);
    if !inside(rect.left, rect.width, width) || !inside(rect.top, rect.height, height) {
        return Err(Error::value("random_erase", "rect", format!("{rect:?}"), format!("inside {width} x {height}")));
    }
    let pixels = width * height;
    if pixels == 0 || !values.len().is_multiple_of(pixels) {
        let expected = format!("a multiple of {height} x {width}");
        return Err(Error::argument("random_erase", "values", "length", values.len().to_string(), expected));
    }
    for plane in values.chunks_exact_mut(pixels) {
        for row in plane.chunks_exact_mut(width).skip(rect.top).take(rect.height) {
            for value in &mut row[rect.left..rect.left + rect.width] {
                *value = rng.normal() as f32;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::rng::Purpose;

    #[test]
    fn only_the_rectangle_changes_and_becomes_normal() {
        let mut values = vec![9.0f32; 3 * 40 * 50];
        let rect = Rect { left: 10, top: 5, width: 30, height: 20 };
        erase(&mut Stream::new(0, Purpose::TEST, 0, 0), &mut values, 50, 40, rect).unwrap();
        let mut noise = Vec::new();
        for (i, &value) in values.iter().enumerate() {
            let (x, y) = (i % 50, i / 50 % 40);
            let inside = (10..40).contains(&x) && (5..25).contains(&y);
            assert_eq!(value != 9.0, inside, "{x} {y}");
            if inside {
                noise.push(value);
            }
        }
        let n = noise.len() as f32;
        let mean = noise.iter().sum::<f32>() / n;
        let var = noise.iter().map(|v| v * v).sum::<f32>() / n;
        assert!(mean.abs() < 5.0 / n.sqrt() && (var - 1.0).abs() < 5.0 * (2.0 / n).sqrt(), "{mean} {var}");
    }

    #[test]
    fn rectangles_follow_the_law() {
        let mut rng = Stream::new(1, Purpose::TEST, 0, 0);
        let settings = RandomErase::default();
        let drawn: Vec<_> = (0..4000).filter_map(|_| settings.draw(&mut rng, 224, 224)).collect();
        assert!((850..1150).contains(&drawn.len()), "{}", drawn.len()); // 1000 +- 5.5 standard deviations
        for rect in &drawn {
            assert!(rect.left + rect.width <= 224 && rect.top + rect.height <= 224);
            let area = (rect.width * rect.height) as f64 / (224.0 * 224.0);
            assert!((0.019..0.34).contains(&area), "{rect:?}");
            let ratio = rect.height as f64 / rect.width as f64;
            assert!((0.28..3.6).contains(&ratio), "{rect:?}");
        }
        // Tiny images never make it fail.
        for side in 1..4 {
            let all = RandomErase { probability: 1.0, ..settings };
            for _ in 0..50 {
                if let Some(rect) = all.draw(&mut rng, side, side) {
                    erase(&mut rng, &mut vec![0.0; side * side], side, side, rect).unwrap();
                }
            }
        }
    }

    #[test]
    fn faults_are_errors() {
        let mut rng = Stream::new(0, Purpose::TEST, 0, 0);
        let rect = Rect { left: 1, top: 0, width: 2, height: 1 };
        assert!(erase(&mut rng, &mut [0.0; 4], 2, 2, rect).is_err());
        assert!(erase(&mut rng, &mut [0.0; 5], 2, 2, Rect { left: 0, ..rect }).is_err());
        assert!(RandomErase { probability: -0.1, ..RandomErase::default() }.check().is_err());
        assert!(RandomErase { area: (0.0, 0.5), ..RandomErase::default() }.check().is_err());
        assert!(RandomErase::default().check().is_ok());
    }
}
