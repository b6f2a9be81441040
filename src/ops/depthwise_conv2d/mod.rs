//! Convolution of every channel by a kernel of its own.
//!
//! `y[b, i, j, c] = bias[c] + Σ_{u, v} w[c, u, v] · x[b, i + u - r, j + v - r, c]` with kernels of odd side
//! `k = 2r + 1` and zeros outside of `x`. Gradients: `dx` is the same sum over `dy` with kernels turned by half a turn,
//! `dw[c, u, v] = Σ_{b, i, j} dy[b, i, j, c] · x[b, i + u - r, j + v - r, c]` and
//! `dbias[c] = Σ_{b, i, j} dy[b, i, j, c]`.
//!
//! Source: ConvNeXt blocks, Liu et al. 2022, arXiv 2201.03545, section 2.5; in SAM 2 they fuse a mask into features.

mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases};

use crate::ops::{float, same, shaped};
use crate::{Device, Error, Result, Tape, Tensor, Var};

const OP: &str = "depthwise_conv2d";

/// Extents checked once, used by reference and launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dims {
    batch: usize,
    height: usize,
    width: usize,
    channels: usize,
    /// Side of a kernel, odd.
    kernel: usize,
}

impl Dims {
    /// Of maps `arg` and kernels `w`.
    fn check(arg: &'static str, maps: &Tensor, w: &Tensor) -> Result<Self> {
        float(OP, arg, maps)?;
        let [batch, height, width, channels] = maps.dims(OP, arg)?;
        let [_, _, kernel, _] = w.dims(OP, "w")?;
        if **w.shape() != [channels, 1, kernel, kernel] || kernel % 2 == 0 || kernel > u16::MAX.into() {
            return Err(Error::shape(OP, "w", w.shape(), format!("[{channels}, 1, k, k], k odd and below 65536")));
        }
        same(OP, "w", w, maps)?;
        Ok(Self { batch, height, width, channels, kernel })
    }

    /// Numbers of a kernel.
    fn taps(&self) -> usize {
        self.kernel * self.kernel
    }

    /// Lines of all maps.
    fn lines(&self) -> usize {
        self.batch * self.height
    }
}

/// `x: [B, H, W, C]` convolved with `w: [C, 1, k, k]`, `k` odd, plus `b: [C]`; returns `[B, H, W, C]`: stride 1 and
/// `k / 2` zeros around the maps.
///
/// dtypes: f32, bf16, f16 (f64 on the CPU), the same for all; sums are f32. Saves `x` and `w`. The gradients of `w` and
/// `b` are f32 and summed in a fixed order: deterministic.
///
/// # Errors
/// When shapes, dtypes or devices do not fit each other, or `k` is even.
pub fn depthwise_conv2d(tape: &Tape, x: &Var, w: &Var, b: &Var) -> Result<Var> {
    let y = forward(x.value(), w.value(), b.value())?;
    let (to_x, to_w, to_b) = (x.slot(), w.slot(), b.slot());
    let saved = [x.value().clone(), w.value().clone()];
    Ok(tape.record(OP, y, &[x, w, b], saved, move |dy, [x, w], grads| {
        if to_x.is_some() {
            grads.add(to_x, backward_x(&dy, &w)?)?;
        }
        if to_w.is_some() || to_b.is_some() {
            let (dw, db) = backward_w(&dy, &x, &w)?;
            grads.add(to_w, dw)?;
            grads.add(to_b, db)?;
        }
        Ok(())
    }))
}

/// `y: [B, H, W, C]`.
pub fn forward(x: &Tensor, w: &Tensor, b: &Tensor) -> Result<Tensor> {
    let dims = Dims::check("x", x, w)?;
    shaped(OP, "b", b, &[dims.channels])?;
    same(OP, "b", b, x)?;
    let mut y = Tensor::uninit_like(x)?;
    match x.device() {
        Device::Cpu => reference::forward(x, w, b, dims, &mut y)?,
        _ => launch::forward(x, w, b, dims, &mut y)?,
    }
    Ok(y)
}

/// Gradient by `x`, like `dy: [B, H, W, C]`.
pub fn backward_x(dy: &Tensor, w: &Tensor) -> Result<Tensor> {
    let dims = Dims::check("dy", dy, w)?;
    let mut dx = Tensor::uninit_like(dy)?;
    match dy.device() {
        Device::Cpu => reference::backward_x(dy, w, dims, &mut dx)?,
        _ => launch::backward_x(dy, w, dims, &mut dx)?,
    }
    Ok(dx)
}

/// Gradients by `w: [C, 1, k, k]` and `b: [C]`, f32. The values of `w` are not read.
pub fn backward_w(dy: &Tensor, x: &Tensor, w: &Tensor) -> Result<(Tensor, Tensor)> {
    let dims = Dims::check("x", x, w)?;
    shaped(OP, "dy", dy, x.shape())?;
    same(OP, "dy", dy, x)?;
    let acc = x.dtype().accumulate();
    let mut dw = Tensor::uninit(w.shape().clone(), acc, x.device())?;
    let mut db = Tensor::uninit([dims.channels], acc, x.device())?;
    match x.device() {
        Device::Cpu => reference::backward_w(dy, x, dims, &mut dw, &mut db)?,
        _ => launch::backward_w(dy, x, dims, &mut dw, &mut db)?,
    }
    Ok((dw, db))
}
