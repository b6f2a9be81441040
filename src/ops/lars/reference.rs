//! Plain loops, parallel over tasks of fixed length; sums of squares are added in the order of the tasks.

use rayon::prelude::*;

use super::{Hyper, Item, OP};
use crate::device::host::simd;
use crate::dtype::{Float, Real, num_like::Ops};
use crate::ops::multi_tensor::{TASK, copy_chunks, factor, squares};
use crate::{DType, Result, Tensor, with_float};

/// Factors of one tensor.
#[derive(Clone, Copy)]
struct Factors<A> {
    gradient: A, // of the clipping
    decay: A,
    trust: A, // ratio, 1 without
    momentum: A,
    lr: A,
}

/// The same range of every operand of one tensor; `compute` is empty where there is no copy.
struct Task<'a, C: Float> {
    w: &'a mut [C::Acc],
    mu: &'a mut [C::Acc],
    g: &'a [C::Acc],
    compute: &'a mut [C],
    factors: Factors<C::Acc>,
}

/// `compute` is the type of the copies; everything else is in its arithmetic type.
pub(super) fn lars(items: &mut [Item], hyper: Hyper, lr: &Tensor, norm: Option<&Tensor>, compute: DType) -> Result<()> {
    with_float!(OP, "compute", compute, C => {
        type A = <C as Float>::Acc;
        let Some(gradient) = factor::<A>(norm)? else { return Ok(()) };
        let lr = lr.as_slice::<A>()?[0];
        let mut tasks: Vec<Task<C>> = Vec::new();
        for item in items {
            let mut factors = Factors {
                gradient,
                decay: A::of(item.weight_decay),
                trust: A::ONE,
                momentum: A::of(hyper.momentum),
                lr: lr * A::of(item.lr_scale),
            };
            let (w, g) = (item.w.as_slice::<A>()?, item.g.as_slice::<A>()?);
            if let Some(trust) = hyper.trust_of(item.w) {
                factors.trust = A::of(ratio(w, g, gradient, factors.decay).map_or(1.0, |ratio| trust * ratio));
            }
            let mut copies = copy_chunks::<C>(&mut item.compute)?;
            let weights = item.w.as_mut_slice()?.chunks_mut(TASK).zip(item.mu.as_mut_slice()?.chunks_mut(TASK));
            for ((w, mu), g) in weights.zip(g.chunks(TASK)) {
                tasks.push(Task { w, mu, g, compute: copies.next().unwrap_or_default(), factors });
            }
        }
        tasks.into_par_iter().for_each(|task| simd(#[inline(always)] || run::<C>(task)));
        Ok(())
    })
}

/// `|w| / |factor · g + decay · w|`; `None` unless both are positive.
fn ratio<A: Real>(w: &[A], g: &[A], factor: A, decay: A) -> Option<f64> {
    let sums = |(w, g): (&[A], &[A])| {
        simd(
            #[inline(always)]
            || {
                let g = &g[..w.len()];
                let weights = squares(
                    w.len(),
                    #[inline(always)]
                    |i| w[i].f64(),
                );
                (
                    weights,
                    squares(
                        w.len(),
                        #[inline(always)]
                        |i| (factor * g[i] + decay * w[i]).f64(),
                    ),
                )
            },
        )
    };
    let sums: Vec<(f64, f64)> = w.par_chunks(TASK).zip(g.par_chunks(TASK)).map(sums).collect();
    let (w, g) = sums.iter().fold((0.0, 0.0), |(w, g), s| (w + s.0, g + s.1));
    (w > 0.0 && g > 0.0).then(|| (w / g).sqrt())
}

#[inline(always)]
fn run<C: Float>(Task { w, mu, g, compute, factors: f }: Task<C>) {
    let n = w.len();
    let (mu, g) = (&mut mu[..n], &g[..n]); // one length: no bounds checks inside the loop
    for i in 0..n {
        let step = f.trust * (f.gradient * g[i] + f.decay * w[i]);
        mu[i] = f.momentum * mu[i] + step;
        w[i] -= f.lr * mu[i];
    }
    for (c, &w) in compute.iter_mut().zip(&*w) {
        *c = C::put(w);
    }
}
