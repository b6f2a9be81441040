//! What the tests of this module share: noise images, a checksum.

use super::image::Image;

/// An image of pseudo-random bytes (a linear congruential generator from 1, high bytes), so that another program
/// can make the same one.
pub fn noise(width: usize, height: usize) -> Image {
    let mut state = 1u32;
    let mut byte = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    Image::new(width, height, (0..width * height * 3).map(|_| byte()).collect()).unwrap()
}

/// 64-bit FNV-1a.
pub fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &b| (hash ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}
