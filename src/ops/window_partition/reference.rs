//! Plain copies, parallel over windows or over lines of the maps.

use rayon::prelude::*;

use super::{Dims, OP};
use crate::dtype::{Float, num_like::Ops};
use crate::{Result, Tensor, with_float};

pub(super) fn forward(x: &Tensor, dims: Dims, y: &mut Tensor) -> Result<()> {
    let Dims { height, width, channels, window, .. } = dims;
    let [down, across] = dims.grid();
    with_float!(OP, "x", x.dtype(), T => {
        let (x, y) = (x.as_slice::<T>()?, y.as_mut_slice::<T>()?);
        if channels == 0 {
            return Ok(());
        }
        let zero = T::put(<T as Float>::Acc::ZERO);
        // [w, w, C]
        y.par_chunks_mut(window * window * channels).enumerate().for_each(|(at, y)| {
            let (image, top, left) = (at / (down * across), at / across % down * window, at % across * window);
            let inside = window.min(width - left) * channels;
            for (line, y) in y.chunks_exact_mut(window * channels).enumerate() {
                let inside = if top + line < height { inside } else { 0 };
                let (copied, zeros) = y.split_at_mut(inside);
                if inside > 0 {
                    let from = ((image * height + top + line) * width + left) * channels;
                    copied.copy_from_slice(&x[from..][..inside]);
                }
                zeros.fill(zero);
            }
        });
        Ok(())
    })
}

pub(super) fn backward(y: &Tensor, dims: Dims, x: &mut Tensor) -> Result<()> {
    let Dims { height, width, channels, window, .. } = dims;
    let [down, across] = dims.grid();
    with_float!(OP, "y", y.dtype(), T => {
        let (y, x) = (y.as_slice::<T>()?, x.as_mut_slice::<T>()?);
        if channels == 0 {
            return Ok(());
        }
        // [W, C], the part of each window after the other
        x.par_chunks_mut(width * channels).enumerate().for_each(|(line, x)| {
            let (image, at) = (line / height, line % height);
            let first = (image * down + at / window) * across;
            for (column, x) in x.chunks_mut(window * channels).enumerate() {
                let from = ((first + column) * window + at % window) * window * channels;
                x.copy_from_slice(&y[from..][..x.len()]);
            }
        });
        Ok(())
    })
}
