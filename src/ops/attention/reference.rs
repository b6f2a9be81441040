//! Attention on the host. One task is one head of one sequence (of part of a long one): its operands are copied into
//! padded scratch matrices that stay in the cache, blocks of query rows go through [`small_gemm`], and results leave
//! through windows of the output. Keys come in chunks, so that no matrix grows with both sides. Tasks, chunks and blocks
//! depend on the lengths alone, so no sum depends on the threads.

use rayon::prelude::*;

use super::OP;
use super::operands::{Problem, View};
use crate::device::host::simd;
use crate::device::small_gemm::{Lanes, Rows, padded, product, product_t};
use crate::device::window::Window;
use crate::dtype::{Element, Float, num_like::Ops};
use crate::ops::softmax::{LANES, exponentials};
use crate::{DType, Device, Result, Tensor, with_float};

/// Query rows held at a time: at 257 keys their scores fill 140 KB, at a whole chunk of keys 1 MB.
const BLOCK: usize = 128;
/// Query rows of a task of the forward: with few heads a long sequence still gives tasks to every core.
const TASK: usize = 512;
/// Keys held at a time, which in the backward are a task. Each of its tasks beyond the first of a sequence has its own dq,
/// summed at the end: `keys / CHUNK` times the queries.
const CHUNK: usize = 2048;

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

/// Rows of q, k or v, or of a tensor `[rows, heads, dim]`.
#[derive(Clone, Copy)]
struct Heads<'a, T> {
    data: &'a [T],
    stride: usize,
    dim: usize,
}

impl<'a, T: Float> Heads<'a, T>
where
    T::Acc: Lanes,
{
    fn new(problem: &Problem, view: View<'a>) -> Result<Self> {
        let (data, dims) = (view.tensor.as_slice()?, problem.dims);
        let (stride, dim) = (dims.stride(view.place), view.place.dim);
        Ok(Self { data: &data[dims.offset(view.place).min(data.len())..], stride, dim })
    }

    /// An output of the forward, or its gradient.
    fn of_output(problem: &Problem, t: &'a Tensor) -> Result<Self> {
        let dim = problem.dims.v_dim;
        Ok(Self { data: t.as_slice()?, stride: problem.dims.heads * dim, dim })
    }

    #[inline(always)]
    fn row(&self, token: usize, head: usize) -> &'a [T] {
        &self.data[token * self.stride + head * self.dim..][..self.dim]
    }

    /// `[span, padded(dim)]`: rows of one head, times `factor`.
    fn pack(&self, span: Span, head: usize, factor: T::Acc, to: &mut [T::Acc]) {
        simd(
            #[inline(always)]
            || {
                for (token, to) in (span.start..span.end).zip(to.chunks_exact_mut(padded(self.dim))) {
                    for (to, x) in to.iter_mut().zip(self.row(token, head)) {
                        *to = x.get() * factor;
                    }
                }
            },
        );
    }

    /// `[dim, padded(span)]`: the transpose of one head.
    fn pack_t(&self, span: Span, head: usize, to: &mut [T::Acc]) {
        let stride = padded(span.len());
        simd(
            #[inline(always)]
            || {
                // A few tokens at a time, so that their rows stay in the first cache while columns are written.
                for first in (0..span.len()).step_by(LANES) {
                    let last = span.len() - first - 1;
                    let row = |i: usize| self.row(span.start + first + i.min(last), head);
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

/// The operands.
struct Operands<'a, T: Float> {
    q: Heads<'a, T>,
    k: Heads<'a, T>,
    v: Heads<'a, T>,
    scale: T::Acc,
}

impl<'a, T: Float> Operands<'a, T>
where
    T::Acc: Lanes,
{
    fn new(x: &Problem<'a>) -> Result<Self> {
        let heads = |view| Heads::new(x, view);
        Ok(Self { q: heads(x.q)?, k: heads(x.k)?, v: heads(x.v)?, scale: T::Acc::of(x.scale.into()) })
    }
}

/// Queries and keys of each sequence.
fn sequences(x: &Problem) -> Result<Vec<(Span, Span)>> {
    Ok(Span::sequences(x.cu_q)?.into_iter().zip(Span::sequences(x.cu_k)?).collect())
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

pub(super) fn forward(x: &Problem, o: &mut Tensor, lse: &mut Tensor) -> Result<()> {
    let dims = x.dims;
    with_float!(OP, "q", x.dtype(), T => {
        let operands = Operands::<T>::new(x)?;
        let sequences = sequences(x)?;
        let tasks: Vec<(Span, Span)> =
            sequences.iter().flat_map(|&(queries, keys)| queries.parts(TASK).map(move |part| (part, keys))).collect();
        let heights: Vec<usize> = tasks.iter().map(|(queries, _)| queries.len()).collect();
        let row = vec![dims.v_dim; dims.heads];
        let o = Window::new(o.as_mut_slice::<T>()?, dims.heads * dims.v_dim).grid(&heights, &row);
        let lse = Window::new(lse.as_mut_slice()?, dims.queries).grid_by_columns(&vec![1; dims.heads], &heights);
        let tasks = tasks.iter().flat_map(|&task| (0..dims.heads).map(move |head| (task, head)));
        let work: Vec<_> = tasks.zip(o).zip(lse).collect();
        work.into_par_iter().with_max_len(1).try_for_each(|((((queries, keys), head), o), lse)| {
            attend(&operands, queries, keys, head, o, lse)
        })
    })
}

/// What a running softmax keeps of one row.
#[derive(Clone, Copy)]
struct Running<A> {
    max: A,
    sum: A,
}

/// One head, the queries of one task against all keys of their sequence.
fn attend<T: Float>(
    x: &Operands<T>,
    queries: Span,
    keys: Span,
    head: usize,
    mut o: Window<T>,
    mut lse: Window<T::Acc>,
) -> Result<()>
where
    T::Acc: Lanes,
{
    let (dim, v_dim, most, n) = (x.q.dim, x.v.dim, queries.len().min(BLOCK), keys.len().min(CHUNK));
    let (narrow, of_v) = (padded(dim), padded(v_dim));
    let lengths = [queries.len() * of_v, dim * padded(n), n * of_v, most * padded(n), most * narrow];
    let mut running = vec![Running { max: T::Acc::NEG_INFINITY, sum: T::Acc::ZERO }; queries.len()];
    with_scratch(lengths, |[values, k_t, v, scores, q]| {
        for (at, chunk) in keys.parts(CHUNK).enumerate() {
            let (n, wide) = (chunk.len(), padded(chunk.len()));
            x.k.pack_t(chunk, head, k_t);
            x.v.pack(chunk, head, T::Acc::ONE, v);
            for block in queries.parts(BLOCK) {
                let (rows, first) = (block.len(), block.start - queries.start);
                let values = &mut values[first * of_v..][..rows * of_v];
                x.q.pack(block, head, x.scale, q);
                product(rows, n, dim, Rows::new(q, narrow), Rows::new(k_t, wide), scores, wide, false);
                let mut factors = [T::Acc::ONE; BLOCK];
                for (i, row) in scores.chunks_exact_mut(wide).take(rows).enumerate() {
                    let running = &mut running[first + i];
                    simd(
                        #[inline(always)]
                        || {
                            let (max, sum) = exponentials(row, n);
                            if at == 0 {
                                *running = Running { max, sum };
                                return;
                            }
                            // Both sides to the larger maximum.
                            let top = running.max.max(max);
                            let (old, new) = ((running.max - top).exp(), (max - top).exp());
                            *running = Running { max: top, sum: running.sum * old + sum * new };
                            row[..n].iter_mut().for_each(|p| *p *= new);
                            factors[i] = old;
                        },
                    );
                }
                if at > 0 {
                    let rows = values.chunks_exact_mut(of_v).zip(factors);
                    rows.for_each(|(row, factor)| row.iter_mut().for_each(|x| *x *= factor));
                }
                product(rows, v_dim, n, Rows::new(scores, wide), Rows::new(v, of_v), values, of_v, at > 0);
            }
        }
        if keys.len() == 0 {
            values.fill(T::Acc::ZERO);
        }
        for (i, row) in running.iter().enumerate() {
            lse.row(0)[i] = row.max + row.sum.ln();
        }
        let nothing = |sum| if sum == T::Acc::ZERO { T::Acc::ZERO } else { T::Acc::ONE / sum };
        store(&mut o, 0, &values[..queries.len() * of_v], of_v, |i| nothing(running[i].sum));
    })
}

/// Windows of the gradients by q, k and v.
fn windows<'a, T: Float>(x: &Problem, gradients: &'a mut [Tensor]) -> Result<[Window<'a, T>; 3]> {
    let mut all = Vec::with_capacity(3);
    for (i, t) in gradients.iter_mut().enumerate() {
        let parts = x.places().into_iter().filter(|place| place.tensor == i);
        let widths: Vec<usize> = parts.map(|place| x.dims.heads * place.dim).collect();
        let whole = Window::new(t.as_mut_slice::<T>()?, widths.iter().sum());
        let rows = [whole.rows()];
        all.extend(whole.grid(&rows, &widths));
    }
    let mut all = all.into_iter();
    Ok(std::array::from_fn(|_| all.next().expect("q, k and v lie in this order")))
}

/// Where a task's dq goes: to the result, or to its part of a sum.
enum DqWindow<'a, T: Float> {
    Whole(Window<'a, T>),
    Part(Window<'a, T::Acc>),
}

pub(super) fn backward(d_o: &Tensor, x: &Problem, o: &Tensor, lse: &Tensor, gradients: &mut [Tensor]) -> Result<()> {
    with_float!(OP, "q", x.dtype(), T => {
        let outputs = Outputs {
            o: Heads::of_output(x, o)?,
            d_o: Heads::of_output(x, d_o)?,
            lse: lse.as_slice()?,
            queries: x.dims.queries,
        };
        all_gradients::<T>(x, &outputs, gradients)
    })
}

/// [`backward`] in one type.
fn all_gradients<T: Float>(x: &Problem, outputs: &Outputs<T>, gradients: &mut [Tensor]) -> Result<()>
where
    T::Acc: Lanes,
{
    let dims = x.dims;
    let operands = Operands::<T>::new(x)?;
    // A sequence whose keys are one chunk writes its dq; others sum parts of it, as do those without keys.
    let sequences: Vec<(Span, Vec<Span>)> =
        sequences(x)?.into_iter().map(|(queries, keys)| (queries, keys.parts(CHUNK).collect())).collect();
    let (mut of_q, mut of_k, mut of_parts) = (vec![], vec![], vec![]);
    for (queries, chunks) in &sequences {
        of_k.extend(chunks.iter().map(|chunk| chunk.len()));
        if chunks.len() == 1 {
            of_q.push(queries.len());
        } else {
            of_q.extend(queries.parts(TASK).map(Span::len));
            of_parts.extend(chunks.iter().map(|_| queries.len()));
        }
    }
    let (row, width) = (vec![dims.dim; dims.heads], dims.heads * dims.dim);
    let mut parts = Tensor::uninit([of_parts.iter().sum::<usize>(), width], T::Acc::DTYPE, &Device::Cpu)?;
    let [dq, dk, dv] = windows::<T>(x, gradients)?;
    let mut dq = dq.grid(&of_q, &row).into_iter();
    let (mut dk, mut dv) =
        (dk.grid(&of_k, &row).into_iter(), dv.grid(&of_k, &vec![dims.v_dim; dims.heads]).into_iter());
    let mut part = Window::new(parts.as_mut_slice::<T::Acc>()?, width).grid(&of_parts, &row).into_iter();
    let (mut work, mut sums, mut first) = (vec![], vec![], 0);
    for (queries, chunks) in &sequences {
        for &keys in chunks {
            let to: Vec<DqWindow<T>> = match chunks.len() {
                1 => dq.by_ref().take(dims.heads).map(DqWindow::Whole).collect(),
                _ => part.by_ref().take(dims.heads).map(DqWindow::Part).collect(),
            };
            let to = to.into_iter().zip(dk.by_ref().zip(dv.by_ref()));
            work.extend(to.enumerate().map(|(head, (dq, (dk, dv)))| (*queries, keys, head, dq, [dk, dv])));
        }
        if chunks.len() != 1 {
            for rows in queries.parts(TASK) {
                let at = first + rows.start - queries.start;
                let tasks = dq.by_ref().take(dims.heads).enumerate();
                sums.extend(tasks.map(|(head, dq)| (at, queries.len(), chunks.len(), head, dq)));
            }
            first += chunks.len() * queries.len();
        }
    }
    work.into_par_iter().with_max_len(1).try_for_each(|(queries, keys, head, dq, outputs_by_keys)| {
        differentiate(&operands, outputs, queries, keys, head, dq, outputs_by_keys)
    })?;
    let parts = Heads::<T::Acc> { data: parts.as_slice()?, stride: width, dim: dims.dim };
    sums.into_par_iter().for_each(|(at, step, count, head, mut dq)| {
        for i in 0..dq.rows() {
            for (c, to) in dq.row(i).iter_mut().enumerate() {
                *to = T::put((0..count).map(|part| parts.row(at + i + part * step, head)[c]).sum());
            }
        }
    });
    Ok(())
}

/// What the forward gave, and the gradient by it.
struct Outputs<'a, T: Float> {
    o: Heads<'a, T>,
    d_o: Heads<'a, T>,
    lse: &'a [T::Acc],
    queries: usize,
}

/// All gradients of one head of one sequence, or of a chunk of its keys.
fn differentiate<T: Float>(
    x: &Operands<T>,
    y: &Outputs<T>,
    queries: Span,
    keys: Span,
    head: usize,
    mut dq_out: DqWindow<T>,
    [mut dk_out, mut dv_out]: [Window<T>; 2],
) -> Result<()>
where
    T::Acc: Lanes,
{
    let (n, dim, v_dim, most) = (keys.len(), x.q.dim, x.v.dim, queries.len().min(BLOCK));
    let (wide, narrow, of_v) = (padded(n), padded(dim), padded(v_dim));
    let (sequence, block, square) = (n * narrow, most * narrow, most * wide);
    let [k_t, v_t] = [dim, v_dim].map(|dim| dim * wide);
    let lengths = [sequence, k_t, v_t, sequence, n * of_v, block, most * of_v, block, square, square];
    with_scratch(lengths, |[k, k_t, v_t, dk, dv, q, d_values, dq, scores, d_scores]| {
        x.k.pack(keys, head, T::Acc::ONE, k);
        x.k.pack_t(keys, head, k_t);
        x.v.pack_t(keys, head, v_t);
        dk.fill(T::Acc::ZERO);
        dv.fill(T::Acc::ZERO);
        for block in queries.parts(BLOCK) {
            let rows = block.len();
            x.q.pack(block, head, x.scale, q);
            let mut deltas = [T::Acc::ZERO; BLOCK];
            simd(
                #[inline(always)]
                || {
                    for (i, query) in (block.start..block.end).enumerate() {
                        let wide = &mut d_values[i * of_v..];
                        deltas[i] = widen_and_dot(y.d_o.row(query, head), y.o.row(query, head), wide);
                    }
                },
            );
            let (q, d_values) = (Rows::new(q, narrow), Rows::new(d_values, of_v));
            product(rows, n, dim, q, Rows::new(k_t, wide), scores, wide, false);
            product(rows, n, v_dim, d_values, Rows::new(v_t, wide), d_scores, wide, false);
            let pairs = scores.chunks_exact_mut(wide).zip(d_scores.chunks_exact_mut(wide)).take(rows);
            for (i, (scores, d_scores)) in pairs.enumerate() {
                let lse = y.lse[head * y.queries + block.start + i];
                softmax_gradient(&mut scores[..n], &mut d_scores[..n], lse, deltas[i]);
            }
            product_t(n, v_dim, rows, Rows::new(scores, wide), d_values, dv, of_v, true);
            product_t(n, dim, rows, Rows::new(d_scores, wide), q, dk, narrow, true); // q carries the scale
            product(rows, dim, n, Rows::new(d_scores, wide), Rows::new(k, narrow), dq, narrow, false);
            let (first, dq) = (block.start - queries.start, &dq[..rows * narrow]);
            match &mut dq_out {
                DqWindow::Whole(to) => store(to, first, dq, narrow, |_| x.scale),
                DqWindow::Part(to) => store(to, first, dq, narrow, |_| x.scale),
            }
        }
        store(&mut dk_out, 0, &dk[..n * narrow], narrow, |_| T::Acc::ONE);
        store(&mut dv_out, 0, &dv[..n * of_v], of_v, |_| T::Acc::ONE);
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

pub(super) fn probabilities(x: &Problem, sequence: usize) -> Result<Tensor> {
    let dims = x.dims;
    with_float!(OP, "qkv", x.dtype(), T => {
        let operands = Operands::<T>::new(x)?;
        let (queries, keys) = sequences(x)?[sequence];
        let n = keys.len();
        let mut out = Tensor::uninit([dims.heads, n, n], DType::F32, &Device::Cpu)?;
        let all = out.as_mut_slice::<f32>()?;
        if n == 0 {
            return Ok(out);
        }
        let (wide, narrow) = (padded(n), padded(dims.dim));
        all.par_chunks_mut(n * n).enumerate().try_for_each(|(head, out)| {
            with_scratch([n * narrow, dims.dim * wide, n * wide], |[q, k_t, scores]| {
                operands.q.pack(queries, head, operands.scale, q);
                operands.k.pack_t(keys, head, k_t);
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
