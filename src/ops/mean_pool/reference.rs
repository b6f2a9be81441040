//! Plain loops, parallel over sequences; each sums its rows in order.

use rayon::prelude::*;

use super::Dims;
use crate::device::host::simd;
use crate::dtype::{Float, num_like::Ops};
use crate::{Result, Tensor, with_float};

pub(super) fn forward(x: &Tensor, Dims { rows, skip, cols, .. }: Dims, y: &mut Tensor) -> Result<()> {
    with_float!("mean_pool", "x", x.dtype(), T => {
        type A = <T as Float>::Acc;
        let (x, y) = (x.as_slice::<T>()?, y.as_mut_slice::<T>()?);
        if cols == 0 {
            return Ok(());
        }
        let scale = A::ONE / A::of((rows - skip) as f64);
        y.par_chunks_mut(cols).zip(x.par_chunks(rows * cols)).for_each_init(|| vec![A::ZERO; cols], |sum, (y, x)| {
            simd(#[inline(always)] || {
                sum.fill(A::ZERO);
                for x in x[skip * cols..].chunks_exact(cols) {
                    sum.iter_mut().zip(x).for_each(#[inline(always)] |(s, x)| *s += x.get());
                }
                y.iter_mut().zip(&*sum).for_each(#[inline(always)] |(y, &s)| *y = T::put(s * scale));
            });
        });
        Ok(())
    })
}

pub(super) fn backward(dy: &Tensor, Dims { rows, skip, cols, .. }: Dims, dx: &mut Tensor) -> Result<()> {
    with_float!("mean_pool", "dy", dy.dtype(), T => {
        type A = <T as Float>::Acc;
        let (dy, dx) = (dy.as_slice::<T>()?, dx.as_mut_slice::<T>()?);
        if cols == 0 {
            return Ok(());
        }
        let scale = A::ONE / A::of((rows - skip) as f64);
        dx.par_chunks_mut(rows * cols).zip(dy.par_chunks(cols)).for_each(|(dx, dy)| {
            let (skipped, dx) = dx.split_at_mut(skip * cols);
            skipped.fill(T::put(A::ZERO));
            let (first, others) = dx.split_at_mut(cols);
            simd(#[inline(always)] || {
                first.iter_mut().zip(dy).for_each(#[inline(always)] |(dx, dy)| *dx = T::put(dy.get() * scale));
            });
            others.chunks_exact_mut(cols).for_each(|dx| dx.copy_from_slice(first));
        });
        Ok(())
    })
}
