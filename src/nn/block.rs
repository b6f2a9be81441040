//! The pre-norm transformer block on packed sequences.

use std::sync::{Arc, Mutex, PoisonError};

use super::{Builder, LayerNorm, Linear};
use crate::{Device, Error, Result, Tape, Tensor, Var, module, ops};

/// Where each sequence begins in a packed batch `[tokens, dim]`.
#[derive(Clone, Debug)]
pub struct Sequences {
    /// `[sequences + 1]` i32: first token of each, then the number of tokens.
    pub cu_seqlens: Tensor,
    /// Longest sequence.
    pub max: usize,
}

impl Sequences {
    /// `count` sequences of `len` tokens each.
    pub fn uniform(count: usize, len: usize, device: &Device) -> Result<Self> {
        let starts: Vec<i32> = (0..=count).map(|i| (i * len) as i32).collect();
        Ok(Self { cu_seqlens: Tensor::from_slice(&starts, [count + 1], device)?, max: len })
    }

    /// Number of sequences.
    pub fn count(&self) -> usize {
        self.cu_seqlens.numel() - 1
    }
}

/// The layout of the last batch, kept while batches have its size: nothing is uploaded for the next one.
#[derive(Clone, Debug, Default)]
pub struct UniformSequences(Arc<Mutex<Option<(usize, Sequences)>>>);

impl UniformSequences {
    /// `count` sequences of `len` tokens each.
    pub fn get(&self, count: usize, len: usize, device: &Device) -> Result<Sequences> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*held {
            Some((n, seqs)) if (*n, seqs.max) == (count, len) && seqs.cu_seqlens.device() == device => Ok(seqs.clone()),
            _ => Ok(held.insert((count, Sequences::uniform(count, len, device)?)).1.clone()),
        }
    }
}

/// Multi-head self-attention: `proj(softmax(q · kᵀ / sqrt(d)) · v)`.
#[derive(Clone, Debug)]
pub struct Attention {
    /// `[3 dim, dim]`: rows of q, then k, then v, each split into heads contiguously.
    pub qkv: Linear,
    /// `[dim, dim]`.
    pub proj: Linear,
    heads: usize,
}
module!(Attention { qkv, proj });

impl Attention {
    /// `dim` is a multiple of `heads`.
    pub fn new(b: &Builder, dim: usize, heads: usize) -> Result<Self> {
        if heads == 0 || !dim.is_multiple_of(heads) {
            return Err(Error::config("num_heads", heads, format!("a divisor of the width {dim}")));
        }
        Ok(Self { qkv: Linear::new(&b.pp("qkv"), dim, 3 * dim)?, proj: Linear::new(&b.pp("proj"), dim, dim)?, heads })
    }

    fn qkv(&self, tape: &Tape, x: &Var) -> Result<Var> {
        let qkv = self.qkv.forward(tape, x, None)?;
        let (tokens, width) = qkv.value().shape().rows_cols();
        qkv.reshape([tokens, 3, self.heads, width / 3 / self.heads])
    }

    /// On `x: [tokens, dim]`; `residual` is added to the result.
    pub fn forward(&self, tape: &Tape, x: &Var, seqs: &Sequences, residual: Option<&Var>) -> Result<Var> {
        let qkv = self.qkv(tape, x)?;
        let scale = (qkv.value().shape()[3] as f32).powf(-0.5);
        let y = ops::attention::attention(tape, &qkv, &seqs.cu_seqlens, seqs.max, scale)?;
        self.proj.forward(tape, &y, residual)
    }

    /// Attention probabilities `[sequences, heads, n, n]` of equally long sequences, for pictures.
    pub fn probabilities(&self, x: &Tensor, seqs: &Sequences) -> Result<Tensor> {
        let tape = Tape::no_grad();
        let qkv = self.qkv(&tape, &Var::constant(x.clone()))?;
        let qkv = qkv.value().to_device(&Device::Cpu)?;
        let [_, _, heads, head_dim] = qkv.dims("probabilities", "qkv")?;
        let (cu_seqlens, scale) = (seqs.cu_seqlens.to_device(&Device::Cpu)?, (head_dim as f32).powf(-0.5));
        let mut all: Vec<f32> = Vec::new();
        for sequence in 0..seqs.count() {
            let p = ops::attention::probabilities(&qkv, &cu_seqlens, sequence, scale)?;
            all.extend(p.to_f64()?.into_iter().map(|x| x as f32));
        }
        Tensor::from_slice(&all, [seqs.count(), heads, seqs.max, seqs.max], &Device::Cpu)
    }
}

/// `fc2(gelu(fc1(x)))`.
#[derive(Clone, Debug)]
pub struct Mlp {
    /// `[hidden, dim]`.
    pub fc1: Linear,
    /// `[dim, hidden]`.
    pub fc2: Linear,
}
module!(Mlp { fc1, fc2 });

impl Mlp {
    /// A hidden layer of `hidden` units.
    pub fn new(b: &Builder, dim: usize, hidden: usize) -> Result<Self> {
        Ok(Self { fc1: Linear::new(&b.pp("fc1"), dim, hidden)?, fc2: Linear::new(&b.pp("fc2"), hidden, dim)? })
    }

    /// On `x: [tokens, dim]`; `residual` is added to the result.
    pub fn forward(&self, tape: &Tape, x: &Var, residual: Option<&Var>) -> Result<Var> {
        let hidden = ops::gelu::gelu(tape, &self.fc1.forward(tape, x, None)?, ops::gelu::Form::Erf)?;
        self.fc2.forward(tape, &hidden, residual)
    }
}

/// Factors of a block's two branches, one per sequence: stochastic depth as an input. `None` keeps a branch as it is.
#[derive(Clone, Debug, Default)]
pub struct Drops {
    /// `[sequences]` f32, for the attention branch.
    pub attn: Option<Tensor>,
    /// `[sequences]` f32, for the MLP branch.
    pub mlp: Option<Tensor>,
}

/// `x += attn(norm1(x)); x += mlp(norm2(x))`.
#[derive(Clone, Debug)]
pub struct Block {
    /// Before attention.
    pub norm1: LayerNorm,
    /// Self-attention.
    pub attn: Attention,
    /// Before the MLP.
    pub norm2: LayerNorm,
    /// Feed-forward network.
    pub mlp: Mlp,
}
module!(Block { norm1, attn, norm2, mlp });

impl Block {
    /// Width `dim`, `heads` heads, `hidden` units in the MLP; `eps` of the LayerNorms.
    pub fn new(b: &Builder, dim: usize, heads: usize, hidden: usize, eps: f32) -> Result<Self> {
        Ok(Self {
            norm1: LayerNorm::new(&b.pp("norm1"), dim, eps)?,
            attn: Attention::new(&b.pp("attn"), dim, heads)?,
            norm2: LayerNorm::new(&b.pp("norm2"), dim, eps)?,
            mlp: Mlp::new(&b.pp("mlp"), dim, hidden)?,
        })
    }

    /// On `x: [tokens, dim]`.
    pub fn forward(&self, tape: &Tape, x: &Var, seqs: &Sequences, drops: &Drops) -> Result<Var> {
        let branch = self.attn.forward(tape, &self.norm1.forward(tape, x)?, seqs, None)?;
        let (x, normed) = match &drops.attn {
            None => self.norm2.forward_sum(tape, x, &branch)?,
            scale => {
                let sum = ops::residual::residual(tape, x, &branch, scale.as_ref())?;
                let normed = self.norm2.forward(tape, &sum)?;
                (sum, normed)
            }
        };
        match &drops.mlp {
            None => self.mlp.forward(tape, &normed, Some(&x)),
            scale => {
                let branch = self.mlp.forward(tape, &normed, None)?;
                ops::residual::residual(tape, &x, &branch, scale.as_ref())
            }
        }
    }

    /// [`forward`](Self::forward) that keeps only `x` for the backward sweep and computes the rest again.
    pub fn recomputed(&self, tape: &Tape, x: &Var, seqs: &Sequences, drops: &Drops) -> Result<Var> {
        let (block, seqs, drops) = (self.clone(), seqs.clone(), drops.clone());
        tape.recompute(&[x], move |tape, v| block.forward(tape, &v[0], &seqs, &drops))
    }
}
