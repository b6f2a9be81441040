//! Plain loops, parallel over patches: a patch is read and normalised channel by channel, as it lies in the image, then
//! brought into the order of the prediction, in buffers of the task. Rows are summed in f64 in order.

use rayon::prelude::*;

use super::{Dims, EPS, OP};
use crate::device::host::simd;
use crate::dtype::{Float, Real, num_like::Ops};
use crate::math::sum;
use crate::ops::patchify::Grid;
use crate::ops::pixels::{Norm, Pixel, with_pixel};
use crate::{Result, Tensor, with_float};

/// Patches per task.
const ROWS: usize = 16;

/// The pixels of a patch: channel by channel as the image has them, and in the order of the prediction.
struct Buffers<A> {
    planes: Vec<A>,
    target: Vec<A>,
}

impl<A: Real> Buffers<A> {
    fn new(values: usize) -> Self {
        Self { planes: vec![A::ZERO; values], target: vec![A::ZERO; values] }
    }

    /// Reads patch `id`; with `stats`, normalises it by them, or by its own, which are left there.
    #[inline(always)]
    fn read<S: Pixel>(&mut self, image: &[S], norm: &Norm<A>, grid: &Grid, id: usize, stats: Statistics<'_, A>) {
        for (t, (c, _, from)) in self.planes.chunks_exact_mut(grid.patch).zip(grid.rows(id)) {
            let (unit, mean, inverse) = (norm.unit, norm.mean[c], norm.inverse[c]);
            for (t, &x) in t.iter_mut().zip(&image[from..][..grid.patch]) {
                *t = (x.widen::<A>() * unit - mean) * inverse;
            }
        }
        match stats {
            Statistics::None => (),
            Statistics::Known(s) => normalise(&mut self.planes, s[0], s[1]),
            Statistics::Computed(s) => {
                (s[0], s[1]) = statistics(&self.planes);
                normalise(&mut self.planes, s[0], s[1]);
            }
        }
        match grid.channels {
            1 => self.target.copy_from_slice(&self.planes),
            3 => interleave::<A, 3>(&self.planes, &mut self.target),
            4 => interleave::<A, 4>(&self.planes, &mut self.target),
            channels => {
                for (c, plane) in self.planes.chunks_exact(grid.patch * grid.patch).enumerate() {
                    self.target[c..].iter_mut().step_by(channels).zip(plane).for_each(|(t, &x)| *t = x);
                }
            }
        }
    }
}

/// What a patch is normalised by.
enum Statistics<'a, A> {
    None,
    Known(&'a [A]),
    Computed(&'a mut [A]),
}

/// `target[pixel, c] = planes[c, pixel]` for a number of channels the compiler knows.
#[inline(always)]
fn interleave<A: Copy, const C: usize>(planes: &[A], target: &mut [A]) {
    let area = planes.len() / C;
    let planes: [&[A]; C] = std::array::from_fn(|c| &planes[c * area..][..area]);
    for (i, t) in target.chunks_exact_mut(C).take(area).enumerate() {
        for (t, plane) in t.iter_mut().zip(planes) {
            *t = plane[i];
        }
    }
}

/// Mean less the first value, and the inverse root of the variance.
#[inline(always)]
fn statistics<A: Real>(t: &[A]) -> (A, A) {
    let first = t[0];
    let mean = sum(
        t.len(),
        #[inline(always)]
        |i| t[i] - first,
    ) / A::of(t.len() as f64);
    let square = sum(
        t.len(),
        #[inline(always)]
        |i| {
            let d = t[i] - first - mean;
            d * d
        },
    );
    (mean, A::ONE / (square / A::of((t.len() - 1) as f64) + A::of(EPS)).sqrt())
}

/// `t = (t - first - mean) · rstd`
#[inline(always)]
fn normalise<A: Real>(t: &mut [A], mean: A, rstd: A) {
    let first = t[0];
    for t in t {
        *t = (*t - first - mean) * rstd;
    }
}

pub(super) fn forward(
    pred: &Tensor,
    images: &Tensor,
    norm: Option<&Tensor>,
    ids: &Tensor,
    dims: Dims,
    loss: &mut Tensor,
    stats: &mut Tensor,
) -> Result<()> {
    let Dims { grid, scored, norm_pix } = dims;
    let values = grid.values();
    with_pixel!(OP, "images", images.dtype(), S => with_float!(OP, "pred", pred.dtype(), T => {
        type A = <T as Float>::Acc;
        let norm = Norm::<A>::new::<S>(norm, grid.channels)?;
        let (pred, images, ids) = (pred.as_slice::<T>()?, images.as_slice::<S>()?, ids.as_slice::<i32>()?);
        let tasks = pred.par_chunks(ROWS * values).zip(ids.par_chunks(ROWS));
        let tasks = tasks.zip(stats.as_mut_slice::<A>()?.par_chunks_mut(2 * ROWS)).enumerate();
        let parts: Vec<f64> = tasks
            .map_init(|| Buffers::<A>::new(values), |buffers, (task, ((pred, ids), stats))| {
                let rows = pred.chunks_exact(values).zip(ids).zip(stats.chunks_exact_mut(2)).enumerate();
                rows.map(|(at, ((pred, &id), stats))| {
                    let image = &images[(task * ROWS + at) / scored * grid.image()..][..grid.image()];
                    simd(#[inline(always)] || {
                        (stats[0], stats[1]) = (A::ZERO, A::ONE);
                        let own = if norm_pix { Statistics::Computed(stats) } else { Statistics::None };
                        buffers.read(image, &norm, &grid, id as usize, own);
                        let (pred, target) = (&pred[..values], &buffers.target[..values]);
                        sum(values, #[inline(always)] |i| {
                            let d = pred[i].get() - target[i];
                            d * d
                        })
                    })
                    .f64()
                })
                .sum()
            })
            .collect();
        loss.as_mut_slice::<A>()?[0] = A::of(parts.iter().sum::<f64>() / dims.count() as f64);
        Ok(())
    }))
}

pub(super) fn backward(
    dloss: &Tensor,
    pred: &Tensor,
    images: &Tensor,
    norm: Option<&Tensor>,
    ids: &Tensor,
    stats: &Tensor,
    dims: Dims,
    dpred: &mut Tensor,
) -> Result<()> {
    let Dims { grid, scored, norm_pix } = dims;
    let values = grid.values();
    with_pixel!(OP, "images", images.dtype(), S => with_float!(OP, "pred", pred.dtype(), T => {
        type A = <T as Float>::Acc;
        let norm = Norm::<A>::new::<S>(norm, grid.channels)?;
        let (pred, images, ids) = (pred.as_slice::<T>()?, images.as_slice::<S>()?, ids.as_slice::<i32>()?);
        let (stats, dpred) = (stats.as_slice::<A>()?, dpred.as_mut_slice::<T>()?);
        let scale = A::of(2.0 / dims.count() as f64) * dloss.as_slice::<A>()?[0];
        let tasks = dpred.par_chunks_mut(ROWS * values).zip(pred.par_chunks(ROWS * values)).zip(ids.par_chunks(ROWS));
        tasks.zip(stats.par_chunks(2 * ROWS)).enumerate().for_each_init(
            || Buffers::<A>::new(values),
            |buffers, (task, (((dpred, pred), ids), stats))| {
                let rows = dpred.chunks_exact_mut(values).zip(pred.chunks_exact(values)).zip(ids);
                for (at, (((dpred, pred), &id), stats)) in rows.zip(stats.chunks_exact(2)).enumerate() {
                    let image = &images[(task * ROWS + at) / scored * grid.image()..][..grid.image()];
                    simd(#[inline(always)] || {
                        let known = if norm_pix { Statistics::Known(stats) } else { Statistics::None };
                        buffers.read(image, &norm, &grid, id as usize, known);
                        for ((d, pred), t) in dpred.iter_mut().zip(pred).zip(&buffers.target) {
                            *d = T::put(scale * (pred.get() - *t));
                        }
                    });
                }
            },
        );
        Ok(())
    }))
}

/// All patches of all images.
pub(super) fn target(
    images: &Tensor,
    norm: Option<&Tensor>,
    Dims { grid, norm_pix, .. }: Dims,
    t: &mut Tensor,
) -> Result<()> {
    if t.numel() == 0 {
        return Ok(());
    }
    with_pixel!(OP, "images", images.dtype(), S => with_float!(OP, "target", t.dtype(), A => {
        type Wide = <A as Float>::Acc; // the type itself: f32 or f64
        let norm = Norm::<Wide>::new::<S>(norm, grid.channels)?;
        let (images, t) = (images.as_slice::<S>()?, t.as_mut_slice::<Wide>()?);
        let values = grid.values();
        t.par_chunks_mut(values).enumerate().for_each_init(|| Buffers::<Wide>::new(values), |buffers, (at, t)| {
            let image = &images[at / grid.patches() * grid.image()..][..grid.image()];
            let mut own = [Wide::ZERO; 2];
            let own = if norm_pix { Statistics::Computed(&mut own) } else { Statistics::None };
            buffers.read(image, &norm, &grid, at % grid.patches(), own);
            t.copy_from_slice(&buffers.target);
        });
        Ok(())
    }))
}
