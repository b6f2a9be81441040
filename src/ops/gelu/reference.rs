//! Plain loops, parallel over chunks.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use rayon::prelude::*;

use super::OP;
use crate::device::host::{CHUNK, simd};
use crate::dtype::{Float, num_like::Ops};
use crate::{Result, Tensor, with_float};

pub(super) fn forward(x: &Tensor, y: &mut Tensor) -> Result<()> {
    with_float!(OP, "x", x.dtype(), T => {
        let (x, y) = (x.as_slice::<T>()?, y.as_mut_slice::<T>()?);
        y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| simd(#[inline(always)] || {
            for (y, x) in y.iter_mut().zip(x) {
                let x = x.get();
                *y = T::put(x * cdf(x));
            }
        }));
        Ok(())
    })
}

pub(super) fn backward(dy: &Tensor, x: &Tensor, dx: &mut Tensor) -> Result<()> {
    with_float!(OP, "x", x.dtype(), T => {
        let (dy, x, dx) = (dy.as_slice::<T>()?, x.as_slice::<T>()?, dx.as_mut_slice::<T>()?);
        let chunks = dx.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).zip(dy.par_chunks(CHUNK));
        chunks.for_each(|((dx, x), dy)| simd(#[inline(always)] || {
            for ((dx, x), dy) in dx.iter_mut().zip(x).zip(dy) {
                let x = x.get();
                *dx = T::put(dy.get() * (cdf(x) + x * density(x)));
            }
        }));
        Ok(())
    })
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
