//! Plain loops over lines of the maps with the channels innermost. Blocks of lines are fixed, so sums do not depend on
//! the number of threads.

use std::ops::Range;

use rayon::prelude::*;

use super::{Dims, OP};
use crate::device::host::simd;
use crate::dtype::{Float, num_like::Ops};
use crate::{Result, Tensor, with_float};

/// Lines per task of the kernels' gradient; also the order in which its sums are added up.
const LINES: usize = 8;

pub(super) fn forward(x: &Tensor, w: &Tensor, b: &Tensor, dims: Dims, y: &mut Tensor) -> Result<()> {
    with_float!(OP, "x", x.dtype(), T => {
        let bias: Vec<_> = b.as_slice::<T>()?.iter().map(|b| b.get()).collect();
        let taps = by_tap(w.as_slice::<T>()?, dims, |tap| tap);
        convolve(x.as_slice::<T>()?, &taps, &bias, dims, y.as_mut_slice()?);
        Ok(())
    })
}

pub(super) fn backward_x(dy: &Tensor, w: &Tensor, dims: Dims, dx: &mut Tensor) -> Result<()> {
    with_float!(OP, "dy", dy.dtype(), T => {
        let taps = by_tap(w.as_slice::<T>()?, dims, |tap| dims.taps() - 1 - tap);
        convolve(dy.as_slice::<T>()?, &taps, &vec![<T as Float>::Acc::ZERO; dims.channels], dims, dx.as_mut_slice()?);
        Ok(())
    })
}

/// `[k·k, C]` from `[C, k·k]`, the taps of a kernel in the order that `from` says.
fn by_tap<T: Float>(w: &[T], dims: Dims, from: impl Fn(usize) -> usize) -> Vec<T::Acc> {
    let taps = dims.taps();
    (0..taps * dims.channels).map(|at| w[at % dims.channels * taps + from(at / dims.channels)].get()).collect()
}

/// The line of pixels below tap row `u` of output line `line`, if it lies on the map.
fn line_below(Dims { height, kernel, .. }: Dims, line: usize, u: usize) -> Option<usize> {
    let y = (line % height + u).checked_sub(kernel / 2).filter(|&y| y < height)?;
    Some(line - line % height + y)
}

/// Taps of a row of the kernel that lie on the map at column `x`: tap `v` is over column `x + v - k / 2`.
fn taps_inside(Dims { width, kernel, .. }: Dims, x: usize) -> Range<usize> {
    (kernel / 2).saturating_sub(x)..kernel.min(width + kernel / 2 - x)
}

/// `y[i, j, c] = bias[c] + Σ_{u, v} taps[u, v, c] · x[i + u - r, j + v - r, c]`, a line per task.
fn convolve<T: Float>(x: &[T], taps: &[T::Acc], bias: &[T::Acc], dims: Dims, y: &mut [T]) {
    let Dims { width, channels, kernel, .. } = dims;
    let stride = width * channels;
    if stride == 0 {
        return;
    }
    y.par_chunks_mut(stride).enumerate().for_each(|(line, y)| {
        let mut sum = vec![T::Acc::ZERO; channels];
        for (column, y) in y.chunks_exact_mut(channels).enumerate() {
            sum.copy_from_slice(bias);
            for u in 0..kernel {
                let Some(below) = line_below(dims, line, u) else { continue };
                let inside = taps_inside(dims, column);
                let first = column + inside.start - kernel / 2;
                let pixels = x[below * stride..][..stride][first * channels..].chunks_exact(channels);
                let taps = taps[(u * kernel + inside.start) * channels..].chunks_exact(channels);
                simd(
                    #[inline(always)]
                    || pixels.zip(taps).take(inside.len()).for_each(|(x, tap)| add_product(&mut sum, tap, x)),
                );
            }
            y.iter_mut().zip(&sum).for_each(|(y, &sum)| *y = T::put(sum));
        }
    });
}

/// `sum += a ⊙ x`.
#[inline(always)]
fn add_product<T: Float>(sum: &mut [T::Acc], a: &[T::Acc], x: &[T]) {
    for ((sum, &a), x) in sum.iter_mut().zip(a).zip(x) {
        *sum += a * x.get();
    }
}

pub(super) fn backward_w(dy: &Tensor, x: &Tensor, dims: Dims, dw: &mut Tensor, db: &mut Tensor) -> Result<()> {
    let Dims { width, channels, kernel, .. } = dims;
    let (stride, taps) = (width * channels, dims.taps());
    with_float!(OP, "dy", dy.dtype(), T => {
        type A = <T as Float>::Acc;
        let (dy, x) = (dy.as_slice::<T>()?, x.as_slice::<T>()?);
        let (dw, db) = (dw.as_mut_slice::<A>()?, db.as_mut_slice::<A>()?);
        // [k·k + 1, C] of each block of lines: the taps, then the bias.
        let parts: Vec<Vec<A>> = (0..dims.lines().div_ceil(LINES))
            .into_par_iter()
            .map(|block| {
                let mut part = vec![A::ZERO; (taps + 1) * channels];
                if stride == 0 {
                    return part;
                }
                for line in block * LINES..dims.lines().min((block + 1) * LINES) {
                    let dy = &dy[line * stride..][..stride];
                    let (of_taps, of_bias) = part.split_at_mut(taps * channels);
                    simd(#[inline(always)] || dy.chunks_exact(channels).for_each(|dy| add(of_bias, dy)));
                    for u in 0..kernel {
                        let Some(below) = line_below(dims, line, u) else { continue };
                        let x = &x[below * stride..][..stride];
                        for v in 0..kernel {
                            let part = &mut of_taps[(u * kernel + v) * channels..][..channels];
                            // Output columns whose tap `v` lies on the map, and the first of those below.
                            let end = width.min((width + kernel / 2).saturating_sub(v));
                            let columns = (kernel / 2).saturating_sub(v)..end;
                            let Some(below) = (columns.start + v).checked_sub(kernel / 2) else { continue };
                            if columns.is_empty() {
                                continue;
                            }
                            let dy = dy[columns.start * channels..columns.end * channels].chunks_exact(channels);
                            let pixels = x[below * channels..].chunks_exact(channels);
                            simd(
                                #[inline(always)]
                                || dy.zip(pixels).for_each(|(dy, x)| add_products(part, dy, x)),
                            );
                        }
                    }
                }
                part
            })
            .collect();
        let sum = |at: usize| {
            let mut sum = A::ZERO;
            parts.iter().for_each(|part| sum += part[at]);
            sum
        };
        dw.iter_mut().enumerate().for_each(|(at, dw)| *dw = sum(at % taps * channels + at / taps));
        db.iter_mut().enumerate().for_each(|(c, db)| *db = sum(taps * channels + c));
        Ok(())
    })
}

/// `sum += x`.
#[inline(always)]
fn add<T: Float>(sum: &mut [T::Acc], x: &[T]) {
    sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += x.get());
}

/// `sum += a ⊙ b`.
#[inline(always)]
fn add_products<T: Float>(sum: &mut [T::Acc], a: &[T], b: &[T]) {
    for ((sum, a), b) in sum.iter_mut().zip(a).zip(b) {
        *sum += a.get() * b.get();
    }
}
