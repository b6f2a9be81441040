//! Column sums in fixed blocks of rows; the products themselves are the GEMM library's.

use rayon::prelude::*;

use crate::device::host::simd;
use crate::dtype::{Float, num_like::Ops};
use crate::{Result, Tensor, with_float};

/// Rows summed by one task; also fixes the order of the sum.
const ROWS: usize = 128;

pub(super) fn column_sums(dy: &Tensor, cols: usize, db: &mut Tensor) -> Result<()> {
    with_float!("linear", "dy", dy.dtype(), T => {
        type A = <T as Float>::Acc;
        let (dy, db) = (dy.as_slice::<T>()?, db.as_mut_slice::<A>()?);
        db.fill(A::ZERO);
        if cols == 0 {
            return Ok(());
        }
        let sum = |block: &[T]| {
            let mut part = vec![A::ZERO; cols];
            simd(#[inline(always)] || {
                for row in block.chunks_exact(cols) {
                    for (p, g) in part.iter_mut().zip(row) {
                        *p += g.get();
                    }
                }
            });
            part
        };
        let parts: Vec<Vec<A>> = dy.par_chunks(ROWS * cols).map(sum).collect();
        for part in parts {
            db.iter_mut().zip(part).for_each(|(d, p)| *d += p);
        }
        Ok(())
    })
}
