//! Attention on the host. One task is one head of one sequence (of part of a long one): its operands are copied into
//! padded scratch matrices that stay in the cache, blocks of query rows go through [`small_gemm`], and results leave
//! through windows of the output. Tasks and blocks depend on the lengths alone, so no sum depends on the threads.

use rayon::prelude::*;

use super::Dims;
use crate::device::host::simd;
use crate::device::small_gemm::{Lanes, Rows, padded, product, product_t};
use crate::device::window::Window;
use crate::dtype::{Element, Float, num_like::Ops};
use crate::ops::softmax::{LANES, exponentials};
use crate::{DType, Device, Result, Tensor, with_float};

/// Query rows held at a time: at 257 keys their scores fill 140 KB, at 4096 keys 2 MB.
const BLOCK: usize = 128;
/// Query rows of a task of the forward: with few heads a long sequence still gives tasks to every core.
const TASK: usize = 512;

/// Index of a projection in `qkv`.
const Q: usize = 0;
const K: usize = 1;
const V: usize = 2;

/// Tokens `start..end`.
#[derive(Clone, Copy)]
struct Span {
    start: usize,
    end: usize,
}

impl Span {
    fn len(self) -> usize {
        self.end - self.start
    }

    /// The sequences of `cu_seqlens`.
    fn sequences(cu_seqlens: &Tensor) -> Result<Vec<Self>> {
        let bounds = cu_seqlens.as_slice::<i32>()?;
        Ok(bounds.windows(2).map(|b| Self { start: b[0] as usize, end: b[1] as usize }).collect())
    }

    /// Equal parts of at most `limit` tokens.
    fn parts(self, limit: usize) -> impl Iterator<Item = Self> {
        let step = self.len().div_ceil(self.len().div_ceil(limit).max(1)).max(1);
        (self.start..self.end).step_by(step).map(move |start| Self { start, end: self.end.min(start + step) })
    }
}

/// The operand and its extents.
struct Problem<'a, T: Float> {
    qkv: &'a [T],
    heads: usize,
    dim: usize,
    scale: T::Acc,
}

impl<'a, T: Float> Problem<'a, T>
where
    T::Acc: Lanes,
{
    fn new(qkv: &'a Tensor, scale: f32, dims: Dims) -> Result<Self> {
        Ok(Self { qkv: qkv.as_slice()?, heads: dims.heads, dim: dims.dim, scale: T::Acc::of(scale.into()) })
    }

    #[inline(always)]
    fn row(&self, token: usize, part: usize, head: usize) -> &[T] {
        &self.qkv[((token * 3 + part) * self.heads + head) * self.dim..][..self.dim]
    }

    /// `[span, padded(dim)]`: rows of one projection and head, times `factor`.
    fn pack(&self, span: Span, part: usize, head: usize, factor: T::Acc, to: &mut [T::Acc]) {
        simd(
            #[inline(always)]
            || {
                for (token, to) in (span.start..span.end).zip(to.chunks_exact_mut(padded(self.dim))) {
                    for (to, x) in to.iter_mut().zip(self.row(token, part, head)) {
                        *to = x.get() * factor;
                    }
                }
            },
        );
    }

    /// `[dim, padded(span)]`: the transpose of one projection and head.
    fn pack_t(&self, span: Span, part: usize, head: usize, to: &mut [T::Acc]) {
        let stride = padded(span.len());
        simd(
            #[inline(always)]
            || {
                // A few tokens at a time, so that their rows stay in the first cache while columns are written.
                for first in (0..span.len()).step_by(LANES) {
                    let last = span.len() - first - 1;
                    let row = |i: usize| self.row(span.start + first + i.min(last), part, head);
                    let rows: [&[T]; LANES] = std::array::from_fn(row);
                    for c in 0..self.dim {
                        let to = &mut to[c * stride + first..][..LANES];
                        for (to, row) in to.iter_mut().zip(rows) {
                            *to = row[c].get();
                        }
                    }
                }
            },
        );
    }
}

/// Runs `f` on scratch matrices of these lengths. They come from the pool of tensors, which takes no page faults in a
/// step that repeats, with arbitrary contents: padding columns of operands lead to padding columns of results, and
/// nowhere else.
fn with_scratch<A: Element, const N: usize>(lengths: [usize; N], f: impl FnOnce([&mut [A]; N])) -> Result<()> {
    let whole = lengths.map(|n| n.next_multiple_of(LANES)); // each starts at a vector
    let mut memory = Tensor::uninit([whole.iter().sum::<usize>()], A::DTYPE, &Device::Cpu)?;
    let mut rest = memory.as_mut_slice::<A>()?;
    f(whole.map(|n| {
        let (part, after) = std::mem::take(&mut rest).split_at_mut(n);
        rest = after;
        part
    }));
    Ok(())
}

pub(super) fn forward(
    qkv: &Tensor,
    cu_seqlens: &Tensor,
    scale: f32,
    dims: Dims,
    o: &mut Tensor,
    lse: &mut Tensor,
) -> Result<()> {
    with_float!("attention", "qkv", qkv.dtype(), T => {
        let problem = Problem::<T>::new(qkv, scale, dims)?;
        let sequences = Span::sequences(cu_seqlens)?;
        let tasks: Vec<(Span, Span)> =
            sequences.iter().flat_map(|&keys| keys.parts(TASK).map(move |queries| (keys, queries))).collect();
        let heights: Vec<usize> = tasks.iter().map(|(_, queries)| queries.len()).collect();
        let o = Window::new(o.as_mut_slice::<T>()?, dims.heads * dims.dim).grid(&heights, &vec![dims.dim; dims.heads]);
        let lse = Window::new(lse.as_mut_slice()?, dims.tokens).grid_by_columns(&vec![1; dims.heads], &heights);
        let tasks = tasks.iter().flat_map(|&task| (0..dims.heads).map(move |head| (task, head)));
        let work: Vec<_> = tasks.zip(o).zip(lse).collect();
        work.into_par_iter().with_max_len(1).try_for_each(|((((keys, queries), head), o), lse)| {
            attend(&problem, keys, queries, head, o, lse)
        })
    })
}

/// One head, the queries of one task against all keys of their sequence.
fn attend<T: Float>(
    problem: &Problem<T>,
    keys: Span,
    queries: Span,
    head: usize,
    mut o: Window<T>,
    mut lse: Window<T::Acc>,
) -> Result<()>
where
    T::Acc: Lanes,
{
    let (n, dim, most) = (keys.len(), problem.dim, queries.len().min(BLOCK));
    let (wide, narrow) = (padded(n), padded(dim));
    let lengths = [most * narrow, dim * wide, n * narrow, most * wide, most * narrow];
    with_scratch(lengths, |[q, k_t, v, scores, values]| {
        problem.pack_t(keys, K, head, k_t);
        problem.pack(keys, V, head, T::Acc::ONE, v);
        for block in queries.parts(BLOCK) {
            let (rows, first) = (block.len(), block.start - queries.start);
            problem.pack(block, Q, head, problem.scale, q);
            product(rows, n, dim, Rows::new(q, narrow), Rows::new(k_t, wide), scores, wide, false);
            let mut sums = [T::Acc::ZERO; BLOCK];
            for (i, row) in scores.chunks_exact_mut(wide).take(rows).enumerate() {
                let (max, sum) = simd(
                    #[inline(always)]
                    || exponentials(row, n),
                );
                lse.row(0)[first + i] = max + sum.ln();
                sums[i] = sum;
            }
            product(rows, dim, n, Rows::new(scores, wide), Rows::new(v, narrow), values, narrow, false);
            store(&mut o, first, &values[..rows * narrow], narrow, |i| T::Acc::ONE / sums[i]);
        }
    })
}

pub(super) fn backward(
    d_o: &Tensor,
    qkv: &Tensor,
    o: &Tensor,
    lse: &Tensor,
    cu_seqlens: &Tensor,
    scale: f32,
    dims: Dims,
    dqkv: &mut Tensor,
) -> Result<()> {
    with_float!("attention", "qkv", qkv.dtype(), T => {
        let problem = Problem::<T>::new(qkv, scale, dims)?;
        let (o, d_o, lse) = (o.as_slice::<T>()?, d_o.as_slice::<T>()?, lse.as_slice()?);
        let sequences = Span::sequences(cu_seqlens)?;
        let heights: Vec<usize> = sequences.iter().map(|keys| keys.len()).collect();
        let width = 3 * dims.heads * dims.dim;
        let mut windows =
            Window::new(dqkv.as_mut_slice::<T>()?, width).grid(&heights, &vec![dims.dim; 3 * dims.heads]).into_iter();
        let mut work = Vec::with_capacity(sequences.len() * dims.heads);
        for &keys in &sequences {
            let [q, k, v] = std::array::from_fn(|_| windows.by_ref().take(dims.heads).collect::<Vec<_>>());
            let outputs = q.into_iter().zip(k).zip(v).enumerate();
            work.extend(outputs.map(|(head, ((dq, dk), dv))| (keys, head, [dq, dk, dv])));
        }
        work.into_par_iter().with_max_len(1).try_for_each(|(keys, head, outputs)| {
            differentiate(&problem, keys, head, o, d_o, &lse[head * dims.tokens..][..dims.tokens], outputs)
        })
    })
}

/// All gradients of one head of one sequence.
fn differentiate<T: Float>(
    problem: &Problem<T>,
    keys: Span,
    head: usize,
    o: &[T],
    d_o: &[T],
    lse: &[T::Acc],
    [mut dq_out, mut dk_out, mut dv_out]: [Window<T>; 3],
) -> Result<()>
where
    T::Acc: Lanes,
{
    let (n, dim, most) = (keys.len(), problem.dim, keys.len().min(BLOCK));
    let (wide, narrow) = (padded(n), padded(dim));
    let (sequence, transposed, block, square) = (n * narrow, dim * wide, most * narrow, most * wide);
    let lengths = [sequence, transposed, transposed, sequence, sequence, block, block, block, square, square];
    with_scratch(lengths, |[k, k_t, v_t, dk, dv, q, d_values, dq, scores, d_scores]| {
        problem.pack(keys, K, head, T::Acc::ONE, k);
        problem.pack_t(keys, K, head, k_t);
        problem.pack_t(keys, V, head, v_t);
        dk.fill(T::Acc::ZERO);
        dv.fill(T::Acc::ZERO);
        for block in keys.parts(BLOCK) {
            let rows = block.len();
            problem.pack(block, Q, head, problem.scale, q);
            let mut deltas = [T::Acc::ZERO; BLOCK];
            simd(
                #[inline(always)]
                || {
                    for (i, token) in (block.start..block.end).enumerate() {
                        let at = (token * problem.heads + head) * dim;
                        deltas[i] = widen_and_dot(&d_o[at..][..dim], &o[at..][..dim], &mut d_values[i * narrow..]);
                    }
                },
            );
            let (q, d_values) = (Rows::new(q, narrow), Rows::new(d_values, narrow));
            product(rows, n, dim, q, Rows::new(k_t, wide), scores, wide, false);
            product(rows, n, dim, d_values, Rows::new(v_t, wide), d_scores, wide, false);
            let pairs = scores.chunks_exact_mut(wide).zip(d_scores.chunks_exact_mut(wide)).take(rows);
            for (i, (scores, d_scores)) in pairs.enumerate() {
                softmax_gradient(&mut scores[..n], &mut d_scores[..n], lse[block.start + i], deltas[i]);
            }
            product_t(n, dim, rows, Rows::new(scores, wide), d_values, dv, narrow, true);
            product_t(n, dim, rows, Rows::new(d_scores, wide), q, dk, narrow, true); // q carries the scale
            product(rows, dim, n, Rows::new(d_scores, wide), Rows::new(k, narrow), dq, narrow, false);
            store(&mut dq_out, block.start - keys.start, &dq[..rows * narrow], narrow, |_| problem.scale);
        }
        store(&mut dk_out, 0, &dk[..n * narrow], narrow, |_| T::Acc::ONE);
        store(&mut dv_out, 0, &dv[..n * narrow], narrow, |_| T::Acc::ONE);
    })
}

/// Copies one row of `d_o` to `wide`; returns the sum of `d_o · o`, in the lanes of a vector.
#[inline(always)]
fn widen_and_dot<T: Float>(d_o: &[T], o: &[T], wide: &mut [T::Acc]) -> T::Acc {
    wide.iter_mut().zip(d_o).for_each(|(wide, x)| *wide = x.get());
    let mut lanes = [T::Acc::ZERO; LANES];
    let ((d_o, d_rest), (o, rest)) = (d_o.as_chunks::<LANES>(), o.as_chunks::<LANES>());
    for (d_o, o) in d_o.iter().zip(o) {
        for l in 0..LANES {
            lanes[l] += d_o[l].get() * o[l].get();
        }
    }
    let tail: T::Acc = d_rest.iter().zip(rest).map(|(d_o, o)| d_o.get() * o.get()).sum();
    lanes.into_iter().sum::<T::Acc>() + tail
}

/// `S` to `P = exp(S - lse)` and `dP` to `dS = P · (dP - delta)`, one row.
fn softmax_gradient<A: Ops>(scores: &mut [A], d_scores: &mut [A], lse: A, delta: A) {
    simd(
        #[inline(always)]
        || {
            for (s, ds) in scores.iter_mut().zip(d_scores) {
                let p = (*s - lse).exp();
                *s = p;
                *ds = p * (*ds - delta);
            }
        },
    );
}

/// Rounds rows of scratch into the rows of a window from `first` on; row `i` times `factor(i)`.
fn store<T: Float>(to: &mut Window<T>, first: usize, rows: &[T::Acc], stride: usize, factor: impl Fn(usize) -> T::Acc) {
    simd(
        #[inline(always)]
        || {
            for (i, row) in rows.chunks_exact(stride).enumerate() {
                let factor = factor(i);
                for (to, &x) in to.row(first + i).iter_mut().zip(row) {
                    *to = T::put(x * factor);
                }
            }
        },
    );
}

pub(super) fn probabilities(
    qkv: &Tensor,
    cu_seqlens: &Tensor,
    sequence: usize,
    scale: f32,
    dims: Dims,
) -> Result<Tensor> {
    with_float!("attention", "qkv", qkv.dtype(), T => {
        let problem = Problem::<T>::new(qkv, scale, dims)?;
        let keys = Span::sequences(cu_seqlens)?[sequence];
        let n = keys.len();
        let mut out = Tensor::uninit([dims.heads, n, n], DType::F32, &Device::Cpu)?;
        let all = out.as_mut_slice::<f32>()?;
        if n == 0 {
            return Ok(out);
        }
        let (wide, narrow) = (padded(n), padded(dims.dim));
        all.par_chunks_mut(n * n).enumerate().try_for_each(|(head, out)| {
            with_scratch([n * narrow, dims.dim * wide, n * wide], |[q, k_t, scores]| {
                problem.pack(keys, Q, head, problem.scale, q);
                problem.pack_t(keys, K, head, k_t);
                product(n, n, dims.dim, Rows::new(q, narrow), Rows::new(k_t, wide), scores, wide, false);
                for (row, out) in scores.chunks_exact_mut(wide).zip(out.chunks_exact_mut(n)) {
                    let (_, sum) = simd(#[inline(always)] || exponentials(row, n));
                    out.iter_mut().zip(row).for_each(|(p, &mut e)| *p = (e / sum).f64() as f32);
                }
            })
        })?;
        Ok(out)
    })
}
