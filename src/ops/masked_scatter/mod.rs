//! The decoder's input: encoded patches back at their places, the mask token everywhere else, positions added.
//!
//! `y[b, 0] = z[b, 0] + pos[0]`, `y[b, 1 + i] = (r < K ? z[b, 1 + r] : mask_token) + pos[1 + i]` with
//! `r = ids_restore[b, i]`.
//!
//! Gradients: `dz[b, 0] = dy[b, 0]`, `dz[b, 1 + r] = dy[b, 1 + i]` for `r < K`, `dmask = Σ dy[b, 1 + i]` over `r >= K`,
//! `dpos = Σ_b dy[b]`.
//!
//! Source: arXiv 2111.06377, section 3, "MAE decoder"; the mask token receives its position only here.

mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases};

use crate::ops::indices::check_unique;
use crate::ops::{on, same, shaped};
use crate::{Device, Error, Result, Tape, Tensor, Var};

const OP: &str = "masked_scatter";

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
    /// `rows` of z: B·(K+1).
    fn check(rows: usize, cols: usize, z: &Tensor, ids_restore: &Tensor) -> Result<Self> {
        let [batch, len] = ids_restore.dims(OP, "ids_restore")?;
        if batch == 0 || rows == 0 || !rows.is_multiple_of(batch) || rows / batch > len + 1 {
            let expected = format!("[{batch} x (1 + K), D] with K at most {len}");
            return Err(Error::shape(OP, "z", z.shape(), expected));
        }
        on(OP, "ids_restore", ids_restore, z)?;
        check_unique(OP, "ids_restore", ids_restore, len, len)?;
        Ok(Self { batch, keep: rows / batch - 1, len, cols })
    }
}

/// Which gradients are asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// By the mask token.
    pub mask_token: bool,
    /// By the position table.
    pub pos_embed: bool,
}

/// Gradients by `z`, mask token `[1, 1, D]` and position table `[1, L+1, D]`.
pub type Gradients = (Tensor, Option<Tensor>, Option<Tensor>);

/// Spreads `z: [B·(K+1), D]`, class row and kept patches of each image, over all `L` places; returns `[B·(L+1), D]`.
///
/// Removed patches (`ids_restore[b, i] >= K`, i32) get `mask_token: [1, 1, D]`; `pos_embed: [1, L+1, D]` is added to
/// every row. dtypes: f32, bf16, f16 (f64 on the CPU), one for all. Saves `ids_restore`. Token and table gradients are
/// f32, computed only when wanted, summed in two fixed stages: deterministic.
///
/// # Errors
/// When shapes, dtypes or devices do not fit, or a row of `ids_restore` is no permutation (found where host memory holds
/// it).
pub fn masked_scatter(tape: &Tape, z: &Var, mask_token: &Var, pos_embed: &Var, ids_restore: &Tensor) -> Result<Var> {
    let y = forward(z.value(), mask_token.value(), pos_embed.value(), ids_restore)?;
    let (to_z, to_mask, to_pos) = (z.slot(), mask_token.slot(), pos_embed.slot());
    let wanted = Wanted { mask_token: to_mask.is_some(), pos_embed: to_pos.is_some() };
    let rows = z.value().shape()[0];
    let saved = [ids_restore.clone()];
    Ok(tape.record(OP, y, &[z, mask_token, pos_embed], saved, move |dy, [ids_restore], grads| {
        let (dz, dmask, dpos) = backward(&dy, &ids_restore, rows, wanted)?;
        grads.add(to_z, dz)?;
        for (to, grad) in [(to_mask, dmask), (to_pos, dpos)] {
            if let Some(grad) = grad {
                grads.add(to, grad)?;
            }
        }
        Ok(())
    }))
}

/// `y: [B·(L+1), D]`.
pub fn forward(z: &Tensor, mask_token: &Tensor, pos_embed: &Tensor, ids_restore: &Tensor) -> Result<Tensor> {
    let [rows, cols] = z.dims(OP, "z")?;
    let dims = Dims::check(rows, cols, z, ids_restore)?;
    shaped(OP, "mask_token", mask_token, &[1, 1, cols])?;
    shaped(OP, "pos_embed", pos_embed, &[1, dims.len + 1, cols])?;
    same(OP, "mask_token", mask_token, z)?;
    same(OP, "pos_embed", pos_embed, z)?;
    let mut y = Tensor::uninit([dims.batch * (dims.len + 1), cols], z.dtype(), z.device())?;
    match z.device() {
        Device::Cpu => reference::forward(z, mask_token, pos_embed, ids_restore, dims, &mut y)?,
        _ => launch::forward(z, mask_token, pos_embed, ids_restore, dims, &mut y)?,
    }
    Ok(y)
}

/// Gradients, that by `z: [rows, D]` in the dtype of `dy`, the others f32.
pub fn backward(dy: &Tensor, ids_restore: &Tensor, rows: usize, wanted: Wanted) -> Result<Gradients> {
    let [_, cols] = dy.dims(OP, "dy")?;
    let (acc, device) = (dy.dtype().accumulate(), dy.device());
    let mut dz = Tensor::uninit([rows, cols], dy.dtype(), device)?;
    let dims = Dims::check(rows, cols, &dz, ids_restore)?;
    shaped(OP, "dy", dy, &[dims.batch * (dims.len + 1), cols])?;
    let make = |wanted: bool, rows: usize| wanted.then(|| Tensor::uninit([1, rows, cols], acc, device)).transpose();
    let mut dmask = make(wanted.mask_token, 1)?;
    let mut dpos = make(wanted.pos_embed, dims.len + 1)?;
    match device {
        Device::Cpu => reference::backward(dy, ids_restore, dims, &mut dz, dmask.as_mut(), dpos.as_mut())?,
        _ => launch::backward(dy, ids_restore, dims, &mut dz, dmask.as_mut(), dpos.as_mut())?,
    }
    Ok((dz, dmask, dpos))
}
