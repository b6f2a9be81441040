//! Attention over packed sequences of different lengths: self-attention and cross-attention.
//!
//! Per sequence and head, with `q: [n, d]`, `k: [m, d]` and `v: [m, d_v]`, `d_v` at most `d` and usually the same:
//! `S = scale · q · kᵀ`, `P = softmax(S)` over keys, `o = P · v`. Sequences do not see each other. A query of a
//! sequence without keys gives 0 and takes no gradient. `P` is never stored: the forward keeps `lse = log Σ exp(S)`
//! per row (-inf without keys), and the backward computes `P = exp(S - lse)` again.
//!
//! Self-attention is the case where `q`, `k` and `v` are views of one tensor: the same kernels, which take a pointer and
//! a distance between rows for each of the three.
//!
//! Source: Vaswani et al. 2017, arXiv 1706.03762, equation 1; tiles with a running softmax and the gradient by
//! `delta = rowsum(do · o)`: Dao et al. 2022, arXiv 2205.14135, algorithms 1 and 4; parts of the keys for few queries:
//! Hong et al. 2023, arXiv 2311.01282, section 4.

mod case;
mod choice;
mod launch;
mod operands;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases, cross_case, narrow_case};
pub use operands::{Operands, Packing};

use crate::ops::{on, same, shaped, typed};
use crate::tape::Slot;
use crate::{Device, Error, Grads, Result, Tape, Tensor, Var};
use operands::Problem;

const OP: &str = "attention";
/// Largest head dimension the kernels have tiles for.
const MAX_DIM: usize = 256;

/// Attends within each sequence of `qkv: [tokens, 3, heads, head_dim]`, the output of one projection, read in place;
/// returns `[tokens, heads · head_dim]`.
///
/// Sequence `i` is the tokens `cu_seqlens[i]..cu_seqlens[i + 1]` (`cu_seqlens: [sequences + 1]`, i32, on the device of
/// `qkv`); it may be empty and is at most `max_seqlen` long. `scale` is usually `1 / sqrt(head_dim)`; `head_dim` is 1 to
/// 256. dtypes: f32, bf16, f16 (f64 on the CPU); arithmetic is f32.
///
/// Saves `qkv`, the result, `lse` and `cu_seqlens`: with `s` bytes per element
/// `4 s · tokens · heads · head_dim + 4 · heads · tokens + 4 · (sequences + 1)` bytes, of which the layers around keep the
/// first two anyway. Forward and backward are deterministic.
///
/// # Errors
/// When a shape, dtype or device does not fit. The values of `cu_seqlens` are checked on host devices only: on a GPU,
/// tokens beyond `max_seqlen` of their sequence, or of no sequence, get arbitrary values.
pub fn attention(tape: &Tape, qkv: &Var, cu_seqlens: &Tensor, max_seqlen: usize, scale: f32) -> Result<Var> {
    let packing = Packing { cu_seqlens, max_seqlen };
    let (o, lse) = forward(Operands::Joint(qkv.value()), packing, packing, scale)?;
    let to = qkv.slot();
    let saved = [qkv.value().clone(), o.clone(), lse, cu_seqlens.clone()];
    Ok(tape.record(OP, o, &[qkv], saved, move |d_o, [qkv, o, lse, cu_seqlens], grads| {
        let packing = Packing { cu_seqlens: &cu_seqlens, max_seqlen };
        add(grads, [to], backward(&d_o, Operands::Joint(&qkv), &o, &lse, packing, packing, scale)?)
    }))
}

/// Keys and values of [`cross_attention`].
#[derive(Clone, Copy, Debug)]
pub enum KeyValues<'a> {
    /// `[keys, 2, heads, head_dim]`, keys then values: the output of one projection, read in place.
    Packed(&'a Var),
    /// Keys `[keys, heads, head_dim]` and values `[keys, heads, v_dim]`, with `v_dim` from 1 to `head_dim`.
    Apart(&'a Var, &'a Var),
}

/// Queries `q: [queries, heads, head_dim]` attend to the keys of their sequence; returns `[queries, heads · v_dim]`,
/// where `v_dim` is `head_dim` unless values lie [apart](KeyValues::Apart).
///
/// Narrow values pay where values would be a projection of few channels: `P · (x · wᵀ + b) = (P · x) · wᵀ + b`, as rows
/// of `P` sum to 1 (not without keys, where `P · x` is 0 and `b` stays).
///
/// Sequence `i` is the queries `of_q.cu_seqlens[i]..` and the keys `of_k.cu_seqlens[i]..`; either may be empty: queries
/// without keys get 0 and the gradient 0, as do keys without queries. Everything else as in [`attention`].
///
/// Saves `q`, keys and values, the result, `lse` and both `cu_seqlens`: with `s` bytes per element
/// `s · (queries + keys) · heads · (head_dim + v_dim) + 4 · heads · queries + 8 · (sequences + 1)` bytes. Forward and
/// backward are deterministic.
///
/// # Errors
/// As [`attention`], and when the two sides have different numbers of sequences.
pub fn cross_attention(tape: &Tape, q: &Var, kv: KeyValues, of_q: Packing, of_k: Packing, scale: f32) -> Result<Var> {
    let (max_q, max_k) = (of_q.max_seqlen, of_k.max_seqlen);
    fn pack(cu_seqlens: &Tensor, max_seqlen: usize) -> Packing<'_> {
        Packing { cu_seqlens, max_seqlen }
    }
    let (cu_q, cu_k) = (of_q.cu_seqlens.clone(), of_k.cu_seqlens.clone());
    Ok(match kv {
        KeyValues::Packed(kv) => {
            let (o, lse) = forward(Operands::Packed(q.value(), kv.value()), of_q, of_k, scale)?;
            let to = [q.slot(), kv.slot()];
            let saved = [q.value().clone(), kv.value().clone(), o.clone(), lse, cu_q, cu_k];
            tape.record(OP, o, &[q, kv], saved, move |d_o, [q, kv, o, lse, cu_q, cu_k], grads| {
                let x = Operands::Packed(&q, &kv);
                add(grads, to, backward(&d_o, x, &o, &lse, pack(&cu_q, max_q), pack(&cu_k, max_k), scale)?)
            })
        }
        KeyValues::Apart(k, v) => {
            let (o, lse) = forward(Operands::Apart(q.value(), k.value(), v.value()), of_q, of_k, scale)?;
            let to = [q.slot(), k.slot(), v.slot()];
            let saved = [q.value().clone(), k.value().clone(), v.value().clone(), o.clone(), lse, cu_q, cu_k];
            tape.record(OP, o, &[q, k, v], saved, move |d_o, [q, k, v, o, lse, cu_q, cu_k], grads| {
                let x = Operands::Apart(&q, &k, &v);
                add(grads, to, backward(&d_o, x, &o, &lse, pack(&cu_q, max_q), pack(&cu_k, max_k), scale)?)
            })
        }
    })
}

/// One gradient for each operand.
fn add<const N: usize>(grads: &mut Grads, to: [Option<Slot>; N], values: Vec<Tensor>) -> Result<()> {
    to.into_iter().zip(values).try_for_each(|(to, value)| grads.add(to, value))
}

/// `o: [queries, heads · v_dim]` and `lse: [heads, queries]` (f32), the logarithm of each row's sum of exponentials.
///
/// # Errors
/// As [`cross_attention`].
pub fn forward(x: Operands, of_q: Packing, of_k: Packing, scale: f32) -> Result<(Tensor, Tensor)> {
    let problem = Problem::check(x, of_q, of_k, scale)?;
    let (dims, dtype, device) = (problem.dims, problem.dtype(), problem.device());
    let row = dims.heads * dims.v_dim;
    let mut o = Tensor::uninit([dims.queries, row], dtype, device)?;
    let mut lse = Tensor::uninit([dims.heads, dims.queries], dtype.accumulate(), device)?;
    match device {
        _ if o.numel() == 0 => {}
        _ if dims.keys == 0 => {
            o = Tensor::zeros([dims.queries, row], dtype, device)?;
            lse = Tensor::full([dims.heads, dims.queries], f32::NEG_INFINITY, device)?.cast(dtype.accumulate())?;
        }
        Device::Cpu => reference::forward(&problem, &mut o, &mut lse)?,
        _ => launch::forward(&problem, &mut o, &mut lse)?,
    }
    Ok((o, lse))
}

/// Gradients by the tensors of `x`, in their layouts.
///
/// `dv = Pᵀ · do`, `dP = do · vᵀ`, `delta = rowsum(do · o)`, `dS = P · (dP - delta)`, `dq = scale · dS · k`,
/// `dk = scale · dSᵀ · q`.
///
/// # Errors
/// As [`cross_attention`].
pub fn backward(
    d_o: &Tensor,
    x: Operands,
    o: &Tensor,
    lse: &Tensor,
    of_q: Packing,
    of_k: Packing,
    scale: f32,
) -> Result<Vec<Tensor>> {
    let problem = Problem::check(x, of_q, of_k, scale)?;
    let (dims, like) = (problem.dims, problem.q.tensor);
    for (arg, t) in [("do", d_o), ("o", o)] {
        shaped(OP, arg, t, &[dims.queries, dims.heads * dims.v_dim])?;
        same(OP, arg, t, like)?;
    }
    shaped(OP, "lse", lse, &[dims.heads, dims.queries])?;
    typed(OP, "lse", lse, like.dtype().accumulate())?;
    on(OP, "lse", lse, like)?;
    if o.numel() == 0 || dims.keys == 0 {
        return x.tensors().map(|t| Tensor::zeros(t.shape().clone(), t.dtype(), t.device())).collect();
    }
    let mut gradients = x.tensors().map(Tensor::uninit_like).collect::<Result<Vec<_>>>()?;
    match problem.device() {
        Device::Cpu => reference::backward(d_o, &problem, o, lse, &mut gradients)?,
        _ => launch::backward(d_o, &problem, o, lse, &mut gradients)?,
    }
    Ok(gradients)
}

/// `P` of one sequence, `[heads, n, n]` in f32 on the CPU: row `i` of a head is what token `i` attends to.
///
/// For pictures and analysis of single sequences: computed by the reference whatever the device, without gradient.
///
/// # Errors
/// As [`attention`], and when there is no sequence `sequence`.
pub fn probabilities(qkv: &Tensor, cu_seqlens: &Tensor, sequence: usize, scale: f32) -> Result<Tensor> {
    let (qkv, cu_seqlens) = (qkv.to_device(&Device::Cpu)?, cu_seqlens.to_device(&Device::Cpu)?);
    let packing = Packing { cu_seqlens: &cu_seqlens, max_seqlen: usize::MAX };
    let problem = Problem::check(Operands::Joint(&qkv), packing, packing, scale)?;
    if sequence >= problem.dims.seqs {
        let expected = format!("less than {} sequences", problem.dims.seqs);
        return Err(Error::value(OP, "sequence", sequence, expected));
    }
    reference::probabilities(&problem, sequence)
}
