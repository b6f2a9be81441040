//! Mean squared error between predicted and true pixels of chosen patches; the target is read from the image and never
//! stored.
//!
//! `loss = Σ_{b,m,j} (pred[b, m, j] - t[b, m, j])² / (B·M·P)`, `t[b, m, (py·p + px)·C + c]` the normalised pixel of
//! patch `ids[b, m]`. With `norm_pix` the target of each patch is `(t - mean) / sqrt(var + 1e-6)` over its `P` values,
//! with `P - 1` in the variance. The gradient is `dpred = 2 (pred - t) / (B·M·P) · dloss`.
//!
//! Two passes for the variance, on differences to the patch's first value: a patch of one colour gives exactly 0, and
//! a nearly constant one keeps its digits.
//!
//! Source: arXiv 2111.06377, section 3, "Reconstruction target", and section 4.1 for the normalised target.

mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases};

use crate::ops::indices::check_unique;
use crate::ops::patchify::Grid;
use crate::ops::pixels::check_norm;
use crate::ops::{on, shaped, typed};
use crate::{DType, Device, Error, Result, Tape, Tensor, Var};

const OP: &str = "masked_mse";

/// Added to the variance of a patch.
pub const EPS: f64 = 1e-6;

/// Extents checked once, used by reference and launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dims {
    grid: Grid,
    /// Scored patches per image, `M`.
    scored: usize,
    norm_pix: bool,
}

impl Dims {
    fn check(images: &Tensor, norm: Option<&Tensor>, ids: &Tensor, patch: usize, norm_pix: bool) -> Result<Self> {
        let grid = Grid::check(OP, images, patch)?;
        let [batch, scored] = ids.dims(OP, "ids")?;
        if batch != grid.batch {
            return Err(Error::shape(OP, "ids", ids.shape(), format!("[{}, M]", grid.batch)));
        }
        on(OP, "ids", ids, images)?;
        check_unique(OP, "ids", ids, scored, grid.patches())?;
        check_norm(OP, norm, grid.channels, images)?;
        if images.dtype() == DType::I32 {
            return Err(Error::argument(OP, "images", "dtype", "i32", "u8 or a float type"));
        }
        if norm_pix && grid.values() < 2 {
            let expected = "at least 2 values in a patch to normalise it";
            return Err(Error::shape(OP, "images", images.shape(), expected));
        }
        Ok(Self { grid, scored, norm_pix })
    }

    fn check_pred(self, pred: &Tensor, images: &Tensor) -> Result<Self> {
        on(OP, "pred", pred, images)?;
        shaped(OP, "pred", pred, &[self.grid.batch * self.scored, self.grid.values()])?;
        if pred.numel() == 0 {
            let expected = "at least one row and column: the mean of nothing is not a number";
            return Err(Error::shape(OP, "pred", pred.shape(), expected));
        }
        Ok(self)
    }

    /// `B·M·P`
    fn count(&self) -> usize {
        self.grid.batch * self.scored * self.grid.values()
    }
}

/// Mean over rows and columns of `(pred - target)²`; returns `[1]`, f32 (f64 for f64).
///
/// `pred: [B·M, p·p·C]` in the order `(py, px, c)` predicts the patches `ids: [B, M]` (i32, unique in an image) of
/// `images: [B, C, H, W]`, u8 or any float type, normalised by `norm: [2, C]` (mean and standard deviation of each
/// channel, f32; bytes are divided by 255 first). dtypes of `pred`: f32, bf16, f16 (f64 on the CPU). Saves `pred`,
/// `images`, `ids` and 8 bytes per row. Deterministic.
///
/// # Errors
/// When shapes do not fit, a side of the images is not a multiple of `patch`, an index is out of range or occurs twice
/// (found where host memory holds the indices; on a GPU the loss is NaN), or there is no row (`M = 0`).
pub fn masked_mse(
    tape: &Tape,
    pred: &Var,
    images: &Tensor,
    norm: Option<&Tensor>,
    ids: &Tensor,
    patch: usize,
    norm_pix: bool,
) -> Result<Var> {
    let (loss, stats) = forward(pred.value(), images, norm, ids, patch, norm_pix)?;
    let (to_pred, norm) = (pred.slot(), norm.cloned());
    let saved = [pred.value().clone(), images.clone(), ids.clone(), stats];
    Ok(tape.record(OP, loss, &[pred], saved, move |dloss, [pred, images, ids, stats], grads| {
        grads.add(to_pred, backward(&dloss, &pred, &images, norm.as_ref(), &ids, &stats, patch, norm_pix)?)
    }))
}

/// The loss `[1]` and the statistics `[B·M, 2]` of the targets: mean less the first value, and 1 / sqrt(var + 1e-6).
pub fn forward(
    pred: &Tensor,
    images: &Tensor,
    norm: Option<&Tensor>,
    ids: &Tensor,
    patch: usize,
    norm_pix: bool,
) -> Result<(Tensor, Tensor)> {
    let dims = Dims::check(images, norm, ids, patch, norm_pix)?.check_pred(pred, images)?;
    let (acc, device) = (pred.dtype().accumulate(), pred.device());
    let mut loss = Tensor::uninit([1], acc, device)?;
    let mut stats = Tensor::uninit([dims.grid.batch * dims.scored, 2], acc, device)?;
    match device {
        Device::Cpu => reference::forward(pred, images, norm, ids, dims, &mut loss, &mut stats)?,
        _ => launch::forward(pred, images, norm, ids, dims, &mut loss, &mut stats)?,
    }
    Ok((loss, stats))
}

/// Gradient by `pred`, in its dtype.
pub fn backward(
    dloss: &Tensor,
    pred: &Tensor,
    images: &Tensor,
    norm: Option<&Tensor>,
    ids: &Tensor,
    stats: &Tensor,
    patch: usize,
    norm_pix: bool,
) -> Result<Tensor> {
    let dims = Dims::check(images, norm, ids, patch, norm_pix)?.check_pred(pred, images)?;
    let acc = pred.dtype().accumulate();
    for (arg, t, shape) in [("dloss", dloss, &[1][..]), ("stats", stats, &[dims.grid.batch * dims.scored, 2])] {
        shaped(OP, arg, t, shape)?;
        typed(OP, arg, t, acc)?;
        on(OP, arg, t, pred)?;
    }
    let mut dpred = Tensor::uninit_like(pred)?;
    match pred.device() {
        Device::Cpu => reference::backward(dloss, pred, images, norm, ids, stats, dims, &mut dpred)?,
        _ => launch::backward(dloss, pred, images, norm, ids, stats, dims, &mut dpred)?,
    }
    Ok(dpred)
}

/// The targets of all patches, `[B, L, p·p·C]`, f32 (f64 for f64 images), for pictures and checks; computed by the host.
pub fn target(images: &Tensor, norm: Option<&Tensor>, patch: usize, norm_pix: bool) -> Result<Tensor> {
    let host = images.to_device(&Device::Cpu)?;
    let norm = norm.map(|n| n.to_device(&Device::Cpu)).transpose()?;
    let grid = Grid::check(OP, images, patch)?;
    let all: Vec<i32> = (0..grid.batch).flat_map(|_| 0..grid.patches() as i32).collect();
    let ids = Tensor::from_slice(&all, [grid.batch, grid.patches()], &Device::Cpu)?;
    let dims = Dims::check(&host, norm.as_ref(), &ids, patch, norm_pix)?;
    let dtype = if images.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let mut t = Tensor::uninit([grid.batch, grid.patches(), grid.values()], dtype, &Device::Cpu)?;
    reference::target(&host, norm.as_ref(), dims, &mut t)?;
    t.to_device(images.device())
}
