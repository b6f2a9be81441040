//! Plain copies, parallel over copies and over pieces of long ones.

use rayon::prelude::*;

use super::OP;
use crate::device::host::CHUNK;
use crate::{Result, Tensor, with_float};

pub(super) fn forward(x: &Tensor, y: &mut Tensor) -> Result<()> {
    with_float!(OP, "x", x.dtype(), T => {
        let (x, y) = (x.as_slice::<T>()?, y.as_mut_slice::<T>()?);
        if x.is_empty() {
            return Ok(());
        }
        y.par_chunks_mut(x.len()).with_min_len((CHUNK / x.len()).max(1)).for_each(|y| {
            if x.len() <= CHUNK {
                return y.copy_from_slice(x);
            }
            y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| y.copy_from_slice(x));
        });
        Ok(())
    })
}
