//! Panels on the host: the products are the GEMM library's, what is between them are loops over rows and over groups of
//! columns, parallel. Sums of a row and of a panel's column are in the arithmetic type, all others in f64, in a fixed order.

use rayon::prelude::*;

use super::{Dims, Gradients, OP};
use crate::device::host::simd;
use crate::dtype::{Float, Real, num_like::Ops};
use crate::ops::pairs::Part;
use crate::{Result, Tensor, with_float};

/// Rows per task.
const ROWS: usize = 8;
/// Columns per task, and lanes of a row's sums: the order is the same on every machine and the compiler can use vectors.
const LANES: usize = 16;

/// Largest logit and the sum of the exponentials of all, from that one.
#[derive(Clone, Copy, Debug)]
struct Softmax {
    most: f64,
    sum: f64,
}

impl Softmax {
    const NOTHING: Self = Self { most: f64::NEG_INFINITY, sum: 0.0 };

    fn add(&mut self, other: Self) {
        let most = Ops::max(self.most, other.most);
        let from = |s: &Self| if s.sum == 0.0 { 0.0 } else { s.sum * (s.most - most).exp() };
        *self = Self { most, sum: from(self) + from(&other) };
    }

    fn log(self) -> f64 {
        self.most + self.sum.ln()
    }

    /// What turns a logit into its share: the logit to subtract, the factor of the exponential.
    fn share<A: Real>(self, weight: f64) -> [A; 2] {
        [A::of(self.most), A::of(weight / self.sum)]
    }
}

/// A row's softmax, and what the statistics are made of.
#[derive(Clone, Copy, Debug)]
struct Row {
    softmax: Softmax,
    /// Logit.
    positive: f64,
    /// Sum of cosines.
    negative: f64,
    /// Largest cosine of a negative.
    most: f64,
}

/// What is kept of rows and columns.
pub(super) struct Sums {
    rows: Vec<Row>,
    cols: Vec<Softmax>,
    /// `Σ n dL/dl s`.
    gs: f64,
}

impl Sums {
    pub(super) fn new(dims: Dims) -> Self {
        let row = Row { softmax: Softmax::NOTHING, positive: 0.0, negative: 0.0, most: f64::NEG_INFINITY };
        let cols = if dims.sides.weights()[1] > 0.0 { dims.cols } else { 0 };
        Self { rows: vec![row; dims.rows], cols: vec![Softmax::NOTHING; cols], gs: 0.0 }
    }
}

/// Takes in the pairs whose cosines are the part's first `rows x cols` elements of `s`.
pub(super) fn statistics(s: &Tensor, log_scale: &Tensor, dims: Dims, part: Part, sums: &mut Sums) -> Result<()> {
    with_float!(OP, "x", s.dtype(), T => {
        type A = <T as Float>::Acc;
        let t = log_scale.as_slice::<A>()?[0].exp();
        let Part { row, col, rows, cols, shift } = part;
        let s = &s.as_slice::<A>()?[..rows * cols];
        let held = sums.rows[row..row + rows].par_chunks_mut(ROWS).zip(s.par_chunks(ROWS * cols)).enumerate();
        held.for_each(|(block, (held, s))| simd(#[inline(always)] || {
            for (i, (held, s)) in held.iter_mut().zip(s.chunks_exact(cols)).enumerate() {
                let at = usize::try_from((block * ROWS + i) as i64 + shift).ok().filter(|&at| at < cols);
                take_row(held, s, at, t);
            }
        }));
        if dims.sides.weights()[1] > 0.0 {
            let held = sums.cols[col..col + cols].par_chunks_mut(LANES).enumerate();
            held.for_each(|(group, held)| simd(#[inline(always)] || take_columns(held, s, cols, group * LANES, t)));
        }
        Ok(())
    })
}

/// Adds a part's row, whose positive, if any, is at `at`.
#[inline(always)]
fn take_row<A: Real>(held: &mut Row, s: &[A], at: Option<usize>, t: A) {
    let (mut most, mut sum, mut cosines) = ([A::NEG_INFINITY; LANES], [A::ZERO; LANES], [A::ZERO; LANES]);
    for s in s.chunks(LANES) {
        for (i, &s) in s.iter().enumerate() {
            most[i] = most[i].max(s);
            cosines[i] += s;
        }
    }
    let largest = most.into_iter().fold(A::NEG_INFINITY, Ops::max);
    for s in s.chunks(LANES) {
        for (i, &s) in s.iter().enumerate() {
            sum[i] += (t * s - t * largest).exp();
        }
    }
    held.softmax.add(Softmax { most: (t * largest).f64(), sum: sum.iter().map(|x| x.f64()).sum() });
    held.positive += at.map_or(0.0, |at| (t * s[at]).f64()); // rounded as in the sum: the difference keeps its digits
    held.negative += cosines.iter().map(|x| x.f64()).sum::<f64>() - at.map_or(0.0, |at| s[at].f64());
    let negatives = |s: &[A]| s.iter().fold(A::NEG_INFINITY, |most, &s| Ops::max(most, s)).f64();
    let most = at.map_or(largest.f64(), |at| Ops::max(negatives(&s[..at]), negatives(&s[at + 1..])));
    held.most = Ops::max(held.most, most);
}

/// Adds a part's columns from `first` on.
#[inline(always)]
fn take_columns<A: Real>(held: &mut [Softmax], s: &[A], cols: usize, first: usize, t: A) {
    let (mut most, mut sum) = ([A::NEG_INFINITY; LANES], [A::ZERO; LANES]);
    let n = held.len();
    for row in s.chunks_exact(cols) {
        for (most, &s) in most.iter_mut().zip(&row[first..first + n]) {
            *most = most.max(s);
        }
    }
    for row in s.chunks_exact(cols) {
        for ((sum, &most), &s) in sum.iter_mut().zip(&most).zip(&row[first..first + n]) {
            *sum += (t * s - t * most).exp();
        }
    }
    for ((held, most), sum) in held.iter_mut().zip(most).zip(sum) {
        held.add(Softmax { most: (t * most).f64(), sum: sum.f64() });
    }
}

/// Puts `n dL/dl` in the place of a part's cosines.
pub(super) fn panel(s: &mut Tensor, log_scale: &Tensor, dims: Dims, part: Part, sums: &mut Sums) -> Result<()> {
    with_float!(OP, "x", s.dtype(), T => {
        type A = <T as Float>::Acc;
        let t = log_scale.as_slice::<A>()?[0].exp();
        let [of_rows, of_cols] = dims.sides.weights();
        let Part { row, col, rows, cols, shift } = part;
        let by_col: Vec<[A; 2]> = match of_cols > 0.0 {
            true => sums.cols[col..col + cols].iter().map(|c| c.share(of_cols)).collect(),
            false => vec![[A::ZERO; 2]; cols],
        };
        let by_row = &sums.rows[row..row + rows];
        let s = s.as_mut_slice::<A>()?[..rows * cols].par_chunks_mut(ROWS * cols).zip(by_row.par_chunks(ROWS)).enumerate();
        let blocks: Vec<f64> = s.map(|(block, (s, by_row))| simd(#[inline(always)] || {
            let mut gs = 0.0;
            for (i, (s, of_row)) in s.chunks_exact_mut(cols).zip(by_row).enumerate() {
                let at = usize::try_from((block * ROWS + i) as i64 + shift).ok().filter(|&at| at < cols);
                let positive = at.map(|at| s[at]);
                gs += gradient_row(s, of_row.softmax.share(of_rows), &by_col, of_cols > 0.0, t);
                if let (Some(at), Some(positive)) = (at, positive) {
                    s[at] -= A::ONE;
                    gs -= positive.f64();
                }
            }
            gs
        })).collect();
        sums.gs += blocks.iter().sum::<f64>();
        Ok(())
    })
}

/// Shares of a row's pairs in the place of its cosines; the sum of shares times cosines.
#[inline(always)]
fn gradient_row<A: Real>(s: &mut [A], [most, factor]: [A; 2], by_col: &[[A; 2]], columns: bool, t: A) -> f64 {
    let mut sums = [A::ZERO; LANES];
    for (s, by_col) in s.chunks_mut(LANES).zip(by_col.chunks(LANES)) {
        for (i, (s, of_col)) in s.iter_mut().zip(by_col).enumerate() {
            let (cosine, logit) = (*s, t * *s);
            let mut share = factor * (logit - most).exp();
            if columns {
                share += of_col[1] * (logit - of_col[0]).exp();
            }
            sums[i] += share * cosine;
            *s = share;
        }
    }
    sums.iter().map(|x| x.f64()).sum()
}

/// Loss, statistics and gradients from what is known of rows and columns.
pub(super) fn finish(
    sums: &Sums,
    log_scale: &Tensor,
    dims: Dims,
    loss: &mut Tensor,
    logits: &mut Tensor,
    gradients: Option<&mut Gradients>,
) -> Result<()> {
    with_float!(OP, "x", loss.dtype(), T => {
        type A = <T as Float>::Acc;
        let (t, n) = (log_scale.as_slice::<A>()?[0].exp().f64(), dims.divisor as f64);
        let [of_rows, of_cols] = dims.sides.weights();
        let [positives, negatives] = dims.counts();
        let of = |count: usize, logit: f64| if count > 0 { A::of(logit) } else { A::of(f64::NAN) };
        let total = |f: &dyn Fn(&Row) -> f64| sums.rows.iter().map(f).sum::<f64>();
        let own = total(&|row| row.positive);
        let rows = total(&|row| row.softmax.log());
        let cols: f64 = sums.cols.iter().map(|c| c.log()).sum();
        loss.as_mut_slice::<A>()?[0] = A::of((of_rows * rows + of_cols * cols - own) / n);
        let most = sums.rows.iter().fold(f64::NEG_INFINITY, |most, row| Ops::max(most, row.most));
        logits.as_mut_slice::<A>()?.copy_from_slice(&[
            of(positives, own / positives as f64),
            of(negatives, t * total(&|row| row.negative) / negatives as f64),
            of(negatives, t * most),
        ]);
        if let Some(Gradients { factor, dlog_scale, .. }) = gradients {
            factor.as_mut_slice::<A>()?[0] = A::of(t / n);
            dlog_scale.as_mut_slice::<A>()?[0] = A::of(t * sums.gs / n);
        }
        Ok(())
    })
}
