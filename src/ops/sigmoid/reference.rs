//! Plain loops, parallel over chunks.

use rayon::prelude::*;

use super::OP;
use crate::device::host::{CHUNK, simd};
use crate::dtype::{Float, num_like::Ops};
use crate::{Result, Tensor, with_float};

pub(super) fn forward(x: &Tensor, scale: f32, bias: f32, y: &mut Tensor) -> Result<()> {
    with_float!(OP, "x", x.dtype(), T => {
        type A = <T as Float>::Acc;
        let (scale, bias) = (A::of(scale.into()), A::of(bias.into()));
        let (x, y) = (x.as_slice::<T>()?, y.as_mut_slice::<T>()?);
        y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| simd(#[inline(always)] || {
            for (y, x) in y.iter_mut().zip(x) {
                *y = T::put(scale * logistic(x.get()) + bias);
            }
        }));
        Ok(())
    })
}

pub(super) fn backward(dy: &Tensor, x: &Tensor, scale: f32, dx: &mut Tensor) -> Result<()> {
    with_float!(OP, "x", x.dtype(), T => {
        type A = <T as Float>::Acc;
        let scale = A::of(scale.into());
        let (dy, x, dx) = (dy.as_slice::<T>()?, x.as_slice::<T>()?, dx.as_mut_slice::<T>()?);
        let chunks = dx.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).zip(dy.par_chunks(CHUNK));
        chunks.for_each(|((dx, x), dy)| simd(#[inline(always)] || {
            for ((dx, x), dy) in dx.iter_mut().zip(x).zip(dy) {
                let s = logistic(-x.get().abs());
                *dx = T::put(dy.get() * (scale * (s * (A::ONE - s))));
            }
        }));
        Ok(())
    })
}

/// σ: an infinite `e^-x` gives 0.
#[inline(always)]
fn logistic<A: Ops>(x: A) -> A {
    A::ONE / (A::ONE + (-x).exp())
}
