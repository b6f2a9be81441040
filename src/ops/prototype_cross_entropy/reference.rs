//! Plain loops, parallel over rows. The probabilities of the teacher exist for a block of columns at a time, on the stack.

use rayon::prelude::*;

use super::{Dims, OP, Pairing};
use crate::device::host::simd;
use crate::dtype::{Element, Float, num_like::Ops};
use crate::math::{max, sum};
use crate::ops::teacher::Teacher;
use crate::{DType, Error, Result, Tensor, with_float};

/// Columns per block: its buffers stay in the first-level cache.
const BLOCK: usize = 1024;

/// Logits of the teacher, of whatever type.
#[derive(Clone, Copy)]
enum Logits<'a> {
    F32(&'a [f32]),
    Bf16(&'a [half::bf16]),
    F16(&'a [half::f16]),
    F64(&'a [f64]),
}

impl<'a> Logits<'a> {
    fn of(t: &'a Tensor) -> Result<Self> {
        Ok(match t.dtype() {
            DType::F32 => Self::F32(t.as_slice()?),
            DType::BF16 => Self::Bf16(t.as_slice()?),
            DType::F16 => Self::F16(t.as_slice()?),
            DType::F64 => Self::F64(t.as_slice()?),
            other => return Err(Error::argument(OP, "teacher", "dtype", other.name(), "a float type")),
        })
    }

    /// `to = z[at..]`
    #[inline(always)]
    fn read<A: Ops>(self, at: usize, to: &mut [A]) {
        match self {
            Self::F32(z) => to.iter_mut().zip(&z[at..]).for_each(|(to, &z)| *to = A::of(z.into())),
            Self::Bf16(z) => to.iter_mut().zip(&z[at..]).for_each(|(to, &z)| *to = A::of(z.into())),
            Self::F16(z) => to.iter_mut().zip(&z[at..]).for_each(|(to, &z)| *to = A::of(z.into())),
            Self::F64(z) => to.iter_mut().zip(&z[at..]).for_each(|(to, &z)| *to = A::of(z)),
        }
    }
}

/// The teacher of each row.
#[derive(Clone, Copy)]
struct Targets<'a, A> {
    logits: Logits<'a>,
    temp: A,
    prototypes: &'a [A],
    rows: &'a [A],
    pairs: Option<&'a [i32]>,
    dims: Dims,
}

impl<'a, A: Ops + Element> Targets<'a, A> {
    fn of(teacher: &'a Teacher, pairing: Pairing<'a>, dims: Dims) -> Result<Self> {
        Ok(Self {
            logits: Logits::of(&teacher.logits)?,
            temp: teacher.temp.as_slice::<A>()?[0],
            prototypes: teacher.prototypes.as_slice()?,
            rows: teacher.rows.as_slice()?,
            pairs: match pairing {
                Pairing::Same => None,
                Pairing::Rows(pairs) => Some(pairs.as_slice()?),
            },
            dims,
        })
    }

    /// `t = Σ exp(z / T + a + l)` over the teachers of a row, for the columns from `from` on.
    #[inline(always)]
    fn probabilities(&self, row: usize, from: usize, t: &mut [A]) {
        t.fill(A::ZERO);
        let mut z = [A::ZERO; BLOCK];
        let z = &mut z[..t.len()];
        for g in 0..self.dims.group {
            let Ok(of) = usize::try_from(self.pairs.map_or(row as i64, |p| p[row * self.dims.group + g].into())) else {
                continue;
            };
            self.logits.read(of * self.dims.cols + from, z);
            let l = self.rows[of];
            for ((t, &z), &a) in t.iter_mut().zip(&*z).zip(&self.prototypes[from..]) {
                *t += (z / self.temp + (a + l)).exp();
            }
        }
    }
}

pub(super) fn forward(
    student: &Tensor,
    teacher: &Teacher,
    pairing: Pairing<'_>,
    weights: &Tensor,
    dims: Dims,
    loss: &mut Tensor,
    stats: &mut Tensor,
) -> Result<()> {
    with_float!(OP, "student", student.dtype(), T => {
        type A = <T as Float>::Acc;
        let (s, targets) = (student.as_slice::<T>()?, Targets::<A>::of(teacher, pairing, dims)?);
        let (weights, stats) = (weights.as_slice::<A>()?, stats.as_mut_slice::<A>()?);
        let rows = stats.par_chunks_exact_mut(4).zip(s.par_chunks_exact(dims.cols)).zip(weights);
        rows.enumerate().for_each(|(row, ((stats, s), &weight))| {
            let read = weight != A::ZERO;
            let values = if read { simd(#[inline(always)] || forward_row(s, &targets, row)) } else { [A::ZERO; 4] };
            stats.copy_from_slice(&values);
        });
        let terms = weights.iter().zip(stats.chunks_exact(4)).map(|(w, stats)| w.f64() * stats[3].f64());
        loss.as_mut_slice::<A>()?[0] = A::of(terms.sum::<f64>() / dims.normaliser);
        Ok(())
    })
}

/// The row's largest logit, `ln Σ exp((s - largest) / τ)`, `S` and `H`.
#[inline(always)]
fn forward_row<T: Float>(s: &[T], targets: &Targets<'_, T::Acc>, row: usize) -> [T::Acc; 4] {
    let zero = T::Acc::ZERO;
    let scale = T::Acc::of(1.0 / targets.dims.temp);
    let top = max(
        s.len(),
        #[inline(always)]
        |k| s[k].get(),
    );
    let by = if top == T::Acc::NEG_INFINITY { zero } else { top };
    let (mut exponentials, mut dot, mut total) = (zero, zero, zero);
    let mut t = [zero; BLOCK];
    for (block, s) in s.chunks(BLOCK).enumerate() {
        let t = &mut t[..s.len()];
        targets.probabilities(row, block * BLOCK, t);
        exponentials += sum(
            s.len(),
            #[inline(always)]
            |k| ((s[k].get() - by) * scale).exp(),
        );
        // 0 times an infinite -log p is 0
        dot += sum(
            s.len(),
            #[inline(always)]
            |k| if t[k] == zero { zero } else { t[k] * ((s[k].get() - by) * scale) },
        );
        total += sum(
            s.len(),
            #[inline(always)]
            |k| t[k],
        );
    }
    [top, exponentials.ln(), total, total * exponentials.ln() - dot]
}

/// `ds` holds the student's logits and gets their gradient.
pub(super) fn backward(
    dloss: &Tensor,
    teacher: &Teacher,
    pairing: Pairing<'_>,
    weights: &Tensor,
    stats: &Tensor,
    dims: Dims,
    ds: &mut Tensor,
) -> Result<()> {
    with_float!(OP, "student", ds.dtype(), T => {
        type A = <T as Float>::Acc;
        let (targets, stats) = (Targets::<A>::of(teacher, pairing, dims)?, stats.as_slice::<A>()?);
        let (weights, ds) = (weights.as_slice::<A>()?, ds.as_mut_slice::<T>()?);
        let factor = dloss.as_slice::<A>()?[0] * A::of(1.0 / (dims.temp * dims.normaliser));
        let rows = ds.par_chunks_exact_mut(dims.cols).zip(stats.par_chunks_exact(4)).zip(weights);
        rows.enumerate().for_each(|(row, ((ds, stats), &weight))| {
            if weight == A::ZERO {
                ds.fill(T::put(A::ZERO));
            } else {
                simd(#[inline(always)] || backward_row(ds, stats, factor * weight, &targets, row));
            }
        });
        Ok(())
    })
}

#[inline(always)]
fn backward_row<T: Float>(s: &mut [T], stats: &[T::Acc], factor: T::Acc, targets: &Targets<'_, T::Acc>, row: usize) {
    let scale = T::Acc::of(1.0 / targets.dims.temp);
    let (top, log_sum, total) = (stats[0], stats[1], stats[2]);
    let mut t = [T::Acc::ZERO; BLOCK];
    for (block, s) in s.chunks_mut(BLOCK).enumerate() {
        let t = &mut t[..s.len()];
        targets.probabilities(row, block * BLOCK, t);
        for (s, &t) in s.iter_mut().zip(&*t) {
            let p = ((s.get() - top) * scale - log_sum).exp();
            *s = T::put(factor * (total * p - t));
        }
    }
}
