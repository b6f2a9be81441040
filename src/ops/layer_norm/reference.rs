//! Plain loops, parallel over rows. Row blocks are fixed, so sums do not depend on the number of threads.

use rayon::prelude::*;

use super::Dims;
use crate::device::host::simd;
use crate::dtype::{Float, num_like::Ops};
use crate::math::sum;
use crate::{Result, Tensor, with_float};

/// Rows per task; also the order in which the weight gradients are summed.
pub(in crate::ops) const ROWS: usize = 32;

pub(super) fn forward(
    x: &Tensor,
    w: &Tensor,
    b: &Tensor,
    eps: f32,
    Dims { cols, .. }: Dims,
    y: &mut Tensor,
    stats: &mut Tensor,
) -> Result<()> {
    with_float!("layer_norm", "x", x.dtype(), T => {
        type A = <T as Float>::Acc;
        let (x, w, b) = (x.as_slice::<T>()?, w.as_slice::<T>()?, b.as_slice::<T>()?);
        let (y, stats) = (y.as_mut_slice::<T>()?, stats.as_mut_slice::<A>()?);
        if cols == 0 {
            return Ok(());
        }
        y.par_chunks_mut(ROWS * cols).zip(x.par_chunks(ROWS * cols)).zip(stats.par_chunks_mut(ROWS * 2)).for_each(
            |((y, x), stats)| simd(#[inline(always)] || {
                for ((y, x), s) in y.chunks_exact_mut(cols).zip(x.chunks_exact(cols)).zip(stats.chunks_exact_mut(2)) {
                    forward_row::<T>(x, w, b, A::of(eps.into()), y, s);
                }
            }),
        );
        Ok(())
    })
}

/// One row: `y`, mean and rstd.
#[inline(always)]
pub(in crate::ops) fn forward_row<T: Float>(x: &[T], w: &[T], b: &[T], eps: T::Acc, y: &mut [T], stats: &mut [T::Acc]) {
    let n = T::Acc::of(x.len() as f64);
    let mean = sum(
        x.len(),
        #[inline(always)]
        |i| x[i].get(),
    ) / n;
    let var = sum(
        x.len(),
        #[inline(always)]
        |i| {
            let d = x[i].get() - mean;
            d * d
        },
    ) / n;
    let rstd = T::Acc::ONE / (var + eps).sqrt();
    for i in 0..x.len() {
        y[i] = T::put((x[i].get() - mean) * rstd * w[i].get() + b[i].get());
    }
    stats[0] = mean;
    stats[1] = rstd;
}

/// `dsum`, if there is one, is added to `dx`.
pub(in crate::ops) fn backward(
    dy: &Tensor,
    x: &Tensor,
    w: &Tensor,
    stats: &Tensor,
    dsum: Option<&Tensor>,
    Dims { cols, .. }: Dims,
    dx: &mut Tensor,
    dw: &mut Tensor,
    db: &mut Tensor,
) -> Result<()> {
    with_float!("layer_norm", "x", x.dtype(), T => {
        type A = <T as Float>::Acc;
        let (dy, x, w, stats) = (dy.as_slice::<T>()?, x.as_slice::<T>()?, w.as_slice::<T>()?, stats.as_slice::<A>()?);
        let dsum = dsum.map(Tensor::as_slice::<T>).transpose()?;
        let (dx, dw, db) = (dx.as_mut_slice::<T>()?, dw.as_mut_slice::<A>()?, db.as_mut_slice::<A>()?);
        if cols == 0 {
            return Ok(());
        }
        let block = ROWS * cols;
        let blocks = dx.par_chunks_mut(block).zip(x.par_chunks(block)).zip(dy.par_chunks(block));
        let parts: Vec<Vec<A>> = blocks
            .zip(stats.par_chunks(ROWS * 2))
            .enumerate()
            .map(|(at, (((dx, x), dy), stats))| {
                let mut part = vec![A::ZERO; 2 * cols]; // dw, db of this block
                let (pw, pb) = part.split_at_mut(cols);
                let dsum = dsum.map(|d| &d[at * block..][..dx.len()]);
                simd(#[inline(always)] || {
                    let rows = dx.chunks_exact_mut(cols).zip(x.chunks_exact(cols)).zip(dy.chunks_exact(cols));
                    for (row, (((dx, x), dy), s)) in rows.zip(stats.chunks_exact(2)).enumerate() {
                        match dsum.map(|d| &d[row * cols..][..cols]) {
                            None => backward_row(dy, x, w, s[0], s[1], #[inline(always)] |_| A::ZERO, dx, pw, pb),
                            Some(d) => backward_row(dy, x, w, s[0], s[1], #[inline(always)] |i| d[i].get(), dx, pw, pb),
                        }
                    }
                });
                part
            })
            .collect();
        dw.fill(A::ZERO);
        db.fill(A::ZERO);
        for part in parts {
            dw.iter_mut().zip(&part[..cols]).for_each(|(d, &p)| *d += p);
            db.iter_mut().zip(&part[cols..]).for_each(|(d, &p)| *d += p);
        }
        Ok(())
    })
}

/// One row: `dx = LayerNorm's + extra`, and its share of `dw` and `db`.
#[inline(always)]
fn backward_row<T: Float>(
    dy: &[T],
    x: &[T],
    w: &[T],
    mean: T::Acc,
    rstd: T::Acc,
    extra: impl Fn(usize) -> T::Acc,
    dx: &mut [T],
    dw: &mut [T::Acc],
    db: &mut [T::Acc],
) {
    let n = x.len();
    let scale = T::Acc::ONE / T::Acc::of(n as f64);
    let mean_g = sum(
        n,
        #[inline(always)]
        |i| dy[i].get() * w[i].get(),
    ) * scale;
    let mean_gx = sum(
        n,
        #[inline(always)]
        |i| dy[i].get() * w[i].get() * (x[i].get() - mean) * rstd,
    ) * scale;
    for i in 0..n {
        let (g, normed) = (dy[i].get(), (x[i].get() - mean) * rstd);
        dx[i] = T::put(rstd * (g * w[i].get() - mean_g - normed * mean_gx) + extra(i));
        dw[i] += g * normed;
        db[i] += g;
    }
}
