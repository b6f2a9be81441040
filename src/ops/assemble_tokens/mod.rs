//! The encoder's input: class token in front of the kept patches, positions added.
//!
//! `y[b, 0] = cls + pos[0]`, `y[b, 1 + j] = patches[b, j] + pos[1 + ids_keep[b, j]]`.
//!
//! Gradients: `dpatches[b, j] = dy[b, 1 + j]`, `dcls = Σ_b dy[b, 0]`, `dpos[0] = dcls` and
//! `dpos[1 + l] = Σ_b dy[b, 1 + ids_restore[b, l]]` over the images that keep patch `l` (`ids_restore[b, l] < K`).
//!
//! Source: arXiv 2111.06377, section 3, and its appendix A.1; positions belong to patches, so they are picked by
//! index, and the class token has its own.

mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases};

use crate::ops::indices::check_inverse;
use crate::ops::{on, same, shaped};
use crate::{Device, Error, Result, Tape, Tensor, Var};

const OP: &str = "assemble_tokens";

/// Extents checked once, used by reference and launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dims {
    batch: usize,
    /// Kept patches per image, `K`.
    keep: usize,
    /// Patches per image, `L`.
    len: usize,
    cols: usize,
}

impl Dims {
    fn check(ids_keep: &Tensor, ids_restore: &Tensor, cols: usize) -> Result<Self> {
        let [batch, keep] = ids_keep.dims(OP, "ids_keep")?;
        let [images, len] = ids_restore.dims(OP, "ids_restore")?;
        if images != batch {
            return Err(Error::shape(OP, "ids_restore", ids_restore.shape(), format!("[{batch}, L]")));
        }
        check_inverse(OP, ids_keep, ids_restore)?;
        Ok(Self { batch, keep, len, cols })
    }
}

/// Which gradients are asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// By the patches.
    pub patches: bool,
    /// By the class token.
    pub cls_token: bool,
    /// By the position table.
    pub pos_embed: bool,
}

/// Gradients by patches `[B·K, D]`, class token `[1, 1, D]` and position table `[1, L+1, D]`.
pub type Gradients = (Option<Tensor>, Option<Tensor>, Option<Tensor>);

/// Puts `cls_token: [1, 1, D]` in front of the `K` rows of each image in `patches: [B·K, D]` and adds the rows of
/// `pos_embed: [1, L+1, D]` that belong to them; returns `[B·(K+1), D]`.
///
/// `ids_keep: [B, K]` names the patch of every row, `ids_restore: [B, L]` the row of every patch (both i32, see
/// [`Masking`](crate::data::masks::Masking)). dtypes: f32, bf16, f16 (f64 on the CPU), one for all. Saves the indices.
/// Token and table gradients are f32, computed only when wanted, and deterministic.
///
/// # Errors
/// When shapes, dtypes or devices do not fit, or the two index tensors contradict each other (found where host memory
/// holds them; on a GPU a row whose index is out of range is NaN).
pub fn assemble_tokens(
    tape: &Tape,
    patches: &Var,
    cls_token: &Var,
    pos_embed: &Var,
    ids_keep: &Tensor,
    ids_restore: &Tensor,
) -> Result<Var> {
    let y = forward(patches.value(), cls_token.value(), pos_embed.value(), ids_keep, ids_restore)?;
    let (to_patches, to_cls, to_pos) = (patches.slot(), cls_token.slot(), pos_embed.slot());
    let wanted = Wanted { patches: to_patches.is_some(), cls_token: to_cls.is_some(), pos_embed: to_pos.is_some() };
    let saved = [ids_keep.clone(), ids_restore.clone()];
    Ok(tape.record(OP, y, &[patches, cls_token, pos_embed], saved, move |dy, [ids_keep, ids_restore], grads| {
        let gradients = backward(&dy, &ids_keep, &ids_restore, wanted)?;
        for (to, grad) in [(to_patches, gradients.0), (to_cls, gradients.1), (to_pos, gradients.2)] {
            if let Some(grad) = grad {
                grads.add(to, grad)?;
            }
        }
        Ok(())
    }))
}

/// `y: [B·(K+1), D]`.
pub fn forward(
    patches: &Tensor,
    cls_token: &Tensor,
    pos_embed: &Tensor,
    ids_keep: &Tensor,
    ids_restore: &Tensor,
) -> Result<Tensor> {
    let [_, cols] = patches.dims(OP, "patches")?;
    on(OP, "ids_keep", ids_keep, patches)?;
    on(OP, "ids_restore", ids_restore, patches)?;
    let dims = Dims::check(ids_keep, ids_restore, cols)?;
    shaped(OP, "patches", patches, &[dims.batch * dims.keep, cols])?;
    shaped(OP, "cls_token", cls_token, &[1, 1, cols])?;
    shaped(OP, "pos_embed", pos_embed, &[1, dims.len + 1, cols])?;
    same(OP, "cls_token", cls_token, patches)?;
    same(OP, "pos_embed", pos_embed, patches)?;
    let mut y = Tensor::uninit([dims.batch * (dims.keep + 1), cols], patches.dtype(), patches.device())?;
    match patches.device() {
        Device::Cpu => reference::forward(patches, cls_token, pos_embed, ids_keep, dims, &mut y)?,
        _ => launch::forward(patches, cls_token, pos_embed, ids_keep, dims, &mut y)?,
    }
    Ok(y)
}

/// The gradients asked for; that by the patches has the dtype of `dy`, the others are f32.
pub fn backward(dy: &Tensor, ids_keep: &Tensor, ids_restore: &Tensor, wanted: Wanted) -> Result<Gradients> {
    let [_, cols] = dy.dims(OP, "dy")?;
    on(OP, "ids_keep", ids_keep, dy)?;
    on(OP, "ids_restore", ids_restore, dy)?;
    let dims = Dims::check(ids_keep, ids_restore, cols)?;
    shaped(OP, "dy", dy, &[dims.batch * (dims.keep + 1), cols])?;
    let (acc, device) = (dy.dtype().accumulate(), dy.device());
    let make = |wanted: bool, shape: &[usize], dtype| wanted.then(|| Tensor::uninit(shape, dtype, device)).transpose();
    let mut dpatches = make(wanted.patches, &[dims.batch * dims.keep, cols], dy.dtype())?;
    let mut dcls = make(wanted.cls_token, &[1, 1, cols], acc)?;
    let mut dpos = make(wanted.pos_embed, &[1, dims.len + 1, cols], acc)?;
    let outputs = (dpatches.as_mut(), dcls.as_mut(), dpos.as_mut());
    match device {
        Device::Cpu => reference::backward(dy, ids_restore, dims, outputs)?,
        _ => launch::backward(dy, ids_restore, dims, outputs)?,
    }
    Ok((dpatches, dcls, dpos))
}
