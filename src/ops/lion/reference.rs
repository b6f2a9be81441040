//! Plain loops, parallel over tasks of fixed length; an element depends on itself alone.

use rayon::prelude::*;

use super::{Hyper, Item, OP};
use crate::device::host::simd;
use crate::dtype::{Float, Real, num_like::Ops};
use crate::ops::multi_tensor::{TASK, copy_chunks, factor};
use crate::{DType, Result, Tensor, with_float};

/// Factors of one tensor.
#[derive(Clone, Copy)]
struct Factors<A> {
    gradient: A, // of the clipping
    beta1: [A; 2],
    beta2: [A; 2],
    step: A,
    decay: A,
}

/// The same range of every operand of one tensor; `compute` is empty where there is no copy.
struct Task<'a, C: Float> {
    w: &'a mut [C::Acc],
    m: &'a mut [C::Acc],
    g: &'a [C::Acc],
    compute: &'a mut [C],
    factors: Factors<C::Acc>,
}

/// `compute` is the type of the copies; everything else is in its arithmetic type.
pub(super) fn lion(items: &mut [Item], hyper: Hyper, lr: &Tensor, norm: Option<&Tensor>, compute: DType) -> Result<()> {
    with_float!(OP, "compute", compute, C => {
        type A = <C as Float>::Acc;
        let Some(gradient) = factor::<A>(norm)? else { return Ok(()) };
        let lr = lr.as_slice::<A>()?[0];
        let betas = |beta: f64| [A::of(beta), A::of(1.0 - beta)];
        let mut tasks: Vec<Task<C>> = Vec::new();
        for item in items {
            let step = lr * A::of(item.lr_scale);
            let decay = step * A::of(item.weight_decay);
            let factors = Factors { gradient, beta1: betas(hyper.beta1), beta2: betas(hyper.beta2), step, decay };
            let mut copies = copy_chunks::<C>(&mut item.compute)?;
            let weights = item.w.as_mut_slice()?.chunks_mut(TASK).zip(item.m.as_mut_slice()?.chunks_mut(TASK));
            for ((w, m), g) in weights.zip(item.g.as_slice()?.chunks(TASK)) {
                tasks.push(Task { w, m, g, compute: copies.next().unwrap_or_default(), factors });
            }
        }
        tasks.into_par_iter().for_each(|task| simd(#[inline(always)] || run::<C>(task)));
        Ok(())
    })
}

#[inline(always)]
fn run<C: Float>(Task { w, m, g, compute, factors: f }: Task<C>) {
    let n = w.len();
    let (m, g) = (&mut m[..n], &g[..n]); // one length: no bounds checks inside the loop
    for i in 0..n {
        let g = f.gradient * g[i];
        let u = sign(f.beta1[0] * m[i] + f.beta1[1] * g);
        m[i] = f.beta2[0] * m[i] + f.beta2[1] * g;
        w[i] = w[i] - f.decay * w[i] - f.step * u;
    }
    for (c, &w) in compute.iter_mut().zip(&*w) {
        *c = C::put(w);
    }
}

#[inline(always)]
fn sign<A: Real>(x: A) -> A {
    if x > A::ZERO {
        A::ONE
    } else if x < A::ZERO {
        -A::ONE
    } else {
        A::ZERO
    }
}
