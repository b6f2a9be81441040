//! Plain loops; rows and groups of columns of a tensor are parallel, then tasks of its elements. Sums are f64, in a fixed
//! order.

use rayon::prelude::*;

use super::{Groups, Hyper, Item, OP, Second, View};
use crate::device::host::simd;
use crate::dtype::{Float, Real, num_like::Ops};
use crate::ops::multi_tensor::{TASK, copy_chunks, factor};
use crate::{DType, Result, Tensor, with_float};

/// Columns per task: neighbours in memory.
const COLUMNS: usize = 64;

/// Factors of one tensor.
#[derive(Clone, Copy)]
struct Factors<A> {
    gradient: A, // of the clipping
    second: [A; 2],
    momentum: [A; 2],
    round: bool,
    eps: A,
    step: A,
    decay: A,
}

impl<A: Real> Factors<A> {
    #[inline(always)]
    fn square(&self, g: A) -> A {
        let g = self.gradient * g;
        g * g + self.eps
    }

    /// Takes `mean` into a mean over steps.
    #[inline(always)]
    fn mix(&self, held: &mut A, mean: f64) {
        *held = self.second[0] * *held + self.second[1] * A::of(mean);
    }
}

/// `compute` is the type of the copies; everything else is in its arithmetic type.
pub(super) fn adafactor(
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
        for item in items {
            let step = scalars[0] * A::of(item.lr_scale);
            let f = Factors {
                gradient,
                second: [scalars[1], scalars[2]],
                momentum: hyper.momentum().map(A::of),
                round: hyper.round,
                eps: A::of(hyper.eps),
                step,
                decay: step * A::of(item.weight_decay),
            };
            one::<C>(item, f)?;
        }
        Ok(())
    })
}

/// One tensor.
fn one<C: Float>(item: &mut Item, f: Factors<C::Acc>) -> Result<()> {
    type Acc<C> = <C as Float>::Acc;
    let g = item.g.as_slice::<Acc<C>>()?;
    let mut copies = copy_chunks::<C>(&mut item.compute)?;
    let weights =
        item.w.as_mut_slice::<Acc<C>>()?.chunks_mut(TASK).zip(item.m.as_mut_slice::<Acc<C>>()?.chunks_mut(TASK));
    let tasks: Vec<_> =
        weights.zip(g.chunks(TASK)).map(|((w, m), g)| (w, m, g, copies.next().unwrap_or_default())).collect();
    match &mut item.second {
        Second::Full(v) => {
            let tasks = tasks.into_par_iter().zip(v.as_mut_slice::<Acc<C>>()?.par_chunks_mut(TASK));
            tasks.for_each(|((w, m, g, copy), v)| {
                simd(
                    #[inline(always)]
                    || {
                        let n = w.len();
                        let (m, g, v) = (&mut m[..n], &g[..n], &mut v[..n]);
                        for i in 0..n {
                            v[i] = f.second[0] * v[i] + f.second[1] * f.square(g[i]);
                            w[i] = element(w[i], &mut m[i], f.gradient * g[i] / v[i].sqrt(), f);
                        }
                        copy.iter_mut().zip(&*w).for_each(|(c, &w)| *c = C::put(w));
                    },
                )
            });
        }
        Second::Factored { rows, cols, view } => {
            let (rows, cols) = (rows.as_mut_slice::<Acc<C>>()?, cols.as_mut_slice::<Acc<C>>()?);
            means(g, *view, rows, cols, f);
            // The roots once for each row and column, not for each element.
            let mean = |r: &[Acc<C>]| Acc::<C>::of(r.iter().map(|r| r.f64()).sum::<f64>() / r.len() as f64);
            let of_rows: Vec<Acc<C>> = rows
                .chunks(view.rows)
                .flat_map(|r| {
                    let mean = mean(r);
                    r.iter().map(move |&r| (r / mean).sqrt())
                })
                .collect();
            let of_cols: Vec<Acc<C>> = cols.iter().map(|c| c.sqrt()).collect();
            tasks.into_par_iter().enumerate().for_each(|(task, (w, m, g, copy))| {
                for (i, w) in w.iter_mut().enumerate() {
                    let [group, row, col] = place(*view, task * TASK + i);
                    let u = f.gradient * g[i] / of_rows[group * view.rows + row] / of_cols[group * view.cols + col];
                    *w = element(*w, &mut m[i], u, f);
                }
                copy.iter_mut().zip(&*w).for_each(|(c, &w)| *c = C::put(w));
            });
        }
    }
    Ok(())
}

/// Group, row and column of an element.
#[inline(always)]
fn place(view: View, at: usize) -> [usize; 3] {
    let View { groups, rows, cols, place } = view;
    match place {
        Groups::First => [at / cols / rows, at / cols % rows, at % cols],
        Groups::Middle => [at / cols % groups, at / cols / groups, at % cols],
        Groups::Last => [at % groups, at / groups / cols, at / groups % cols],
    }
}

/// Takes the means of the squares of rows and columns into those over steps.
fn means<A: Real>(g: &[A], view: View, rows: &mut [A], cols: &mut [A], f: Factors<A>) {
    let [of_group, of_row, of_col] = view.strides();
    rows.par_iter_mut().enumerate().for_each(|(at, held)| {
        let first = at / view.rows * of_group + at % view.rows * of_row;
        let sum: f64 = (0..view.cols).map(|c| f.square(g[first + c * of_col]).f64()).sum();
        f.mix(held, sum / view.cols as f64);
    });
    cols.par_chunks_mut(view.cols).enumerate().for_each(|(group, held)| {
        held.par_chunks_mut(COLUMNS).enumerate().for_each(|(part, held)| {
            let (mut sums, first) = ([0.0; COLUMNS], group * of_group + part * COLUMNS * of_col);
            for row in 0..view.rows {
                for (c, sum) in sums[..held.len()].iter_mut().enumerate() {
                    *sum += f.square(g[first + row * of_row + c * of_col]).f64();
                }
            }
            held.iter_mut().zip(sums).for_each(|(held, sum)| f.mix(held, sum / view.rows as f64));
        });
    });
}

/// A weight after the step; `u` is the scaled gradient.
#[inline(always)]
fn element<A: Real>(w: A, m: &mut A, u: A, f: Factors<A>) -> A {
    let round = |x: A| if f.round { A::of(half::bf16::from_f64(x.f64()).to_f64()) } else { x };
    let moved = f.momentum[1] * u + round(f.momentum[0] * *m);
    *m = round(moved);
    w - f.decay * w - f.step * moved
}
