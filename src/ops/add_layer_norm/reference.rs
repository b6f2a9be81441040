//! LayerNorm's rows, each summed first.

use rayon::prelude::*;

use super::OP;
use crate::device::host::simd;
use crate::dtype::{Float, num_like::Ops};
use crate::ops::layer_norm::{
    Dims,
    reference::{self, ROWS, forward_row},
};
use crate::{Result, Tensor, with_float};

pub(super) fn forward(
    x: &Tensor,
    r: &Tensor,
    w: &Tensor,
    b: &Tensor,
    eps: f32,
    Dims { cols, .. }: Dims,
    sum: &mut Tensor,
    y: &mut Tensor,
    stats: &mut Tensor,
) -> Result<()> {
    with_float!(OP, "x", x.dtype(), T => {
        type A = <T as Float>::Acc;
        let (x, r, w, b) = (x.as_slice::<T>()?, r.as_slice::<T>()?, w.as_slice::<T>()?, b.as_slice::<T>()?);
        let (sum, y, stats) = (sum.as_mut_slice::<T>()?, y.as_mut_slice::<T>()?, stats.as_mut_slice::<A>()?);
        if cols == 0 {
            return Ok(());
        }
        let block = ROWS * cols;
        let inputs = x.par_chunks(block).zip(r.par_chunks(block));
        let outputs = sum.par_chunks_mut(block).zip(y.par_chunks_mut(block)).zip(stats.par_chunks_mut(ROWS * 2));
        outputs.zip(inputs).for_each(|(((sum, y), stats), (x, r))| simd(#[inline(always)] || {
            let inputs = x.chunks_exact(cols).zip(r.chunks_exact(cols));
            let outputs = sum.chunks_exact_mut(cols).zip(y.chunks_exact_mut(cols)).zip(stats.chunks_exact_mut(2));
            for (((sum, y), stats), (x, r)) in outputs.zip(inputs) {
                for ((sum, x), r) in sum.iter_mut().zip(x).zip(r) {
                    *sum = T::put(x.get() + r.get());
                }
                forward_row::<T>(sum, w, b, A::of(eps.into()), y, stats);
            }
        }));
        Ok(())
    })
}

pub(super) fn backward(
    dsum: Option<&Tensor>,
    dy: &Tensor,
    sum: &Tensor,
    w: &Tensor,
    stats: &Tensor,
    dims: Dims,
    dx: &mut Tensor,
    dw: &mut Tensor,
    db: &mut Tensor,
) -> Result<()> {
    reference::backward(dy, sum, w, stats, dsum, dims, dx, dw, db)
}
