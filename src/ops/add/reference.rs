//! Plain loops, parallel over chunks; sums in fixed blocks of rows.

use rayon::prelude::*;

use super::OP;
use crate::device::host::{CHUNK, simd};
use crate::dtype::{Float, num_like::Ops};
use crate::{Result, Tensor, with_float};

/// Rows of a partial sum; also fixes the order of the sum.
const ROWS: usize = 128;

pub(super) fn forward(a: &Tensor, b: &Tensor, y: &mut Tensor) -> Result<()> {
    with_float!(OP, "a", a.dtype(), T => {
        let (a, b, y) = (a.as_slice::<T>()?, b.as_slice::<T>()?, y.as_mut_slice::<T>()?);
        let chunks = y.par_chunks_mut(CHUNK).zip(a.par_chunks(CHUNK)).enumerate();
        chunks.for_each(|(chunk, (y, a))| simd(#[inline(always)] || repeating(y, a, b, chunk * CHUNK % b.len())));
        Ok(())
    })
}

/// `y = a + b`, where `b` is read from its element `at` on, again and again.
#[inline(always)]
fn repeating<T: Float>(mut y: &mut [T], mut a: &[T], b: &[T], mut at: usize) {
    while !y.is_empty() {
        let len = y.len().min(b.len() - at);
        let (first, rest) = y.split_at_mut(len);
        for ((y, a), b) in first.iter_mut().zip(a).zip(&b[at..]) {
            *y = T::put(a.get() + b.get());
        }
        (y, a, at) = (rest, &a[len..], 0);
    }
}

pub(super) fn leading_sum(x: &Tensor, y: &mut Tensor) -> Result<()> {
    with_float!(OP, "x", x.dtype(), T => {
        let (x, y) = (x.as_slice::<T>()?, y.as_mut_slice::<<T as Float>::Acc>()?);
        let len = y.len();
        if len == 0 {
            return Ok(());
        }
        let parts: Vec<_> = x.par_chunks(ROWS * len).map(|block| part(block, len)).collect();
        y.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, y)| {
            y.fill(Ops::ZERO);
            for part in &parts {
                y.iter_mut().zip(&part[chunk * CHUNK..]).for_each(|(y, &p)| *y += p);
            }
        });
        Ok(())
    })
}

/// The sum of the rows of a block, long ones in parallel pieces.
fn part<T: Float>(block: &[T], len: usize) -> Vec<T::Acc> {
    let mut part = vec![T::Acc::ZERO; len];
    part.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, part)| {
        simd(
            #[inline(always)]
            || {
                for row in block.chunks_exact(len) {
                    for (p, x) in part.iter_mut().zip(&row[chunk * CHUNK..]) {
                        *p += x.get();
                    }
                }
            },
        );
    });
    part
}
