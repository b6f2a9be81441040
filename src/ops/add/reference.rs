//! Plain loops, parallel over chunks.

use rayon::prelude::*;

use super::OP;
use crate::device::host::{CHUNK, simd};
use crate::dtype::Float;
use crate::{Result, Tensor, with_float};

pub(super) fn forward(a: &Tensor, b: &Tensor, y: &mut Tensor) -> Result<()> {
    with_float!(OP, "a", a.dtype(), T => {
        let (a, b, y) = (a.as_slice::<T>()?, b.as_slice::<T>()?, y.as_mut_slice::<T>()?);
        let chunks = y.par_chunks_mut(CHUNK).zip(a.par_chunks(CHUNK)).zip(b.par_chunks(CHUNK));
        chunks.for_each(|((y, a), b)| simd(#[inline(always)] || {
            for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
                *y = T::put(a.get() + b.get());
            }
        }));
        Ok(())
    })
}
