//! Plain loops, parallel over chunks.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use rayon::prelude::*;

use super::{Form, OP};
use crate::device::host::{CHUNK, simd};
use crate::dtype::{Float, num_like::Ops};
use crate::{Result, Tensor, with_float};

pub(super) fn forward(x: &Tensor, form: Form, y: &mut Tensor) -> Result<()> {
    with_float!(OP, "x", x.dtype(), T => {
        let (x, y) = (x.as_slice::<T>()?, y.as_mut_slice::<T>()?);
        match form {
            Form::Erf => each(y, x, #[inline(always)] |x| x * cdf(x)),
            Form::Tanh => each(y, x, #[inline(always)] |x| x * sigmoid(x)),
        }
        Ok(())
    })
}

/// `y = f(x)`
fn each<T: Float>(y: &mut [T], x: &[T], f: impl Fn(T::Acc) -> T::Acc + Sync) {
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| {
        simd(
            #[inline(always)]
            || {
                // A loop: what `for_each` makes of it is a function of its own, compiled without vector instructions.
                for (y, x) in y.iter_mut().zip(x) {
                    *y = T::put(f(x.get()));
                }
            },
        );
    });
}

pub(super) fn backward(dy: &Tensor, x: &Tensor, form: Form, dx: &mut Tensor) -> Result<()> {
    with_float!(OP, "x", x.dtype(), T => {
        let (dy, x, dx) = (dy.as_slice::<T>()?, x.as_slice::<T>()?, dx.as_mut_slice::<T>()?);
        match form {
            Form::Erf => each_pair(dx, x, dy, #[inline(always)] |x| cdf(x) + x * density(x)),
            Form::Tanh => each_pair(dx, x, dy, tanh_slope),
        }
        Ok(())
    })
}

/// `dx = dy · f(x)`
fn each_pair<T: Float>(dx: &mut [T], x: &[T], dy: &[T], f: impl Fn(T::Acc) -> T::Acc + Sync) {
    dx.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).zip(dy.par_chunks(CHUNK)).for_each(|((dx, x), dy)| {
        simd(
            #[inline(always)]
            || {
                for ((dx, x), dy) in dx.iter_mut().zip(x).zip(dy) {
                    *dx = T::put(dy.get() * f(x.get()));
                }
            },
        );
    });
}

/// 2 √(2/π): `(1 + tanh(u)) / 2 = σ(2u)`.
const TWICE: f64 = FRAC_2_SQRT_PI * std::f64::consts::SQRT_2;
const CUBIC: f64 = 0.044715;

/// Φ of the approximation: `σ(2 √(2/π) (x + 0.044715 x³))`.
#[inline(always)]
fn sigmoid<A: Ops>(x: A) -> A {
    A::ONE / (A::ONE + (-(A::of(TWICE) * x * (A::ONE + A::of(CUBIC) * x * x))).exp())
}

/// Φ + x Φ' of the approximation.
#[inline(always)]
fn tanh_slope<A: Ops>(x: A) -> A {
    let s = sigmoid(x);
    let inner = A::of(TWICE) * x * (A::ONE + A::of(3.0 * CUBIC) * x * x); // x · d(2u)/dx
    s + s * (A::ONE - s) * inner
}

/// Φ: the normal distribution function.
#[inline(always)]
fn cdf<A: Ops>(x: A) -> A {
    A::of(0.5) * (A::ONE + (x * A::of(FRAC_1_SQRT_2)).erf())
}

/// φ: its density.
#[inline(always)]
fn density<A: Ops>(x: A) -> A {
    A::of(0.5 * FRAC_1_SQRT_2 * FRAC_2_SQRT_PI) * (A::of(-0.5) * x * x).exp() // 1 / √(2π)
}
