//! Plain copies and sums, parallel over chunks of elements. Chunks are fixed, so sums do not depend on the number of threads.

use rayon::prelude::*;

use super::{Dims, Form, OP};
use crate::device::host::{CHUNK, simd};
use crate::dtype::{Float, num_like::Ops};
use crate::math;
use crate::{Result, Tensor, with_float};

/// Columns per task of a sum over rows.
const COLS: usize = 1024;

/// Calls `f(row, col, len)` for the parts of rows that the elements `at..at + n` consist of, in order.
fn parts(at: usize, n: usize, cols: usize, mut f: impl FnMut(usize, usize, usize)) {
    let (mut at, end) = (at, at + n);
    while at < end {
        let (row, col) = (at / cols, at % cols);
        let len = (cols - col).min(end - at);
        f(row, col, len);
        at += len;
    }
}

pub(super) fn select(
    flags: &Tensor,
    x: Option<&Tensor>,
    other: Option<&Tensor>,
    Dims { cols, form, .. }: Dims,
    y: &mut Tensor,
) -> Result<()> {
    with_float!(OP, "x", y.dtype(), T => {
        type A = <T as Float>::Acc;
        let flags = flags.as_slice::<A>()?;
        let x = x.map(Tensor::as_slice::<T>).transpose()?;
        let other = other.map(Tensor::as_slice::<T>).transpose()?;
        y.as_mut_slice::<T>()?.par_chunks_mut(CHUNK).enumerate().for_each(|(block, y)| {
            let mut rest = y;
            parts(block * CHUNK, rest.len(), cols, |row, col, len| {
                let (y, after) = std::mem::take(&mut rest).split_at_mut(len);
                rest = after;
                let chosen = flags[row] > A::ZERO;
                let (from, first) = match form {
                    _ if chosen => (x, row * cols + col),
                    Form::Rows => (other, row * cols + col),
                    Form::Row => (other, col),
                    Form::One => return y.fill(other.map_or(T::put(A::ZERO), |o| o[0])),
                };
                match from {
                    Some(from) => y.copy_from_slice(&from[first..][..len]),
                    None => y.fill(T::put(A::ZERO)),
                }
            });
        });
        Ok(())
    })
}

/// `dy` where it was not chosen, summed to the extents of one row or of one number.
pub(super) fn sum(dy: &Tensor, flags: &Tensor, Dims { cols, form, .. }: Dims, sum: &mut Tensor) -> Result<()> {
    with_float!(OP, "dy", dy.dtype(), T => {
        type A = <T as Float>::Acc;
        let (dy, flags, sum) = (dy.as_slice::<T>()?, flags.as_slice::<A>()?, sum.as_mut_slice::<A>()?);
        let left_out = |row: usize| flags[row] > A::ZERO;
        if form == Form::One {
            let blocks = dy.par_chunks(CHUNK).enumerate().map(|(block, dy)| {
                let (mut total, mut first) = (A::ZERO, 0);
                parts(block * CHUNK, dy.len(), cols, |row, _, len| {
                    if !left_out(row) {
                        let dy = &dy[first..][..len];
                        total += simd(#[inline(always)] || math::sum(len, #[inline(always)] |i| dy[i].get()));
                    }
                    first += len;
                });
                total
            });
            sum[0] = blocks.collect::<Vec<A>>().into_iter().sum();
            return Ok(());
        }
        sum.par_chunks_mut(COLS).enumerate().for_each(|(block, sum)| {
            sum.fill(A::ZERO);
            for (_, dy) in dy.chunks_exact(cols).enumerate().filter(|(row, _)| !left_out(*row)) {
                let dy = &dy[block * COLS..][..sum.len()];
                simd(#[inline(always)] || {
                    for (sum, d) in sum.iter_mut().zip(dy) {
                        *sum += d.get();
                    }
                });
            }
        });
        Ok(())
    })
}
