//! Plain loops, parallel over rows of the result: along the rows into a line of sums, from which the columns are read.

use rayon::prelude::*;

use super::{Dims, OP, Table};
use crate::device::host::simd;
use crate::dtype::{Float, num_like::Ops};
use crate::{Result, Tensor, with_float};

/// A table as host slices.
struct Reads<'a> {
    range: &'a [i32],
    weights: &'a [f32],
    taps: usize,
    step: usize,
}

impl<'a> Reads<'a> {
    fn of(table: &'a Table) -> Result<Self> {
        let (range, weights) = (table.range().as_slice::<i32>()?, table.weights().as_slice::<f32>()?);
        Ok(Self { range, weights, taps: table.taps(), step: table.step() })
    }

    /// Positions that `i` is read from, with their weights.
    #[inline(always)]
    fn of_position(&self, i: usize) -> impl Iterator<Item = (usize, f32)> {
        let (first, count) = (self.range[2 * i] as usize, self.range[2 * i + 1] as usize);
        let weights = &self.weights[i * self.taps..][..count];
        weights.iter().enumerate().map(move |(k, &weight)| (first + k * self.step, weight))
    }
}

pub(super) fn apply(x: &Tensor, tables: &[Table; 2], dims: Dims, y: &mut Tensor) -> Result<()> {
    let [rows, cols] = [Reads::of(&tables[0])?, Reads::of(&tables[1])?];
    let ([height, width], [out_height, out_width], channels) = (dims.from, dims.to, dims.channels);
    with_float!(OP, "x", x.dtype(), T => {
        type A = <T as Float>::Acc;
        let (x, y) = (x.as_slice::<T>()?, y.as_mut_slice::<T>()?);
        if channels == 0 {
            return Ok(());
        }
        let len = width * channels;
        let buffers = || (vec![A::ZERO; len], vec![A::ZERO; channels]);
        y.par_chunks_mut(out_width * channels).enumerate().for_each_init(buffers, |(line, sum), (at, y)| {
            let first = at / out_height * height;
            simd(#[inline(always)] || {
                line.fill(A::ZERO);
                for (row, weight) in rows.of_position(at % out_height) {
                    add(line, &x[(first + row) * len..][..len], A::of(weight.into()));
                }
                if channels == 1 {
                    for (j, y) in y.iter_mut().enumerate() {
                        let terms = cols.of_position(j).map(|(col, weight)| A::of(weight.into()) * line[col]);
                        *y = T::put(terms.sum::<A>());
                    }
                    return;
                }
                for (j, y) in y.chunks_exact_mut(channels).enumerate() {
                    sum.fill(A::ZERO);
                    for (col, weight) in cols.of_position(j) {
                        add(sum, &line[col * channels..][..channels], A::of(weight.into()));
                    }
                    for (y, &sum) in y.iter_mut().zip(&*sum) {
                        *y = T::put(sum);
                    }
                }
            });
        });
        Ok(())
    })
}

/// `sum += weight · x`
#[inline(always)]
fn add<T: Float>(sum: &mut [T::Acc], x: &[T], weight: T::Acc) {
    for (sum, x) in sum.iter_mut().zip(x) {
        *sum += weight * x.get();
    }
}
