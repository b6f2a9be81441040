//! Plain loops, parallel over chunks.

use rayon::prelude::*;

use super::OP;
use crate::device::host::{CHUNK, simd};
use crate::dtype::{Float, num_like::Ops};
use crate::{Result, Tensor, with_float};

pub(super) fn forward(x: &Tensor, y: &mut Tensor) -> Result<()> {
    with_float!(OP, "x", x.dtype(), T => {
        let zero = <T as Float>::Acc::ZERO;
        let (x, y) = (x.as_slice::<T>()?, y.as_mut_slice::<T>()?);
        y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| simd(#[inline(always)] || {
            for (y, x) in y.iter_mut().zip(x) {
                // Asked this way round, NaN is kept.
                *y = if x.get() <= zero { T::put(zero) } else { *x };
            }
        }));
        Ok(())
    })
}

pub(super) fn backward(dy: &Tensor, y: &Tensor, dx: &mut Tensor) -> Result<()> {
    with_float!(OP, "y", y.dtype(), T => {
        let zero = <T as Float>::Acc::ZERO;
        let (dy, y, dx) = (dy.as_slice::<T>()?, y.as_slice::<T>()?, dx.as_mut_slice::<T>()?);
        let chunks = dx.par_chunks_mut(CHUNK).zip(y.par_chunks(CHUNK)).zip(dy.par_chunks(CHUNK));
        chunks.for_each(|((dx, y), dy)| simd(#[inline(always)] || {
            for ((dx, y), dy) in dx.iter_mut().zip(y).zip(dy) {
                *dx = if y.get() <= zero { T::put(zero) } else { *dy };
            }
        }));
        Ok(())
    })
}
