//! Masks as run lengths, in the form of COCO's annotations.
//!
//! Pixels are taken column by column; runs alternate between outside and inside and begin with the outside, if need be
//! with a run of 0. As a string each run is a number in groups of five bits, the lowest first, bit 5 set in all but the
//! last and the highest bit of the last being the sign, each group a character from `0` on; from the fourth run on the
//! number is the difference to the run before the previous one, which is of the same kind. Source: pycocotools 2.0,
//! `maskApi.c`.

use super::binary_mask::BinaryMask;
use super::decode::MAX_PIXELS;
use crate::{Error, Result};

const OP: &str = "rle";

/// A mask as run lengths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rle {
    width: usize,
    height: usize,
    counts: Vec<usize>,
}

impl Rle {
    /// The runs of a mask: none is empty but, if the first pixel is inside, the first.
    pub fn encode(mask: &BinaryMask) -> Self {
        let (width, height) = (mask.width(), mask.height());
        let (mut counts, mut inside, mut run) = (Vec::new(), false, 0);
        for pixel in (0..width).flat_map(|x| (0..height).map(move |y| y * width + x)) {
            if mask.pixels()[pixel] != inside {
                counts.push(run);
                (inside, run) = (!inside, 0);
            }
            run += 1;
        }
        counts.push(run);
        Self { width, height, counts }
    }

    /// Of the given runs; those of length 0 are accepted anywhere.
    ///
    /// # Errors
    /// Sides of 0 or too many pixels, or runs that are not as many pixels together.
    pub fn new(width: usize, height: usize, counts: Vec<usize>) -> Result<Self> {
        let pixels = width.checked_mul(height).filter(|p| (1..=MAX_PIXELS).contains(p)).ok_or_else(|| {
            let expected = format!("both at least 1, their product at most {MAX_PIXELS}");
            Error::value(OP, "width, height", format!("{width}, {height}"), expected)
        })?;
        let sum = counts.iter().try_fold(0usize, |sum, run| sum.checked_add(*run));
        if sum != Some(pixels) {
            let given = sum.map_or("too many".into(), |sum| sum.to_string());
            return Err(Error::argument(OP, "counts", "sum", given, format!("{pixels}, {height} x {width}")));
        }
        Ok(Self { width, height, counts })
    }

    /// Of runs as a string.
    ///
    /// # Errors
    /// Characters that are none of the form's, an end inside a number, negative runs, and what [`new`](Self::new)
    /// refuses.
    pub fn parse(width: usize, height: usize, text: &str) -> Result<Self> {
        let mut counts: Vec<usize> = Vec::new();
        let (mut number, mut bits) = (0i64, 0);
        for (at, byte) in text.bytes().enumerate() {
            let fault = |given: String, expected: &str| Error::value(OP, format!("counts[{at}]"), given, expected);
            let group = byte.wrapping_sub(b'0');
            if group >= 64 {
                return Err(fault(format!("{:?}", char::from(byte)), "a character from '0' to 'o'"));
            }
            if bits > 40 {
                return Err(fault("a number of more than 9 characters".into(), "a run"));
            }
            number |= i64::from(group & 0x1f) << bits;
            bits += 5;
            if group & 0x20 != 0 {
                continue; // more of this number
            }
            if group & 0x10 != 0 {
                number |= -1 << bits;
            }
            let before = if counts.len() > 2 { counts[counts.len() - 2] as i64 } else { 0 };
            let run = usize::try_from(before + number)
                .map_err(|_| fault(format!("a run of {}", before + number), "a run of 0 or more pixels"))?;
            counts.push(run);
            (number, bits) = (0, 0);
        }
        if bits > 0 {
            let expected = "one that ends with a whole number";
            return Err(Error::argument(OP, "counts", "length", text.len().to_string(), expected));
        }
        Self::new(width, height, counts)
    }

    /// Columns, W.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows, H.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The runs, outside first.
    pub fn counts(&self) -> &[usize] {
        &self.counts
    }

    /// The runs as a string.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for (i, &run) in self.counts.iter().enumerate() {
            let mut rest = run as i64 - if i > 2 { self.counts[i - 2] as i64 } else { 0 };
            loop {
                let group = (rest & 0x1f) as u8;
                rest >>= 5;
                // What is left is all sign, and the group's highest bit says which.
                let last = rest == if group & 0x10 != 0 { -1 } else { 0 };
                text.push(char::from(b'0' + group + if last { 0 } else { 0x20 }));
                if last {
                    break;
                }
            }
        }
        text
    }

    /// The mask of these runs.
    pub fn decode(&self) -> BinaryMask {
        let mut pixels = vec![false; self.width * self.height];
        for (from, to) in self.inside() {
            for at in from..to {
                pixels[at % self.height * self.width + at / self.height] = true;
            }
        }
        BinaryMask { width: self.width, height: self.height, pixels }
    }

    /// Pixels inside.
    pub fn area(&self) -> usize {
        self.counts.iter().skip(1).step_by(2).sum()
    }

    /// Common pixels over those of either; 0 where both are empty, as in pycocotools.
    ///
    /// # Errors
    /// When the masks are of pictures of different sizes.
    pub fn iou(&self, other: &Self) -> Result<f64> {
        if [self.height, self.width] != [other.height, other.width] {
            let expected = format!("[{}, {}]", self.height, self.width);
            return Err(Error::shape(OP, "other", &[other.height, other.width], expected));
        }
        let (mut ours, mut theirs) = (self.inside().peekable(), other.inside().peekable());
        let mut common = 0;
        while let (Some(&(a, end)), Some(&(b, last))) = (ours.peek(), theirs.peek()) {
            common += end.min(last).saturating_sub(a.max(b));
            if end <= last {
                ours.next()
            } else {
                theirs.next()
            };
        }
        let either = self.area() + other.area() - common;
        Ok(if either == 0 { 0.0 } else { common as f64 / either as f64 })
    }

    /// First pixel and end of each run inside, columns one after the other.
    fn inside(&self) -> impl Iterator<Item = (usize, usize)> {
        let mut at = 0;
        self.counts.chunks(2).filter_map(move |pair| {
            let from = at + pair[0];
            at = from + pair.get(1)?;
            Some((from, at))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn runs_go_down_the_columns_and_begin_outside() {
        // 1 0 0
        // 1 0 1
        let mask = BinaryMask::new(3, 2, [1, 0, 0, 1, 0, 1].map(|p| p == 1).to_vec()).unwrap();
        let rle = Rle::encode(&mask);
        assert_eq!((rle.counts(), rle.area()), ([0, 2, 3, 1].as_slice(), 3));
        assert_eq!(rle.to_text(), "023O"); // the last is 1 - 2
        assert_eq!(Rle::encode(&mask.of(|_| false)).counts(), [6]);
        assert_eq!(Rle::encode(&mask.of(|_| true)).counts(), [0, 6]);
    }

    #[test]
    fn long_runs_take_more_characters() {
        // 16 needs a sixth bit for the sign; 1000 = 31·32 + 8.
        let rle = Rle::new(32, 40, vec![15, 16, 1000, 249]).unwrap();
        assert_eq!(rle.to_text(), "?`0Xo0Y7");
        assert_eq!(Rle::parse(32, 40, "?`0Xo0Y7").unwrap(), rle);
        let falling = Rle::new(1, 1041, vec![1000, 20, 10, 4, 3, 2, 1, 1]).unwrap();
        assert_eq!(Rle::parse(1, 1041, &falling.to_text()).unwrap(), falling);
    }

    #[test]
    fn overlap_is_that_of_the_pixels() {
        let of = |counts: &[usize]| Rle::new(4, 5, counts.to_vec()).unwrap();
        assert_eq!(of(&[2, 6, 12]).iou(&of(&[4, 8, 8])).unwrap(), 0.4);
        assert_eq!(of(&[0, 2, 0, 3, 15]).iou(&of(&[0, 5, 15])).unwrap(), 1.0);
        assert_eq!(of(&[20]).iou(&of(&[20])).unwrap(), 0.0);
        assert_eq!(of(&[0, 5, 15]).iou(&of(&[5, 15])).unwrap(), 0.0);
        let other = Rle::new(5, 4, vec![20]).unwrap();
        assert_eq!(of(&[20]).iou(&other).unwrap_err().to_string(), "rle: `other` has shape [4, 5], expected [5, 4]");
    }

    #[test]
    fn damaged_strings_are_errors() {
        let text = |text: &str| Rle::parse(32, 40, text).unwrap_err().to_string();
        assert!(text("?`").contains("`counts` has length 2, expected one that ends with a whole number"));
        assert!(text("?`0Xo0").contains("sum 1031, expected 1280"));
        assert!(text("? 0").contains("`counts[1]` has value ' ', expected a character from '0' to 'o'"));
        assert!(text("?p").contains("'p'") && text("é").contains("counts[0]"));
        assert!(text("N").contains("a run of -2"));
        assert!(text("oooooooooo0").contains("more than 9 characters"));
        assert!(text("").contains("sum 0"));
        assert!(Rle::parse(0, 40, "0").is_err() && Rle::parse(usize::MAX, 2, "0").is_err());
        assert!(Rle::new(2, 1, vec![usize::MAX, 3]).unwrap_err().to_string().contains("too many"));
    }

    proptest! {
        #[test]
        fn masks_survive(width in 1usize..40, height in 1usize..40, pixels in prop::collection::vec(0u8..9, 1600)) {
            // Runs of many lengths.
            let mask = BinaryMask::new(width, height, vec![false; width * height]).unwrap();
            let mask = mask.of(|i| (i / (1 + pixels[i / 50] as usize * 5) + usize::from(pixels[i] == 0)) % 2 == 1);
            let rle = Rle::encode(&mask);
            prop_assert_eq!(&rle.decode(), &mask);
            prop_assert_eq!(rle.area(), mask.area());
            prop_assert_eq!(Rle::parse(width, height, &rle.to_text()).unwrap(), rle.clone());
            prop_assert_eq!(rle.iou(&rle).unwrap(), if mask.area() == 0 { 0.0 } else { 1.0 });
        }

        #[test]
        fn no_string_is_a_panic(text in "[ -~]{0,40}", width in 0usize..50, height in 0usize..50) {
            if let Ok(rle) = Rle::parse(width, height, &text) {
                prop_assert_eq!(rle.decode().area(), rle.area());
            }
        }
    }
}
