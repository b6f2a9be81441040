//! A frame's features attend to what the memory bank holds.
//!
//! Source: Ravi et al. 2024, arXiv 2408.00714, section 4 and appendix C; `sam2/modeling/memory_attention.py`.

use super::attention::{Attention, AttentionSizes, Rotation, for_each};
use crate::nn::{Builder, LayerNorm, Linear};
use crate::ops::add::add;
use crate::ops::{relu::relu, scale::scale};
use crate::{Result, Tape, Var, module};

/// Sizes of the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryAttentionSizes {
    /// Channels of the features.
    pub dim: usize,
    /// Channels of the memories.
    pub mem_dim: usize,
    /// Layers.
    pub layers: usize,
    /// Hidden units of the feed-forward network.
    pub hidden: usize,
    /// Heads.
    pub heads: usize,
}

/// `x += self(norm1(x))`; `x += cross(norm2(x), memory)`; `x += linear2(relu(linear1(norm3(x))))`.
#[derive(Clone, Debug)]
pub struct MemoryAttentionLayer {
    /// Of the features, with rotary positions.
    pub self_attn: Attention,
    /// To the memories, with rotary positions.
    pub cross_attn_image: Attention,
    /// Of the feed-forward network.
    pub linear1: Linear,
    /// Of the feed-forward network.
    pub linear2: Linear,
    /// Before self-attention.
    pub norm1: LayerNorm,
    /// Before cross-attention.
    pub norm2: LayerNorm,
    /// Before the feed-forward network.
    pub norm3: LayerNorm,
}
module!(MemoryAttentionLayer { self_attn, cross_attn_image, linear1, linear2, norm1, norm2, norm3 });

/// What a frame attends to.
#[derive(Clone, Debug)]
pub struct Memory {
    /// `[B, M, mem_dim]`: maps, then object pointers.
    pub tokens: Var,
    /// `[M, mem_dim]`, or `[B, M, mem_dim]` where they differ: added to keys, not to values.
    pub positions: Var,
    /// Tokens of object pointers, at the end: they have no place on the grid.
    pub pointer_tokens: usize,
}

/// Layers and a last norm.
#[derive(Clone, Debug)]
pub struct MemoryAttention {
    /// In order.
    pub layers: Vec<MemoryAttentionLayer>,
    /// After them.
    pub norm: LayerNorm,
    /// Whether layers keep only what goes into them and compute the rest again in the backward.
    pub recompute: bool,
}
module!(MemoryAttention { layers, norm });

/// Base of the rotary frequencies.
pub const ROPE_THETA: f64 = 10000.0;

impl MemoryAttention {
    /// A stack below `b`.
    ///
    /// # Errors
    /// When the heads do not divide the width.
    pub fn new(b: &Builder, sizes: MemoryAttentionSizes) -> Result<Self> {
        let MemoryAttentionSizes { dim, mem_dim, layers, hidden, heads } = sizes;
        let layer = |i: usize| {
            let b = b.pp("layers").pp(i);
            let attention = |name: &str, kv_dim: usize| {
                Attention::new(&b.pp(name), AttentionSizes { dim, kv_dim, inner: dim, heads })
            };
            let norm = |name: &str| LayerNorm::new(&b.pp(name), dim, 1e-5);
            Ok(MemoryAttentionLayer {
                self_attn: attention("self_attn", dim)?,
                cross_attn_image: attention("cross_attn_image", mem_dim)?,
                linear1: Linear::torch(&b.pp("linear1"), dim, hidden)?,
                linear2: Linear::torch(&b.pp("linear2"), hidden, dim)?,
                norm1: norm("norm1")?,
                norm2: norm("norm2")?,
                norm3: norm("norm3")?,
            })
        };
        Ok(Self {
            layers: (0..layers).map(layer).collect::<Result<_>>()?,
            norm: LayerNorm::new(&b.pp("norm"), dim, 1e-5)?,
            recompute: false,
        })
    }

    /// Features `x: [B, N, dim]`, or `[1, N, dim]` for all, of a grid (columns, rows) with positions `[N, dim]`, after
    /// looking at the memory: `[B, N, dim]`. What the first layer computes of features for all before it looks is
    /// computed once: its self-attention, the norms around it and the queries.
    pub fn forward(&self, tape: &Tape, x: &Var, positions: &Var, memory: &Memory, grid: [usize; 2]) -> Result<Var> {
        let mut x = add(tape, x, &scale(tape, positions, 0.1)?)?;
        let keys = add(tape, &memory.tokens, &memory.positions)?;
        let pointers = memory.pointer_tokens;
        for layer in &self.layers {
            x = if self.recompute && tape.records() {
                let layer = layer.clone();
                let look = move |tape: &Tape, v: &[Var]| layer.forward(tape, &v[0], [&v[1], &v[2]], pointers, grid);
                tape.recompute(&[&x, &keys, &memory.tokens], look)?
            } else {
                layer.forward(tape, &x, [&keys, &memory.tokens], pointers, grid)?
            };
        }
        // A stack without layers has not looked.
        for_each(tape, &self.norm.forward(tape, &x)?, keys.value().shape()[0])
    }
}

impl MemoryAttentionLayer {
    /// As the stack, on keys and values `[B, M, mem_dim]`, of which `pointers` at the end have no place on the grid.
    fn forward(
        &self,
        tape: &Tape,
        x: &Var,
        [keys, values]: [&Var; 2],
        pointers: usize,
        grid: [usize; 2],
    ) -> Result<Var> {
        let rotation = |excluded| Some(Rotation { grid, excluded, theta: ROPE_THETA });
        let h = self.norm1.forward(tape, x)?;
        let y = self.self_attn.forward(tape, &h, &h, &h, rotation(0))?;
        let (sum, h) = self.norm2.forward_sum(tape, x, &y)?;
        let y = self.cross_attn_image.forward(tape, &h, keys, values, rotation(pointers))?;
        let sum = for_each(tape, &sum, keys.value().shape()[0])?;
        let (sum, h) = self.norm3.forward_sum(tape, &sum, &y)?;
        let h = relu(tape, &self.linear1.forward(tape, &h, None)?)?;
        self.linear2.forward(tape, &h, Some(&sum))
    }
}
