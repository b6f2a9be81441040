//! Plain loops, parallel over blocks of rows. Blocks are fixed, so sums do not depend on the number of threads.

use rayon::prelude::*;

use super::{Dims, OP};
use crate::device::host::simd;
use crate::dtype::{Float, num_like::Ops};
use crate::{Result, Tensor, with_float};

/// Rows per task; also the order in which column sums are added up.
const ROWS: usize = 32;

pub(super) fn forward(
    x: &Tensor,
    eps: f32,
    dims: Dims,
    y: &mut Tensor,
    mean: &mut Tensor,
    var: &mut Tensor,
) -> Result<()> {
    with_float!(OP, "x", x.dtype(), T => {
        type A = <T as Float>::Acc;
        let (values, n) = (x.as_slice::<T>()?, A::of(dims.rows as f64));
        let (m, v) = (mean.as_mut_slice::<A>()?, var.as_mut_slice::<A>()?);
        column_sums(dims, m, #[inline(always)] |at, _| values[at].get());
        m.iter_mut().for_each(|m| *m /= n);
        let m = &*m;
        column_sums(dims, v, #[inline(always)] |at, col| {
            let d = values[at].get() - m[col];
            d * d
        });
        v.iter_mut().for_each(|v| *v /= n);
        Ok::<(), crate::Error>(())
    })?;
    normalize(x, mean, var, eps, dims, y)
}

pub(super) fn backward(
    dy: &Tensor,
    x: &Tensor,
    mean: &Tensor,
    var: &Tensor,
    eps: f32,
    dims: Dims,
    dx: &mut Tensor,
) -> Result<()> {
    with_float!(OP, "x", x.dtype(), T => {
        type A = <T as Float>::Acc;
        let (dy, x, dx) = (dy.as_slice::<T>()?, x.as_slice::<T>()?, dx.as_mut_slice::<T>()?);
        let (mean, rstd) = (mean.as_slice::<A>()?, rstd(var.as_slice::<A>()?, eps));
        let (mut mean_g, mut mean_gx) = (vec![A::ZERO; dims.cols], vec![A::ZERO; dims.cols]);
        column_sums(dims, &mut mean_g, #[inline(always)] |at, _| dy[at].get());
        column_sums(dims, &mut mean_gx, #[inline(always)] |at, col| {
            dy[at].get() * (x[at].get() - mean[col]) * rstd[col]
        });
        let n = A::of(dims.rows as f64);
        mean_g.iter_mut().chain(&mut mean_gx).for_each(|m| *m /= n);
        for_each_row(dims, dx, #[inline(always)] |at, col| {
            let normed = (x[at].get() - mean[col]) * rstd[col];
            T::put(rstd[col] * (dy[at].get() - mean_g[col] - normed * mean_gx[col]))
        });
        Ok(())
    })
}

pub(super) fn normalize(x: &Tensor, mean: &Tensor, var: &Tensor, eps: f32, dims: Dims, y: &mut Tensor) -> Result<()> {
    with_float!(OP, "x", x.dtype(), T => {
        type A = <T as Float>::Acc;
        let (x, y) = (x.as_slice::<T>()?, y.as_mut_slice::<T>()?);
        let (mean, rstd) = (mean.as_slice::<A>()?, rstd(var.as_slice::<A>()?, eps));
        for_each_row(dims, y, #[inline(always)] |at, col| T::put((x[at].get() - mean[col]) * rstd[col]));
        Ok(())
    })
}

fn rstd<A: Ops>(var: &[A], eps: f32) -> Vec<A> {
    var.iter().map(|&v| A::ONE / (v + A::of(eps.into())).sqrt()).collect()
}

/// `sums[col] = Σ_row term(row · cols + col, col)`.
fn column_sums<A: Ops + Send + Sync>(
    Dims { rows, cols }: Dims,
    sums: &mut [A],
    term: impl Fn(usize, usize) -> A + Sync,
) {
    let blocks = (0..rows.div_ceil(ROWS)).into_par_iter();
    let parts: Vec<Vec<A>> = blocks
        .map(|block| {
            let mut part = vec![A::ZERO; cols];
            simd(
                #[inline(always)]
                || {
                    for row in block * ROWS..rows.min((block + 1) * ROWS) {
                        for (col, sum) in part.iter_mut().enumerate() {
                            *sum += term(row * cols + col, col);
                        }
                    }
                },
            );
            part
        })
        .collect();
    sums.fill(A::ZERO);
    for part in parts {
        sums.iter_mut().zip(part).for_each(|(sum, p)| *sum += p);
    }
}

/// `y[at] = value(at, col)`, parallel over blocks of rows.
fn for_each_row<T: Float>(Dims { cols, .. }: Dims, y: &mut [T], value: impl Fn(usize, usize) -> T + Sync) {
    if cols == 0 {
        return;
    }
    y.par_chunks_mut(ROWS * cols).enumerate().for_each(|(block, y)| {
        simd(
            #[inline(always)]
            || {
                for (row, y) in y.chunks_exact_mut(cols).enumerate() {
                    let first = (block * ROWS + row) * cols;
                    for (col, y) in y.iter_mut().enumerate() {
                        *y = value(first + col, col);
                    }
                }
            },
        );
    });
}
