//! Plain loops, parallel over rows for the factors and over blocks of columns for the mean.

use super::{OP, Outputs};
use crate::dtype::{Float, num_like::Ops};
use crate::ops::teacher::{counted, over_rows, row_factors};
use crate::{Result, Tensor, with_float};

pub(super) fn forward(
    logits: &Tensor,
    temp: &Tensor,
    centre: &Tensor,
    count: Option<&Tensor>,
    out: &mut Outputs,
) -> Result<()> {
    let rows = counted(count, out.rows.numel())?;
    with_float!(OP, "logits", logits.dtype(), T => {
        type A = <T as Float>::Acc;
        let (t, c) = (temp.as_slice::<A>()?[0], centre.as_slice::<A>()?);
        for (a, &c) in out.prototypes.as_mut_slice::<A>()?.iter_mut().zip(c) {
            *a = -c / t;
        }
        let mean = out.mean.as_mut_slice::<A>()?;
        let batch = &logits.as_slice::<T>()?[..rows * c.len()];
        over_rows(batch, mean, A::ZERO, #[inline(always)] |sum, z, _, _| {
            for (sum, z) in sum.iter_mut().zip(z) {
                *sum += z.get();
            }
        });
        for (mean, &c) in mean.iter_mut().zip(c) {
            *mean = if rows == 0 { c } else { *mean / A::of(rows as f64) };
        }
        Ok(())
    })?;
    row_factors(OP, logits, temp, &out.prototypes, &mut out.rows, rows)
}
