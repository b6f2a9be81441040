//! Attention between two sets of tokens, with and without rotary positions.

use crate::nn::{Builder, Linear, PerSize, UniformSequences};
use crate::ops::attention::{KeyValues, Packing, cross_attention};
use crate::ops::repeat::repeat;
use crate::ops::rope::{Place, axial_table, rope};
use crate::{Error, Result, Tape, Tensor, Var, module};

/// Sizes of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionSizes {
    /// Channels of queries before their projection, and of the result.
    pub dim: usize,
    /// Channels of keys and values before theirs.
    pub kv_dim: usize,
    /// Channels between the projections, of all heads together.
    pub inner: usize,
    /// Heads.
    pub heads: usize,
}

/// `out(softmax(q · kᵀ / √d) · v)` with a projection of each of queries, keys and values, of which that of narrow
/// values comes last: see [`forward`](Self::forward).
///
/// Source: `sam2/modeling/sam/transformer.py`, `Attention` and `RoPEAttention`.
#[derive(Clone, Debug)]
pub struct Attention {
    /// `[inner, dim]`.
    pub q_proj: Linear,
    /// `[inner, kv_dim]`.
    pub k_proj: Linear,
    /// `[inner, kv_dim]`.
    pub v_proj: Linear,
    /// `[dim, inner]`.
    pub out_proj: Linear,
    sizes: AttentionSizes,
    queries: UniformSequences,
    keys: UniformSequences,
    tables: PerSize<Tensor>,
}
module!(Attention { q_proj, k_proj, v_proj, out_proj });

/// How queries and keys are rotated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rotation {
    /// Columns and rows of the grid that the queries are; keys are the same grid, as often as it fits.
    pub grid: [usize; 2],
    /// Keys at the end that have no place on the grid.
    pub excluded: usize,
    /// Base of the frequencies.
    pub theta: f64,
}

impl Attention {
    /// A layer below `b`.
    ///
    /// # Errors
    /// When the heads do not divide the inner width.
    pub fn new(b: &Builder, sizes: AttentionSizes) -> Result<Self> {
        let AttentionSizes { dim, kv_dim, inner, heads } = sizes;
        if heads == 0 || !inner.is_multiple_of(heads) {
            return Err(Error::config("num_heads", heads, format!("a divisor of the width {inner}")));
        }
        Ok(Self {
            q_proj: Linear::torch(&b.pp("q_proj"), dim, inner)?,
            k_proj: Linear::torch(&b.pp("k_proj"), kv_dim, inner)?,
            v_proj: Linear::torch(&b.pp("v_proj"), kv_dim, inner)?,
            out_proj: Linear::torch(&b.pp("out_proj"), inner, dim)?,
            sizes,
            queries: UniformSequences::default(),
            keys: UniformSequences::default(),
            tables: PerSize::default(),
        })
    }

    /// Queries `q: [B, N, dim]`, or `[1, N, dim]` for all, attend to `k, v: [B, M, kv_dim]`; returns `[B, N, dim]`. Queries for
    /// all are projected and rotated once.
    ///
    /// Where one head is wider than `kv_dim` (memory attention: 256 and 64), values are projected after the sum over
    /// keys, not before: `P · (v · wᵀ + b) = (P · v) · wᵀ + b`, since rows of `P` sum to 1. The sum then has `kv_dim`
    /// columns.
    ///
    /// # Errors
    /// When a shape does not fit, and without keys where values are projected last: rows of `P` sum to nothing then.
    pub fn forward(&self, tape: &Tape, q: &Var, k: &Var, v: &Var, rotation: Option<Rotation>) -> Result<Var> {
        let AttentionSizes { kv_dim, inner, heads, .. } = self.sizes;
        let [own, n, _] = q.value().dims("attention", "q")?;
        let [batch, m, _] = k.value().dims("attention", "k")?;
        let (head, device) = (inner / heads, q.value().device().clone());
        let projected_last = heads == 1 && kv_dim < inner;
        if projected_last && m == 0 {
            let expected = format!("[B, M, {kv_dim}] with M at least 1");
            return Err(Error::shape("attention", "k", k.value().shape(), expected));
        }
        let project =
            |layer: &Linear, x: &Var, rows: usize| layer.forward(tape, x, None)?.reshape([rows, 1, heads, head]);
        let (mut q, mut k) = (project(&self.q_proj, q, own * n)?, project(&self.k_proj, k, batch * m)?);
        if let Some(Rotation { grid: [w, h], excluded, theta }) = rotation {
            let table = self.tables.get(w, h, &device, || axial_table(head, w, h, theta, &device))?;
            q = rope(tape, q, &table, Place { sequence: n, excluded: 0 })?;
            k = rope(tape, k, &table, Place { sequence: m, excluded })?;
        }
        let q = for_each(tape, &q.reshape([own, n * inner])?, batch)?;
        let rows = |x: &Var, rows: usize| x.reshape([batch * rows, heads, head]);
        let (queries, keys) = (self.queries.get(batch, n, &device)?, self.keys.get(batch, m, &device)?);
        let of_q = Packing { cu_seqlens: &queries.cu_seqlens, max_seqlen: queries.max };
        let of_k = Packing { cu_seqlens: &keys.cu_seqlens, max_seqlen: keys.max };
        let attend = |v: &Var| {
            let (q, k) = (rows(&q, n)?, rows(&k, m)?);
            cross_attention(tape, &q, KeyValues::Apart(&k, v), of_q, of_k, (head as f32).powf(-0.5))
        };
        let y = if projected_last {
            let sums = attend(&v.reshape([batch * m, 1, kv_dim])?)?;
            self.v_proj.forward(tape, &sums.reshape([batch, n, kv_dim])?, None)?
        } else {
            attend(&rows(&self.v_proj.forward(tape, v, None)?, m)?)?.reshape([batch, n, inner])?
        };
        self.out_proj.forward(tape, &y, None)
    }
}

/// `x: [1, ..]` once for each of `count`; `x: [count, ..]` as it is.
pub(super) fn for_each(tape: &Tape, x: &Var, count: usize) -> Result<Var> {
    match x.value().shape().split_first() {
        Some((1, one)) if count != 1 => repeat(tape, &x.reshape(one)?, count),
        _ => Ok(x.clone()),
    }
}
