//! Plain loops, parallel over rows.

use rayon::prelude::*;

use super::{Dims, OP};
use crate::device::host::{CHUNK, simd};
use crate::dtype::{Float, num_like::Ops};
use crate::{Result, Tensor, with_float};

pub(super) fn forward(x: &Tensor, Dims { hidden, .. }: Dims, y: &mut Tensor) -> Result<()> {
    with_float!(OP, "x", x.dtype(), T => {
        let (x, y) = (x.as_slice::<T>()?, y.as_mut_slice::<T>()?);
        if hidden == 0 {
            return Ok(());
        }
        let rows = CHUNK.div_ceil(2 * hidden); // of a task
        y.par_chunks_mut(rows * hidden).zip(x.par_chunks(2 * rows * hidden)).for_each(|(y, x)| simd(#[inline(always)] || {
            for (y, x) in y.chunks_exact_mut(hidden).zip(x.chunks_exact(2 * hidden)) {
                let (a, b) = x.split_at(hidden);
                for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
                    let a = a.get();
                    *y = T::put(a * sigmoid(a) * b.get());
                }
            }
        }));
        Ok(())
    })
}

pub(super) fn backward(dy: &Tensor, x: &Tensor, Dims { hidden, .. }: Dims, dx: &mut Tensor) -> Result<()> {
    with_float!(OP, "x", x.dtype(), T => {
        type A = <T as Float>::Acc;
        let (dy, x, dx) = (dy.as_slice::<T>()?, x.as_slice::<T>()?, dx.as_mut_slice::<T>()?);
        if hidden == 0 {
            return Ok(());
        }
        let rows = CHUNK.div_ceil(2 * hidden); // of a task
        let tasks = dx.par_chunks_mut(2 * rows * hidden).zip(x.par_chunks(2 * rows * hidden)).zip(dy.par_chunks(rows * hidden));
        tasks.for_each(|((dx, x), dy)| simd(#[inline(always)] || {
            let rows = dx.chunks_exact_mut(2 * hidden).zip(x.chunks_exact(2 * hidden)).zip(dy.chunks_exact(hidden));
            for ((dx, x), dy) in rows {
                let ((a, b), (da, db)) = (x.split_at(hidden), dx.split_at_mut(hidden));
                for ((((da, db), a), b), dy) in da.iter_mut().zip(db).zip(a).zip(b).zip(dy) {
                    let (a, b, dy) = (a.get(), b.get(), dy.get());
                    let s = sigmoid(a);
                    *da = T::put(dy * b * (s * (A::ONE + a * (A::ONE - s))));
                    *db = T::put(dy * (a * s));
                }
            }
        }));
        Ok(())
    })
}

/// σ
#[inline(always)]
fn sigmoid<A: Ops>(x: A) -> A {
    A::ONE / (A::ONE + (-x).exp())
}
