//! Plain loops: sums over rows in parallel over blocks of columns, sums over columns in parallel over rows. Neither
//! depends on the number of threads, and neither needs memory. The logits are read twice per step.

use super::{Factors, OP, Steps};
use crate::dtype::{Float, num_like::Ops};
use crate::ops::teacher::{Across, Reduce, over_rows, row_factors};
use crate::{Result, Tensor, with_float};

pub(super) struct Host<'a> {
    pub logits: &'a Tensor,
    pub temp: &'a Tensor,
    /// Rows of the batch; those after them are not read.
    pub count: usize,
}

impl Host<'_> {
    /// The logits of the batch.
    fn batch<T: Float>(&self) -> Result<&[T]> {
        Ok(&self.logits.as_slice::<T>()?[..self.count * self.logits.shape()[1]])
    }
}

impl Steps for Host<'_> {
    fn start(&mut self, f: &mut Factors, across: &mut Across<'_>) -> Result<()> {
        with_float!(OP, "logits", self.logits.dtype(), T => {
            type A = <T as Float>::Acc;
            let (z, temp) = (self.batch::<T>()?, self.temp.as_slice::<A>()?[0]);
            over_rows(z, f.mass.as_mut_slice::<A>()?, A::NEG_INFINITY, #[inline(always)] |top, z, _, _| {
                for (top, z) in top.iter_mut().zip(z) {
                    *top = top.max(z.get() / temp);
                }
            });
            across(Reduce::Max, &mut f.mass)?;
            for (a, &top) in f.prototypes.as_mut_slice::<A>()?.iter_mut().zip(f.mass.as_slice::<A>()?) {
                *a = if top == A::NEG_INFINITY { A::ZERO } else { -top };
            }
            Ok(())
        })
    }

    fn first_masses(&mut self, f: &mut Factors) -> Result<()> {
        with_float!(OP, "logits", self.logits.dtype(), T => {
            type A = <T as Float>::Acc;
            let (z, temp) = (self.batch::<T>()?, self.temp.as_slice::<A>()?[0]);
            let a = f.prototypes.as_slice::<A>()?;
            over_rows(z, f.mass.as_mut_slice::<A>()?, A::ZERO, #[inline(always)] |mass, z, from, _| {
                for ((mass, z), &a) in mass.iter_mut().zip(z).zip(&a[from..]) {
                    *mass += (z.get() / temp + a).exp();
                }
            });
            Ok(())
        })
    }

    fn masses(&mut self, f: &mut Factors) -> Result<()> {
        self.rows(f)?;
        with_float!(OP, "logits", self.logits.dtype(), T => {
            type A = <T as Float>::Acc;
            let (z, temp) = (self.batch::<T>()?, self.temp.as_slice::<A>()?[0]);
            let (a, l) = (f.prototypes.as_slice::<A>()?, f.rows.as_slice::<A>()?);
            over_rows(z, f.mass.as_mut_slice::<A>()?, A::ZERO, #[inline(always)] |mass, z, from, row| {
                let l = l[row];
                for ((mass, z), &a) in mass.iter_mut().zip(z).zip(&a[from..]) {
                    *mass += (z.get() / temp + (a + l)).exp();
                }
            });
            Ok(())
        })
    }

    fn rows(&mut self, f: &mut Factors) -> Result<()> {
        row_factors(OP, self.logits, self.temp, &f.prototypes, &mut f.rows, self.count)
    }

    fn prototypes(&mut self, f: &mut Factors) -> Result<()> {
        with_float!(OP, "logits", self.logits.dtype(), T => {
            type A = <T as Float>::Acc;
            for (a, &mass) in f.prototypes.as_mut_slice::<A>()?.iter_mut().zip(f.mass.as_slice::<A>()?) {
                if mass != A::ZERO {
                    *a -= mass.ln(); // a prototype without any mass keeps its factor
                }
            }
            Ok(())
        })
    }
}
