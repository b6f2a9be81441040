//! The maximum over squares of two by two pixels.
//!
//! `y[b, i, j, c] = max x[b, 2i + u, 2j + v, c]` over `u, v` in {0, 1}; a last odd row or column is dropped. The
//! gradient goes to the first maximum in the order `(u, v)`, all others and dropped pixels get zero. A NaN counts as
//! larger than everything, and of several the last one does: so PyTorch has it.
//!
//! Source: pooling of queries and of the shortcut in Hiera, Ryali et al. 2023, arXiv 2306.00989, section 3; behaviour
//! of `torch.nn.functional.max_pool2d(x, 2, 2)`.

mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases};

use crate::ops::{float, on, shaped, typed};
use crate::{DType, Device, Result, Tape, Tensor, Var};

const OP: &str = "max_pool2d";

/// Extents checked once, used by reference and launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dims {
    batch: usize,
    height: usize,
    width: usize,
    channels: usize,
}

impl Dims {
    fn check(arg: &'static str, x: &Tensor) -> Result<Self> {
        float(OP, arg, x)?;
        let [batch, height, width, channels] = x.dims(OP, arg)?;
        Ok(Self { batch, height, width, channels })
    }

    /// `[B, H / 2, W / 2, C]`.
    fn pooled(&self) -> [usize; 4] {
        [self.batch, self.height / 2, self.width / 2, self.channels]
    }
}

/// Maximum of each two by two pixels of `x: [B, H, W, C]`; returns `[B, H / 2, W / 2, C]`, sides rounded down.
///
/// dtypes: f32, bf16, f16 (f64 on the CPU); an exact copy. Deterministic. Saves a byte per element of the result, which
/// of the four it was: `x` would be four elements, and pooling is mostly the only one that would keep it. Where no
/// gradient is wanted, the bytes are not made.
///
/// # Errors
/// When `x` is not of a float type or has other than 4 axes.
pub fn max_pool2d(tape: &Tape, x: &Var) -> Result<Var> {
    let (y, index) = forward(x.value(), x.slot().is_some())?;
    let Some(index) = index else { return Ok(Var::constant(y)) };
    let [_, height, width, _] = x.value().dims(OP, "x")?;
    let to_x = x.slot();
    Ok(tape.record(OP, y, &[x], [index], move |dy, [index], grads| {
        grads.add(to_x, backward(&dy, &index, [height, width])?)
    }))
}

/// `y: [B, H / 2, W / 2, C]` and, if `indexed`, the place `2u + v` of the maximum, u8, like `y`.
pub fn forward(x: &Tensor, indexed: bool) -> Result<(Tensor, Option<Tensor>)> {
    let dims = Dims::check("x", x)?;
    let mut y = Tensor::uninit(dims.pooled(), x.dtype(), x.device())?;
    let mut index = indexed.then(|| Tensor::uninit(dims.pooled(), DType::U8, x.device())).transpose()?;
    match x.device() {
        Device::Cpu => reference::forward(x, dims, &mut y, index.as_mut())?,
        _ => launch::forward(x, dims, &mut y, index.as_mut())?,
    }
    Ok((y, index))
}

/// Gradient by `x: [B, H, W, C]` of `size: [H, W]`.
pub fn backward(dy: &Tensor, index: &Tensor, size: [usize; 2]) -> Result<Tensor> {
    let dims = Dims::check("dy", dy)?;
    let dims = Dims { height: size[0], width: size[1], ..dims };
    shaped(OP, "dy", dy, &dims.pooled())?;
    shaped(OP, "index", index, &dims.pooled())?;
    typed(OP, "index", index, DType::U8)?;
    on(OP, "index", index, dy)?;
    let mut dx = Tensor::uninit([dims.batch, dims.height, dims.width, dims.channels], dy.dtype(), dy.device())?;
    match dy.device() {
        Device::Cpu => reference::backward(dy, index, dims, &mut dx)?,
        _ => launch::backward(dy, index, dims, &mut dx)?,
    }
    Ok(dx)
}
