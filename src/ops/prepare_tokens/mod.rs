//! The input of an encoder that sees masked images: class token, registers, and the patches with mask tokens for those that
//! are hidden; positions added. Crops of several sizes become one packed batch.
//!
//! For image `b` of a part with `L` patches and `R` registers, rows of `y` follow each other as
//! `cls + pos[0]`, `reg[0]`, .., `reg[R - 1]`, and `(m[b, l] ? mask_token : patches[b, l]) + pos[1 + l]` for each patch;
//! registers have no position.
//!
//! Gradients: that of a patch is `dy` of its row, zero where it is hidden; `dmask_token` sums the hidden rows, `dpos[1 + l]`
//! row `l` over images, `dpos[0] = dcls = Σ_b dy[b, 0]`, `dreg[r] = Σ_b dy[b, 1 + r]`.
//!
//! Source: Oquab et al. 2023, arXiv 2304.07193, section 4; registers: Darcet et al. 2023, arXiv 2309.16588, section 2.2.

mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases};

use crate::ops::{linear, on, same, shaped, typed};
use crate::{DType, Device, Error, Result, Tape, Tensor, Var};

const OP: &str = "prepare_tokens";

/// Images of one size.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    /// `[N·L, D]`: embedded patches, image after image, in raster order.
    pub patches: &'a Var,
    /// `[1, 1 + L, D]`: positions, row 0 the class token's.
    pub pos_embed: &'a Var,
    /// `[N, L]` i32: not 0 where a patch is hidden; none hides nothing.
    pub masks: Option<&'a Tensor>,
}

/// Extents of a part, checked once, used by reference and launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dims {
    images: usize,
    /// Patches of an image, `L`.
    len: usize,
    registers: usize,
    cols: usize,
    /// First row of the part in `y`.
    first: usize,
}

impl Dims {
    fn rows(self) -> usize {
        self.images * self.tokens()
    }

    /// Of an image.
    fn tokens(self) -> usize {
        1 + self.registers + self.len
    }
}

/// The learned tokens: class `[1, 1, D]`, mask `[1, D]`, registers `[1, R, D]`.
#[derive(Clone, Copy)]
struct Tokens<'a> {
    cls: &'a Tensor,
    mask: &'a Tensor,
    registers: Option<&'a Tensor>,
}

impl Tokens<'_> {
    fn registers(&self) -> usize {
        self.registers.map_or(0, |r| r.shape().get(1).copied().unwrap_or(0))
    }
}

/// Tokens of all parts, one after the other: `[Σ N (1 + R + L), D]`.
///
/// `cls_token: [1, 1, D]`, `mask_token: [1, D]`, `register_tokens: [1, R, D]`. dtypes: f32, bf16, f16 (f64 on the CPU), one
/// for all. Saves the masks. Gradients of tokens and positions are f32 and summed in a fixed order: deterministic. The mask
/// token gets a gradient from the parts that have masks.
///
/// # Errors
/// When shapes, dtypes or devices do not fit, or there is no part.
pub fn prepare_tokens(
    tape: &Tape,
    parts: &[Part],
    cls_token: &Var,
    mask_token: &Var,
    register_tokens: Option<&Var>,
) -> Result<Var> {
    let registers = register_tokens.map(Var::value);
    let tokens = Tokens { cls: cls_token.value(), mask: mask_token.value(), registers };
    let dims = check(parts, &tokens)?;
    let y = forward(parts, tokens, &dims)?;
    let mut inputs: Vec<&Var> = parts.iter().flat_map(|p| [p.patches, p.pos_embed]).collect();
    inputs.extend([cls_token, mask_token].into_iter().chain(register_tokens));
    let (to_cls, to_mask, to_registers) = (cls_token.slot(), mask_token.slot(), register_tokens.and_then(Var::slot));
    let parts: Vec<_> =
        parts.iter().map(|p| (p.masks.cloned(), p.patches.slot(), p.pos_embed.slot())).zip(dims).collect();
    Ok(tape.record(OP, y, &inputs, [], move |dy, [], grads| {
        for ((masks, to_patches, to_pos), dims) in parts {
            let wanted = Wanted {
                patches: to_patches.is_some(),
                pos: to_pos.is_some(),
                cls: to_cls.is_some(),
                mask: to_mask.is_some(),
                registers: to_registers.is_some(),
            };
            let g = backward(&dy, masks.as_ref(), dims, wanted)?;
            let all = [(to_patches, g.patches), (to_pos, g.pos), (to_cls, g.cls), (to_mask, g.mask)];
            for (to, grad) in all.into_iter().chain([(to_registers, g.registers)]) {
                grad.map_or(Ok(()), |grad| grads.add(to, grad))?;
            }
        }
        Ok(())
    }))
}

fn check(parts: &[Part], tokens: &Tokens) -> Result<Vec<Dims>> {
    let Some(like) = parts.first().map(|p| p.patches.value()) else {
        return Err(Error::argument(OP, "parts", "length", "0", "at least one"));
    };
    let [_, cols] = like.dims(OP, "patches")?;
    let registers = tokens.registers();
    let given = [("cls_token", tokens.cls, &[1, 1, cols][..]), ("mask_token", tokens.mask, &[1, cols])];
    let extra = [1, registers, cols];
    for (arg, t, shape) in given.into_iter().chain(tokens.registers.map(|r| ("register_tokens", r, &extra[..]))) {
        shaped(OP, arg, t, shape)?;
        same(OP, arg, t, like)?;
    }
    let mut first = 0;
    let mut part = |p: &Part| {
        let (patches, pos) = (p.patches.value(), p.pos_embed.value());
        same(OP, "patches", patches, like)?;
        same(OP, "pos_embed", pos, like)?;
        let ([rows, _], [_, table, _]) = (patches.dims(OP, "patches")?, pos.dims::<3>(OP, "pos_embed")?);
        let len = table.saturating_sub(1);
        shaped(OP, "pos_embed", pos, &[1, len + 1, cols])?;
        if len == 0 || rows % len != 0 {
            let expected = format!("[N x {len}, {cols}], the patches of whole images");
            return Err(Error::shape(OP, "patches", patches.shape(), expected));
        }
        shaped(OP, "patches", patches, &[rows, cols])?;
        if let Some(masks) = p.masks {
            shaped(OP, "masks", masks, &[rows / len, len])?;
            typed(OP, "masks", masks, DType::I32)?;
            on(OP, "masks", masks, like)?;
        }
        let dims = Dims { images: rows / len, len, registers, cols, first };
        first += dims.rows();
        Ok(dims)
    };
    parts.iter().map(&mut part).collect()
}

fn forward(parts: &[Part], tokens: Tokens, dims: &[Dims]) -> Result<Tensor> {
    let like = tokens.cls;
    let (rows, cols) = (dims.iter().map(|d| d.rows()).sum(), like.numel());
    let mut y = Tensor::uninit([rows, cols], like.dtype(), like.device())?;
    for (part, &dims) in parts.iter().zip(dims) {
        match like.device() {
            Device::Cpu => reference::forward(part, tokens, dims, &mut y)?,
            _ => launch::forward(part, tokens, dims, &mut y)?,
        }
    }
    Ok(y)
}

/// Which gradients are asked for.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    patches: bool,
    pos: bool,
    cls: bool,
    mask: bool,
    registers: bool,
}

/// Those of one part.
#[derive(Default)]
struct Gradients {
    patches: Option<Tensor>,
    pos: Option<Tensor>,
    cls: Option<Tensor>,
    /// While it is made: `[L, D]`, the hidden rows of each patch.
    mask: Option<Tensor>,
    registers: Option<Tensor>,
}

fn backward(dy: &Tensor, masks: Option<&Tensor>, dims: Dims, wanted: Wanted) -> Result<Gradients> {
    let (acc, device, Dims { len, cols, registers, .. }) = (dy.dtype().accumulate(), dy.device(), dims);
    let make = |wanted: bool, shape: &[usize], dtype| wanted.then(|| Tensor::uninit(shape, dtype, device)).transpose();
    let mut g = Gradients {
        patches: make(wanted.patches, &[dims.images * len, cols], dy.dtype())?,
        pos: make(wanted.pos, &[1, len + 1, cols], acc)?,
        cls: make(wanted.cls, &[1, 1, cols], acc)?,
        mask: make(wanted.mask && masks.is_some(), &[len, cols], acc)?,
        registers: make(wanted.registers, &[1, registers, cols], acc)?,
    };
    match device {
        Device::Cpu => reference::backward(dy, masks, dims, &mut g)?,
        _ => launch::backward(dy, masks, dims, &mut g)?,
    }
    if let Some(parts) = g.mask.take() {
        g.mask = Some(linear::bias_gradient(&parts)?.reshape([1, cols])?);
    }
    Ok(g)
}
