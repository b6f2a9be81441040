//! Plain loops, parallel over tasks of fixed length; an element depends on itself alone.

use rayon::prelude::*;

use super::{Hyper, Item, OP};
use crate::device::host::simd;
use crate::dtype::{Float, num_like::Ops};
use crate::ops::multi_tensor::{TASK, copy_chunks, factors};
use crate::{DType, Result, Tensor, with_float};

/// Factors of one tensor.
#[derive(Clone, Copy)]
struct Factors<A> {
    decay: A,      // lr · wd · its factor
    step: A,       // lr / (1-β₁ᵗ)
    root: A,       // 1 / √(1-β₂ᵗ)
    gradient: A,   // of the clipping
    beta1: [A; 2], // β₁, 1-β₁
    beta2: [A; 2],
    eps: A,
    momentum: [A; 2], // of the teacher, 1 less it
}

/// The same range of every operand of one tensor; `compute` is empty where there is no copy.
struct Task<'a, C: Float> {
    w: &'a mut [C::Acc],
    m: &'a mut [C::Acc],
    v: &'a mut [C::Acc],
    g: &'a [C::Acc],
    compute: &'a mut [C],
    /// Empty where there is none, as its copy.
    teacher: &'a mut [C::Acc],
    teacher_compute: &'a mut [C],
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
        let Some(gradients) = factors::<A>(norm)? else { return Ok(()) };
        let scalars = scalars.as_slice::<A>()?;
        let mut tasks = Vec::new();
        for item in items {
            let scale = A::of(item.lr_scale);
            let [of_step, of_root] = item.correction.map(A::of);
            let factors = Factors {
                decay: scalars[0] * scale * (A::of(item.weight_decay) * scalars[3]),
                step: scalars[1] * scale * of_step,
                root: scalars[2] * of_root,
                gradient: gradients.get(item.group).copied().unwrap_or(A::ONE),
                beta1: [A::of(hyper.beta1), A::of(1.0 - hyper.beta1)],
                beta2: [A::of(hyper.beta2), A::of(1.0 - hyper.beta2)],
                eps: A::of(hyper.eps),
                momentum: [scalars[4], scalars[5]],
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
    let (mut averages, mut average_copies) = match &mut item.teacher {
        Some(teacher) => (teacher.average.as_mut_slice()?.chunks_mut(TASK), copy_chunks::<C>(&mut teacher.compute)?),
        None => ([].chunks_mut(TASK), [].chunks_mut(TASK)),
    };
    let state = item.m.as_mut_slice()?.chunks_mut(TASK).zip(item.v.as_mut_slice()?.chunks_mut(TASK));
    let weights = item.w.as_mut_slice()?.chunks_mut(TASK).zip(item.g.as_slice()?.chunks(TASK));
    for ((w, g), (m, v)) in weights.zip(state) {
        let compute = copies.next().unwrap_or_default();
        let teacher = averages.next().unwrap_or_default();
        let teacher_compute = average_copies.next().unwrap_or_default();
        tasks.push(Task { w, m, v, g, compute, teacher, teacher_compute, factors });
    }
    Ok(())
}

#[inline(always)]
fn run<C: Float>(Task { w, m, v, g, compute, teacher, teacher_compute, factors: f }: Task<C>) {
    step::<C>(w, m, v, g, compute, f);
    for (t, w) in teacher.iter_mut().zip(&*w) {
        *t = f.momentum[0] * *t + f.momentum[1] * *w;
    }
    for (c, t) in teacher_compute.iter_mut().zip(&*teacher) {
        *c = C::put(*t);
    }
}

#[inline(always)]
fn step<C: Float>(
    w: &mut [C::Acc],
    m: &mut [C::Acc],
    v: &mut [C::Acc],
    g: &[C::Acc],
    compute: &mut [C],
    f: Factors<C::Acc>,
) {
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
