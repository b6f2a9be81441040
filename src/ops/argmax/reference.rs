//! Plain loops, parallel over blocks of rows.

use rayon::prelude::*;

use super::{Dims, OP};
use crate::dtype::Float;
use crate::{Result, Tensor, with_float};

/// Rows per task.
const ROWS: usize = 1024;

pub(super) fn best_row(scores: &Tensor, Dims { cols, .. }: Dims, y: &mut Tensor) -> Result<()> {
    with_float!(OP, "scores", scores.dtype(), T => {
        let (x, y) = (scores.as_slice::<T>()?, y.as_mut_slice::<i32>()?);
        y.par_chunks_mut(ROWS).zip(x.par_chunks(ROWS * cols)).enumerate().for_each(|(block, (y, x))| {
            for (row, (y, x)) in y.iter_mut().zip(x.chunks_exact(cols)).enumerate() {
                *y = ((block * ROWS + row) * cols + largest(x)) as i32; // below 2^31: `Dims::check`
            }
        });
        Ok(())
    })
}

/// Place of the first of the largest values; the first NaN if there is one.
fn largest<T: Float>(x: &[T]) -> usize {
    let nan = |v: T::Acc| v.partial_cmp(&v).is_none();
    (1..x.len()).fold(0, |best, at| {
        let (held, v) = (x[best].get(), x[at].get());
        if !nan(held) && (nan(v) || v > held) { at } else { best }
    })
}
