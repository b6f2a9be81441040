//! Plain loops, parallel over tasks of fixed length; an element depends on itself alone.

use rayon::prelude::*;

use super::{Item, OP};
use crate::device::host::simd;
use crate::dtype::Float;
use crate::ops::multi_tensor::{TASK, copy_chunks};
use crate::{DType, Result, Tensor, with_float};

/// The same range of every operand of one tensor; `compute` is empty where there is no copy.
struct Task<'a, C: Float> {
    teacher: &'a mut [C::Acc],
    student: &'a [C::Acc],
    compute: &'a mut [C],
}

/// `compute` is the type of the copies; everything else is in its arithmetic type.
pub(super) fn ema(items: &mut [Item], scalars: &Tensor, compute: DType) -> Result<()> {
    with_float!(OP, "compute", compute, C => {
        let scalars = scalars.as_slice::<<C as Float>::Acc>()?;
        let (keep, take) = (scalars[0], scalars[1]);
        let mut tasks: Vec<Task<C>> = Vec::new();
        for item in items {
            let mut copies = copy_chunks::<C>(&mut item.compute)?;
            let teacher = item.teacher.as_mut_slice()?.chunks_mut(TASK);
            for (teacher, student) in teacher.zip(item.student.as_slice()?.chunks(TASK)) {
                tasks.push(Task { teacher, student, compute: copies.next().unwrap_or_default() });
            }
        }
        tasks.into_par_iter().for_each(|task| simd(#[inline(always)] || run::<C>(task, keep, take)));
        Ok(())
    })
}

#[inline(always)]
fn run<C: Float>(Task { teacher, student, compute }: Task<C>, keep: C::Acc, take: C::Acc) {
    for (t, &s) in teacher.iter_mut().zip(student) {
        *t = keep * *t + take * s;
    }
    for (c, &t) in compute.iter_mut().zip(&*teacher) {
        *c = C::put(t);
    }
}
