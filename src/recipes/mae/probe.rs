//! The linear probe's head: batch norm without affine, then a linear layer.

use crate::nn::{Builder, Init, Linear};
use crate::ops::batch_norm;
use crate::{Param, Result, Tape, Tensor, Var, module};

/// Batch norm and linear layer on frozen features. Parameter names are upstream's: `head.0.running_*`, `head.1.*`.
#[derive(Clone, Debug)]
pub struct ProbeHead {
    /// `[dim]`, not trained by gradients.
    pub running_mean: Param,
    /// `[dim]`, of unbiased variances.
    pub running_var: Param,
    /// `[classes, dim]`.
    pub linear: Linear,
    /// Added to the variance.
    pub eps: f32,
    /// Share of a batch in the running statistics.
    pub momentum: f64,
}
module!(ProbeHead { running_mean, running_var, linear });

impl ProbeHead {
    /// Weight N(0, 0.01²), bias 0, running mean 0 and variance 1; eps 1e-6 and momentum 0.1 as upstream has them.
    pub fn new(b: &Builder, dim: usize, classes: usize) -> Result<Self> {
        let (norm, head) = (b.pp("head").pp(0), b.pp("head").pp(1));
        Ok(Self {
            running_mean: norm.frozen("running_mean", [dim], Init::Zeros)?,
            running_var: norm.frozen("running_var", [dim], Init::Ones)?,
            linear: Linear {
                weight: head.param("weight", [classes, dim], Init::Normal(0.01))?,
                bias: Some(head.param("bias", [classes], Init::Zeros)?),
            },
            eps: 1e-6,
            momentum: 0.1,
        })
    }

    /// Logits in training: statistics of the batch, which also enter the running ones.
    pub fn train(&mut self, tape: &Tape, features: &Var) -> Result<Var> {
        let rows = features.value().shape().rows_cols().0 as f64;
        let (x, mean, var) = batch_norm::batch_norm(tape, features, self.eps)?;
        blend(&mut self.running_mean, &mean, self.momentum, 1.0)?;
        // Normalised by the biased variance, kept as the unbiased one.
        blend(&mut self.running_var, &var, self.momentum, rows / (rows - 1.0))?;
        self.linear.forward(tape, &x, None)
    }

    /// Logits in evaluation: running statistics.
    pub fn eval(&self, features: &Tensor) -> Result<Tensor> {
        let x = batch_norm::normalize(features, &self.running_mean.master, &self.running_var.master, self.eps)?;
        Ok(self.linear.forward(&Tape::no_grad(), &Var::constant(x), None)?.value().clone())
    }
}

/// `running = (1 - momentum) running + momentum · factor · batch`.
fn blend(running: &mut Param, batch: &Tensor, momentum: f64, factor: f64) -> Result<()> {
    let old = running.master.to_f64()?;
    let mixed: Vec<f32> = old
        .iter()
        .zip(batch.to_f64()?)
        .map(|(old, new)| ((1.0 - momentum) * old + momentum * factor * new) as f32)
        .collect();
    let device = running.master.device().clone();
    running.set(&Tensor::from_slice(&mixed, [mixed.len()], &device)?)
}
