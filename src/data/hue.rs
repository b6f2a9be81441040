//! Hue on 8-bit images, with exactly the bytes that Pillow 13 gives for its mode `HSV` and back.

use super::image::Image;

/// Hue, saturation, value of a pixel, 255 being a full circle and the largest of the others.
fn to_hsv([r, g, b]: [u8; 3]) -> [u8; 3] {
    let (most, least) = (r.max(g).max(b), r.min(g).min(b));
    if most == least {
        return [0, 0, most];
    }
    let range = f32::from(most - least);
    let [rc, gc, bc] = [r, g, b].map(|x| f32::from(most - x) / range);
    let wide = |whole: f64, plus: f32, minus: f32| (whole + f64::from(plus) - f64::from(minus)) as f32;
    let sixth = match most {
        _ if r == most => bc - gc,
        _ if g == most => wide(2.0, rc, bc),
        _ => wide(4.0, gc, rc),
    };
    let hue = f64::from(sixth) / 6.0 + 1.0; // from 5/6 to below 2
    let hue = if hue < 1.0 { hue } else { hue - 1.0 } as f32;
    let byte = |x: f32| (f64::from(x) * 255.0) as u8;
    [byte(hue), byte(range / f32::from(most)), most]
}

/// Of the largest value, the rising, the lowest and the falling one, which red, green and blue are in each sixth of the circle.
const SECTORS: [[usize; 3]; 6] = [[0, 1, 2], [3, 0, 2], [2, 0, 1], [2, 3, 0], [1, 2, 0], [0, 2, 3]];

/// What a hue says: who has which value, and how far into its sixth it is.
fn sector(h: u8) -> ([usize; 3], f32) {
    let position = f64::from(h) * 6.0 / 255.0;
    (SECTORS[position as usize % 6], position.fract() as f32)
}

/// Turns the hue of every pixel by a part of the circle, from -1/2 to 1/2, in steps of 1/255.
pub fn turn(image: &mut Image, part: f64) {
    let steps = (part * 255.0) as i32 as u8; // negative ones wrap, as the sum does
    let hues: [_; 256] = std::array::from_fn(|h| sector((h as u8).wrapping_add(steps)));
    let saturations: [f32; 256] = std::array::from_fn(|s| (s as f64 / 255.0) as f32);
    for pixel in image.data.chunks_exact_mut(3) {
        let [h, s, v] = to_hsv([pixel[0], pixel[1], pixel[2]]);
        let ((order, inside), saturation) = (hues[usize::from(h)], saturations[usize::from(s)]);
        let scaled = |part: f64| (f64::from(v) * (1.0 - part) + 0.5) as u8;
        let (low, falling) = (scaled(f64::from(saturation)), scaled(f64::from(saturation * inside)));
        let rising = scaled(f64::from(saturation) * (1.0 - f64::from(inside)));
        let shades = [v, rising, low, falling];
        pixel.copy_from_slice(&order.map(|which| shades[which]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::fixtures::{checksum, noise};

    #[test]
    fn bytes_are_those_of_pillow() {
        for (part, expected) in [
            (0.0, 0x3a2f87cf6b87c821),
            (0.05, 0xd83205f84cacac01),
            (0.1, 0xd4ea19e83bccbfdf),
            (-0.1, 0x173269e00e289d9b),
            (-0.03, 0xef2abf8060c3a1f3),
            (0.5, 0x609091690a2faac),
            (-0.5, 0x36f7600b4d3abadf),
        ] {
            let mut image = noise(61, 47);
            turn(&mut image, part);
            assert_eq!(checksum(&image.data), expected, "{part}");
        }
        let values = [0u8, 1, 2, 63, 127, 128, 200, 254, 255];
        let mut cube = vec![];
        for r in values {
            for g in values {
                values.iter().for_each(|&b| cube.extend([r, g, b]));
            }
        }
        for (part, expected) in [(0.0, 0x375be0287cb8d290), (0.07, 0xf626600c68c215aa), (-0.1, 0xd2a3ca744d97acca)] {
            let mut image = Image::new(81, 9, cube.clone()).unwrap();
            turn(&mut image, part);
            assert_eq!(checksum(&image.data), expected, "{part}");
        }
    }

    #[test]
    fn gray_stays_gray_and_colours_turn() {
        let mut gray = Image::filled(3, 2, [77; 3]);
        turn(&mut gray, 0.3);
        assert_eq!(gray, Image::filled(3, 2, [77; 3]));
        let mut red = Image::filled(1, 1, [255, 0, 0]);
        turn(&mut red, 1.0 / 3.0);
        assert_eq!(red.pixel(0, 0), [0, 255, 0]);
        turn(&mut red, -1.0 / 3.0);
        assert_eq!(red.pixel(0, 0), [255, 0, 0]);
    }
}
