//! Plain loops, parallel over rows for the factors and over blocks of columns for the mean.

use super::{OP, Outputs};
use crate::dtype::{Float, num_like::Ops};
use crate::ops::teacher::{over_rows, row_factors};
use crate::{Result, Tensor, with_float};

pub(super) fn forward(logits: &Tensor, temp: &Tensor, centre: &Tensor, out: &mut Outputs) -> Result<()> {
    with_float!(OP, "logits", logits.dtype(), T => {
        type A = <T as Float>::Acc;
        let (t, c, rows) = (temp.as_slice::<A>()?[0], centre.as_slice::<A>()?, out.rows.numel());
        for (a, &c) in out.prototypes.as_mut_slice::<A>()?.iter_mut().zip(c) {
            *a = -c / t;
        }
        let mean = out.mean.as_mut_slice::<A>()?;
        over_rows(logits.as_slice::<T>()?, mean, A::ZERO, #[inline(always)] |sum, z, _, _| {
            for (sum, z) in sum.iter_mut().zip(z) {
                *sum += z.get();
            }
        });
        for (mean, &c) in mean.iter_mut().zip(c) {
            *mean = if rows == 0 { c } else { *mean / A::of(rows as f64) };
        }
        Ok(())
    })?;
    row_factors(OP, logits, temp, &out.prototypes, &mut out.rows)
}
