//! Panels on the host: the products are the GEMM library's, what is between them is a loop over rows, parallel over blocks
//! of them. Sums of a row are in lanes of the arithmetic type, all others in f64, in a fixed order.

use std::ops::AddAssign;

use rayon::prelude::*;

use super::{Dims, Gradients, OP, Part};
use crate::device::host::{CHUNK, simd};
use crate::dtype::{Float, Real, num_like::Ops};
use crate::{Result, Tensor, with_float};

/// Rows per task.
const ROWS: usize = 8;
/// Sums run in this many lanes: the order is the same on every machine and the compiler can use vectors.
const LANES: usize = 16;

/// What is added up over pairs; the names are those of `struct PairSums` of the kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sums {
    loss: f64,
    g: f64,
    gs: f64,
    positive: f64,
    negative: f64,
    most: f64,
}

impl Default for Sums {
    fn default() -> Self {
        Self { loss: 0.0, g: 0.0, gs: 0.0, positive: 0.0, negative: 0.0, most: f64::NEG_INFINITY }
    }
}

impl AddAssign for Sums {
    fn add_assign(&mut self, other: Self) {
        self.loss += other.loss;
        self.g += other.g;
        self.gs += other.gs;
        self.positive += other.positive;
        self.negative += other.negative;
        self.most = Ops::max(self.most, other.most);
    }
}

/// Adds up the pairs whose cosines are the part's first `rows x cols` elements of `s`, and, with `gradient`, puts
/// `n dL/dl` in their place.
pub(super) fn panel(
    s: &mut Tensor,
    log_scale: &Tensor,
    bias: &Tensor,
    part: Part,
    gradient: bool,
    sums: &mut Sums,
) -> Result<()> {
    with_float!(OP, "x", s.dtype(), T => {
        type A = <T as Float>::Acc;
        let (t, b) = (log_scale.as_slice::<A>()?[0].exp(), bias.as_slice::<A>()?[0]);
        let (Part { rows, cols, shift, .. }, s) = (part, s.as_mut_slice::<A>()?);
        let of_block = |(block, s): (usize, &mut [A])| simd(#[inline(always)] || {
            let mut sums = Sums::default();
            for (i, row) in s.chunks_exact_mut(cols).enumerate() {
                let at = usize::try_from((block * ROWS + i) as i64 + shift).ok().filter(|&at| at < cols);
                row_sums(row, at, t, b, gradient, &mut sums);
            }
            sums
        });
        let blocks: Vec<Sums> = s[..rows * cols].par_chunks_mut(ROWS * cols).enumerate().map(of_block).collect();
        blocks.into_iter().for_each(|block| *sums += block);
        Ok(())
    })
}

/// One row, whose positive, if any, is at `at`.
#[inline(always)]
fn row_sums<A: Real>(row: &mut [A], at: Option<usize>, t: A, b: A, gradient: bool, sums: &mut Sums) {
    let (before, rest) = row.split_at_mut(at.unwrap_or(row.len()));
    negatives(before, t, b, gradient, sums);
    if let Some((positive, after)) = rest.split_first_mut() {
        let s = *positive;
        let (loss, sigmoid) = softplus(-(t * s + b));
        sums.loss += loss.f64();
        sums.positive += s.f64();
        sums.g -= sigmoid.f64();
        sums.gs -= (sigmoid * s).f64();
        if gradient {
            *positive = -sigmoid;
        }
        negatives(after, t, b, gradient, sums);
    }
}

#[inline(always)]
fn negatives<A: Real>(row: &mut [A], t: A, b: A, gradient: bool, sums: &mut Sums) {
    let mut lanes = Lanes { v: [[A::ZERO; LANES]; 4], most: [A::NEG_INFINITY; LANES] };
    let (groups, rest) = row.as_chunks_mut::<LANES>();
    for group in groups {
        for (i, s) in group.iter_mut().enumerate() {
            lanes.take(i, s, t, b, gradient);
        }
    }
    for (i, s) in rest.iter_mut().enumerate() {
        lanes.take(i, s, t, b, gradient);
    }
    let [loss, g, gs, negative] = lanes.v.map(|v| v.into_iter().map(Ops::f64).sum::<f64>());
    let most = lanes.most.into_iter().fold(A::NEG_INFINITY, A::max).f64();
    *sums += Sums { loss, g, gs, positive: 0.0, negative, most };
}

/// Sums of a row's negatives.
struct Lanes<A> {
    /// loss, g, gs, negative
    v: [[A; LANES]; 4],
    most: [A; LANES],
}

impl<A: Real> Lanes<A> {
    #[inline(always)]
    fn take(&mut self, i: usize, s: &mut A, t: A, b: A, gradient: bool) {
        let cosine = *s;
        let (loss, sigmoid) = softplus(t * cosine + b);
        self.v[0][i] += loss;
        self.v[1][i] += sigmoid;
        self.v[2][i] += sigmoid * cosine;
        self.v[3][i] += cosine;
        self.most[i] = self.most[i].max(cosine);
        if gradient {
            *s = sigmoid;
        }
    }
}

/// `ln(1 + e^a)` and its derivative, from the tail `e^-|a|`, which no `a` overflows.
#[inline(always)]
fn softplus<A: Ops>(a: A) -> (A, A) {
    let e = (-a.abs()).exp();
    let inverse = A::ONE / (A::ONE + e);
    (a.max(A::ZERO) + e.ln_1p(), if a < A::ZERO { e * inverse } else { inverse })
}

/// Loss, statistics and gradients from the sums of all pairs.
pub(super) fn finish(
    sums: &Sums,
    log_scale: &Tensor,
    bias: &Tensor,
    dims: Dims,
    loss: &mut Tensor,
    logits: &mut Tensor,
    gradients: Option<&mut Gradients>,
) -> Result<()> {
    with_float!(OP, "x", loss.dtype(), T => {
        type A = <T as Float>::Acc;
        let (t, b, n) = (log_scale.as_slice::<A>()?[0].exp().f64(), bias.as_slice::<A>()?[0].f64(), dims.divisor as f64);
        let [positives, negatives] = dims.counts();
        let of = |count: usize, logit: f64| if count > 0 { A::of(logit) } else { A::of(f64::NAN) };
        loss.as_mut_slice::<A>()?[0] = A::of(sums.loss / n);
        logits.as_mut_slice::<A>()?.copy_from_slice(&[
            of(positives, t * sums.positive / positives as f64 + b),
            of(negatives, t * sums.negative / negatives as f64 + b),
            of(negatives, t * sums.most + b),
        ]);
        if let Some(Gradients { factor, dlog_scale, dbias, .. }) = gradients {
            factor.as_mut_slice::<A>()?[0] = A::of(t / n);
            dlog_scale.as_mut_slice::<A>()?[0] = A::of(t * sums.gs / n);
            dbias.as_mut_slice::<A>()?[0] = A::of(sums.g / n);
        }
        Ok(())
    })
}

/// `dloss · factor · sums`, into `other` or in place.
pub(super) fn scaled(
    sums: &mut Tensor,
    factor: Option<&Tensor>,
    dloss: &Tensor,
    other: Option<&mut Tensor>,
) -> Result<()> {
    with_float!(OP, "dloss", dloss.dtype(), S => {
        type A = <S as Float>::Acc;
        let factor = factor.map(Tensor::as_slice::<A>).transpose()?.map_or(A::ONE, |f| f[0]);
        let factor = dloss.as_slice::<A>()?[0] * factor;
        let Some(other) = other else {
            sums.as_mut_slice::<A>()?.par_chunks_mut(CHUNK).for_each(|x| simd(#[inline(always)] || {
                x.iter_mut().for_each(|x| *x *= factor);
            }));
            return Ok(());
        };
        let sums = sums.as_slice::<A>()?;
        with_float!(OP, "x", other.dtype(), T => {
            let y = other.as_mut_slice::<T>()?;
            y.par_chunks_mut(CHUNK).zip(sums.par_chunks(CHUNK)).for_each(|(y, x)| simd(#[inline(always)] || {
                y.iter_mut().zip(x).for_each(|(y, &x)| *y = T::put(<T as Float>::Acc::of((factor * x).f64())));
            }));
            Ok(())
        })
    })
}
