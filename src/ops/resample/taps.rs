//! Which positions of an axis a new one is read from, and with which weights. Pixel centres lie at halves: position `i` of
//! `to` is at `(i + 1/2) · from / to - 1/2` among those of `from`.

/// How values between positions are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Triangle of width 1, which reads at most two positions; what lies beyond the border is the border.
    Bilinear,
    /// The triangle stretched by the scale when shrinking, cut at the border and normalised.
    BilinearAntialias,
    /// Keys' kernel with a = -0.75 over four positions; what lies beyond the border is the border.
    Bicubic,
    /// The position `⌊i · from / to⌋`.
    Nearest,
    /// The position `i mod from`.
    Tile,
}

/// Positions that one is read from, ascending, with their weights, none of which is zero.
pub type Read = Vec<(usize, f64)>;

/// For each of `to` positions those of `from` it is read from. Both are at least 1.
pub fn taps(from: usize, to: usize, filter: Filter) -> Vec<Read> {
    let scale = from as f64 / to as f64;
    let last = from as f64 - 1.0;
    let around = |at: f64, before: i32, after: i32, weight: fn(f64) -> f64| {
        let positions = (-before..=after).map(|k| at.floor() + f64::from(k));
        merged(positions.map(|p| (p.clamp(0.0, last) as usize, weight(at - p))))
    };
    let read = |i: usize| {
        let at = (i as f64 + 0.5) * scale - 0.5;
        match filter {
            Filter::Bilinear => around(at, 0, 1, triangle),
            Filter::Bicubic => around(at, 1, 2, cubic),
            Filter::BilinearAntialias => {
                let stretch = scale.max(1.0);
                let first = (at - stretch).ceil().clamp(0.0, last) as usize;
                let end = (at + stretch).floor().clamp(0.0, last) as usize;
                let mut read = merged((first..=end).map(|p| (p, triangle((p as f64 - at) / stretch))));
                let sum: f64 = read.iter().map(|(_, w)| w).sum();
                read.iter_mut().for_each(|(_, w)| *w /= sum);
                read
            }
            // In integers: a quotient of floats may fall short of a whole number.
            Filter::Nearest => vec![((i as u128 * from as u128 / to as u128) as usize, 1.0)],
            Filter::Tile => vec![(i % from, 1.0)],
        }
    };
    (0..to).map(read).collect()
}

/// Weights of one position added up, those that are zero left out.
fn merged(taps: impl Iterator<Item = (usize, f64)>) -> Read {
    let mut read = Read::new();
    for (at, weight) in taps {
        match read.last_mut() {
            Some((last, sum)) if *last == at => *sum += weight,
            _ => read.push((at, weight)),
        }
    }
    read.retain(|(_, weight)| *weight != 0.0);
    read
}

fn triangle(t: f64) -> f64 {
    (1.0 - t.abs()).max(0.0)
}

fn cubic(t: f64) -> f64 {
    const A: f64 = -0.75;
    match t.abs() {
        t if t <= 1.0 => ((A + 2.0) * t - (A + 3.0)) * t * t + 1.0,
        t if t < 2.0 => (((t - 5.0) * t + 8.0) * t - 4.0) * A,
        _ => 0.0,
    }
}

/// For each of `from` positions those that `reads` reads it for: the transposed map.
pub fn transposed(reads: &[Read], from: usize) -> Vec<Read> {
    let mut back = vec![Read::new(); from];
    for (i, read) in reads.iter().enumerate() {
        for &(at, weight) in read {
            back[at].push((i, weight));
        }
    }
    back
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(given: &[Read], expected: &[&[(usize, f64)]]) {
        assert_eq!(given.len(), expected.len());
        for (given, expected) in given.iter().zip(expected) {
            let same = given.len() == expected.len()
                && given.iter().zip(*expected).all(|(a, b)| a.0 == b.0 && (a.1 - b.1).abs() < 1e-12);
            assert!(same, "{given:?} instead of {expected:?}");
        }
    }

    #[test]
    fn rows_worked_out_by_hand() {
        // Twice as many: centres at -1/4, 1/4, 3/4, 5/4.
        let twice: [&[_]; 4] = [&[(0, 1.0)], &[(0, 0.75), (1, 0.25)], &[(0, 0.25), (1, 0.75)], &[(1, 1.0)]];
        close(&taps(2, 4, Filter::Bilinear), &twice);
        close(&taps(2, 4, Filter::BilinearAntialias), &twice);
        // Half as many: centres at 1/2 and 5/2, without and with a triangle of reach 2.
        close(&taps(4, 2, Filter::Bilinear), &[&[(0, 0.5), (1, 0.5)], &[(2, 0.5), (3, 0.5)]]);
        let (a, b) = (3.0 / 7.0, 1.0 / 7.0);
        close(&taps(4, 2, Filter::BilinearAntialias), &[&[(0, a), (1, a), (2, b)], &[(1, b), (2, a), (3, a)]]);
        // a = -3/4 at 1/4: -0.10546875, 0.87890625, 0.26171875, -0.03515625, of which two fall on the border.
        close(&taps(2, 4, Filter::Bicubic)[1..2], &[&[(0, -0.10546875 + 0.87890625), (1, 0.26171875 - 0.03515625)]]);
        close(&taps(3, 5, Filter::Nearest), &[0, 0, 1, 1, 2].map(|at| [(at, 1.0)]).each_ref().map(|r| &r[..]));
        close(&taps(2, 5, Filter::Tile), &[0, 1, 0, 1, 0].map(|at| [(at, 1.0)]).each_ref().map(|r| &r[..]));
    }

    #[test]
    fn weights_add_up_to_one_and_positions_are_neighbours() {
        for filter in [Filter::Bilinear, Filter::BilinearAntialias, Filter::Bicubic, Filter::Nearest, Filter::Tile] {
            for (from, to) in [(1, 1), (1, 5), (7, 3), (5, 13), (40, 13), (64, 16), (16, 64), (37, 37)] {
                for read in taps(from, to, filter) {
                    assert!((read.iter().map(|(_, w)| w).sum::<f64>() - 1.0).abs() < 1e-12, "{filter:?}");
                    assert!(read.windows(2).all(|w| w[0].0 + 1 == w[1].0), "{filter:?} {from} {to}: {read:?}");
                    assert!(read.iter().all(|(at, _)| *at < from));
                }
                if from == to {
                    close(
                        &taps(from, to, filter),
                        &(0..from)
                            .map(|at| vec![(at, 1.0)])
                            .collect::<Vec<_>>()
                            .iter()
                            .map(|r| &r[..])
                            .collect::<Vec<_>>(),
                    );
                }
            }
        }
    }
}
