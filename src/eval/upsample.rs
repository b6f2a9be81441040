//! Values of patches at the places of pixels, bilinearly.

/// For each of `length` pixels the two of `patches` patches it lies between and the share of the second. Patch i covers
/// `i/patches` to `(i+1)/patches` of the image (half pixel centres; PyTorch's `align_corners=False`); beyond the middle of
/// the outer patches their value stays.
pub fn taps(length: usize, patches: usize) -> Vec<(usize, usize, f32)> {
    let last = patches.saturating_sub(1);
    let tap = |at: usize| {
        let place = ((at as f64 + 0.5) * patches as f64 / length as f64 - 0.5).clamp(0.0, last as f64);
        (place as usize, (place as usize + 1).min(last), place.fract() as f32)
    };
    (0..length).map(tap).collect()
}

/// A map `[rows, columns]` at the size `[height, width]`.
pub fn bilinear(map: &[f32], [rows, columns]: [usize; 2], [height, width]: [usize; 2]) -> Vec<f32> {
    let across = taps(width, columns);
    let mut out = Vec::with_capacity(height * width);
    for (top, bottom, down) in taps(height, rows) {
        out.extend(across.iter().map(|&(left, right, share)| {
            let row = |at: usize| map[at * columns + left] * (1.0 - share) + map[at * columns + right] * share;
            row(top) * (1.0 - down) + row(bottom) * down
        }));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_are_blended_between_their_middles() {
        assert_eq!(bilinear(&[0.0, 4.0], [1, 2], [1, 8]), [0.0, 0.0, 0.5, 1.5, 2.5, 3.5, 4.0, 4.0]);
        assert_eq!(bilinear(&[7.0], [1, 1], [2, 3]), [7.0; 6]);
        assert_eq!(bilinear(&[1.0, 2.0, 3.0, 4.0], [2, 2], [2, 2]), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(taps(3, 6), [(0, 1, 0.5), (2, 3, 0.5), (4, 5, 0.5)]);
    }
}
