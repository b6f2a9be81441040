//! Windows of feature maps as rows of a matrix (im2col), and its adjoint, which puts such rows back and adds them where
//! windows overlap: with [`linear`](crate::ops::linear) these are convolutions and transposed convolutions.
//!
//! `cols[b, oy, ox, (c·k + ky)·k + kx] = x[b, oy·s + ky - p, ox·s + kx - p, c]`, zero outside of `x`, for a window of
//! side `k`, stride `s` and padding `p`. The adjoint is `x[b, y, x, c] = Σ cols[b, oy, ox, (c·k + ky)·k + kx]` over all
//! `oy·s + ky - p = y`, `ox·s + kx - p = x`. Each is the other's gradient.
//!
//! The order `(c, ky, kx)` is that of a flattened convolution kernel: a weight `[out, in, k, k]` read as
//! `[out, in·k·k]` gives the convolution of feature maps by a linear layer.
//!
//! Source: Chellapilla, Puri and Simard 2006, "High performance convolutional neural networks for document processing";
//! order as `torch.nn.Unfold` and `torch.nn.Fold`.

mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases, fold_case};

use std::ops::Range;

use crate::ops::float;
use crate::{Device, Error, Result, Tape, Tensor, Var};

const OP: &str = "unfold";
const FOLD: &str = "fold";

/// A square window that moves over feature maps; everything in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Side.
    pub kernel: usize,
    /// From one position to the next.
    pub stride: usize,
    /// Zeros around the map.
    pub padding: usize,
}

impl Window {
    /// How many positions a side of `n` pixels has, `(n + 2p - k) / s + 1`; none where the window does not fit.
    pub fn positions(self, n: usize) -> Option<usize> {
        let room = n.checked_add(self.padding.checked_mul(2)?)?.checked_sub(self.kernel)?;
        room.checked_div(self.stride)?.checked_add(1)
    }

    /// Which of `positions` cover pixel `at`.
    fn covering(self, at: usize, positions: usize) -> Range<usize> {
        let at = at + self.padding;
        (at + 1).saturating_sub(self.kernel).div_ceil(self.stride)..(at / self.stride + 1).min(positions)
    }
}

/// Extents checked once, used by reference and launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dims {
    batch: usize,
    height: usize,
    width: usize,
    channels: usize,
    /// Positions of the window, downwards and across.
    out: [usize; 2],
    window: Window,
}

impl Dims {
    /// Of `batch` maps `[height, width]`; `misfit` makes the error of a map smaller than the window.
    fn check(
        op: &'static str,
        [batch, height, width, channels]: [usize; 4],
        window: Window,
        misfit: impl FnOnce(String) -> Error,
    ) -> Result<Self> {
        let most = usize::from(u16::MAX);
        for (arg, value, least) in [
            ("window.kernel", window.kernel, 1),
            ("window.stride", window.stride, 1),
            ("window.padding", window.padding, 0),
        ] {
            if !(least..=most).contains(&value) {
                return Err(Error::value(op, arg, value, format!("from {least} to {most} pixels")));
            }
        }
        let (Some(down), Some(across)) = (window.positions(height), window.positions(width)) else {
            let side = window.kernel.saturating_sub(2 * window.padding);
            return Err(misfit(format!("sides of at least {side} pixels")));
        };
        Ok(Self { batch, height, width, channels, out: [down, across], window })
    }

    /// Columns: entries of a window.
    fn values(&self) -> usize {
        self.channels * self.area()
    }

    /// Pixels of a window.
    fn area(&self) -> usize {
        self.window.kernel * self.window.kernel
    }
}

/// The windows of `x: [B, H, W, C]` as rows: `[B, OH, OW, C·k·k]` in the order `(c, ky, kx)`, zero where a window
/// leaves the map; `OH = (H + 2p - k) / s + 1`, rounded down, and `OW` likewise.
///
/// dtypes: f32, bf16, f16 (f64 on the CPU); an exact copy. Saves nothing. Deterministic; the gradient is [`fold`].
///
/// # Errors
/// When the window does not fit into the padded map, or has a kernel or a stride of 0.
pub fn unfold(tape: &Tape, x: &Var, window: Window) -> Result<Var> {
    let [_, height, width, _] = x.value().dims(OP, "x")?;
    let cols = forward(x.value(), window)?;
    let to_x = x.slot();
    Ok(tape.record(OP, cols, &[x], [], move |dcols, [], grads| {
        grads.add(to_x, backward(&dcols, window, [height, width])?)
    }))
}

/// Rows of windows back at their places in maps `size: [H, W]`: `cols: [B, OH, OW, C·k·k]` become `[B, H, W, C]`, where
/// each pixel is the sum of all entries that lie on it and zero where none does. What lies outside of the map is
/// dropped.
///
/// A transposed convolution whose stride is its kernel is a linear layer and this.
///
/// dtypes: f32, bf16, f16 (f64 on the CPU); sums are f32. Saves nothing. Every pixel gathers its entries in the order
/// of `(ky, kx)`: deterministic; the gradient is [`unfold`].
///
/// # Errors
/// When `cols` does not hold the windows of maps of that size.
pub fn fold(tape: &Tape, cols: &Var, window: Window, size: [usize; 2]) -> Result<Var> {
    let x = backward(cols.value(), window, size)?;
    let to_cols = cols.slot();
    Ok(tape.record(FOLD, x, &[cols], [], move |dx, [], grads| grads.add(to_cols, forward(&dx, window)?)))
}

/// `cols: [B, OH, OW, C·k·k]` of `x: [B, H, W, C]`.
pub fn forward(x: &Tensor, window: Window) -> Result<Tensor> {
    float(OP, "x", x)?;
    let dims = Dims::check(OP, x.dims(OP, "x")?, window, |expected| Error::shape(OP, "x", x.shape(), expected))?;
    let mut cols = Tensor::uninit([dims.batch, dims.out[0], dims.out[1], dims.values()], x.dtype(), x.device())?;
    match x.device() {
        Device::Cpu => reference::forward(x, dims, &mut cols)?,
        _ => launch::forward(x, dims, &mut cols)?,
    }
    Ok(cols)
}

/// `x: [B, H, W, C]`, the sum of the windows `cols: [B, OH, OW, C·k·k]` that cover each pixel.
pub fn backward(cols: &Tensor, window: Window, size: [usize; 2]) -> Result<Tensor> {
    float(FOLD, "cols", cols)?;
    let [batch, down, across, values] = cols.dims(FOLD, "cols")?;
    let shape = [batch, size[0], size[1], values / window.kernel.saturating_mul(window.kernel).max(1)];
    let dims = Dims::check(FOLD, shape, window, |expected| Error::value(FOLD, "size", format!("{size:?}"), expected))?;
    if [down, across] != dims.out || values != dims.values() {
        let [down, across] = dims.out;
        let expected = format!("[B, {down}, {across}, multiple of {}]", dims.area());
        return Err(Error::shape(FOLD, "cols", cols.shape(), expected));
    }
    let mut x = Tensor::uninit(shape, cols.dtype(), cols.device())?;
    match cols.device() {
        Device::Cpu => reference::backward(cols, dims, &mut x)?,
        _ => launch::backward(cols, dims, &mut x)?,
    }
    Ok(x)
}
