//! Plain loops, parallel over runs and over pieces of long ones.

use rayon::prelude::*;

use super::{OP, Part, Write};
use crate::device::host::{CHUNK, simd};
use crate::dtype::Float;
use crate::{Result, Tensor, with_float};

pub(super) fn transfer((from, source): (&Tensor, Part), (to, target): (&mut Tensor, Part), write: Write) -> Result<()> {
    let len = source.len;
    if source.outer * len == 0 {
        return Ok(());
    }
    with_float!(OP, "x", from.dtype(), T => {
        let (from, to) = (from.as_slice::<T>()?, to.as_mut_slice::<T>()?);
        let runs = to.par_chunks_mut(target.whole).zip(from.par_chunks(source.whole));
        runs.with_min_len((CHUNK / target.whole).max(1)).for_each(|(to, from)| {
            let (to, from) = (&mut to[target.start..][..len], &from[source.start..][..len]);
            if len <= CHUNK {
                return run(to, from, write);
            }
            to.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK)).for_each(|(to, from)| run(to, from, write));
        });
        Ok(())
    })
}

fn run<T: Float>(to: &mut [T], from: &[T], write: Write) {
    match write {
        Write::Copy => to.copy_from_slice(from),
        Write::Add => simd(
            #[inline(always)]
            || {
                for (to, from) in to.iter_mut().zip(from) {
                    *to = T::put(to.get() + from.get());
                }
            },
        ),
    }
}
