//! Plain loops, parallel over images. The mask token's gradient is summed within each image, then over images in order.

use rayon::prelude::*;

use super::{Dims, OP};
use crate::device::host::simd;
use crate::dtype::{Float, num_like::Ops};
use crate::{Result, Tensor, with_float};

pub(super) fn forward(
    z: &Tensor,
    mask_token: &Tensor,
    pos_embed: &Tensor,
    ids_restore: &Tensor,
    Dims { keep, len, cols, .. }: Dims,
    y: &mut Tensor,
) -> Result<()> {
    with_float!(OP, "z", z.dtype(), T => {
        let (z, mask, pos) = (z.as_slice::<T>()?, mask_token.as_slice::<T>()?, pos_embed.as_slice::<T>()?);
        let (ids, y) = (ids_restore.as_slice::<i32>()?, y.as_mut_slice::<T>()?);
        if cols == 0 {
            return Ok(());
        }
        y.par_chunks_mut((len + 1) * cols).zip(z.par_chunks((keep + 1) * cols)).enumerate().for_each(|(b, (y, z))| {
            let ids = &ids[b * len..][..len];
            for (t, (y, pos)) in y.chunks_exact_mut(cols).zip(pos.chunks_exact(cols)).enumerate() {
                let from = if t == 0 { 0 } else { 1 + ids[t - 1] as usize };
                add(if from <= keep { &z[from * cols..][..cols] } else { mask }, pos, y);
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
    dz: &mut Tensor,
    dmask: Option<&mut Tensor>,
    dpos: Option<&mut Tensor>,
) -> Result<()> {
    with_float!(OP, "dy", dy.dtype(), T => {
        type A = <T as Float>::Acc;
        let (dy, ids, dz) = (dy.as_slice::<T>()?, ids_restore.as_slice::<i32>()?, dz.as_mut_slice::<T>()?);
        if cols == 0 {
            return Ok(());
        }
        let (image, sums) = ((len + 1) * cols, if dmask.is_some() { cols } else { 0 });
        let parts: Vec<Vec<A>> = dz
            .par_chunks_mut((keep + 1) * cols)
            .zip(dy.par_chunks(image))
            .enumerate()
            .map(|(b, (dz, dy))| {
                let (ids, mut part) = (&ids[b * len..][..len], vec![A::ZERO; sums]);
                for (t, dy) in dy.chunks_exact(cols).enumerate() {
                    let to = if t == 0 { 0 } else { 1 + ids[t - 1] as usize };
                    if to <= keep {
                        dz[to * cols..][..cols].copy_from_slice(dy);
                    } else {
                        accumulate(dy, &mut part);
                    }
                }
                part
            })
            .collect();
        if let Some(dmask) = dmask {
            let sum = dmask.as_mut_slice::<A>()?;
            sum.fill(A::ZERO);
            for part in parts {
                accumulate(&part, sum);
            }
        }
        if let Some(dpos) = dpos {
            dpos.as_mut_slice::<A>()?.par_chunks_mut(cols).enumerate().for_each(|(row, sum)| {
                sum.fill(A::ZERO);
                dy.chunks_exact(image).for_each(|dy| accumulate(&dy[row * cols..][..cols], sum));
            });
        }
        Ok(())
    })
}
