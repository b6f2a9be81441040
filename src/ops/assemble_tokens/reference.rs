//! Plain loops: forward parallel over images; token and table gradients parallel over their own elements, images summed
//! in order.

use rayon::prelude::*;

use super::{Dims, OP};
use crate::device::host::simd;
use crate::dtype::{Float, num_like::Ops};
use crate::{Result, Tensor, with_float};

/// Columns per task of the class token's gradient.
const COLUMNS: usize = 64;

pub(super) fn forward(
    patches: &Tensor,
    cls_token: &Tensor,
    pos_embed: &Tensor,
    ids_keep: &Tensor,
    Dims { keep, cols, .. }: Dims,
    y: &mut Tensor,
) -> Result<()> {
    with_float!(OP, "patches", patches.dtype(), T => {
        let (patches, cls, pos) = (patches.as_slice::<T>()?, cls_token.as_slice::<T>()?, pos_embed.as_slice::<T>()?);
        let (ids, y) = (ids_keep.as_slice::<i32>()?, y.as_mut_slice::<T>()?);
        if cols == 0 {
            return Ok(());
        }
        y.par_chunks_mut((keep + 1) * cols).enumerate().for_each(|(b, y)| {
            let (first, rest) = y.split_at_mut(cols);
            add(cls, &pos[..cols], first);
            let (patches, ids) = (&patches[b * keep * cols..][..keep * cols], &ids[b * keep..][..keep]);
            for ((y, x), &id) in rest.chunks_exact_mut(cols).zip(patches.chunks_exact(cols)).zip(ids) {
                add(x, &pos[(1 + id as usize) * cols..][..cols], y);
            }
        });
        Ok(())
    })
}

fn add<T: Float>(a: &[T], b: &[T], y: &mut [T]) {
    simd(
        #[inline(always)]
        || {
            for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
                *y = T::put(a.get() + b.get());
            }
        },
    );
}

fn accumulate<T: Float>(x: &[T], sum: &mut [T::Acc]) {
    simd(
        #[inline(always)]
        || {
            for (s, x) in sum.iter_mut().zip(x) {
                *s += x.get();
            }
        },
    );
}

pub(super) fn backward(
    dy: &Tensor,
    ids_restore: &Tensor,
    Dims { keep, len, cols, .. }: Dims,
    (dpatches, dcls, dpos): (Option<&mut Tensor>, Option<&mut Tensor>, Option<&mut Tensor>),
) -> Result<()> {
    with_float!(OP, "dy", dy.dtype(), T => {
        type A = <T as Float>::Acc;
        let (dy, ids) = (dy.as_slice::<T>()?, ids_restore.as_slice::<i32>()?);
        if cols == 0 {
            return Ok(());
        }
        let image = (keep + 1) * cols;
        if let Some(dpatches) = dpatches.filter(|_| keep > 0) {
            let dpatches = dpatches.as_mut_slice::<T>()?.par_chunks_mut(keep * cols);
            dpatches.zip(dy.par_chunks(image)).for_each(|(dx, dy)| dx.copy_from_slice(&dy[cols..]));
        }
        if let Some(dcls) = dcls {
            dcls.as_mut_slice::<A>()?.par_chunks_mut(COLUMNS).enumerate().for_each(|(task, sum)| {
                sum.fill(A::ZERO);
                dy.chunks_exact(image).for_each(|dy| accumulate(&dy[task * COLUMNS..][..sum.len()], sum));
            });
        }
        if let Some(dpos) = dpos {
            dpos.as_mut_slice::<A>()?.par_chunks_mut(cols).enumerate().for_each(|(row, sum)| {
                sum.fill(A::ZERO);
                for (dy, ids) in dy.chunks_exact(image).zip(ids.chunks_exact(len)) {
                    let from = if row == 0 { 0 } else { 1 + ids[row - 1] as usize };
                    if from <= keep {
                        accumulate(&dy[from * cols..][..cols], sum);
                    }
                }
            });
        }
        Ok(())
    })
}
