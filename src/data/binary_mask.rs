//! The pixels of one object.

use crate::{Error, Result};

/// A mask: which pixels of a picture belong to an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BinaryMask {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) pixels: Vec<bool>, // [H, W]
}

impl BinaryMask {
    /// The mask of the given pixels, `[H, W]`.
    ///
    /// # Errors
    /// A side of 0, or another number of pixels.
    pub fn new(width: usize, height: usize, pixels: Vec<bool>) -> Result<Self> {
        if pixels.is_empty() || width.checked_mul(height) != Some(pixels.len()) {
            let expected = format!("height {height} x width {width}, both at least 1");
            return Err(Error::argument("binary_mask", "pixels", "length", pixels.len().to_string(), expected));
        }
        Ok(Self { width, height, pixels })
    }

    /// The pixels whose value, of `[H, W]`, is above `threshold`.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn above(width: usize, height: usize, values: &[f32], threshold: f32) -> Result<Self> {
        Self::new(width, height, values.iter().map(|v| *v > threshold).collect())
    }

    /// Columns, W.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows, H.
    pub fn height(&self) -> usize {
        self.height
    }

    /// All pixels, row by row.
    pub fn pixels(&self) -> &[bool] {
        &self.pixels
    }

    /// The same picture with pixels chosen by their number in reading order.
    pub fn of(&self, pixel: impl FnMut(usize) -> bool) -> Self {
        Self { width: self.width, height: self.height, pixels: (0..self.pixels.len()).map(pixel).collect() }
    }

    /// Pixels of the object.
    pub fn area(&self) -> usize {
        self.pixels.iter().filter(|p| **p).count()
    }

    /// First column, first row, last column and last row of the object; `None` if there is no pixel of it.
    pub fn bounds(&self) -> Option<[usize; 4]> {
        let mut found: Option<[usize; 4]> = None;
        for (y, row) in self.pixels.chunks_exact(self.width).enumerate() {
            let (Some(first), Some(last)) = (row.iter().position(|p| *p), row.iter().rposition(|p| *p)) else {
                continue;
            };
            let [left, top, right, _] = found.unwrap_or([first, y, last, y]);
            found = Some([left.min(first), top, right.max(last), y]);
        }
        found
    }

    /// An error of `op` unless both masks are of pictures of one size.
    pub fn check_size(&self, op: &'static str, arg: &'static str, like: &Self) -> Result<()> {
        if [self.height, self.width] == [like.height, like.width] {
            return Ok(());
        }
        Err(Error::shape(op, arg, &[self.height, self.width], format!("[{}, {}]", like.height, like.width)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_those_of_the_outermost_pixels() {
        let mut pixels = vec![false; 35];
        let mask = |pixels: &[bool]| BinaryMask::new(7, 5, pixels.to_vec()).unwrap();
        assert_eq!(mask(&pixels).bounds(), None);
        pixels[7 + 5] = true;
        assert_eq!(mask(&pixels).bounds(), Some([5, 1, 5, 1]));
        pixels[3 * 7 + 2] = true;
        pixels[3 * 7 + 3] = true;
        assert_eq!((mask(&pixels).bounds(), mask(&pixels).area()), (Some([2, 1, 5, 3]), 3));
    }

    #[test]
    fn wrong_sizes_are_errors() {
        for (width, height, len) in [(0, 3, 0), (2, 2, 3), (usize::MAX, 2, 1)] {
            assert!(BinaryMask::new(width, height, vec![true; len]).is_err());
        }
        let [a, b] = [(2, 3), (3, 2)].map(|(w, h)| BinaryMask::new(w, h, vec![true; 6]).unwrap());
        let text = a.check_size("iou", "a", &b).unwrap_err().to_string();
        assert_eq!(text, "iou: `a` has shape [3, 2], expected [2, 3]");
        let mask = BinaryMask::above(2, 1, &[0.5, f32::NAN], 0.4).unwrap();
        assert_eq!(mask.pixels(), [true, false]);
        assert_eq!(mask.of(|i| i == 1).pixels(), [false, true]);
    }
}
