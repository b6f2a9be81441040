//! Plain comparisons, parallel over lines of the result or of the gradient.

use rayon::prelude::*;

use super::{Dims, OP};
use crate::dtype::{Float, num_like::Ops};
use crate::{Result, Tensor, with_float};

pub(super) fn forward(x: &Tensor, dims: Dims, y: &mut Tensor, index: Option<&mut Tensor>) -> Result<()> {
    let Dims { height, width, channels, .. } = dims;
    let [_, down, across, _] = dims.pooled();
    with_float!(OP, "x", x.dtype(), T => {
        let (x, y) = (x.as_slice::<T>()?, y.as_mut_slice::<T>()?);
        if across * channels == 0 {
            return Ok(());
        }
        let pool = |line: usize, y: &mut [T], mut index: Option<&mut [u8]>| {
            let (image, row) = (line / down, 2 * (line % down));
            for (at, y) in y.iter_mut().enumerate() {
                let (column, c) = (2 * (at / channels), at % channels);
                let from = |place: usize| {
                    x[((image * height + row + place / 2) * width + column + place % 2) * channels + c]
                };
                let mut best = 0;
                *y = from(0);
                for place in 1..4 {
                    let value = from(place);
                    if value.get() > y.get() || is_nan(value) {
                        (*y, best) = (value, place as u8);
                    }
                }
                if let Some(index) = &mut index {
                    index[at] = best;
                }
            }
        };
        let lines = y.par_chunks_mut(across * channels).enumerate();
        match index {
            None => lines.for_each(|(line, y)| pool(line, y, None)),
            Some(index) => lines
                .zip(index.as_mut_slice::<u8>()?.par_chunks_mut(across * channels))
                .for_each(|((line, y), index)| pool(line, y, Some(index))),
        }
        Ok(())
    })
}

fn is_nan<T: Float>(x: T) -> bool {
    x.get().partial_cmp(&x.get()).is_none()
}

pub(super) fn backward(dy: &Tensor, index: &Tensor, dims: Dims, dx: &mut Tensor) -> Result<()> {
    let Dims { height, width, channels, .. } = dims;
    let [_, down, across, _] = dims.pooled();
    with_float!(OP, "dy", dy.dtype(), T => {
        let (dy, index, dx) = (dy.as_slice::<T>()?, index.as_slice::<u8>()?, dx.as_mut_slice::<T>()?);
        if width * channels == 0 {
            return Ok(());
        }
        let zero = T::put(<T as Float>::Acc::ZERO);
        // [W, C]
        dx.par_chunks_mut(width * channels).enumerate().for_each(|(line, dx)| {
            let (image, y) = (line / height, line % height);
            for (x, dx) in dx.chunks_exact_mut(channels).enumerate() {
                if y / 2 >= down || x / 2 >= across {
                    dx.fill(zero); // dropped
                    continue;
                }
                let (place, from) = ((y % 2 * 2 + x % 2) as u8, ((image * down + y / 2) * across + x / 2) * channels);
                let pooled = dy[from..].iter().zip(&index[from..]);
                dx.iter_mut().zip(pooled).for_each(|(dx, (&dy, &at))| *dx = if at == place { dy } else { zero });
            }
        });
        Ok(())
    })
}
