//! Plain loops, parallel over chunks.

use rayon::prelude::*;

use super::OP;
use crate::device::host::{CHUNK, simd};
use crate::dtype::{Float, num_like::Ops};
use crate::{Result, Tensor, with_float};

pub(super) fn forward(x: &Tensor, factor: f32, y: &mut Tensor) -> Result<()> {
    with_float!(OP, "x", x.dtype(), T => {
        let factor = <T as Float>::Acc::of(factor.into());
        let (x, y) = (x.as_slice::<T>()?, y.as_mut_slice::<T>()?);
        y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| simd(#[inline(always)] || {
            for (y, x) in y.iter_mut().zip(x) {
                *y = T::put(factor * x.get());
            }
        }));
        Ok(())
    })
}
