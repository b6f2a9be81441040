//! Exact Euclidean distances to the nearest pixel of a mask, in time linear in the pixels.
//!
//! First along the columns, then each row is the lower envelope of the parabolas
//!
//! ```text
//! d²(x, y) = min over i of (x - i)² + g(i, y)²      g(i, y): distance to the nearest pixel in column i
//! ```
//!
//! whose corners are found by one walk along the row. All numbers are integers, so nothing is rounded. Source:
//! Meijster, Roerdink and Hesselink 2000, "A general algorithm for computing distance transforms in linear time".

use super::binary_mask::BinaryMask;

/// What of the outside counts as near.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Border {
    /// Nothing.
    Open,
    /// A frame of one pixel around the picture.
    Framed,
}

/// Squared distance of every pixel to the nearest of `mask`: 0 in it, `u64::MAX` where there is none at all. `[H, W]`.
pub fn squared(mask: &BinaryMask, border: Border) -> Vec<u64> {
    let (width, height) = (mask.width(), mask.height());
    let far = (width + height) as i64; // longer than any distance, and so is its square
    let columns = along_columns(mask, border, far);
    let mut out = Vec::with_capacity(columns.len());
    let mut envelope = Vec::with_capacity(width);
    for g in columns.chunks_exact(width) {
        lower_envelope(g, &mut envelope);
        let mut part = envelope.iter().peekable();
        let mut centre = 0;
        for x in 0..width {
            while let Some((at, _)) = part.next_if(|(_, from)| *from <= x as i64) {
                centre = *at;
            }
            let near = parabola(g, x as i64, centre);
            let framed = match border {
                Border::Open => i64::MAX,
                Border::Framed => ((x + 1).min(width - x) as i64).pow(2),
            };
            out.push(if near.min(framed) >= far * far { u64::MAX } else { near.min(framed) as u64 });
        }
    }
    debug_assert_eq!(out.len(), width * height);
    out
}

/// Distance of every pixel to the nearest of its column, `far` where there is none.
fn along_columns(mask: &BinaryMask, border: Border, far: i64) -> Vec<i64> {
    let (width, height) = (mask.width(), mask.height());
    let outside = if border == Border::Framed { 0 } else { far };
    let mut out = vec![far; width * height];
    let mut last = vec![outside; width];
    for down in [true, false] {
        last.fill(outside);
        for at in 0..height {
            let y = if down { at } else { height - 1 - at };
            for (x, last) in last.iter_mut().enumerate() {
                *last = if mask.pixels()[y * width + x] { 0 } else { (*last + 1).min(far) };
                let best = &mut out[y * width + x];
                *best = (*best).min(*last);
            }
        }
    }
    out
}

fn parabola(g: &[i64], x: i64, centre: usize) -> i64 {
    (x - centre as i64).pow(2) + g[centre].pow(2)
}

/// The parabolas of which the lower envelope is made: centre, and the first place where it is the lowest.
fn lower_envelope(g: &[i64], envelope: &mut Vec<(usize, i64)>) {
    envelope.clear();
    for u in 0..g.len() {
        while envelope.pop_if(|(centre, from)| parabola(g, *from, *centre) > parabola(g, *from, u)).is_some() {}
        let from = match envelope.last() {
            None => 0,
            // Where the new one, whose centre is further right, meets the last; it is below from the next place on.
            Some(&(i, _)) => {
                let squares = |at: usize| (at * at) as i64 + g[at].pow(2);
                1 + (squares(u) - squares(i)).div_euclid(2 * (u - i) as i64)
            }
        };
        if from < g.len() as i64 {
            envelope.push((u, from));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::rng::{Purpose, Stream};

    /// By trying all pairs.
    fn plainly(mask: &BinaryMask, border: Border) -> Vec<u64> {
        let (width, height) = (mask.width() as i64, mask.height() as i64);
        let near = |x: i64, y: i64| {
            let inside = (0..width).contains(&x) && (0..height).contains(&y);
            if inside { mask.pixels()[(y * width + x) as usize] } else { border == Border::Framed }
        };
        let of = |i: i64| {
            let (x, y) = (i % width, i / width);
            let all = (-1..=height).flat_map(|b| (-1..=width).map(move |a| (a, b)));
            let distance = |(a, b): (i64, i64)| ((a - x).pow(2) + (b - y).pow(2)) as u64;
            all.filter(|&(a, b)| near(a, b)).map(distance).min().unwrap_or(u64::MAX)
        };
        (0..width * height).map(of).collect()
    }

    #[test]
    fn distances_are_those_of_all_pairs() {
        let mut rng = Stream::new(3, Purpose::TEST, 0, 0);
        for (width, height) in [(1, 1), (1, 9), (9, 1), (7, 5), (16, 16), (23, 13)] {
            for share in [0.0, 0.01, 0.05, 0.3, 0.97, 1.0] {
                let pixels = (0..width * height).map(|_| rng.chance(share)).collect();
                let mask = BinaryMask::new(width, height, pixels).unwrap();
                for border in [Border::Open, Border::Framed] {
                    assert_eq!(squared(&mask, border), plainly(&mask, border), "{width} x {height} {share} {border:?}");
                }
            }
        }
    }
}
