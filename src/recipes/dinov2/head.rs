//! The projection head: an MLP to a bottleneck of length 1, compared with prototypes.
//!
//! `z_bk = g_k · <b / ‖b‖, v_k / ‖v_k‖>`, so `|z_bk| <= |g_k|`.

use super::Start;
use crate::nn::{Builder, Init, Linear};
use crate::ops::gelu::{Form, gelu};
use crate::ops::l2_normalize::l2_normalize;
use crate::ops::linear::linear;
use crate::ops::weight_norm::weight_norm;
use crate::{DType, Error, Param, Result, Tape, Tensor, Var, module};

/// Sizes of a [`Head`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct HeadSizes {
    /// Hidden units.
    pub hidden: usize,
    /// Width of the bottleneck.
    pub bottleneck: usize,
    /// Number of prototypes.
    pub prototypes: usize,
    /// Linear layers before the prototypes.
    pub layers: usize,
}

/// The normalised last layer.
#[derive(Clone, Debug)]
pub struct LastLayer {
    /// `[K, 1]`: lengths.
    pub weight_g: Param,
    /// `[K, bottleneck]`: directions.
    pub weight_v: Param,
}
module!(LastLayer { weight_g, weight_v });

/// The head. Parameter names: `mlp.0.*`, `mlp.2.*`, .. (`mlp.*` for a single layer), `last_layer.weight_g`,
/// `last_layer.weight_v`.
#[derive(Clone, Debug)]
pub struct Head {
    /// Linear layers, GELU between them.
    pub mlp: Vec<Linear>,
    /// Prototypes.
    pub last_layer: LastLayer,
}
module!(Head { mlp, last_layer });

impl Head {
    /// On features of width `inner`. Biases start at 0, directions uniform in ±1/√bottleneck, lengths at 1, the MLP as `start`
    /// says.
    ///
    /// # Errors
    /// When a size is 0.
    pub fn new(b: &Builder, inner: usize, sizes: &HeadSizes, start: &Start) -> Result<Self> {
        let &HeadSizes { hidden, bottleneck, prototypes, layers } = sizes;
        for (key, size) in [("head_layers", layers), ("bottleneck", bottleneck), ("prototypes", prototypes)] {
            if size == 0 {
                return Err(Error::config(key, size, "at least 1"));
            }
        }
        let layer = |i: usize| {
            let path = if layers == 1 { b.pp("mlp") } else { b.pp("mlp").pp(2 * i) };
            let (from, to) = (if i == 0 { inner } else { hidden }, if i + 1 == layers { bottleneck } else { hidden });
            let weight = path.param("weight", [to, from], start.style().weight(from, to))?;
            Ok(Linear { weight, bias: Some(path.param("bias", [to], Init::Zeros)?) })
        };
        let (last, bound) = (b.pp("last_layer"), (bottleneck as f64).powf(-0.5));
        Ok(Self {
            mlp: (0..layers).map(layer).collect::<Result<_>>()?,
            last_layer: LastLayer {
                weight_g: last.param("weight_g", [prototypes, 1], Init::Ones)?,
                weight_v: last.param("weight_v", [prototypes, bottleneck], Init::Uniform(bound))?,
            },
        })
    }

    /// The prototypes `[K, bottleneck]`, made once for all rows of a step.
    pub fn prototypes(&self, tape: &Tape) -> Result<Var> {
        weight_norm(tape, &tape.param(&self.last_layer.weight_v), Some(&tape.param(&self.last_layer.weight_g)))
    }

    /// The bottleneck of `x: [rows, width]` at length 1: `[rows, bottleneck]`.
    pub fn bottleneck(&self, tape: &Tape, x: &Var) -> Result<Var> {
        let mut y = x.clone();
        for (i, layer) in self.mlp.iter().enumerate() {
            y = layer.forward(tape, &if i == 0 { y } else { gelu(tape, &y, Form::Erf)? }, None)?;
        }
        l2_normalize(tape, &y)
    }

    /// Logits `[rows, K]` of `x: [rows, width]`.
    pub fn forward(&self, tape: &Tape, x: &Var, prototypes: &Var) -> Result<Var> {
        linear(tape, &self.bottleneck(tape, x)?, prototypes, None, None)
    }

    /// Logits of a teacher, without gradient. In 16-bit training they are f32 all the same: rounded to bf16 they move single
    /// probabilities by percents.
    pub fn teacher(&self, x: &Tensor) -> Result<Tensor> {
        let tape = Tape::no_grad();
        let (b, w) = (self.bottleneck(&tape, &Var::constant(x.clone()))?, self.prototypes(&tape)?);
        let full = if w.value().dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        crate::ops::linear::product(b.value(), w.value(), full)
    }

    /// The largest length of a prototype.
    pub fn largest(&self) -> Result<f64> {
        Ok(self.last_layer.weight_g.master.to_f64()?.into_iter().fold(0.0, |m, g| g.abs().max(m)))
    }

    /// Prototypes.
    pub fn count(&self) -> usize {
        self.last_layer.weight_v.master.shape()[0]
    }
}
