//! Plain loops, parallel over tasks of fixed length; an element depends on itself alone.

use rayon::prelude::*;

use super::{Hyper, Item, OP};
use crate::device::host::simd;
use crate::dtype::{Float, num_like::Ops};
use crate::ops::multi_tensor::{TASK, copy_chunks, factor};
use crate::{DType, Result, Tensor, with_float};

/// Factors of one tensor.
#[derive(Clone, Copy)]
struct Factors<A> {
    decay: A,      // lr · wd
    step: A,       // lr / (1-β₁ᵗ)
    root: A,       // 1 / √(1-β₂ᵗ)
    gradient: A,   // of the clipping
    beta1: [A; 2], // β₁, 1-β₁
    beta2: [A; 2],
    eps: A,
}

/// The same range of every operand of one tensor; `compute` is empty where there is no copy.
struct Task<'a, C: Float> {
    w: &'a mut [C::Acc],
    m: &'a mut [C::Acc],
    v: &'a mut [C::Acc],
    g: &'a [C::Acc],
    compute: &'a mut [C],
    factors: Factors<C::Acc>,
}

/// `compute` is the type of the copies; everything else is in its arithmetic type.
pub(super) fn adamw(
    items: &mut [Item],
    hyper: Hyper,
    scalars: &Tensor,
    norm: Option<&Tensor>,
    compute: DType,
) -> Result<()> {
    with_float!(OP, "compute", compute, C => {
        type A = <C as Float>::Acc;
        let Some(gradient) = factor::<A>(norm)? else { return Ok(()) };
        let scalars = scalars.as_slice::<A>()?;
        let mut tasks = Vec::new();
        for item in items {
            let scale = A::of(item.lr_scale);
            let factors = Factors {
                decay: scalars[0] * scale * A::of(item.weight_decay),
                step: scalars[1] * scale,
                root: scalars[2],
                gradient,
                beta1: [A::of(hyper.beta1), A::of(1.0 - hyper.beta1)],
                beta2: [A::of(hyper.beta2), A::of(1.0 - hyper.beta2)],
                eps: A::of(hyper.eps),
            };
            push::<C>(item, factors, &mut tasks)?;
        }
        tasks.into_par_iter().for_each(|task| simd(#[inline(always)] || run::<C>(task)));
        Ok(())
    })
}

/// Cuts one tensor into tasks.
fn push<'a, C: Float>(item: &'a mut Item, factors: Factors<C::Acc>, tasks: &mut Vec<Task<'a, C>>) -> Result<()> {
    let mut copies = copy_chunks::<C>(&mut item.compute)?;
    let state = item.m.as_mut_slice()?.chunks_mut(TASK).zip(item.v.as_mut_slice()?.chunks_mut(TASK));
    let weights = item.w.as_mut_slice()?.chunks_mut(TASK).zip(item.g.as_slice()?.chunks(TASK));
    for ((w, g), (m, v)) in weights.zip(state) {
        tasks.push(Task { w, m, v, g, compute: copies.next().unwrap_or_default(), factors });
    }
    Ok(())
}

#[inline(always)]
fn run<C: Float>(Task { w, m, v, g, compute, factors: f }: Task<C>) {
    let n = w.len();
    let (m, v, g) = (&mut m[..n], &mut v[..n], &g[..n]); // one length: no bounds checks inside the loops
    if compute.is_empty() {
        for i in 0..n {
            w[i] = element(w[i], &mut m[i], &mut v[i], g[i], f);
        }
        return;
    }
    let compute = &mut compute[..n];
    for i in 0..n {
        w[i] = element(w[i], &mut m[i], &mut v[i], g[i], f);
        compute[i] = C::put(w[i]);
    }
}

#[inline(always)]
fn element<A: Ops>(w: A, m: &mut A, v: &mut A, g: A, f: Factors<A>) -> A {
    let g = f.gradient * g;
    *m = f.beta1[0] * *m + f.beta1[1] * g;
    *v = f.beta2[0] * *v + f.beta2[1] * (g * g);
    w - f.decay * w - f.step * *m / (v.sqrt() * f.root + f.eps)
}
