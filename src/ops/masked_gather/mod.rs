//! The kept patches of images as rows of a matrix: patchify, normalise and gather in one pass.
//!
//! `y[b·K + j, (c·p + py)·p + px] = (x[b, c, gy·p + py, gx·p + px] / full - mean[c]) / std[c]` with
//! `gy·Wg + gx = ids_keep[b, j]` and `full` 255 for bytes, 1 for floats. Pixels of removed patches are never read. The
//! gradient `dx = dy / std[c]` goes back to the kept patches and is zero elsewhere; indices are unique within an image,
//! so no addition takes place.
//!
//! Source: arXiv 2111.06377, section 3; gathering before the patch embedding gives what gathering after it gives. The
//! order of a row, `(c, py, px)`, is that of a flattened convolution kernel.

mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{Images, case, cases};

use crate::ops::indices::check_unique;
use crate::ops::patchify::Grid;
use crate::ops::pixels::check_norm;
use crate::ops::{on, shaped};
use crate::{DType, Device, Error, Result, Shape, Tape, Tensor, Var};

const OP: &str = "masked_gather";

/// Extents checked once, used by reference and launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dims {
    grid: Grid,
    /// Kept patches per image, `K`.
    keep: usize,
}

impl Dims {
    fn check(images: &Tensor, ids_keep: &Tensor, patch: usize, norm: Option<&Tensor>, dtype: DType) -> Result<Self> {
        let grid = Grid::inside(OP, images, patch)?;
        let [batch, keep] = ids_keep.dims(OP, "ids_keep")?;
        if batch != grid.batch {
            return Err(Error::shape(OP, "ids_keep", ids_keep.shape(), format!("[{}, K]", grid.batch)));
        }
        on(OP, "ids_keep", ids_keep, images)?;
        check_unique(OP, "ids_keep", ids_keep, keep, grid.patches())?;
        check_norm(OP, norm, grid.channels, images)?;
        if !dtype.is_float() {
            return Err(Error::argument(OP, "dtype", "dtype", dtype.name(), "a float type"));
        }
        if images.dtype() == DType::I32 {
            return Err(Error::argument(OP, "images", "dtype", "i32", "u8 or a float type"));
        }
        Ok(Self { grid, keep })
    }
}

/// Patches `ids_keep: [B, K]` (i32, unique in an image) of `images: [B, C, H, W]` as `[B·K, C·p·p]` of `dtype`, in the
/// order `(c, py, px)` of a flattened convolution kernel.
///
/// `images` are u8 or any float type; bytes are divided by 255. `norm: [2, C]` (f32) holds mean and standard deviation
/// of each channel. Saves `ids_keep` and `norm`. Deterministic.
///
/// # Errors
/// When an index is out of range or occurs twice (found where host memory holds the indices; on a GPU such a row is NaN),
/// when u8 images want a gradient.
pub fn masked_gather(
    tape: &Tape,
    images: &Var,
    ids_keep: &Tensor,
    patch: usize,
    norm: Option<&Tensor>,
    dtype: DType,
) -> Result<Var> {
    let to_images = images.slot();
    if to_images.is_some() && images.value().dtype() == DType::U8 {
        return Err(Error::argument(OP, "images", "dtype", "u8", "a float type, since a gradient is wanted"));
    }
    let y = forward(images.value(), ids_keep, patch, norm, dtype)?;
    let (shape, like, norm) = (images.value().shape().clone(), images.value().dtype(), norm.cloned());
    Ok(tape.record(OP, y, &[images], [ids_keep.clone()], move |dy, [ids_keep], grads| {
        grads.add(to_images, backward(&dy, &ids_keep, patch, norm.as_ref(), shape, like)?)
    }))
}

/// `y: [B·K, C·p·p]`.
pub fn forward(
    images: &Tensor,
    ids_keep: &Tensor,
    patch: usize,
    norm: Option<&Tensor>,
    dtype: DType,
) -> Result<Tensor> {
    let dims = Dims::check(images, ids_keep, patch, norm, dtype)?;
    let mut y = Tensor::uninit([dims.grid.batch * dims.keep, dims.grid.values()], dtype, images.device())?;
    match images.device() {
        Device::Cpu => reference::forward(images, ids_keep, norm, dims, &mut y)?,
        _ => launch::forward(images, ids_keep, norm, dims, &mut y)?,
    }
    Ok(y)
}

/// Gradient by the images of the given shape and float type.
pub fn backward(
    dy: &Tensor,
    ids_keep: &Tensor,
    patch: usize,
    norm: Option<&Tensor>,
    images: Shape,
    dtype: DType,
) -> Result<Tensor> {
    if !dtype.is_float() {
        return Err(Error::argument(OP, "images", "dtype", dtype.name(), "a float type, since a gradient is wanted"));
    }
    let mut dx = Tensor::zeros(images, dtype, dy.device())?;
    let dims = Dims::check(&dx, ids_keep, patch, norm, dtype)?;
    shaped(OP, "dy", dy, &[dims.grid.batch * dims.keep, dims.grid.values()])?;
    match dy.device() {
        Device::Cpu => reference::backward(dy, ids_keep, norm, dims, &mut dx)?,
        _ => launch::backward(dy, ids_keep, norm, dims, &mut dx)?,
    }
    Ok(dx)
}
