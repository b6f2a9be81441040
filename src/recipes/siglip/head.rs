//! Pooling by attention.

use super::Tower;
use crate::nn::{Builder, Init, LayerNorm, Linear, Mlp, Sequences};
use crate::ops::attention::{KeyValues, Packing, cross_attention};
use crate::ops::embedding::{Lookup, embedding};
use crate::{Param, Result, Tape, Var, module};

/// One learned query attends to all tokens of a sequence: `a = attention(probe, tokens)`, `y = a + mlp(norm(a))`. Nothing
/// of the probe is added to `a`.
///
/// Source: Zhai et al. 2022, arXiv 2106.04560, section 3.2, as in big_vision's `MAPHead`.
#[derive(Clone, Debug)]
pub struct MapHead {
    /// `[1, 1, width]`.
    pub probe: Param,
    /// Makes the query of the probe: `[width, width]`.
    pub q: Linear,
    /// Makes keys and values of the tokens: `[2 width, width]`, rows of k, then v.
    pub kv: Linear,
    /// After attention.
    pub proj: Linear,
    /// Before the MLP.
    pub norm: LayerNorm,
    /// Feed-forward network.
    pub mlp: Mlp,
    heads: usize,
}
module!(MapHead { probe, q, kv, proj, norm, mlp });

impl MapHead {
    /// With big_vision's initial values.
    pub fn new(b: &Builder, tower: &Tower, eps: f32) -> Result<Self> {
        let width = tower.width;
        let attention = b.pp("attention");
        let weight = Init::Xavier { fan_in: width, fan_out: width };
        Ok(Self {
            probe: b.param("probe", [1, 1, width], Init::Xavier { fan_in: 1, fan_out: width })?,
            q: Linear::new(&attention.pp("q_proj"), width, width)?,
            kv: Linear::with(&attention.pp("kv_proj"), width, 2 * width, weight, Init::Zeros)?,
            proj: Linear::new(&attention.pp("out_proj"), width, width)?,
            norm: LayerNorm::new(&b.pp("layernorm"), width, eps)?,
            mlp: Mlp::new(&b.pp("mlp"), width, tower.hidden, &tower.style())?,
            heads: tower.heads,
        })
    }

    /// Pools each sequence of `x: [tokens, width]`; returns `[sequences, width]`. The query is the same for all, and made
    /// once.
    pub fn forward(&self, tape: &Tape, x: &Var, seqs: &Sequences, queries: &Queries) -> Result<Var> {
        let (tokens, width) = x.value().shape().rows_cols();
        let (count, head_dim) = (queries.copies.len(), width / self.heads);
        let query = self.q.forward(tape, &tape.param(&self.probe).reshape([1, width])?, None)?;
        let query = embedding(tape, &query, &queries.copies, None)?.reshape([count, self.heads, head_dim])?;
        let kv = self.kv.forward(tape, x, None)?.reshape([tokens, 2, self.heads, head_dim])?;
        let of_q = Packing { cu_seqlens: &queries.seqs.cu_seqlens, max_seqlen: 1 };
        let of_k = Packing { cu_seqlens: &seqs.cu_seqlens, max_seqlen: seqs.max };
        let scale = (head_dim as f32).powf(-0.5);
        let a = cross_attention(tape, &query, KeyValues::Packed(&kv), of_q, of_k, scale)?;
        let a = self.proj.forward(tape, &a, None)?;
        self.mlp.forward(tape, &self.norm.forward(tape, &a)?, Some(&a))
    }
}

/// The one query of each of so many sequences.
#[derive(Clone, Debug)]
pub struct Queries {
    copies: Lookup,
    seqs: Sequences,
}

impl Queries {
    /// Of `count` sequences.
    pub fn new(count: usize, device: &crate::Device) -> Result<Self> {
        Ok(Self { copies: Lookup::new(&vec![0; count], 1, device)?, seqs: Sequences::uniform(count, 1, device)? })
    }
}
