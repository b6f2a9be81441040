//! Plain loops: forward parallel over rows; gradient parallel over the rows of the table, each summed in order.

use rayon::prelude::*;

use super::{Dims, Lookup, OP};
use crate::device::host::simd;
use crate::dtype::Float;
use crate::{Result, Tensor, with_float};

/// Rows per task.
const ROWS: usize = 32;

pub(super) fn forward(
    table: &Tensor,
    lookup: &Lookup,
    x: Option<&Tensor>,
    Dims { cols, .. }: Dims,
    y: &mut Tensor,
) -> Result<()> {
    with_float!(OP, "table", table.dtype(), T => {
        let (table, ids, y) = (table.as_slice::<T>()?, lookup.ids().as_slice::<i32>()?, y.as_mut_slice::<T>()?);
        let x = x.map(|x| x.as_slice::<T>()).transpose()?;
        if cols == 0 {
            return Ok(());
        }
        y.par_chunks_mut(ROWS * cols).zip(ids.par_chunks(ROWS)).enumerate().for_each(|(task, (y, ids))| {
            for (row, (y, &id)) in y.chunks_exact_mut(cols).zip(ids).enumerate() {
                let picked = &table[id as usize * cols..][..cols];
                match x {
                    None => y.copy_from_slice(picked),
                    Some(x) => add(&x[(task * ROWS + row) * cols..][..cols], picked, y),
                }
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

pub(super) fn backward(dy: &Tensor, lookup: &Lookup, Dims { cols, .. }: Dims, dtable: &mut Tensor) -> Result<()> {
    with_float!(OP, "dy", dy.dtype(), T => {
        type A = <T as Float>::Acc;
        let (dy, dtable) = (dy.as_slice::<T>()?, dtable.as_mut_slice::<A>()?);
        let (ids, order) = (lookup.ids().as_slice::<i32>()?, lookup.order().as_slice::<i32>()?);
        if cols == 0 {
            return Ok(());
        }
        dtable.par_chunks_mut(cols).enumerate().for_each(|(row, sum)| {
            let first = order.partition_point(|&m| (ids[m as usize] as usize) < row);
            let mine = order[first..].iter().take_while(|&&m| ids[m as usize] as usize == row);
            mine.for_each(|&m| accumulate(&dy[m as usize * cols..][..cols], sum));
        });
        Ok(())
    })
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
