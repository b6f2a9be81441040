//! Plain loops, parallel over blocks of rows, each row by itself.

use rayon::prelude::*;

use super::{EPS, OP};
use crate::device::host::{CHUNK, simd};
use crate::dtype::{Float, num_like::Ops};
use crate::math::sum;
use crate::{Result, Tensor, with_float};

/// Rows of one task.
fn block(cols: usize) -> usize {
    CHUNK.div_ceil(cols.max(1))
}

pub(super) fn forward(x: &Tensor, y: &mut Tensor, inverse: &mut Tensor) -> Result<()> {
    let (_, cols) = x.shape().rows_cols();
    let rows = block(cols);
    with_float!(OP, "x", x.dtype(), T => {
        type A = <T as Float>::Acc;
        let (x, y, inverse) = (x.as_slice::<T>()?, y.as_mut_slice::<T>()?, inverse.as_mut_slice::<A>()?);
        if cols == 0 {
            inverse.fill(A::ZERO);
            return Ok(());
        }
        let blocks = y.par_chunks_mut(rows * cols).zip(x.par_chunks(rows * cols)).zip(inverse.par_chunks_mut(rows));
        blocks.for_each(|((y, x), inverse)| simd(#[inline(always)] || {
            for ((y, x), inverse) in y.chunks_exact_mut(cols).zip(x.chunks_exact(cols)).zip(inverse) {
                *inverse = forward_row(x, y);
            }
        }));
        Ok(())
    })
}

/// Returns 1 / |x|, or 0.
#[inline(always)]
fn forward_row<T: Float>(x: &[T], y: &mut [T]) -> T::Acc {
    let eps = T::Acc::of(EPS);
    let norm = sum(
        x.len(),
        #[inline(always)]
        |i| x[i].get() * x[i].get(),
    )
    .sqrt();
    let inverse = T::Acc::ONE / if norm < eps { eps } else { norm };
    y.iter_mut().zip(x).for_each(|(y, x)| *y = T::put(x.get() * inverse));
    if norm < eps { T::Acc::ZERO } else { inverse }
}

pub(super) fn backward(dy: &Tensor, x: &Tensor, inverse: &Tensor, dx: &mut Tensor) -> Result<()> {
    let (_, cols) = x.shape().rows_cols();
    let rows = block(cols);
    with_float!(OP, "x", x.dtype(), T => {
        type A = <T as Float>::Acc;
        let (dy, x, inverse) = (dy.as_slice::<T>()?, x.as_slice::<T>()?, inverse.as_slice::<A>()?);
        if cols == 0 {
            return Ok(());
        }
        let blocks = dx.as_mut_slice::<T>()?.par_chunks_mut(rows * cols).zip(x.par_chunks(rows * cols));
        let blocks = blocks.zip(dy.par_chunks(rows * cols)).zip(inverse.par_chunks(rows));
        blocks.for_each(|(((dx, x), dy), inverse)| simd(#[inline(always)] || {
            let rows = dx.chunks_exact_mut(cols).zip(x.chunks_exact(cols)).zip(dy.chunks_exact(cols));
            for (((dx, x), dy), &inverse) in rows.zip(inverse) {
                backward_row(dy, x, inverse, dx);
            }
        }));
        Ok(())
    })
}

#[inline(always)]
fn backward_row<T: Float>(dy: &[T], x: &[T], inverse: T::Acc, dx: &mut [T]) {
    let dot = sum(
        x.len(),
        #[inline(always)]
        |i| dy[i].get() * x[i].get(),
    );
    let along = dot * inverse * inverse;
    for ((dx, x), dy) in dx.iter_mut().zip(x).zip(dy) {
        *dx = T::put(inverse * (dy.get() - along * x.get()));
    }
}
