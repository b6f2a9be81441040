//! Exponential moving average of a student's weights, over a list of tensors, in place.
//!
//! `t ← m · t + (1 - m) · s`
//!
//! Source: Tarvainen and Valpola 2017, arXiv 1703.01780, equation 2. One kernel for all tensors: 12 bytes per element, 14
//! with a 16-bit copy.

mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases};

use crate::ops::multi_tensor::{self, Workspace};
use crate::{DType, Device, Result, Tensor};

const OP: &str = "ema";

/// One tensor of the teacher and what it follows; all have the same number of elements.
pub struct Item<'a> {
    /// The average, f32.
    pub teacher: &'a mut Tensor,
    /// What is averaged, f32.
    pub student: &'a Tensor,
    /// Copy of the average in a compute type, rewritten from it.
    pub compute: Option<&'a mut Tensor>,
}

/// `m` and `1 - m`, as [`ema`] reads them from device memory.
pub fn scalars(momentum: f64) -> [f64; 2] {
    [momentum, 1.0 - momentum]
}

/// Updates every item in place. `scalars: [2]` are those of [`scalars`] on the device of the items.
///
/// dtypes: f32 (f64 on the CPU) for everything but the copies, which have one type of f32, bf16, f16 among them.
/// Deterministic.
///
/// # Errors
/// When operands of an item differ in length, dtype or device, or one that is written is shared. Nothing is changed then.
pub fn ema(items: &mut [Item], scalars: &Tensor, work: &mut Workspace) -> Result<()> {
    let Some(first) = items.first() else { return Ok(()) };
    let device = first.teacher.device().clone();
    let compute = check(items, scalars, &device)?;
    match device {
        Device::Cpu => reference::ema(items, scalars, compute),
        _ => launch::ema(items, scalars, compute, work),
    }
}

/// The type of the copies; that of the teacher if there are none.
fn check(items: &[Item], scalars: &Tensor, device: &Device) -> Result<DType> {
    let dtype = items[0].teacher.dtype();
    let copy = items.iter().find_map(|x| x.compute.as_deref());
    let compute = multi_tensor::compute_type(OP, "teacher[0]", dtype, copy)?;
    for (i, item) in items.iter().enumerate() {
        let numel = item.teacher.numel();
        for (arg, x) in [("teacher", &*item.teacher), ("student", item.student)] {
            multi_tensor::check(OP, arg, i, x, numel, dtype, device)?;
        }
        if let Some(c) = &item.compute {
            multi_tensor::check(OP, "compute", i, c, numel, compute, device)?;
        }
    }
    multi_tensor::check_vector(OP, "scalars", scalars, 2, dtype, device)?;
    Ok(compute)
}
