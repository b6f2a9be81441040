//! Self-attention over packed sequences of different lengths.
//!
//! Per sequence and head, with `q, k, v: [n, d]`: `S = scale · q · kᵀ`, `P = softmax(S)` over keys, `o = P · v`. Sequences
//! do not see each other. `P` is never stored: the forward keeps `lse = log Σ exp(S)` per row, and the backward computes
//! `P = exp(S - lse)` again.
//!
//! Source: Vaswani et al. 2017, arXiv 1706.03762, equation 1; tiles with a running softmax and the gradient by
//! `delta = rowsum(do · o)`: Dao et al. 2022, arXiv 2205.14135, algorithms 1 and 4.

mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases};

use crate::ops::{float, on, same, shaped, typed};
use crate::{DType, Device, Error, Result, Tape, Tensor, Var};

const OP: &str = "attention";
/// Largest head dimension the kernels have tiles for.
const MAX_DIM: usize = 128;

/// Extents checked once, used by reference and launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dims {
    tokens: usize,
    heads: usize,
    dim: usize,
    seqs: usize,
    max_seqlen: usize,
}

impl Dims {
    fn check(qkv: &Tensor, cu_seqlens: &Tensor, max_seqlen: usize) -> Result<Self> {
        float(OP, "qkv", qkv)?;
        let [tokens, three, heads, dim] = qkv.dims(OP, "qkv")?;
        if three != 3 || !(1..=MAX_DIM).contains(&dim) {
            let expected = format!("[tokens, 3, heads, head_dim] with head_dim 1 to {MAX_DIM}");
            return Err(Error::shape(OP, "qkv", qkv.shape(), expected));
        }
        typed(OP, "cu_seqlens", cu_seqlens, DType::I32)?;
        on(OP, "cu_seqlens", cu_seqlens, qkv)?;
        let [bounds] = cu_seqlens.dims(OP, "cu_seqlens")?;
        if bounds == 0 {
            return Err(Error::shape(OP, "cu_seqlens", cu_seqlens.shape(), "[sequences + 1]"));
        }
        if cu_seqlens.device().is_host() {
            check_bounds(cu_seqlens.as_slice::<i32>()?, tokens, max_seqlen)?;
        }
        Ok(Self { tokens, heads, dim, seqs: bounds - 1, max_seqlen })
    }
}

/// Offsets start at 0, do not fall, end at the number of tokens, and no sequence is longer than `max_seqlen`.
fn check_bounds(bounds: &[i32], tokens: usize, max_seqlen: usize) -> Result<()> {
    let refuse = |at: usize, expected: String| Err(Error::value(OP, format!("cu_seqlens[{at}]"), bounds[at], expected));
    let last = bounds.len() - 1;
    if bounds[0] != 0 {
        return refuse(0, "0".into());
    }
    for (i, pair) in bounds.windows(2).enumerate() {
        if pair[1] < pair[0] {
            return refuse(i + 1, format!("at least {}, the offset before it", pair[0]));
        }
        if (pair[1] - pair[0]) as usize > max_seqlen {
            return refuse(i + 1, format!("at most {} + max_seqlen = {}", pair[0], pair[0] as usize + max_seqlen));
        }
    }
    if bounds[last] as usize != tokens {
        return refuse(last, format!("{tokens}, the number of tokens"));
    }
    Ok(())
}

/// Attends within each sequence of `qkv: [tokens, 3, heads, head_dim]`, the output of one projection, read in place;
/// returns `[tokens, heads · head_dim]`.
///
/// Sequence `i` is the tokens `cu_seqlens[i]..cu_seqlens[i + 1]` (`cu_seqlens: [sequences + 1]`, i32, on the device of
/// `qkv`); it may be empty and is at most `max_seqlen` long. `scale` is usually `1 / sqrt(head_dim)`; `head_dim` is 1 to
/// 128. dtypes: f32, bf16, f16 (f64 on the CPU); arithmetic is f32.
///
/// Saves `qkv`, the result, `lse` and `cu_seqlens`: with `s` bytes per element
/// `4 s · tokens · heads · head_dim + 4 · heads · tokens + 4 · (sequences + 1)` bytes, of which the layers around keep the
/// first two anyway. Forward and backward are deterministic.
///
/// # Errors
/// When a shape, dtype or device does not fit. The values of `cu_seqlens` are checked on host devices only: on a GPU,
/// tokens beyond `max_seqlen` of their sequence, or of no sequence, get arbitrary values.
pub fn attention(tape: &Tape, qkv: &Var, cu_seqlens: &Tensor, max_seqlen: usize, scale: f32) -> Result<Var> {
    let (o, lse) = forward(qkv.value(), cu_seqlens, max_seqlen, scale)?;
    let to = qkv.slot();
    let saved = [qkv.value().clone(), o.clone(), lse, cu_seqlens.clone()];
    Ok(tape.record(OP, o, &[qkv], saved, move |d_o, [qkv, o, lse, cu_seqlens], grads| {
        grads.add(to, backward(&d_o, &qkv, &o, &lse, &cu_seqlens, max_seqlen, scale)?)
    }))
}

/// `o: [tokens, heads · head_dim]` and `lse: [heads, tokens]` (f32), the logarithm of each row's sum of exponentials.
///
/// # Errors
/// As [`attention`].
pub fn forward(qkv: &Tensor, cu_seqlens: &Tensor, max_seqlen: usize, scale: f32) -> Result<(Tensor, Tensor)> {
    let dims = Dims::check(qkv, cu_seqlens, max_seqlen)?;
    let mut o = Tensor::uninit([dims.tokens, dims.heads * dims.dim], qkv.dtype(), qkv.device())?;
    let mut lse = Tensor::uninit([dims.heads, dims.tokens], qkv.dtype().accumulate(), qkv.device())?;
    match qkv.device() {
        _ if qkv.numel() == 0 => {}
        Device::Cpu => reference::forward(qkv, cu_seqlens, scale, dims, &mut o, &mut lse)?,
        _ => launch::forward(qkv, cu_seqlens, scale, dims, &mut o, &mut lse)?,
    }
    Ok((o, lse))
}

/// Gradient by `qkv`, in its layout.
///
/// `dv = Pᵀ · do`, `dP = do · vᵀ`, `delta = rowsum(do · o)`, `dS = P · (dP - delta)`, `dq = scale · dS · k`,
/// `dk = scale · dSᵀ · q`.
///
/// # Errors
/// As [`attention`].
pub fn backward(
    d_o: &Tensor,
    qkv: &Tensor,
    o: &Tensor,
    lse: &Tensor,
    cu_seqlens: &Tensor,
    max_seqlen: usize,
    scale: f32,
) -> Result<Tensor> {
    let dims = Dims::check(qkv, cu_seqlens, max_seqlen)?;
    for (arg, t) in [("do", d_o), ("o", o)] {
        shaped(OP, arg, t, &[dims.tokens, dims.heads * dims.dim])?;
        same(OP, arg, t, qkv)?;
    }
    shaped(OP, "lse", lse, &[dims.heads, dims.tokens])?;
    typed(OP, "lse", lse, qkv.dtype().accumulate())?;
    on(OP, "lse", lse, qkv)?;
    let mut dqkv = Tensor::uninit_like(qkv)?;
    match qkv.device() {
        _ if qkv.numel() == 0 => {}
        Device::Cpu => reference::backward(d_o, qkv, o, lse, cu_seqlens, scale, dims, &mut dqkv)?,
        _ => launch::backward(d_o, qkv, o, lse, cu_seqlens, scale, dims, &mut dqkv)?,
    }
    Ok(dqkv)
}

/// `P` of one sequence, `[heads, n, n]` in f32 on the CPU: row `i` of a head is what token `i` attends to.
///
/// For pictures and analysis of single sequences: computed by the reference whatever the device, without gradient.
///
/// # Errors
/// As [`attention`], and when there is no sequence `sequence`.
pub fn probabilities(qkv: &Tensor, cu_seqlens: &Tensor, sequence: usize, scale: f32) -> Result<Tensor> {
    let (qkv, cu_seqlens) = (qkv.to_device(&Device::Cpu)?, cu_seqlens.to_device(&Device::Cpu)?);
    let dims = Dims::check(&qkv, &cu_seqlens, usize::MAX)?;
    if sequence >= dims.seqs {
        return Err(Error::value(OP, "sequence", sequence, format!("less than {} sequences", dims.seqs)));
    }
    reference::probabilities(&qkv, &cu_seqlens, sequence, scale, dims)
}
