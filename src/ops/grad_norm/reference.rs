//! Plain loops in f64, parallel over tasks of fixed length whose sums are added in order.

use rayon::prelude::*;

use super::OP;
use crate::device::host::simd;
use crate::dtype::{Float, num_like::Ops};
use crate::ops::multi_tensor::{TASK, squares};
use crate::{Result, Tensor, with_float};

pub(super) fn grad_norm(grads: &[&Tensor], groups: &[usize], max_norm: Option<f64>, out: &mut Tensor) -> Result<()> {
    with_float!(OP, "out", out.dtype(), T => {
        let slices = grads.iter().map(|g| g.as_slice::<T>()).collect::<Result<Vec<_>>>()?;
        let chunks = slices.into_iter().zip(groups).flat_map(|(g, &group)| g.chunks(TASK).map(move |g| (group, g)));
        let tasks: Vec<(usize, &[T])> = chunks.collect();
        let square = |(group, g): (usize, &[T])| (group, simd(#[inline(always)] || squares(g.len(), #[inline(always)] |i| g[i].get().f64())));
        let sums: Vec<(usize, f64)> = tasks.into_par_iter().map(square).collect();
        for (at, out) in out.as_mut_slice::<T>()?.chunks_exact_mut(2).enumerate() {
            let norm = sums.iter().filter(|(group, _)| *group == at).map(|(_, sum)| sum).sum::<f64>().sqrt();
            // Not `f64::min`, which would drop a NaN.
            let factor = max_norm.map_or(1.0, |max| max / (norm + 1e-6));
            out[0] = T::put(<T as Float>::Acc::of(norm));
            out[1] = T::put(<T as Float>::Acc::of(if factor > 1.0 { 1.0 } else { factor }));
        }
        Ok(())
    })
}
