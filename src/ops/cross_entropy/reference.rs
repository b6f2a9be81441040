//! Plain loops, parallel over blocks of rows; the rows' losses are summed in order.

use rayon::prelude::*;

use super::{Dims, OP, Targets};
use crate::device::host::simd;
use crate::dtype::{Float, num_like::Ops};
use crate::math::{max, sum};
use crate::{Result, Tensor, with_float};

/// Rows per task.
const ROWS: usize = 16;

/// Targets of one row.
#[derive(Clone, Copy)]
enum Row<'a, A> {
    Class(usize),
    Soft(&'a [A]),
}

/// Targets as host slices.
#[derive(Clone, Copy)]
enum Rows<'a, A> {
    Classes(&'a [i32]),
    Soft(&'a [A]),
}

impl<'a, A: crate::dtype::Element> Rows<'a, A> {
    fn of(targets: Targets<'a>) -> Result<Self> {
        Ok(match targets {
            Targets::Classes(t) => Self::Classes(t.as_slice()?),
            Targets::Soft(t) => Self::Soft(t.as_slice()?),
        })
    }

    fn row(self, row: usize, cols: usize) -> Row<'a, A> {
        match self {
            Self::Classes(t) => Row::Class(t[row] as usize), // `Dims::check` refused negative ones
            Self::Soft(t) => Row::Soft(&t[row * cols..][..cols]),
        }
    }
}

pub(super) fn forward(
    logits: &Tensor,
    targets: Targets<'_>,
    smoothing: f32,
    Dims { rows, cols }: Dims,
    loss: &mut Tensor,
    lse: &mut Tensor,
) -> Result<()> {
    with_float!(OP, "logits", logits.dtype(), T => {
        type A = <T as Float>::Acc;
        let (x, targets) = (logits.as_slice::<T>()?, Rows::<A>::of(targets)?);
        let (loss, lse) = (loss.as_mut_slice::<A>()?, lse.as_mut_slice::<A>()?);
        let mut losses = vec![A::ZERO; rows];
        let blocks = losses.par_chunks_mut(ROWS).zip(lse.par_chunks_mut(ROWS)).zip(x.par_chunks(ROWS * cols));
        blocks.enumerate().for_each(|(block, ((losses, lse), x))| simd(#[inline(always)] || {
            let block_rows = losses.iter_mut().zip(lse).zip(x.chunks_exact(cols));
            for (row, ((loss, lse), x)) in block_rows.enumerate() {
                let target = targets.row(block * ROWS + row, cols);
                (*loss, *lse) = forward_row(x, target, A::of(smoothing.into()));
            }
        }));
        loss[0] = losses.into_iter().sum::<A>() / A::of(rows as f64);
        Ok(())
    })
}

/// The row's loss and lse.
#[inline(always)]
fn forward_row<T: Float>(x: &[T], target: Row<'_, T::Acc>, smoothing: T::Acc) -> (T::Acc, T::Acc) {
    let zero = T::Acc::ZERO;
    let n = x.len();
    let largest = max(
        n,
        #[inline(always)]
        |i| x[i].get(),
    );
    let lse = largest
        + sum(
            n,
            #[inline(always)]
            |i| (x[i].get() - largest).exp(),
        )
        .ln();
    let loss = match target {
        // 0 times an infinite -log p is 0
        Row::Soft(t) => sum(
            n,
            #[inline(always)]
            |i| if t[i] == zero { zero } else { t[i] * (lse - x[i].get()) },
        ),
        Row::Class(c) => {
            let hit = (T::Acc::ONE - smoothing) * (lse - x[c].get());
            if smoothing == zero {
                hit
            } else {
                hit + smoothing
                    * sum(
                        n,
                        #[inline(always)]
                        |i| lse - x[i].get(),
                    )
                    / T::Acc::of(n as f64)
            }
        }
    };
    (loss, lse)
}

pub(super) fn backward(
    dloss: &Tensor,
    logits: &Tensor,
    lse: &Tensor,
    targets: Targets<'_>,
    smoothing: f32,
    Dims { rows, cols }: Dims,
    dlogits: &mut Tensor,
) -> Result<()> {
    with_float!(OP, "logits", logits.dtype(), T => {
        type A = <T as Float>::Acc;
        let (x, lse, targets) = (logits.as_slice::<T>()?, lse.as_slice::<A>()?, Rows::<A>::of(targets)?);
        let dx = dlogits.as_mut_slice::<T>()?;
        let scale = dloss.as_slice::<A>()?[0] / A::of(rows as f64);
        let blocks = dx.par_chunks_mut(ROWS * cols).zip(x.par_chunks(ROWS * cols)).zip(lse.par_chunks(ROWS));
        blocks.enumerate().for_each(|(block, ((dx, x), lse))| simd(#[inline(always)] || {
            let block_rows = dx.chunks_exact_mut(cols).zip(x.chunks_exact(cols)).zip(lse);
            for (row, ((dx, x), lse)) in block_rows.enumerate() {
                let target = targets.row(block * ROWS + row, cols);
                backward_row(x, *lse, target, A::of(smoothing.into()), scale, dx);
            }
        }));
        Ok(())
    })
}

#[inline(always)]
fn backward_row<T: Float>(
    x: &[T],
    lse: T::Acc,
    target: Row<'_, T::Acc>,
    smoothing: T::Acc,
    scale: T::Acc,
    dx: &mut [T],
) {
    match target {
        Row::Soft(t) => {
            let total = sum(
                t.len(),
                #[inline(always)]
                |i| t[i],
            );
            for ((dx, x), &t) in dx.iter_mut().zip(x).zip(t) {
                *dx = T::put(scale * (total * (x.get() - lse).exp() - t));
            }
        }
        Row::Class(c) => {
            let off = smoothing / T::Acc::of(x.len() as f64);
            for (dx, x) in dx.iter_mut().zip(x) {
                *dx = T::put(scale * ((x.get() - lse).exp() - off));
            }
            let hit = (x[c].get() - lse).exp() - off - (T::Acc::ONE - smoothing);
            dx[c] = T::put(scale * hit);
        }
    }
}
