//! A part of a tensor along an axis.

use std::ops::Range;

use super::{Part, Write, check_axis, transfer};
use crate::ops::float;
use crate::tape::Mode;
use crate::{Error, Result, Tape, Tensor, Var};

const SLICE: &str = "slice";

/// Elements `range` of `x` along `axis`; returns the shape of `x` with the length of the range there.
///
/// dtypes: f32, bf16, f16 (f64 on the CPU). Saves nothing. A copy; the first gradient to reach `x` is laid into zeros,
/// one that comes later, from another slice of `x` for example, is added to its part of what is there alone:
/// deterministic.
///
/// # Errors
/// When `x` is not of a float type or has no such axis, or the range ends beyond it.
pub fn slice(tape: &Tape, x: &Var, axis: usize, range: Range<usize>) -> Result<Var> {
    let y = slice_forward(x.value(), axis, range.clone())?;
    let (to_x, shape, device) = (x.slot(), x.value().shape().clone(), x.value().device().clone());
    Ok(tape.record(SLICE, y, &[x], [], move |dy, [], grads| {
        let part = Part::of(&shape, axis, &range);
        grads.write(to_x, &shape, &device, |dx, mode| {
            let dy = dy.cast(dx.dtype())?; // f32 for a parameter
            let write = match mode {
                Mode::Add => Write::Add,
                Mode::Set => {
                    if part.len != part.whole {
                        dx.storage_mut(SLICE)?.zero()?;
                    }
                    Write::Copy
                }
            };
            transfer((&dy, part.alone()), (dx, part), write)
        })
    }))
}

/// The part alone.
///
/// # Errors
/// As [`slice()`].
pub fn slice_forward(x: &Tensor, axis: usize, range: Range<usize>) -> Result<Tensor> {
    float(SLICE, "x", x)?;
    let mut shape = x.shape().to_vec();
    check_axis(SLICE, axis, &shape)?;
    if range.start > range.end || range.end > shape[axis] {
        return Err(Error::value(SLICE, "range", format!("{range:?}"), format!("a part of 0..{}", shape[axis])));
    }
    let part = Part::of(&shape, axis, &range);
    shape[axis] = range.len();
    let mut y = Tensor::uninit(shape, x.dtype(), x.device())?;
    transfer((x, part), (&mut y, part.alone()), Write::Copy)?;
    Ok(y)
}
