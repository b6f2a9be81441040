//! Feature maps cut into square windows, and put together again.
//!
//! `y[(b·nh + j)·nw + i, wy, wx, c] = x[b, j·w + wy, i·w + wx, c]` for windows of side `w`, `nh = ⌈H / w⌉` of them down
//! and `nw = ⌈W / w⌉` across, zero right of the map and below it. The way back drops what lies there. Each is the
//! other's gradient.
//!
//! Source: window attention of Hiera, Ryali et al. 2023, arXiv 2306.00989, with the padding of ViTDet, Li et al. 2022,
//! arXiv 2203.16527, as in `sam2/modeling/backbones/utils.py`.

mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases, unpartition_case};

use crate::ops::float;
use crate::{Device, Error, Result, Tape, Tensor, Var};

const OP: &str = "window_partition";
const BACK: &str = "window_unpartition";

/// Extents checked once, used by reference and launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dims {
    batch: usize,
    height: usize,
    width: usize,
    channels: usize,
    /// Side of a window.
    window: usize,
}

impl Dims {
    fn check(op: &'static str, [batch, height, width, channels]: [usize; 4], window: usize) -> Result<Self> {
        if window == 0 || window > u16::MAX.into() {
            return Err(Error::value(op, "window", window, "from 1 to 65535 pixels"));
        }
        Ok(Self { batch, height, width, channels, window })
    }

    /// Windows in a column of windows, and in a row.
    fn grid(&self) -> [usize; 2] {
        [self.height.div_ceil(self.window), self.width.div_ceil(self.window)]
    }

    /// Windows of all maps.
    fn windows(&self) -> usize {
        self.grid().iter().fold(self.batch, |windows, &side| windows.saturating_mul(side))
    }
}

/// Windows of `x: [B, H, W, C]` as `[B·nh·nw, w, w, C]`, those of a map in rows from the left and the top; zeros fill
/// the windows of a map whose sides are no multiples of `window`.
///
/// dtypes: f32, bf16, f16 (f64 on the CPU); an exact copy. Saves nothing. Deterministic; the gradient is
/// [`window_unpartition`].
///
/// # Errors
/// When `window` or a side of the map is 0.
pub fn window_partition(tape: &Tape, x: &Var, window: usize) -> Result<Var> {
    let y = forward(x.value(), window)?;
    let [_, height, width, _] = x.value().dims(OP, "x")?;
    let to_x = x.slot();
    Ok(tape.record(OP, y, &[x], [], move |dy, [], grads| grads.add(to_x, backward(&dy, [height, width])?)))
}

/// Maps `[B, H, W, C]` of `size: [H, W]` from their windows `y: [B·nh·nw, w, w, C]`; what lies right of a map and below
/// it is dropped. The windows may have another side than those the map was cut into: pooling halves it.
///
/// dtypes: f32, bf16, f16 (f64 on the CPU); an exact copy. Saves nothing. Deterministic; the gradient is
/// [`window_partition`].
///
/// # Errors
/// When `y` does not hold the windows of whole maps of that size.
pub fn window_unpartition(tape: &Tape, y: &Var, size: [usize; 2]) -> Result<Var> {
    let x = backward(y.value(), size)?;
    let [_, window, _, _] = y.value().dims(BACK, "y")?;
    let to_y = y.slot();
    Ok(tape.record(BACK, x, &[y], [], move |dx, [], grads| grads.add(to_y, forward(&dx, window)?)))
}

/// `y: [B·nh·nw, w, w, C]` of `x: [B, H, W, C]`.
pub fn forward(x: &Tensor, window: usize) -> Result<Tensor> {
    float(OP, "x", x)?;
    let dims = Dims::check(OP, x.dims(OP, "x")?, window)?;
    if dims.height == 0 || dims.width == 0 {
        return Err(Error::shape(OP, "x", x.shape(), "sides of at least 1 pixel"));
    }
    let mut y = Tensor::uninit([dims.windows(), window, window, dims.channels], x.dtype(), x.device())?;
    match x.device() {
        Device::Cpu => reference::forward(x, dims, &mut y)?,
        _ => launch::forward(x, dims, &mut y)?,
    }
    Ok(y)
}

/// `x: [B, H, W, C]` of its windows `y: [B·nh·nw, w, w, C]`.
pub fn backward(y: &Tensor, size: [usize; 2]) -> Result<Tensor> {
    float(BACK, "y", y)?;
    let [windows, window, across, channels] = y.dims(BACK, "y")?;
    let [height, width] = size;
    if height == 0 || width == 0 {
        return Err(Error::value(BACK, "size", format!("{size:?}"), "sides of at least 1 pixel"));
    }
    if across != window || window == 0 {
        return Err(Error::shape(BACK, "y", y.shape(), "[windows, w, w, C], w at least 1"));
    }
    let of_one = Dims::check(BACK, [1, height, width, channels], window)?.windows();
    if windows % of_one != 0 {
        let expected = format!("a multiple of the {of_one} windows that a map of {size:?} has");
        return Err(Error::shape(BACK, "y", y.shape(), expected));
    }
    let shape = [windows / of_one, height, width, channels];
    let dims = Dims::check(BACK, shape, window)?;
    let mut x = Tensor::uninit(shape, y.dtype(), y.device())?;
    match y.device() {
        Device::Cpu => reference::backward(y, dims, &mut x)?,
        _ => launch::backward(y, dims, &mut x)?,
    }
    Ok(x)
}
