//! Plain loops, parallel over chunks, cut where a group of rows ends.

use rayon::prelude::*;

use super::{Dims, OP};
use crate::device::host::{CHUNK, simd};
use crate::dtype::Float;
use crate::{Result, Tensor, with_float};

pub(super) fn forward(
    x: &Tensor,
    branch: &Tensor,
    scale: &Tensor,
    Dims { span, .. }: Dims,
    y: &mut Tensor,
) -> Result<()> {
    with_float!(OP, "x", x.dtype(), T => {
        let scale = scale.as_slice::<<T as Float>::Acc>()?;
        let (x, branch, y) = (x.as_slice::<T>()?, branch.as_slice::<T>()?, y.as_mut_slice::<T>()?);
        y.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, y)| {
            for_each_group(chunk * CHUNK, y, span, |group, at, y| {
                let (x, branch, s) = (&x[at..][..y.len()], &branch[at..][..y.len()], scale[group]);
                simd(#[inline(always)] || {
                    for ((y, x), branch) in y.iter_mut().zip(x).zip(branch) {
                        *y = T::put(x.get() + s * branch.get());
                    }
                });
            });
        });
        Ok(())
    })
}

pub(super) fn backward(dy: &Tensor, scale: &Tensor, Dims { span, .. }: Dims, dbranch: &mut Tensor) -> Result<()> {
    with_float!(OP, "dy", dy.dtype(), T => {
        let scale = scale.as_slice::<<T as Float>::Acc>()?;
        let (dy, dbranch) = (dy.as_slice::<T>()?, dbranch.as_mut_slice::<T>()?);
        dbranch.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, out)| {
            for_each_group(chunk * CHUNK, out, span, |group, at, out| {
                let (dy, s) = (&dy[at..][..out.len()], scale[group]);
                simd(#[inline(always)] || {
                    for (out, dy) in out.iter_mut().zip(dy) {
                        *out = T::put(s * dy.get());
                    }
                });
            });
        });
        Ok(())
    })
}

/// Splits `y`, which starts at element `first` of the tensor, at multiples of `span`; `body` gets the group, the first
/// element and the part.
fn for_each_group<T>(first: usize, mut y: &mut [T], span: usize, body: impl Fn(usize, usize, &mut [T])) {
    let mut at = first;
    while !y.is_empty() {
        let group = at / span;
        let (part, rest) = y.split_at_mut(((group + 1) * span - at).min(y.len()));
        y = rest;
        let length = part.len();
        body(group, at, part);
        at += length;
    }
}
