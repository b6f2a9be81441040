//! Tensors put behind each other along an axis, and parts of one along an axis: each is the other's gradient.
//!
//! `concat`: `y[.., start_i + j, ..] = x_i[.., j, ..]` where `start_i` is the extent of the tensors before `x_i` along
//! the axis; `dx_i` is the part of `dy` that came from it. `slice`: `y[.., j, ..] = x[.., start + j, ..]`; `dx` is `dy`
//! there and zero elsewhere.

mod case;
mod launch;
mod reference;
mod slice;
#[cfg(test)]
mod tests;

pub use case::{case, cases, slice_case};
pub use slice::{slice, slice_forward};

use std::ops::Range;

use crate::ops::{float, same};
use crate::{Device, Error, Result, Tape, Tensor, Var};

const OP: &str = "concat";

/// A part of a tensor along an axis: of each of `outer` runs of `whole` elements, the `len` from element `start` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    outer: usize,
    whole: usize,
    start: usize,
    len: usize,
}

impl Part {
    /// `range` of axis `axis` of `shape`, both known to fit.
    fn of(shape: &[usize], axis: usize, range: &Range<usize>) -> Self {
        let inner = shape[axis + 1..].iter().product::<usize>();
        let outer = shape[..axis].iter().product();
        Self { outer, whole: shape[axis] * inner, start: range.start * inner, len: range.len() * inner }
    }

    /// A tensor that is the part and nothing else.
    fn alone(self) -> Self {
        Self { whole: self.len, start: 0, ..self }
    }
}

/// What is done to the elements of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Write {
    Copy,
    Add,
}

/// Copies or adds one part to another of the same `outer` and `len`, of tensors of one dtype on one device.
fn transfer(from: (&Tensor, Part), to: (&mut Tensor, Part), write: Write) -> Result<()> {
    match from.0.device() {
        Device::Cpu => reference::transfer(from, to, write),
        _ => launch::transfer(from, to, write),
    }
}

/// `xs`, equal in all axes but `axis`, behind each other along it; returns the sum of their extents there.
///
/// dtypes: f32, bf16, f16 (f64 on the CPU), the same for all. Saves nothing. A copy, and so is each gradient that is
/// wanted: deterministic.
///
/// # Errors
/// When there is no tensor or no such axis, or a tensor differs from the first in dtype, device, or an extent besides
/// that of the axis.
pub fn concat(tape: &Tape, xs: &[&Var], axis: usize) -> Result<Var> {
    let values: Vec<&Tensor> = xs.iter().map(|x| x.value()).collect();
    let y = forward(&values, axis)?;
    let mut parts = Vec::with_capacity(xs.len());
    let mut start = 0;
    for x in xs {
        let range = start..start + x.value().shape()[axis];
        start = range.end;
        parts.push((x.slot(), range));
    }
    Ok(tape.record(OP, y, xs, [], move |dy, [], grads| {
        parts.into_iter().try_for_each(|(slot, range)| match slot {
            None => Ok(()),
            to => grads.add(to, slice_forward(&dy, axis, range)?),
        })
    }))
}

/// The tensors behind each other.
pub fn forward(xs: &[&Tensor], axis: usize) -> Result<Tensor> {
    let Some(first) = xs.first() else { return Err(Error::argument(OP, "xs", "length", "0", "at least one tensor")) };
    float(OP, "xs[0]", first)?;
    let mut shape = first.shape().to_vec();
    check_axis(OP, axis, &shape)?;
    shape[axis] = 0;
    for (i, x) in xs.iter().enumerate() {
        let fits = |(at, (given, like)): (usize, (&usize, &usize))| at == axis || given == like;
        let mut extents = x.shape().iter().zip(&**first.shape()).enumerate();
        if x.shape().len() != shape.len() || !extents.all(fits) {
            let expected = format!("{:?} but for axis {axis}", first.shape());
            return Err(Error::shape(OP, format!("xs[{i}]"), x.shape(), expected));
        }
        same(OP, format!("xs[{i}]"), x, first)?;
        shape[axis] += x.shape()[axis];
    }
    let mut y = Tensor::uninit(shape.clone(), first.dtype(), first.device())?;
    let mut start = 0;
    for x in xs {
        let range = start..start + x.shape()[axis];
        let part = Part::of(&shape, axis, &range);
        transfer((x, part.alone()), (&mut y, part), Write::Copy)?;
        start = range.end;
    }
    Ok(y)
}

fn check_axis(op: &'static str, axis: usize, shape: &[usize]) -> Result<()> {
    if axis >= shape.len() {
        return Err(Error::value(op, "axis", axis, format!("an axis of {shape:?}")));
    }
    Ok(())
}
