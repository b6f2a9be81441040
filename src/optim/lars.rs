//! LARS, or gradient descent with momentum, over the parameters of a model.

use super::state::{Named, Norm, StepStats, gradients, load, save_step, trainable};
use super::{Optimizer, Rules};
use crate::ops::lars::{Hyper, Item, lars};
use crate::ops::multi_tensor::{Scalars, Workspace};
use crate::{Grads, Param, Result, Tensor};

const OP: &str = "lars";
const KINDS: [&str; 1] = ["mu"];

/// LARS with the momentum of each trainable parameter by name. The equations are in [`ops::lars`](crate::ops::lars).
pub struct Lars {
    hyper: Hyper,
    rules: Rules,
    steps: u64,
    mu: Named,
    norm: Norm,
    lr: Scalars,
    work: Workspace,
}

impl Lars {
    /// An optimizer before its first step. `rules` give each parameter its share of the learning rate and its decay.
    pub fn new(hyper: Hyper, rules: Rules) -> Self {
        let (mu, norm, lr, work) = (Named::default(), Norm::default(), Scalars::new(), Workspace::new());
        Self { hyper, rules, steps: 0, mu, norm, lr, work }
    }

    /// Steps done.
    pub fn steps(&self) -> u64 {
        self.steps
    }
}

impl Optimizer for Lars {
    fn prepare(&mut self, params: &mut [&mut Param], lr: f64) -> Result<()> {
        let params = trainable(params)?;
        self.mu.prepare(OP, KINDS[0], &params, self.steps)?;
        let Some(first) = params.first() else { return Ok(()) };
        self.lr.set(&[lr], first.master.dtype(), first.master.device())?;
        Ok(())
    }

    fn launch(&mut self, params: &mut [&mut Param], grads: &Grads, clip: Option<f64>) -> Result<()> {
        let mut params = trainable(params)?;
        let gradients = gradients(&params, grads)?;
        let Some(first) = params.first() else { return Ok(()) };
        let (dtype, device) = (first.master.dtype(), first.master.device().clone());
        let norm = self.norm.launch(&gradients, clip, dtype, &device)?;
        let mut items = Vec::with_capacity(params.len());
        for ((p, g), mu) in params.iter_mut().zip(&gradients).zip(self.mu.by_name()) {
            let group = self.rules.group(p.name(), p.master.shape());
            let Param { master: w, compute, .. } = &mut **p;
            let (lr_scale, weight_decay) = (group.lr_scale, group.weight_decay);
            items.push(Item { w, mu, g, compute: compute.as_mut(), lr_scale, weight_decay });
        }
        lars(&mut items, self.hyper, self.lr.get(OP)?, Some(norm), &mut self.work)
    }

    fn finish(&mut self, params: &mut [&mut Param], grads: &Grads) -> Result<StepStats> {
        self.norm.finish(&mut self.steps, params, grads)
    }

    /// The state as named tensors: `mu.<name>` and `step`.
    fn state(&self) -> Result<Vec<(String, Tensor)>> {
        Ok(self.mu.save(KINDS[0]).chain([save_step(self.steps)?]).collect())
    }

    fn load_state(&mut self, state: Vec<(String, Tensor)>) -> Result<()> {
        let ([mu], steps) = load(OP, KINDS, state)?;
        (self.mu, self.steps) = (mu, steps);
        Ok(())
    }
}
