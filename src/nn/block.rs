//! The pre-norm transformer block on packed sequences.

use std::sync::{Arc, Mutex, PoisonError};

use super::{Builder, Init, LayerNorm, Linear};
use crate::ops::gelu::Form;
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

/// What follows from the size of a batch, kept while batches have the size of the last one: nothing is uploaded for the next.
#[derive(Clone, Debug)]
pub struct PerSize<T>(Arc<Mutex<Option<(Size, T)>>>);

/// Sequences, tokens of each, device.
type Size = (usize, usize, Device);

impl<T> Default for PerSize<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T: Clone> PerSize<T> {
    /// For `count` sequences of `len` tokens each; `make` is called when they are not those of the last call.
    pub fn get(&self, count: usize, len: usize, device: &Device, make: impl FnOnce() -> Result<T>) -> Result<T> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*held {
            Some((size, value)) if (size.0, size.1, &size.2) == (count, len, device) => Ok(value.clone()),
            _ => Ok(held.insert(((count, len, device.clone()), make()?)).1.clone()),
        }
    }
}

/// Layouts of batches of equally long sequences.
#[derive(Clone, Debug, Default)]
pub struct UniformSequences(PerSize<Sequences>);

impl UniformSequences {
    /// `count` sequences of `len` tokens each.
    pub fn get(&self, count: usize, len: usize, device: &Device) -> Result<Sequences> {
        self.0.get(count, len, device, || Sequences::uniform(count, len, device))
    }
}

/// In what the blocks of the recipes differ: names in checkpoints, activation, initial values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Style {
    /// Names of the two norms.
    pub norms: [&'static str; 2],
    /// Name of attention, of the layer that makes queries, keys and values, and of the one after it.
    pub attention: [&'static str; 3],
    /// Activation of the MLP.
    pub gelu: Form,
    /// Whether the layer that makes queries, keys and values starts as three, each with its own outputs.
    pub apart: bool,
    /// Standard deviation of the MLP's biases at the start.
    pub mlp_bias: f64,
    /// Standard deviation of weights that start normal; Xavier-uniform without.
    pub weight_std: Option<f64>,
}

impl Style {
    /// MAE and timm.
    pub const VIT: Self = Self {
        norms: ["norm1", "norm2"],
        attention: ["attn", "qkv", "proj"],
        gelu: Form::Erf,
        apart: false,
        mlp_bias: 0.0,
        weight_std: None,
    };

    fn bias(&self) -> Init {
        if self.mlp_bias == 0.0 { Init::Zeros } else { Init::Normal(self.mlp_bias) }
    }

    /// Of a weight `[fan_out, fan_in]`.
    pub fn weight(&self, fan_in: usize, fan_out: usize) -> Init {
        self.weight_std.map_or(Init::Xavier { fan_in, fan_out }, Init::Normal)
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
    /// `dim` is a multiple of `heads`. The layers are below `b`.
    pub fn new(b: &Builder, dim: usize, heads: usize, style: &Style) -> Result<Self> {
        if heads == 0 || !dim.is_multiple_of(heads) {
            return Err(Error::config("num_heads", heads, format!("a divisor of the width {dim}")));
        }
        let [_, qkv, proj] = style.attention;
        let fan_out = if style.apart { dim } else { 3 * dim };
        let qkv = Linear::with(&b.pp(qkv), dim, 3 * dim, style.weight(dim, fan_out), Init::Zeros)?;
        let proj = Linear::with(&b.pp(proj), dim, dim, style.weight(dim, dim), Init::Zeros)?;
        Ok(Self { qkv, proj, heads })
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
    gelu: Form,
}
module!(Mlp { fc1, fc2 });

impl Mlp {
    /// A hidden layer of `hidden` units.
    pub fn new(b: &Builder, dim: usize, hidden: usize, style: &Style) -> Result<Self> {
        let layer = |name: &str, inner: usize, outer: usize| {
            Linear::with(&b.pp(name), inner, outer, style.weight(inner, outer), style.bias())
        };
        Ok(Self { fc1: layer("fc1", dim, hidden)?, fc2: layer("fc2", hidden, dim)?, gelu: style.gelu })
    }

    /// On `x: [tokens, dim]`; `residual` is added to the result.
    pub fn forward(&self, tape: &Tape, x: &Var, residual: Option<&Var>) -> Result<Var> {
        let hidden = ops::gelu::gelu(tape, &self.fc1.forward(tape, x, None)?, self.gelu)?;
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
    pub fn new(b: &Builder, dim: usize, heads: usize, hidden: usize, eps: f32, style: &Style) -> Result<Self> {
        let [norm1, norm2] = style.norms;
        Ok(Self {
            norm1: LayerNorm::new(&b.pp(norm1), dim, eps)?,
            attn: Attention::new(&b.pp(style.attention[0]), dim, heads, style)?,
            norm2: LayerNorm::new(&b.pp(norm2), dim, eps)?,
            mlp: Mlp::new(&b.pp("mlp"), dim, hidden, style)?,
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

    /// Blocks one after the other. `drops`: one entry per block, or empty; `recompute`: see [`recomputed`](Self::recomputed).
    pub fn run(
        blocks: &[Self],
        tape: &Tape,
        mut x: Var,
        seqs: &Sequences,
        drops: &[Drops],
        recompute: bool,
    ) -> Result<Var> {
        let none = Drops::default();
        for (i, block) in blocks.iter().enumerate() {
            let drops = drops.get(i).unwrap_or(&none);
            x = if recompute && tape.records() {
                block.recomputed(tape, &x, seqs, drops)?
            } else {
                block.forward(tape, &x, seqs, drops)?
            };
        }
        Ok(x)
    }

    /// [`forward`](Self::forward) that keeps only `x` for the backward sweep and computes the rest again.
    pub fn recomputed(&self, tape: &Tape, x: &Var, seqs: &Sequences, drops: &Drops) -> Result<Var> {
        let (block, seqs, drops) = (self.clone(), seqs.clone(), drops.clone());
        tape.recompute(&[x], move |tape, v| block.forward(tape, &v[0], &seqs, &drops))
    }
}
