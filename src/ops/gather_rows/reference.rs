//! Plain copies, parallel over rows.

use rayon::prelude::*;

use super::Dims;
use crate::{Result, Tensor, with_float};

/// Rows per task.
const ROWS: usize = 32;

pub(super) fn forward(x: &Tensor, ids: &Tensor, Dims { cols, .. }: Dims, y: &mut Tensor) -> Result<()> {
    with_float!("gather_rows", "x", x.dtype(), T => {
        let (x, ids, y) = (x.as_slice::<T>()?, ids.as_slice::<i32>()?, y.as_mut_slice::<T>()?);
        if cols == 0 {
            return Ok(());
        }
        y.par_chunks_mut(ROWS * cols).zip(ids.par_chunks(ROWS)).for_each(|(y, ids)| {
            for (y, &id) in y.chunks_exact_mut(cols).zip(ids) {
                y.copy_from_slice(&x[id as usize * cols..][..cols]);
            }
        });
        Ok(())
    })
}

pub(super) fn backward(dy: &Tensor, ids: &Tensor, Dims { cols, .. }: Dims, dx: &mut Tensor) -> Result<()> {
    with_float!("gather_rows", "dy", dy.dtype(), T => {
        let (dy, ids, dx) = (dy.as_slice::<T>()?, ids.as_slice::<i32>()?, dx.as_mut_slice::<T>()?);
        if cols == 0 {
            return Ok(());
        }
        // One memory-bound copy per chosen row; the zeros around them cost more.
        for (dy, &id) in dy.chunks_exact(cols).zip(ids) {
            dx[id as usize * cols..][..cols].copy_from_slice(dy);
        }
        Ok(())
    })
}
