//! Plain loops, parallel over rows, each row by itself.

use rayon::prelude::*;

use crate::device::host::simd;
use crate::dtype::{Float, num_like::Ops};
use crate::{Result, Tensor, with_float};

/// Elements per task, in whole rows: a few microseconds of work.
const CHUNK: usize = 1 << 13;
/// Sums and maxima run in this many lanes: the order is the same on every machine and the compiler can use vectors.
pub(crate) const LANES: usize = 16;

pub(super) fn forward(x: &Tensor, y: &mut Tensor) -> Result<()> {
    let (_, cols) = x.shape().rows_cols();
    let chunk = CHUNK.div_ceil(cols) * cols;
    with_float!("softmax", "x", x.dtype(), T => {
        let (x, y) = (x.as_slice::<T>()?, y.as_mut_slice::<T>()?);
        y.par_chunks_mut(chunk).zip(x.par_chunks(chunk)).for_each_init(Vec::new, |wide, (y, x)| {
            for (y, x) in y.chunks_exact_mut(cols).zip(x.chunks_exact(cols)) {
                forward_row::<T>(x, y, wide);
            }
        });
        Ok(())
    })
}

fn forward_row<T: Float>(x: &[T], y: &mut [T], wide: &mut Vec<T::Acc>) {
    simd(
        #[inline(always)]
        || {
            wide.resize(x.len().next_multiple_of(LANES), T::Acc::ZERO);
            wide.iter_mut().zip(x).for_each(|(wide, x)| *wide = x.get());
            let (_, sum) = exponentials(wide, x.len());
            let inverse = T::Acc::ONE / sum;
            y.iter_mut().zip(wide).for_each(|(y, wide)| *y = T::put(*wide * inverse));
        },
    );
}

/// The larger; `a` if `b` is NaN, unlike `Ops::max`: one comparison and one selection.
#[inline(always)]
fn larger<A: Ops>(a: A, b: A) -> A {
    if b > a { b } else { a }
}

/// `row[j] = exp(row[j] - max)` for the first `n`; returns the maximum and the sum. The row goes on to a multiple of
/// [`LANES`], which is written. Call it inside [`simd`].
#[inline(always)]
pub(crate) fn exponentials<A: Ops>(row: &mut [A], n: usize) -> (A, A) {
    let row = &mut row[..n.next_multiple_of(LANES)];
    row[n..].fill(A::NEG_INFINITY);
    let mut lanes = [A::NEG_INFINITY; LANES];
    for group in row.as_chunks::<LANES>().0 {
        for (max, &x) in lanes.iter_mut().zip(group) {
            *max = larger(*max, x); // drops NaN, which the sum below keeps
        }
    }
    let max = lanes.into_iter().fold(A::NEG_INFINITY, larger);
    for x in row.iter_mut() {
        *x = (*x - max).exp();
    }
    let mut lanes = [A::ZERO; LANES];
    for group in row.as_chunks::<LANES>().0 {
        for (sum, &x) in lanes.iter_mut().zip(group) {
            *sum += x;
        }
    }
    (max, lanes.into_iter().sum())
}

pub(super) fn backward(dy: &Tensor, y: &Tensor, dx: &mut Tensor) -> Result<()> {
    let (_, cols) = y.shape().rows_cols();
    let chunk = CHUNK.div_ceil(cols) * cols;
    with_float!("softmax", "y", y.dtype(), T => {
        let (dy, y, dx) = (dy.as_slice::<T>()?, y.as_slice::<T>()?, dx.as_mut_slice::<T>()?);
        dx.par_chunks_mut(chunk).zip(y.par_chunks(chunk)).zip(dy.par_chunks(chunk)).for_each(|((dx, y), dy)| {
            let rows = dx.chunks_exact_mut(cols).zip(y.chunks_exact(cols)).zip(dy.chunks_exact(cols));
            rows.for_each(|((dx, y), dy)| backward_row::<T>(dy, y, dx));
        });
        Ok(())
    })
}

fn backward_row<T: Float>(dy: &[T], y: &[T], dx: &mut [T]) {
    simd(
        #[inline(always)]
        || {
            let mut lanes = [T::Acc::ZERO; LANES];
            for (y, dy) in y.chunks(LANES).zip(dy.chunks(LANES)) {
                for ((sum, y), dy) in lanes.iter_mut().zip(y).zip(dy) {
                    *sum += y.get() * dy.get();
                }
            }
            let dot: T::Acc = lanes.into_iter().sum();
            for ((dx, y), dy) in dx.iter_mut().zip(y).zip(dy) {
                *dx = T::put(y.get() * (dy.get() - dot));
            }
        },
    );
}
