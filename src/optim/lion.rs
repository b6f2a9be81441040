//! Lion over the parameters of a model.

use super::state::{Named, Norm, StepStats, gradients, load, save_step, trainable};
use super::{Optimizer, Rules};
use crate::ops::lion::{Hyper, Item, lion};
use crate::ops::multi_tensor::{Scalars, Workspace};
use crate::{Grads, Param, Result, Tensor};

const OP: &str = "lion";
const KINDS: [&str; 1] = ["exp_avg"];

/// Lion with the mean gradient of each trainable parameter by name. The equations are in [`ops::lion`](crate::ops::lion).
pub struct Lion {
    hyper: Hyper,
    rules: Rules,
    steps: u64,
    exp_avg: Named,
    norm: Norm,
    lr: Scalars,
    work: Workspace,
}

impl Lion {
    /// An optimizer before its first step. `rules` give each parameter its share of the learning rate and its decay.
    pub fn new(hyper: Hyper, rules: Rules) -> Self {
        let (exp_avg, norm, lr, work) = (Named::default(), Norm::default(), Scalars::new(), Workspace::new());
        Self { hyper, rules, steps: 0, exp_avg, norm, lr, work }
    }
}

impl Optimizer for Lion {
    fn prepare(&mut self, params: &mut [&mut Param], lr: f64) -> Result<()> {
        let params = trainable(params)?;
        self.exp_avg.prepare(OP, KINDS[0], &params, self.steps)?;
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
        for ((p, g), m) in params.iter_mut().zip(&gradients).zip(self.exp_avg.by_name()) {
            let group = self.rules.group(p.name(), p.master.shape());
            let Param { master: w, compute, .. } = &mut **p;
            let (lr_scale, weight_decay) = (group.lr_scale, group.weight_decay);
            items.push(Item { w, m, g, compute: compute.as_mut(), lr_scale, weight_decay });
        }
        lion(&mut items, self.hyper, self.lr.get(OP)?, Some(norm), &mut self.work)
    }

    fn finish(&mut self, params: &mut [&mut Param], grads: &Grads) -> Result<StepStats> {
        self.norm.finish(&mut self.steps, params, grads)
    }

    fn state(&self) -> Result<Vec<(String, Tensor)>> {
        Ok(self.exp_avg.save(KINDS[0]).chain([save_step(self.steps)?]).collect())
    }

    fn load_state(&mut self, state: Vec<(String, Tensor)>) -> Result<()> {
        let ([exp_avg], steps) = load(OP, KINDS, state)?;
        (self.exp_avg, self.steps) = (exp_avg, steps);
        Ok(())
    }
}
