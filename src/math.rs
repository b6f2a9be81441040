//! What references compute with: elementary functions of f32 without branches or tables, so that the compiler turns a
//! loop over them into vector instructions, and reductions in a fixed order.
//!
//! Accuracy is stated and tested against f64; f64 itself goes through the standard library and `libm`. The functions
//! use fused multiply-add, whose result is the same on every machine: call them inside
//! [`simd`](crate::device::host::simd), where it is one instruction.

use crate::dtype::num_like::Ops;

/// Polynomial `c[0] + c[1] x + ..` in Horner's order.
#[inline(always)]
fn horner<const N: usize>(x: f32, c: [f32; N]) -> f32 {
    let mut sum = c[N - 1];
    for i in (0..N - 1).rev() {
        sum = sum.mul_add(x, c[i]);
    }
    sum
}

/// Adding it leaves the nearest integer of |x| < 2^22 in the low bits: 1.5 · 2^23.
const ROUND: f32 = 12_582_912.0;

/// `e^x = 2^n (1 + e)`: `n` and `1 + e`, for |x| < 2^20. `x = n ln 2 + r` with `|r| <= ln 2 / 2` and
/// `e^r = 1 + r + r² q(r)`, `q` of degree 4 fitted for the least relative error, 3e-9.
#[inline(always)]
fn exp_parts(x: f32) -> (i32, f32) {
    const LN2_HIGH: f32 = 355.0 / 512.0; // 9 bits: its product with n is exact
    const LN2_LOW: f32 = -2.121_944_4e-4; // ln 2 - LN2_HIGH
    const Q: [f32; 5] = [0.499_999_94, 0.166_665_21, 0.041_668_39, 0.008_368_745, 0.001_381_454];
    let rounded = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = (rounded.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let whole = rounded - ROUND;
    let r = whole.mul_add(-LN2_LOW, whole.mul_add(-LN2_HIGH, x));
    (n, 1.0 + (r * r).mul_add(horner(r, Q), r))
}

/// e to the power of `x` within 1.1 units in the last place; 0 below -104, infinite above 88.73, NaN of NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Comparisons in this order let NaN through.
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -104.0 { -104.0 } else { x };
    let (n, power) = exp_parts(x);
    // 2^n in two factors: n from -150 to 128 exceeds the exponent range of one, and a subnormal result rounds once.
    let half = n >> 1;
    power * exp2_of(half) * exp2_of(n.wrapping_sub(half))
}

/// 2 to the power of `n`, -126 <= n <= 127.
#[inline(always)]
fn exp2_of(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// Error function, `2/√π ∫₀ˣ e^(-t²) dt`, within 1.1 units in the last place, also relative near 0; NaN of NaN.
///
/// Below 0.95 `x + x p(x²)` with `p` of degree 6; above it `1 - e^(-t)` with `t = |x| r(|x|)`, `r` of degree 5. Both
/// are fitted for the least relative error of the result, 6e-10 and 3e-9.
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    const SPLIT: f32 = 0.95;
    const END: f32 = 3.93; // from here on erf rounds to 1
    const P: [f32; 7] =
        [0.128_379_17, -0.376_126_32, 0.112_836_64, -0.026_857_706, 0.005_196_952, -8.097_703e-4, 8.185_093e-5];
    const R: [f32; 6] = [1.128_503_8, 0.635_753_5, 0.105_215_944, -0.022_860_784, 0.003_205_924_5, -2.128_967e-4];
    let size = x.abs();
    let near = x.mul_add(horner(x * x, P), x);
    let end = if size > END { END } else { size };
    let (n, power) = exp_parts(-(end * horner(end, R)));
    let far = (1.0 - power * exp2_of(n)).copysign(x);
    // A NaN fails the comparison and comes out of `far`.
    if size < SPLIT { near } else { far }
}

/// `ln(1 + x)` within 1.5 units in the last place for 0 <= x <= 1, also relative near 0; NaN of NaN.
///
/// `x + x² q(x)`, `q` of degree 7 fitted for the least relative error of the result, 3e-8.
#[inline(always)]
pub(crate) fn ln_1p(x: f32) -> f32 {
    const Q: [f32; 8] = [
        -0.499_996_48,
        0.333_213_24,
        -0.248_571_63,
        0.191_536_56,
        -0.137_538_06,
        0.079_204_574,
        -0.030_065_816,
        0.005_364_83,
    ];
    (x * x).mul_add(horner(x, Q), x)
}

/// Partial results of a reduction: the order is the same on every machine, and the compiler can use vectors.
const LANES: usize = 16;

/// Sum of `term(i)` for `i < n`.
#[inline(always)]
pub(crate) fn sum<A: Ops>(n: usize, term: impl Fn(usize) -> A) -> A {
    let mut lanes = [A::ZERO; LANES];
    let whole = n / LANES * LANES;
    for i in (0..whole).step_by(LANES) {
        if n - i < LANES {
            break; // never: tells the compiler that `i + l < n`, without which a checked index costs the vectors
        }
        for (l, lane) in lanes.iter_mut().enumerate() {
            *lane += term(i + l);
        }
    }
    let mut total = lanes.iter().copied().sum::<A>();
    for i in whole..n {
        total += term(i);
    }
    total
}

/// Largest `term(i)` for `i < n`; NaN if one is, -inf of none.
#[inline(always)]
pub(crate) fn max<A: Ops>(n: usize, term: impl Fn(usize) -> A) -> A {
    let mut lanes = [A::NEG_INFINITY; LANES];
    let whole = n / LANES * LANES;
    for i in (0..whole).step_by(LANES) {
        if n - i < LANES {
            break; // never: tells the compiler that `i + l < n`, without which a checked index costs the vectors
        }
        for (l, lane) in lanes.iter_mut().enumerate() {
            *lane = lane.max(term(i + l));
        }
    }
    let mut largest = lanes.into_iter().fold(A::NEG_INFINITY, A::max);
    for i in whole..n {
        largest = largest.max(term(i));
    }
    largest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::testing::ulp;

    /// Every 4001st f32, both signs: all exponents, subnormals and the range limits.
    fn grid() -> impl Iterator<Item = f32> {
        (0..=f32::INFINITY.to_bits()).step_by(4001).map(f32::from_bits).flat_map(|x| [x, -x])
    }

    fn worst(f: impl Fn(f32) -> f32, truth: impl Fn(f64) -> f64, points: impl Iterator<Item = f32>) -> (f64, f32) {
        let mut worst = (0.0, 0.0);
        for x in points {
            let (y, t) = (f64::from(f(x)), truth(f64::from(x)));
            if f64::from(t as f32).is_infinite() || t as f32 == 0.0 {
                assert_eq!(y as f32, t as f32, "at {x:e}");
                continue;
            }
            let error = (y - t).abs() / ulp(DType::F32, t);
            if error > worst.0 {
                worst = (error, x);
            }
        }
        worst
    }

    #[test]
    fn exp_is_accurate() {
        let dense = (-1_040_000..=890_000).map(|i| i as f32 * 1e-4);
        let (error, at) = worst(exp, f64::exp, grid().chain(dense));
        assert!(error <= 1.1, "{error} ulp at {at:e}");
    }

    #[test]
    fn ln_1p_is_accurate() {
        let dense = (0..=1 << 20).map(|i| i as f32 / (1 << 20) as f32);
        let (error, at) = worst(ln_1p, f64::ln_1p, grid().filter(|x| (0.0..=1.0).contains(x)).chain(dense));
        assert!(error <= 1.5, "{error} ulp at {at:e}");
        assert!(ln_1p(f32::NAN).is_nan());
    }

    #[test]
    fn exp_at_the_ends() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::MAX), f32::INFINITY);
        assert_eq!(exp(f32::MIN), 0.0);
        assert_eq!(exp(88.722), f64::from(88.722f32).exp() as f32);
        assert!(exp(f32::NAN).is_nan() && exp(-f32::NAN).is_nan());
    }

    #[test]
    fn erf_is_accurate() {
        let dense = (-400_000..=400_000).map(|i| i as f32 * 1e-5);
        let (error, at) = worst(erf, libm::erf, grid().chain(dense));
        assert!(error <= 1.1, "{error} ulp at {at:e}");
    }

    #[test]
    fn erf_at_the_ends() {
        for x in [3.93, 5.0, f32::MAX, f32::INFINITY] {
            assert_eq!((erf(x), erf(-x)), (1.0, -1.0));
        }
        assert!(erf(0.0).is_sign_positive() && erf(-0.0).is_sign_negative());
        assert!(erf(f32::NAN).is_nan());
    }

    #[test]
    fn reductions_take_every_term_once() {
        for n in [0usize, 1, 15, 16, 17, 100] {
            assert_eq!(sum(n, |i| i as f32), (n * n.saturating_sub(1) / 2) as f32);
            assert_eq!(max(n, |i| i as f32), if n == 0 { f32::NEG_INFINITY } else { n as f32 - 1.0 });
        }
        assert!(max(20, |i| if i == 7 { f32::NAN } else { 1.0f32 }).is_nan());
    }
}
