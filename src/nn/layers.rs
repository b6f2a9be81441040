//! Linear and LayerNorm.

use super::{Builder, Init};
use crate::{Param, Result, Tape, Var, module, ops};

/// `y = x · weightᵀ + bias`.
#[derive(Clone, Debug)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Param,
    /// `[out]`.
    pub bias: Option<Param>,
}
module!(Linear { weight, bias });

impl Linear {
    /// Xavier-uniform weight, zero bias: how every linear layer of MAE starts.
    pub fn new(b: &Builder, inner: usize, outer: usize) -> Result<Self> {
        Self::with(b, inner, outer, Init::Xavier { fan_in: inner, fan_out: outer }, Init::Zeros)
    }

    /// With these initial values of weight and bias.
    pub fn with(b: &Builder, inner: usize, outer: usize, weight: Init, bias: Init) -> Result<Self> {
        let weight = b.param("weight", [outer, inner], weight)?;
        Ok(Self { weight, bias: Some(b.param("bias", [outer], bias)?) })
    }

    /// The layer on `x: [.., in]`; `residual: [.., out]` is added inside the product.
    pub fn forward(&self, tape: &Tape, x: &Var, residual: Option<&Var>) -> Result<Var> {
        let bias = self.bias.as_ref().map(|b| tape.param(b));
        ops::linear::linear(tape, x, &tape.param(&self.weight), bias.as_ref(), residual)
    }
}

/// LayerNorm with weight and bias.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    /// `[dim]`.
    pub weight: Param,
    /// `[dim]`.
    pub bias: Param,
    /// Added to the variance.
    pub eps: f32,
}
module!(LayerNorm { weight, bias });

impl LayerNorm {
    /// Weight 1, bias 0.
    pub fn new(b: &Builder, dim: usize, eps: f32) -> Result<Self> {
        Ok(Self { weight: b.param("weight", [dim], Init::Ones)?, bias: b.param("bias", [dim], Init::Zeros)?, eps })
    }

    /// The layer on `x: [.., dim]`.
    pub fn forward(&self, tape: &Tape, x: &Var) -> Result<Var> {
        ops::layer_norm::layer_norm(tape, x, &tape.param(&self.weight), &tape.param(&self.bias), self.eps)
    }

    /// `x + branch` and the layer on it, in one pass.
    pub fn forward_sum(&self, tape: &Tape, x: &Var, branch: &Var) -> Result<(Var, Var)> {
        let (w, b) = (tape.param(&self.weight), tape.param(&self.bias));
        ops::add_layer_norm::add_layer_norm(tape, x, branch, &w, &b, self.eps)
    }
}
