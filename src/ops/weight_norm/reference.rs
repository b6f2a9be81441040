//! Plain loops, parallel over blocks of rows.

use rayon::prelude::*;

use super::{Dims, OP};
use crate::device::host::simd;
use crate::dtype::{Float, num_like::Ops};
use crate::math::sum;
use crate::{Result, Tensor, with_float};

/// Rows per task.
const ROWS: usize = 64;

pub(super) fn forward(v: &Tensor, g: Option<&Tensor>, dims: Dims, w: &mut Tensor, norms: &mut Tensor) -> Result<()> {
    let cols = dims.cols;
    with_float!(OP, "v", v.dtype(), T => {
        type A = <T as Float>::Acc;
        let (v, w, norms) = (v.as_slice::<T>()?, w.as_mut_slice::<T>()?, norms.as_mut_slice::<A>()?);
        let g = g.map(Tensor::as_slice::<T>).transpose()?;
        if cols == 0 {
            norms.fill(A::ZERO);
            return Ok(());
        }
        let tasks = w.par_chunks_mut(ROWS * cols).zip(v.par_chunks(ROWS * cols)).zip(norms.par_chunks_mut(ROWS));
        tasks.enumerate().for_each(|(task, ((w, v), norms))| simd(#[inline(always)] || {
            for (i, ((w, v), norm)) in w.chunks_exact_mut(cols).zip(v.chunks_exact(cols)).zip(norms).enumerate() {
                *norm = sum(cols, #[inline(always)] |c| v[c].get() * v[c].get()).sqrt();
                let scale = g.map_or(A::ONE, |g| g[task * ROWS + i].get()) * inverse(*norm);
                w.iter_mut().zip(v).for_each(|(w, v)| *w = T::put(scale * v.get()));
            }
        }));
        Ok(())
    })
}

/// 1 / norm; 0 of a row without direction.
#[inline(always)]
fn inverse<A: Ops>(norm: A) -> A {
    if norm == A::ZERO { A::ZERO } else { A::ONE / norm }
}

pub(super) fn backward(
    dw: &Tensor,
    v: &Tensor,
    g: Option<&Tensor>,
    norms: &Tensor,
    Dims { rows, cols }: Dims,
    dv: &mut Tensor,
    dg: Option<&mut Tensor>,
) -> Result<()> {
    with_float!(OP, "v", v.dtype(), T => {
        type A = <T as Float>::Acc;
        let (dw, v, norms, dv) = (dw.as_slice::<T>()?, v.as_slice::<T>()?, norms.as_slice::<A>()?, dv.as_mut_slice::<A>()?);
        let g = g.map(Tensor::as_slice::<T>).transpose()?;
        let mut along = vec![A::ZERO; rows]; // v̂ · dw
        if cols > 0 {
            let tasks = dv.par_chunks_mut(ROWS * cols).zip(along.par_chunks_mut(ROWS)).enumerate();
            tasks.for_each(|(task, (dv, along))| simd(#[inline(always)] || {
                for (i, (dv, along)) in dv.chunks_exact_mut(cols).zip(along).enumerate() {
                    let row = task * ROWS + i;
                    let (dw, v, inverse) = (&dw[row * cols..][..cols], &v[row * cols..][..cols], inverse(norms[row]));
                    *along = sum(cols, #[inline(always)] |c| dw[c].get() * v[c].get()) * inverse;
                    let (scale, back) = (g.map_or(A::ONE, |g| g[row].get()) * inverse, *along * inverse);
                    dv.iter_mut().zip(dw.iter().zip(v)).for_each(|(dv, (dw, v))| *dv = scale * (dw.get() - v.get() * back));
                }
            }));
        }
        if let Some(dg) = dg {
            dg.as_mut_slice::<A>()?.copy_from_slice(&along);
        }
        Ok(())
    })
}
