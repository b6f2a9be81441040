//! Plain copies and sums, parallel over lines of the result.

use rayon::prelude::*;

use super::{Dims, OP, Window};
use crate::dtype::{Float, num_like::Ops};
use crate::{Result, Tensor, with_float};

/// The pixel under entry `k` of the window at position `o`, if it lies on a side of `n` pixels.
fn pixel(Window { stride, padding, .. }: Window, o: usize, k: usize, n: usize) -> Option<usize> {
    (o * stride + k).checked_sub(padding).filter(|&at| at < n)
}

pub(super) fn forward(x: &Tensor, dims: Dims, cols: &mut Tensor) -> Result<()> {
    let Dims { height, width, channels, out: [down, across], window, .. } = dims;
    let (k, area, values) = (window.kernel, dims.area(), dims.values());
    with_float!(OP, "x", x.dtype(), T => {
        let (x, cols) = (x.as_slice::<T>()?, cols.as_mut_slice::<T>()?);
        if channels == 0 {
            return Ok(());
        }
        let zero = T::put(<T as Float>::Acc::ZERO);
        // [OW, C·k·k]
        cols.par_chunks_mut(across * values).enumerate().for_each(|(line, cols)| {
            let (image, oy) = (line / down, line % down);
            for (ox, cols) in cols.chunks_exact_mut(values).enumerate() {
                for tap in 0..area {
                    let entries = cols[tap..].iter_mut().step_by(area); // of all channels
                    match (pixel(window, oy, tap / k, height), pixel(window, ox, tap % k, width)) {
                        (Some(y), Some(at)) => {
                            let pixel = &x[((image * height + y) * width + at) * channels..][..channels];
                            entries.zip(pixel).for_each(|(entry, &x)| *entry = x);
                        }
                        _ => entries.for_each(|entry| *entry = zero),
                    }
                }
            }
        });
        Ok(())
    })
}

pub(super) fn backward(cols: &Tensor, dims: Dims, x: &mut Tensor) -> Result<()> {
    let Dims { height, width, channels, out: [down, across], window, .. } = dims;
    let Window { kernel: k, stride, padding } = window;
    let (area, values) = (dims.area(), dims.values());
    with_float!(OP, "cols", cols.dtype(), T => {
        let (cols, x) = (cols.as_slice::<T>()?, x.as_mut_slice::<T>()?);
        if width * channels == 0 {
            return Ok(());
        }
        // [W, C]
        x.par_chunks_mut(width * channels).enumerate().for_each(|(line, x)| {
            let (image, y) = (line / height, line % height);
            let mut sum = vec![<T as Float>::Acc::ZERO; channels];
            for (at, x) in x.chunks_exact_mut(channels).enumerate() {
                sum.fill(<T as Float>::Acc::ZERO);
                for oy in window.covering(y, down).rev() {
                    for ox in window.covering(at, across).rev() {
                        let tap = (y + padding - oy * stride) * k + at + padding - ox * stride;
                        let row = &cols[((image * down + oy) * across + ox) * values..][..values];
                        sum.iter_mut().zip(row[tap..].iter().step_by(area)).for_each(|(sum, v)| *sum += v.get());
                    }
                }
                x.iter_mut().zip(&sum).for_each(|(x, &sum)| *x = T::put(sum));
            }
        });
        Ok(())
    })
}
