//! The one tolerance policy: a kernel may be at most `factor` times as far from the f64 oracle as the plain reference
//! in the same dtype, plus four units in the last place of the largest value.

use super::Check;
use crate::DType;

/// Distance between neighbouring values of `dtype` at magnitude `x`.
pub fn ulp(dtype: DType, x: f64) -> f64 {
    let (digits, smallest) = match dtype {
        DType::F32 => (23, -149),
        DType::BF16 => (7, -133),
        DType::F16 => (10, -24),
        _ => (52, -1074),
    };
    let exponent = if x == 0.0 { smallest } else { (x.abs().log2().floor() as i32 - digits).max(smallest) };
    2f64.powi(exponent)
}

/// Largest |a - b| and where; NaN on one side only is infinite, so poison never passes.
pub fn distance(a: &[f64], b: &[f64]) -> (f64, usize) {
    let mut worst = (0.0, 0);
    for (i, (&a, &b)) in a.iter().zip(b).enumerate() {
        let d = match (a.is_nan(), b.is_nan()) {
            (true, true) => 0.0,
            (false, false) if a == b => 0.0, // also equal infinities
            (false, false) => (a - b).abs(),
            _ => f64::INFINITY,
        };
        if d > worst.0 {
            worst = (d, i);
        }
    }
    worst
}

fn largest(truth: &[f64]) -> f64 {
    truth.iter().fold(0.0, |m, x| if x.is_finite() { x.abs().max(m) } else { m })
}

/// Kernel against oracle, bounded through the reference; `factor` is 2 for values, 3 for gradients.
pub fn compare(dtype: DType, kernel: &[f64], reference: &[f64], oracle: &[f64], factor: f64) -> Check {
    if kernel.len() != oracle.len() {
        return Err(format!("{} elements, expected {}", kernel.len(), oracle.len()));
    }
    let (error, at) = distance(kernel, oracle);
    let bound = factor * distance(reference, oracle).0 + 4.0 * ulp(dtype, largest(oracle));
    if error <= bound {
        return Ok(());
    }
    Err(format!("error {error:.3e} over bound {bound:.3e} at {at}: {} instead of {}", kernel[at], oracle[at]))
}

/// The reference itself: 16-bit results are rounded once or twice (4 units in the last place of the largest value); in
/// f32, where every partial sum rounds, 512 of them (6e-5 of the largest value).
/// Added to it: what the operation's own conditioning does to one rounding of each input (`moved`), 16 times, for
/// the roundings inside.
pub(super) fn reference(dtype: DType, values: &[f64], oracle: &[f64], moved: f64) -> Check {
    if values.len() != oracle.len() {
        return Err(format!("{} elements, expected {}", values.len(), oracle.len()));
    }
    let (error, at) = distance(values, oracle);
    let ulps = if dtype == DType::F32 { 512.0 } else { 4.0 };
    let bound = ulps * ulp(dtype, largest(oracle)) + 16.0 * moved;
    if error <= bound {
        return Ok(());
    }
    Err(format!("reference error {error:.3e} over {bound:.3e} at {at}: {} instead of {}", values[at], oracle[at]))
}
