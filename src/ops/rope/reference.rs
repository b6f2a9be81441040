//! Plain loops, parallel over tokens.

use rayon::prelude::*;

use super::{Dims, Direction, OP};
use crate::device::host::simd;
use crate::dtype::{Float, num_like::Ops};
use crate::{Result, Tensor, with_float};

pub(super) fn rotate(x: &mut Tensor, table: &Tensor, direction: Direction, dims: Dims) -> Result<()> {
    with_float!(OP, "x", x.dtype(), T => {
        type A = <T as Float>::Acc;
        let (x, table) = (x.as_mut_slice::<T>()?, table.as_slice::<A>()?);
        let sign = A::of(if direction == Direction::Forward { 1.0 } else { -1.0 });
        let Dims { dim, heads, parts, rotated, .. } = dims;
        if dim * heads * parts == 0 {
            return Ok(());
        }
        x.par_chunks_mut(parts * heads * dim).enumerate().for_each(|(token, x)| {
            let Some(position) = dims.position(token) else { return };
            let angles = &table[position * dim..][..dim];
            simd(#[inline(always)] || {
                for head in x[..rotated * heads * dim].chunks_exact_mut(dim) {
                    for (pair, angle) in head.as_chunks_mut::<2>().0.iter_mut().zip(angles.as_chunks::<2>().0) {
                        let ([a, b], [cos, sin]) = (pair.map(T::get), [angle[0], sign * angle[1]]);
                        *pair = [T::put(a * cos - b * sin), T::put(a * sin + b * cos)];
                    }
                }
            });
        });
        Ok(())
    })
}
