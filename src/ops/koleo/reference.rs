//! Plain loops, parallel over rows; the products come from the GEMM library.

use rayon::prelude::*;

use super::{Dims, EPS, OP, Panel, Saved};
use crate::device::host::simd;
use crate::dtype::{Float, num_like::Ops};
use crate::math::sum;
use crate::{Result, Tensor, with_float};

pub(super) fn normalise(
    x: &Tensor,
    first: usize,
    dims: Dims,
    y: &mut Tensor,
    stats: Option<&mut Tensor>,
) -> Result<()> {
    with_float!(OP, "x", x.dtype(), T => {
        type A = <T as Float>::Acc;
        let (x, y) = (x.as_slice::<T>()?, y.as_mut_slice::<A>()?);
        let rows = y.len().checked_div(dims.cols).unwrap_or(dims.group);
        let norm = |row: usize| norm(&x[(first + row) * dims.cols..][..dims.cols]);
        let norms: Vec<A> = (0..rows).into_par_iter().map(norm).collect();
        if dims.cols > 0 {
            y.par_chunks_mut(dims.cols).enumerate().for_each(|(row, y)| {
                let (x, inverse) = (&x[(first + row) * dims.cols..][..dims.cols], inverse(norms[row]));
                simd(#[inline(always)] || {
                    for (y, x) in y.iter_mut().zip(x) {
                        *y = x.get() * inverse;
                    }
                });
            });
        }
        if let Some(stats) = stats {
            let stats = &mut stats.as_mut_slice::<A>()?[2 * first..];
            stats.chunks_exact_mut(2).zip(&norms).for_each(|(s, norm)| s[0] = *norm);
        }
        Ok(())
    })
}

fn norm<T: Float>(x: &[T]) -> T::Acc {
    let square = simd(
        #[inline(always)]
        || {
            sum(
                x.len(),
                #[inline(always)]
                |c| x[c].get() * x[c].get(),
            )
        },
    );
    square.sqrt()
}

/// What a row of this norm is multiplied by.
fn inverse<A: Ops>(norm: A) -> A {
    A::ONE / if norm < A::of(EPS) { A::of(EPS) } else { norm }
}

pub(super) fn nearest(
    scores: &Tensor,
    all: &Tensor,
    Panel { first, at, .. }: Panel,
    Dims { cols, group, .. }: Dims,
    stats: &mut Tensor,
    neighbours: &mut Tensor,
) -> Result<()> {
    with_float!(OP, "x", all.dtype(), T => {
        type A = <T as Float>::Acc; // what `all` already is
        let (scores, all) = (scores.as_slice::<A>()?, all.as_slice::<A>()?);
        let found: Vec<(usize, A)> = scores
            .par_chunks(group)
            .enumerate()
            .map(|(i, scores)| {
                let own = at + i;
                let (mut best, mut nearest) = (<A as Ops>::NEG_INFINITY, own);
                for (j, &score) in scores.iter().enumerate() {
                    let score = if j == own { -A::ONE } else { score };
                    if score > best {
                        (best, nearest) = (score, j);
                    }
                }
                let (a, b) = (&all[own * cols..][..cols], &all[nearest * cols..][..cols]);
                let square = simd(#[inline(always)] || sum(cols, #[inline(always)] |c| {
                    let d = a[c] - b[c] + A::of(EPS);
                    d * d
                }));
                (nearest, square.sqrt())
            })
            .collect();
        let stats = stats.as_mut_slice::<A>()?[2 * (first + at)..].chunks_exact_mut(2);
        let neighbours = &mut neighbours.as_mut_slice::<i32>()?[first + at..];
        for ((s, n), (nearest, distance)) in stats.zip(neighbours).zip(found) {
            s[1] = distance;
            *n = (first + nearest) as i32;
        }
        Ok(())
    })
}

pub(super) fn mean(stats: &Tensor, Dims { rows, group, .. }: Dims, loss: &mut Tensor) -> Result<()> {
    with_float!(OP, "x", stats.dtype(), T => {
        type A = <T as Float>::Acc; // what `stats` already is
        let stats = stats.as_slice::<A>()?;
        let logs = sum(rows, |i| (stats[2 * i + 1] + A::of(EPS)).ln());
        loss.as_mut_slice::<A>()?[0] = -logs / A::of(group as f64);
        Ok(())
    })
}

pub(super) fn backward(dloss: &Tensor, x: &Tensor, saved: &Saved, dims: Dims, dx: &mut Tensor) -> Result<()> {
    let Dims { rows, cols, group } = dims;
    with_float!(OP, "x", x.dtype(), T => {
        type A = <T as Float>::Acc;
        let (dloss, x, dx) = (dloss.as_slice::<A>()?[0], x.as_slice::<T>()?, dx.as_mut_slice::<T>()?);
        let (stats, neighbours) = (saved.stats.as_slice::<A>()?, saved.neighbours.as_slice::<i32>()?);
        if cols == 0 {
            return Ok(());
        }
        let mut followers = vec![vec![]; rows]; // of each row, ascending
        neighbours.iter().enumerate().for_each(|(j, &n)| followers[n as usize].push(j));
        let factor = |i: usize| {
            let distance = stats[2 * i + 1];
            if distance == A::ZERO { A::ZERO } else { -dloss / A::of(group as f64) / (distance + A::of(EPS)) / distance }
        };
        dx.par_chunks_mut(cols).enumerate().for_each(|(i, dx)| {
            let row = |i: usize| (&x[i * cols..][..cols], inverse(stats[2 * i]));
            let (own, inverse) = row(i);
            let mut g = vec![A::ZERO; cols];
            let mut send = |from: usize, to: usize, factor: A| {
                if from == to {
                    return; // what it sends to itself cancels, but for rounding
                }
                let ((a, la), (b, lb)) = (row(from), row(to));
                simd(#[inline(always)] || {
                    for (g, (a, b)) in g.iter_mut().zip(a.iter().zip(b)) {
                        *g += factor * (a.get() * la - b.get() * lb + A::of(EPS));
                    }
                });
            };
            send(i, neighbours[i] as usize, factor(i));
            followers[i].iter().for_each(|&j| send(j, i, -factor(j)));
            let dot = simd(#[inline(always)] || sum(cols, #[inline(always)] |c| g[c] * (own[c].get() * inverse)));
            let dot = if stats[2 * i] < A::of(EPS) { A::ZERO } else { dot };
            for (dx, (g, own)) in dx.iter_mut().zip(g.iter().zip(own)) {
                *dx = T::put((*g - own.get() * inverse * dot) * inverse);
            }
        });
        Ok(())
    })
}
