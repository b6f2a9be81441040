//! Codes of positions: sines of grids and of times, and random Fourier features of points. Computed in f64, once.
//!
//! The rotary table of the memory attention is [`axial_table`](crate::ops::rope::axial_table).

use std::f64::consts::TAU;

use crate::{Error, Result};

/// Base of the wavelengths in the published models.
pub const TEMPERATURE: f64 = 10_000.0;

/// Wavelength of channel `c` of `channels`: pairs of channels share one.
fn wavelength(c: usize, channels: usize, temperature: f64) -> f64 {
    temperature.powf(2.0 * (c / 2) as f64 / channels as f64)
}

/// The 2-D sine code of a grid, `[height · width, dim]`: the first half of the channels is of the row, the second of
/// the column. Row i is at `p = 2π (i + 1) / (height + 1e-6)`, and channel c of the h = dim / 2 is
///
/// ```text
/// sin(p / T^(c / h))        c even
/// cos(p / T^((c - 1) / h))  c odd
/// ```
///
/// # Errors
/// When `dim` is not a positive multiple of 4.
pub fn sine_2d(dim: usize, [height, width]: [usize; 2], temperature: f64) -> Result<Vec<f32>> {
    if dim == 0 || !dim.is_multiple_of(4) {
        return Err(Error::value("sine_2d", "dim", dim, "a positive multiple of 4"));
    }
    let half = dim / 2;
    let axis = |length: usize| -> Vec<f32> {
        let code = |i: usize| {
            let place = TAU * (i + 1) as f64 / (length as f64 + 1e-6);
            (0..half).map(move |c| {
                let angle = place / wavelength(c, half, temperature);
                (if c % 2 == 0 { angle.sin() } else { angle.cos() }) as f32
            })
        };
        (0..length).flat_map(code).collect()
    };
    let (rows, columns) = (axis(height), axis(width));
    let mut out = Vec::with_capacity(height * width * dim);
    for row in rows.chunks_exact(half) {
        for column in columns.chunks_exact(half) {
            out.extend_from_slice(row);
            out.extend_from_slice(column);
        }
    }
    Ok(out)
}

/// The 1-D sine code `[positions, dim]`: all sines, then all cosines of `p / T^(2 ⌊c / 2⌋ / h)`, c from 0 to h = dim /
/// 2.
///
/// # Errors
/// When `dim` is odd or 0.
pub fn sine_1d(positions: &[f64], dim: usize, temperature: f64) -> Result<Vec<f32>> {
    if dim == 0 || !dim.is_multiple_of(2) {
        return Err(Error::value("sine_1d", "dim", dim, "a positive even number"));
    }
    let half = dim / 2;
    let mut out = Vec::with_capacity(positions.len() * dim);
    for &p in positions {
        let angles = || (0..half).map(|c| p / wavelength(c, half, temperature));
        out.extend(angles().map(|angle| angle.sin() as f32));
        out.extend(angles().map(|angle| angle.cos() as f32));
    }
    Ok(out)
}

/// Random Fourier features `[points, 2 m]` of points (x, y) in [0, 1]: sines, then cosines of `2π (2 p - 1) G`, G being
/// `gaussian: [2, m]`.
///
/// # Errors
/// When the matrix is not of two rows.
pub fn fourier(points: &[[f64; 2]], gaussian: &[f32]) -> Result<Vec<f32>> {
    if gaussian.is_empty() || !gaussian.len().is_multiple_of(2) {
        let given = gaussian.len().to_string();
        return Err(Error::argument("fourier", "gaussian", "length", given, "2 x m, m at least 1"));
    }
    let (of_x, of_y) = gaussian.split_at(gaussian.len() / 2);
    let mut out = Vec::with_capacity(points.len() * gaussian.len());
    for point in points {
        let [x, y] = point.map(|p| 2.0 * p - 1.0);
        let angles = || of_x.iter().zip(of_y).map(|(a, b)| TAU * (x * f64::from(*a) + y * f64::from(*b)));
        out.extend(angles().map(|angle| angle.sin() as f32));
        out.extend(angles().map(|angle| angle.cos() as f32));
    }
    Ok(out)
}

/// The features of a grid's cell centres, `[height · width, 2 m]`.
///
/// # Errors
/// As [`fourier`].
pub fn fourier_grid([height, width]: [usize; 2], gaussian: &[f32]) -> Result<Vec<f32>> {
    let centre = |i: usize, length: usize| (i as f64 + 0.5) / length as f64;
    let cells = (0..height).flat_map(|y| (0..width).map(move |x| [centre(x, width), centre(y, height)]));
    fourier(&cells.collect::<Vec<_>>(), gaussian)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f32, b: f64) -> bool {
        (f64::from(a) - b).abs() < 1e-6
    }

    #[test]
    fn rows_come_before_columns_and_sines_alternate_with_cosines() {
        let code = sine_2d(8, [2, 3], TEMPERATURE).unwrap();
        assert_eq!(code.len(), 6 * 8);
        let [y, x] = [TAU * 2.0 / (2.0 + 1e-6), TAU / (3.0 + 1e-6)];
        let token = &code[3 * 8..][..8]; // row 1, column 0
        let expected = [y.sin(), y.cos(), (y / 100.0).sin(), (y / 100.0).cos(), x.sin(), x.cos()];
        assert!(token.iter().zip(expected).all(|(a, b)| near(*a, b)), "{token:?}");
    }

    #[test]
    fn times_have_all_sines_first() {
        let code = sine_1d(&[0.0, -2.0], 10, TEMPERATURE).unwrap();
        assert_eq!(code[..10], [0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
        let slow = 2.0 / TEMPERATURE.powf(0.4);
        assert!(near(code[10], -(2f64.sin())) && near(code[11], -(2f64.sin())) && near(code[12], -slow.sin()));
        assert!(near(code[15], 2f64.cos()) && near(code[18], slow.cos()));
    }

    #[test]
    fn the_middle_of_the_picture_has_no_phase() {
        let gaussian = [0.3, -1.0, 2.0, 0.5];
        assert_eq!(fourier(&[[0.5, 0.5]], &gaussian).unwrap(), [0.0, 0.0, 1.0, 1.0]);
        let code = fourier(&[[0.75, 0.0]], &gaussian).unwrap();
        let angles = [TAU * (0.5 * f64::from(0.3f32) - 2.0), TAU * (-0.5 - 0.5)];
        assert!(near(code[0], angles[0].sin()) && near(code[3], angles[1].cos()));
        let grid = fourier_grid([3, 5], &gaussian).unwrap();
        assert_eq!(grid[(5 + 2) * 4..][..4], [0.0, 0.0, 1.0, 1.0]);
        assert_eq!(grid[4..8], fourier(&[[0.3, 0.5 / 3.0]], &gaussian).unwrap());
    }

    #[test]
    fn impossible_widths_are_errors() {
        assert!(sine_2d(6, [2, 2], TEMPERATURE).is_err() && sine_2d(0, [2, 2], TEMPERATURE).is_err());
        assert!(sine_1d(&[1.0], 3, TEMPERATURE).is_err());
        assert!(fourier(&[[0.0; 2]], &[1.0; 3]).is_err() && fourier_grid([1, 1], &[]).is_err());
        assert!(sine_2d(4, [0, 5], TEMPERATURE).unwrap().is_empty());
    }
}
