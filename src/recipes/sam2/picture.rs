//! Pictures of masks.

use crate::data::Image;
use crate::data::binary_mask::BinaryMask;

/// Colours of objects, far from each other.
const COLOURS: [[u8; 3]; 8] = [
    [230, 25, 75],
    [60, 180, 75],
    [0, 130, 200],
    [255, 225, 25],
    [145, 30, 180],
    [70, 240, 240],
    [245, 130, 48],
    [240, 50, 230],
];

/// The colour of an object.
pub fn colour(object: usize) -> [u8; 3] {
    COLOURS[object % COLOURS.len()]
}

/// An image with the masks of numbered objects over it: half of the object's colour inside, all of it on the border.
pub fn overlay(image: &Image, masks: &[(usize, &BinaryMask)]) -> Image {
    let mut out = image.clone();
    let (w, h) = (image.width, image.height);
    for (object, mask) in masks.iter().filter(|(_, m)| [m.width(), m.height()] == [w, h]) {
        let (colour, inside) = (colour(*object), mask.pixels());
        for t in (0..w * h).filter(|&t| inside[t]) {
            let (x, y) = (t % w, t / w);
            let open = |beside: bool, at: usize| beside && !inside[at];
            let border = open(x > 0, t.wrapping_sub(1))
                || open(x + 1 < w, (t + 1).min(w * h - 1))
                || open(y > 0, t.saturating_sub(w))
                || open(y + 1 < h, (t + w).min(w * h - 1));
            for (old, &new) in out.data[3 * t..][..3].iter_mut().zip(&colour) {
                *old = if border { new } else { (u16::from(*old) + u16::from(new)).div_euclid(2) as u8 };
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inside_is_tinted_and_the_border_is_drawn() {
        let image = Image::filled(5, 5, [100; 3]);
        let mask =
            BinaryMask::new(5, 5, (0..25).map(|t| (1..4).contains(&(t % 5)) && (1..4).contains(&(t / 5))).collect());
        let drawn = overlay(&image, &[(0, &mask.unwrap())]);
        assert_eq!(drawn.pixel(0, 0), [100; 3]);
        assert_eq!(drawn.pixel(1, 1), colour(0));
        assert_eq!(drawn.pixel(2, 2), [165, 62, 87]);
        // To the edge of the picture there is no border.
        let all = BinaryMask::new(5, 5, vec![true; 25]).unwrap();
        assert_eq!(overlay(&image, &[(0, &all)]).pixel(0, 0), [165, 62, 87]);
    }
}
