//! Plain loops over rows of pixels, parallel over patches forward and over images backward.

use rayon::prelude::*;

use super::{Dims, OP};
use crate::device::host::simd;
use crate::dtype::Float;
use crate::ops::pixels::{Norm, Pixel, with_pixel};
use crate::{Result, Tensor, with_float};

/// Patches per task.
const ROWS: usize = 16;

pub(super) fn forward(
    images: &Tensor,
    ids_keep: &Tensor,
    norm: Option<&Tensor>,
    Dims { grid, keep }: Dims,
    y: &mut Tensor,
) -> Result<()> {
    let values = grid.values();
    if y.numel() == 0 {
        return Ok(());
    }
    with_pixel!(OP, "images", images.dtype(), S => with_float!(OP, "dtype", y.dtype(), T => {
        let norm = Norm::<<T as Float>::Acc>::new::<S>(norm, grid.channels)?;
        let (images, ids) = (images.as_slice::<S>()?, ids_keep.as_slice::<i32>()?);
        let y = y.as_mut_slice::<T>()?;
        y.par_chunks_mut(ROWS * values).zip(ids.par_chunks(ROWS)).enumerate().for_each(|(task, (y, ids))| {
            for (at, (y, &id)) in y.chunks_exact_mut(values).zip(ids).enumerate() {
                let image = &images[(task * ROWS + at) / keep * grid.image()..][..grid.image()];
                simd(#[inline(always)] || {
                    for (y, (c, _, from)) in y.chunks_exact_mut(grid.patch).zip(grid.rows(id as usize)) {
                        row(&image[from..][..grid.patch], &norm, c, y);
                    }
                });
            }
        });
        Ok(())
    }))
}

#[inline(always)]
fn row<S: Pixel, T: Float>(x: &[S], norm: &Norm<T::Acc>, c: usize, y: &mut [T]) {
    let (unit, mean, inverse) = (norm.unit, norm.mean[c], norm.inverse[c]);
    for (y, &x) in y.iter_mut().zip(x) {
        *y = T::put((x.widen::<T::Acc>() * unit - mean) * inverse);
    }
}

pub(super) fn backward(
    dy: &Tensor,
    ids_keep: &Tensor,
    norm: Option<&Tensor>,
    Dims { grid, keep }: Dims,
    dx: &mut Tensor,
) -> Result<()> {
    let values = grid.values();
    if dy.numel() == 0 {
        return Ok(());
    }
    with_float!(OP, "images", dx.dtype(), S => with_float!(OP, "dy", dy.dtype(), T => {
        type A = <S as Float>::Acc;
        let norm = Norm::<A>::new::<S>(norm, grid.channels)?;
        let (dy, ids) = (dy.as_slice::<T>()?, ids_keep.as_slice::<i32>()?);
        let dx = dx.as_mut_slice::<S>()?;
        let images = dx.par_chunks_mut(grid.image()).zip(dy.par_chunks(keep * values)).zip(ids.par_chunks(keep));
        images.for_each(|((dx, dy), ids)| {
            simd(#[inline(always)] || {
                for (dy, &id) in dy.chunks_exact(values).zip(ids) {
                    for (dy, (c, _, to)) in dy.chunks_exact(grid.patch).zip(grid.rows(id as usize)) {
                        for (dx, &dy) in dx[to..][..grid.patch].iter_mut().zip(dy) {
                            *dx = S::put(dy.widen::<A>() * norm.inverse[c]);
                        }
                    }
                }
            });
        });
        Ok(())
    }))
}
