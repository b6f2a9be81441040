//! The block of DINOv2: LayerScale after each branch, an MLP or SwiGLU, stochastic depth that leaves the work of the dropped
//! sequences out.

use crate::nn::{Attention, Builder, Init, LayerNorm, Linear, Mlp, Module, Sequences, Style};
use crate::ops::gather_rows::gather_rows;
use crate::ops::layer_scale::{RowMap, layer_scale};
use crate::ops::swiglu::swiglu;
use crate::{Device, Error, Param, Result, Tape, Tensor, Var, module};

/// `w3(silu(a) ⊙ b)` with `[a, b] = w12(x)`.
#[derive(Clone, Debug)]
pub struct SwiGlu {
    /// `[2 hidden, dim]`, the gate's rows first.
    pub w12: Linear,
    /// `[dim, hidden]`.
    pub w3: Linear,
}
module!(SwiGlu { w12, w3 });

/// The feed-forward branch.
#[derive(Clone, Debug)]
pub enum Ffn {
    /// `fc2(gelu(fc1(x)))`.
    Mlp(Mlp),
    /// The gated one.
    SwiGlu(SwiGlu),
}

impl Module for Ffn {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Param)) {
        match self {
            Self::Mlp(mlp) => mlp.visit(f),
            Self::SwiGlu(swiglu) => swiglu.visit(f),
        }
    }
    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Param)) {
        match self {
            Self::Mlp(mlp) => mlp.visit_mut(f),
            Self::SwiGlu(swiglu) => swiglu.visit_mut(f),
        }
    }
}

/// Which feed-forward network a model has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FfnKind {
    /// [`Ffn::Mlp`].
    Mlp,
    /// [`Ffn::SwiGlu`].
    SwiGlu,
}

/// Hidden units of a SwiGLU that replaces an MLP of `hidden`: two thirds of them, rounded up to a multiple of 8.
pub fn swiglu_hidden(hidden: usize) -> usize {
    ((hidden as f64 * 2.0 / 3.0) as usize).div_ceil(8) * 8
}

/// Values that a model starts with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Start {
    /// LayerScale.
    pub gamma: f32,
    /// Standard deviation of the weights of linear layers; Xavier-uniform without.
    pub weight_std: Option<f64>,
}

impl Start {
    /// As upstream.
    pub const OFFICIAL: Self = Self { gamma: 1e-5, weight_std: Some(0.02) };
    /// For widths of 192 and less and runs of a few thousand updates: the branches of a block change their input from the first
    /// update on. With the official values all class tokens are nearly the same at first, and targets stay even for long.
    pub const SMALL: Self = Self { gamma: 1.0, weight_std: None };

    /// Of the layers.
    pub fn style(&self) -> Style {
        Style { weight_std: self.weight_std, ..Style::VIT }
    }
}

impl Ffn {
    fn new(b: &Builder, kind: FfnKind, dim: usize, hidden: usize, style: &Style) -> Result<Self> {
        Ok(match kind {
            FfnKind::Mlp => Self::Mlp(Mlp::new(b, dim, hidden, style)?),
            FfnKind::SwiGlu => Self::SwiGlu(SwiGlu {
                w12: Linear::with(&b.pp("w12"), dim, 2 * hidden, style.weight(dim, hidden), Init::Zeros)?,
                w3: Linear::with(&b.pp("w3"), hidden, dim, style.weight(hidden, dim), Init::Zeros)?,
            }),
        })
    }

    fn forward(&self, tape: &Tape, x: &Var) -> Result<Var> {
        match self {
            Self::Mlp(mlp) => mlp.forward(tape, x, None),
            Self::SwiGlu(SwiGlu { w12, w3 }) => {
                let hidden = swiglu(tape, &w12.forward(tape, x, None)?)?;
                w3.forward(tape, &hidden, None)
            }
        }
    }
}

/// The sequences that a branch is computed for, and the factor that makes up for the others.
#[derive(Clone, Debug)]
pub struct Kept {
    map: RowMap,
    /// Tokens of the longest of them.
    max: usize,
    /// `[kept]` f32.
    scale: Tensor,
}

impl Kept {
    /// Of lists of sequences (crops of one size) packed one after the other at `cu_seqlens`, `lists` saying how many each
    /// has: the sequences `kept` of each, counted within their list, with the factor `sequences / kept` of their list.
    ///
    /// # Errors
    /// When a sequence does not exist or is kept twice, or none of a list is.
    pub fn new(cu_seqlens: &[i32], lists: &[usize], kept: &[Vec<usize>], device: &Device) -> Result<Self> {
        const OP: &str = "stochastic_depth";
        if lists.len() != kept.len() || lists.iter().sum::<usize>() + 1 != cu_seqlens.len() {
            let expected = format!("{} lists of {} sequences", lists.len(), cu_seqlens.len().saturating_sub(1));
            return Err(Error::argument(OP, "kept", "length", kept.len().to_string(), expected));
        }
        let (mut first, mut all, mut scale, mut max) = (0, vec![], vec![], 0);
        for (i, (&count, kept)) in lists.iter().zip(kept).enumerate() {
            if kept.is_empty() && count > 0 {
                return Err(Error::value(OP, format!("kept[{i}]"), "[]", "at least one sequence"));
            }
            if let Some(wrong) = kept.iter().find(|k| **k >= count) {
                return Err(Error::value(OP, format!("kept[{i}]"), wrong, format!("a sequence below {count}")));
            }
            all.extend(kept.iter().map(|k| first + k));
            scale.extend(kept.iter().map(|_| count as f32 / kept.len() as f32));
            first += count;
        }
        for &k in &all {
            max = max.max((cu_seqlens[k + 1] - cu_seqlens[k]) as usize);
        }
        let map = RowMap::subset(cu_seqlens, &all, device)?;
        Ok(Self { map, max, scale: Tensor::from_slice(&scale, [scale.len()], device)? })
    }

    /// Everything of it that lies on the device, in a fixed order.
    pub fn tensors(&mut self) -> impl Iterator<Item = &mut Tensor> {
        self.map.tensors().chain([&mut self.scale])
    }

    /// Sequences of a list that are kept at `rate`: `max(trunc(count · (1 - rate)), 1)`, as upstream counts.
    pub fn count(count: usize, rate: f64) -> usize {
        ((count as f64 * (1.0 - rate)) as usize).max(1).min(count)
    }
}

/// What the two branches of a block are computed for; `None` for all sequences.
#[derive(Clone, Debug, Default)]
pub struct Drops {
    /// Attention.
    pub attn: Option<Kept>,
    /// Feed-forward network.
    pub ffn: Option<Kept>,
}

/// `x += γ₁ ⊙ attn(norm1(x)); x += γ₂ ⊙ ffn(norm2(x))`.
#[derive(Clone, Debug)]
pub struct Block {
    /// Before attention.
    pub norm1: LayerNorm,
    /// Self-attention.
    pub attn: Attention,
    /// `γ₁: [dim]`, `ls1.gamma`.
    pub ls1: Param,
    /// Before the feed-forward network.
    pub norm2: LayerNorm,
    /// Feed-forward network.
    pub mlp: Ffn,
    /// `γ₂: [dim]`, `ls2.gamma`.
    pub ls2: Param,
}
module!(Block { norm1, attn, ls1, norm2, mlp, ls2 });

impl Block {
    /// Width `dim`, `hidden` units.
    pub fn new(
        b: &Builder,
        dim: usize,
        heads: usize,
        ffn: FfnKind,
        hidden: usize,
        eps: f32,
        start: &Start,
    ) -> Result<Self> {
        let scale = |name: &str| b.pp(name).param("gamma", [dim], Init::Values(vec![start.gamma; dim]));
        let style = start.style();
        Ok(Self {
            norm1: LayerNorm::new(&b.pp("norm1"), dim, eps)?,
            attn: Attention::new(&b.pp("attn"), dim, heads, &style)?,
            ls1: scale("ls1")?,
            norm2: LayerNorm::new(&b.pp("norm2"), dim, eps)?,
            mlp: Ffn::new(&b.pp("mlp"), ffn, dim, hidden, &style)?,
            ls2: scale("ls2")?,
        })
    }

    /// On packed sequences `x: [tokens, dim]`.
    pub fn forward(&self, tape: &Tape, x: &Var, seqs: &Sequences, drops: &Drops) -> Result<Var> {
        let attention =
            |rows: &Var, seqs: &Sequences| self.attn.forward(tape, &self.norm1.forward(tape, rows)?, seqs, None);
        let ffn = |rows: &Var, _: &Sequences| self.mlp.forward(tape, &self.norm2.forward(tape, rows)?);
        let x = branch(tape, x, seqs, &self.ls1, drops.attn.as_ref(), &attention)?;
        branch(tape, &x, seqs, &self.ls2, drops.ffn.as_ref(), &ffn)
    }

    /// [`forward`](Self::forward) that keeps only `x` for the backward sweep and computes the rest again.
    pub fn recomputed(&self, tape: &Tape, x: &Var, seqs: &Sequences, drops: &Drops) -> Result<Var> {
        let (block, seqs, drops) = (self.clone(), seqs.clone(), drops.clone());
        tape.recompute(&[x], move |tape, v| block.forward(tape, &v[0], &seqs, &drops))
    }
}

/// `x + γ ⊙ f(x)`, `f` on the rows of the kept sequences alone.
fn branch(
    tape: &Tape,
    x: &Var,
    seqs: &Sequences,
    gamma: &Param,
    kept: Option<&Kept>,
    f: &dyn Fn(&Var, &Sequences) -> Result<Var>,
) -> Result<Var> {
    let gamma = tape.param(gamma);
    match kept {
        None => layer_scale(tape, x, &f(x, seqs)?, Some(&gamma), None),
        Some(Kept { map, max, scale }) => {
            let rows = map.ids().map_or_else(|| Ok(x.clone()), |ids| gather_rows(tape, x, ids))?;
            // Not kept by `Kept`: what the next batch is copied over has one owner.
            let seqs = Sequences { cu_seqlens: map.cu_seqlens().clone(), max: *max };
            layer_scale(tape, x, &f(&rows, &seqs)?, Some(&gamma), Some((map, scale)))
        }
    }
}
