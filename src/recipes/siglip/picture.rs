//! Pictures of what an image-text model thinks: images against captions, and the nearest of either to the other.

use crate::data::contact::{paste, thumbnail};
use crate::data::{Image, lettering};
use crate::{Error, Result};

/// Side of an image in a picture.
const SIDE: usize = 96;
const PAD: usize = 6;
/// Characters in a line of a caption.
const COLUMNS: usize = 30;
const LINES: usize = SIDE / lettering::HEIGHT;
const INK: [u8; 3] = [30, 30, 30];
/// Frames of what belongs together.
const FRAME: [u8; 3] = [20, 150, 60];

/// Images with captions and the probability of every pair.
#[derive(Clone, Debug)]
pub struct Matches {
    /// Images of any size.
    pub images: Vec<Image>,
    /// Captions.
    pub captions: Vec<String>,
    /// The image of each caption, `[captions]`.
    pub image_of: Vec<usize>,
    /// `sigmoid(t s + beta)`, `[images, captions]`.
    pub probabilities: Vec<f32>,
}

impl Matches {
    fn check(&self) -> Result<()> {
        let (images, captions) = (self.images.len(), self.captions.len());
        let fits = images > 0 && captions > 0 && self.probabilities.len() == images * captions;
        if !fits || self.image_of.len() != captions || self.image_of.iter().any(|image| *image >= images) {
            let expected = "at least one image and one caption, their product, and an image for each caption";
            let given = format!("{images} x {captions}, {} probabilities", self.probabilities.len());
            return Err(Error::value("picture", "matches", given, expected));
        }
        Ok(())
    }

    fn probability(&self, image: usize, caption: usize) -> f32 {
        self.probabilities[image * self.captions.len() + caption]
    }

    /// Captions down, images across, the probability of each pair as shade and number; pairs that belong together are framed.
    ///
    /// # Errors
    /// When the parts do not fit each other.
    pub fn similarity(&self) -> Result<Image> {
        self.check()?;
        let left = COLUMNS * lettering::WIDTH + 2 * PAD;
        let (cell, height) = (SIDE + PAD, SIDE / 2);
        let width = left + self.images.len() * cell;
        let mut sheet = Image::filled(width, PAD + cell + self.captions.len() * (height + PAD), [255; 3]);
        for (at, image) in self.images.iter().enumerate() {
            paste(&mut sheet, &thumbnail(image, SIDE)?, left + at * cell, PAD);
        }
        for (row, caption) in self.captions.iter().enumerate() {
            let top = PAD + cell + row * (height + PAD);
            write_lines(&mut sheet, PAD, top, caption, height / lettering::HEIGHT);
            for image in 0..self.images.len() {
                let p = self.probability(image, row);
                let x = left + image * cell;
                paste(&mut sheet, &shade(p, SIDE, height), x, top);
                let text = number(p);
                let ink = if p > 0.5 { [255; 3] } else { INK };
                let middle = x + (SIDE - text.chars().count() * lettering::WIDTH) / 2;
                lettering::write(&mut sheet, middle, top + (height - lettering::HEIGHT) / 2, &text, ink);
                if self.image_of[row] == image {
                    frame(&mut sheet, x, top, SIDE, height);
                }
            }
        }
        Ok(sheet)
    }

    /// A row for each image: it and its `top` captions of highest probability, its own in the colour of frames.
    ///
    /// # Errors
    /// When the parts do not fit each other.
    pub fn nearest_captions(&self, top: usize) -> Result<Image> {
        self.check()?;
        let text = COLUMNS * 3 * lettering::WIDTH;
        let shown = top.clamp(1, self.captions.len());
        let height = SIDE.max(shown * lettering::HEIGHT);
        let mut sheet = Image::filled(SIDE + 3 * PAD + text, self.images.len() * (height + PAD) + PAD, [255; 3]);
        for (row, image) in self.images.iter().enumerate() {
            let y = PAD + row * (height + PAD);
            paste(&mut sheet, &thumbnail(image, SIDE)?, PAD, y);
            for (line, caption) in self.ranked(self.captions.len(), |c| self.probability(row, c), shown).enumerate() {
                let words = format!("{} {}", number(self.probability(row, caption)), self.captions[caption]);
                let colour = if self.image_of[caption] == row { FRAME } else { INK };
                let words = lettering::wrap(&words, COLUMNS * 3, 1).concat();
                lettering::write(&mut sheet, SIDE + 2 * PAD, y + line * lettering::HEIGHT, &words, colour);
            }
        }
        Ok(sheet)
    }

    /// A row for each caption: it and its `top` images of highest probability, its own framed.
    ///
    /// # Errors
    /// When the parts do not fit each other.
    pub fn nearest_images(&self, top: usize) -> Result<Image> {
        self.check()?;
        let (left, cell) = (COLUMNS * lettering::WIDTH + 2 * PAD, SIDE + PAD);
        let shown = top.clamp(1, self.images.len());
        let small = self.images.iter().map(|image| thumbnail(image, SIDE)).collect::<Result<Vec<_>>>()?;
        let mut sheet = Image::filled(left + shown * cell, self.captions.len() * cell + PAD, [255; 3]);
        for (row, caption) in self.captions.iter().enumerate() {
            let y = PAD + row * cell;
            write_lines(&mut sheet, PAD, y, caption, LINES);
            for (at, image) in self.ranked(self.images.len(), |i| self.probability(i, row), shown).enumerate() {
                paste(&mut sheet, &small[image], left + at * cell, y);
                if self.image_of[row] == image {
                    frame(&mut sheet, left + at * cell, y, SIDE, SIDE);
                }
            }
        }
        Ok(sheet)
    }

    /// The first of `count` by falling probability; equal ones by number.
    fn ranked(&self, count: usize, of: impl Fn(usize) -> f32, shown: usize) -> impl Iterator<Item = usize> {
        let mut order: Vec<usize> = (0..count).collect();
        order.sort_by(|a, b| of(*b).total_cmp(&of(*a)).then(a.cmp(b)));
        order.into_iter().take(shown)
    }
}

/// Two digits: `0.93`, `4e-5`.
fn number(p: f32) -> String {
    if p >= 0.095 { format!("{p:.2}") } else { format!("{p:.0e}") }
}

/// White at 0, blue at 1.
fn shade(p: f32, width: usize, height: usize) -> Image {
    let mix = |full: f32| (255.0 + (full - 255.0) * p.clamp(0.0, 1.0)) as u8;
    Image::filled(width, height, [mix(25.0), mix(80.0), mix(170.0)])
}

fn write_lines(sheet: &mut Image, left: usize, top: usize, text: &str, lines: usize) {
    for (at, line) in lettering::wrap(text, COLUMNS, lines).iter().enumerate() {
        lettering::write(sheet, left, top + at * lettering::HEIGHT, line, INK);
    }
}

/// A line of three pixels just inside a rectangle.
fn frame(sheet: &mut Image, left: usize, top: usize, width: usize, height: usize) {
    for (x, y, w, h) in [
        (left, top, width, 3),
        (left, top + height - 3, width, 3),
        (left, top, 3, height),
        (left + width - 3, top, 3, height),
    ] {
        paste(sheet, &Image::filled(w, h, FRAME), x, y);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches() -> Matches {
        let colours = [[200, 30, 30], [30, 200, 30]];
        Matches {
            images: colours.map(|colour| Image::filled(8, 4, colour)).to_vec(),
            captions: ["red", "green", "also green, and very long indeed: longer than a line of the picture"]
                .map(str::to_owned)
                .to_vec(),
            image_of: vec![0, 1, 1],
            probabilities: vec![0.9, 0.2, 0.1, 0.0, 0.7, 0.8],
        }
    }

    fn count(picture: &Image, colour: [u8; 3]) -> usize {
        picture.data.chunks(3).filter(|p| **p == colour).count()
    }

    #[test]
    fn pairs_that_belong_together_are_framed() {
        let given = matches();
        let picture = given.similarity().unwrap();
        let around = |w: usize, h: usize| w * h - (w - 6) * (h - 6);
        assert_eq!(count(&picture, FRAME), 3 * around(SIDE, SIDE / 2));
        assert_eq!(count(&picture, [200, 30, 30]), SIDE * SIDE / 2); // 8 x 4 in whole pixels
        let picture = given.nearest_images(1).unwrap();
        // The first of each caption is its own image; the frame hides the sides of the image only.
        assert_eq!(count(&picture, FRAME), 3 * around(SIDE, SIDE));
        assert_eq!(count(&picture, [200, 30, 30]), (SIDE - 6) * SIDE / 2);
        let swapped = Matches { probabilities: vec![0.1, 0.8, 0.9, 0.9, 0.1, 0.0], ..given.clone() };
        assert_eq!(count(&swapped.nearest_images(1).unwrap(), FRAME), 0);
        let (right, wrong) = (given.nearest_captions(1).unwrap(), swapped.nearest_captions(1).unwrap());
        assert!(count(&right, FRAME) > 20 && count(&wrong, FRAME) == 0);
        assert_eq!(right.height, 2 * (SIDE + PAD) + PAD);
    }

    #[test]
    fn numbers_have_two_digits() {
        assert_eq!(
            [0.934, 0.0951, 0.0949, 4.54e-5, 1.0, 0.0].map(number),
            ["0.93", "0.10", "9e-2", "5e-5", "1.00", "0e0"]
        );
    }

    #[test]
    fn parts_must_fit() {
        let bad = Matches { image_of: vec![0, 1, 2], ..matches() };
        assert!(bad.similarity().is_err() && bad.nearest_images(1).is_err() && bad.nearest_captions(1).is_err());
        assert!(Matches { probabilities: vec![0.5; 5], ..matches() }.similarity().is_err());
    }
}
