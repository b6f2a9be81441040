//! Objects of a frame as the bits of a few pictures, so that a clip with its masks is one [`Image`](super::Image).
//!
//! Object `o` is bit `o mod 8` of byte `o / 8 mod 3` of the pixels of picture `o / 24`.

use super::binary_mask::BinaryMask;

/// Objects of a picture: three bytes a pixel.
const PER_PICTURE: usize = 24;

/// Pictures that so many objects need.
pub fn pictures(objects: usize) -> usize {
    objects.div_ceil(PER_PICTURE)
}

/// Where an object is: its picture, its byte and its bit.
fn place(object: usize) -> (usize, usize, usize) {
    (object / PER_PICTURE, object % PER_PICTURE / 8, object % 8)
}

/// Sets the bits of an object in a frame's pictures, `[pictures, H, W, 3]`.
pub fn mark(pictures: &mut [u8], object: usize, mask: &BinaryMask) {
    let (picture, byte, bit) = place(object);
    let bytes = 3 * mask.pixels().len();
    let pixels = pictures[picture * bytes..][..bytes].chunks_exact_mut(3);
    pixels.zip(mask.pixels()).filter(|(_, inside)| **inside).for_each(|(pixel, _)| pixel[byte] |= 1 << bit);
}

/// The pixels of an object, `[H, W]` zeros and ones, of the data of a frame's pictures; `None` where it has none.
pub fn plane(pictures: &[&[u8]], object: usize) -> Option<Vec<f32>> {
    let (picture, byte, bit) = place(object);
    let bits = || pictures[picture].iter().skip(byte).step_by(3).map(|value| value >> bit & 1);
    bits().any(|inside| inside == 1).then(|| bits().map(f32::from).collect())
}

/// Which objects have pixels in a picture: all its pixels' bits.
pub fn present(picture: &[u8]) -> [u8; 3] {
    picture.chunks_exact(3).fold([0; 3], |all, pixel| [0, 1, 2].map(|byte| all[byte] | pixel[byte]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_object_has_a_bit_of_its_own() {
        let objects = 64;
        let mask = |object: usize| BinaryMask::new(9, 8, (0..72).map(|t| t == object || t == 70).collect()).unwrap();
        let mut data = vec![0; pictures(objects) * 72 * 3];
        assert_eq!(data.len(), 3 * 72 * 3);
        (0..objects).for_each(|object| mark(&mut data, object, &mask(object)));
        let parts: Vec<&[u8]> = data.chunks(72 * 3).collect();
        for object in 0..objects {
            let pixels: Vec<bool> = plane(&parts, object).unwrap().into_iter().map(|v| v == 1.0).collect();
            assert_eq!(pixels, mask(object).pixels(), "{object}");
        }
        assert_eq!([parts[0], parts[2]].map(present), [[255; 3], [255, 255, 0]]);
        assert!(plane(&parts, 71).is_none());
    }
}
