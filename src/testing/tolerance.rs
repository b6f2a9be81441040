//! The one tolerance policy: a kernel may be at most `factor` times as far from the f64 oracle as the plain reference
//! in the same dtype (or as one rounding of the inputs moves the oracle, if that is more), plus four units in the last
//! place of the largest value.

use super::Check;
use crate::DType;
use crate::ops::Case;

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
///
/// A reference may be exact by luck where a sum cancels, so its error counts as at least `by_arithmetic`: what one
/// rounding of the inputs does to the exact result.
pub fn compare(
    dtype: DType,
    kernel: &[f64],
    reference: &[f64],
    oracle: &[f64],
    by_arithmetic: f64,
    factor: f64,
) -> Check {
    if kernel.len() != oracle.len() {
        return Err(format!("{} elements, expected {}", kernel.len(), oracle.len()));
    }
    let (error, at) = distance(kernel, oracle);
    let bound = factor * distance(reference, oracle).0.max(by_arithmetic) + 4.0 * ulp(dtype, largest(oracle));
    if error <= bound {
        return Ok(());
    }
    Err(format!("error {error:.3e} over bound {bound:.3e} at {at}: {} instead of {}", kernel[at], oracle[at]))
}

/// Roundings of an operation besides those of its sums, at most: AdamW, the longest between two stores, has 14.
const STEPS: usize = 16;

/// The reference itself, by a bound that is computed, not chosen: a loop in f32 rounds once per term of its longest sum
/// and once per step around it. Each of these may do what one rounding of an input does (`by_arithmetic`, measured on
/// the oracle) or one of the result. Values kept in the storage dtype on the way do the same at its coarser rounding
/// (`by_storage`).
pub(super) fn reference(
    case: &Case,
    dtype: DType,
    values: &[f64],
    oracle: &[f64],
    by_arithmetic: f64,
    by_storage: f64,
) -> Check {
    if values.len() != oracle.len() {
        return Err(format!("{} elements, expected {}", values.len(), oracle.len()));
    }
    let (error, at) = distance(values, oracle);
    let half_ulp = |dtype| ulp(dtype, largest(oracle)) / 2.0;
    let arithmetic = (case.terms + STEPS) as f64 * (by_arithmetic + half_ulp(DType::F32));
    let storage = case.stored as f64 * half_ulp(dtype) + (case.stored - 1) as f64 * by_storage;
    let bound = arithmetic + storage;
    if error <= bound {
        return Ok(());
    }
    Err(format!("reference error {error:.3e} over {bound:.3e} at {at}: {} instead of {}", values[at], oracle[at]))
}
