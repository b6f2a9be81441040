//! AdamW over the parameters of a model.

use super::state::{Named, Norm, StepStats, gradients, load, save_step, trainable};
use super::{Optimizer, Rules};
use crate::ops::adamw::{Hyper, Item, Step, adamw, scalars};
use crate::ops::multi_tensor::{Scalars, Workspace};
use crate::{Grads, Param, Result, Tensor};

const OP: &str = "adamw";
const KINDS: [&str; 2] = ["exp_avg", "exp_avg_sq"];

/// AdamW with the state of each trainable parameter by name. The equations are in [`ops::adamw`](crate::ops::adamw).
pub struct AdamW {
    hyper: Hyper,
    rules: Rules,
    steps: u64,
    exp_avg: Named,
    exp_avg_sq: Named,
    norm: Norm,
    scalars: Scalars,
    work: Workspace,
}

impl AdamW {
    /// An optimizer before its first step. `rules` give each parameter its share of the learning rate and its decay.
    pub fn new(hyper: Hyper, rules: Rules) -> Self {
        Self {
            hyper,
            rules,
            steps: 0,
            exp_avg: Named::default(),
            exp_avg_sq: Named::default(),
            norm: Norm::default(),
            scalars: Scalars::new(),
            work: Workspace::new(),
        }
    }

    /// Steps done.
    pub fn steps(&self) -> u64 {
        self.steps
    }
}

impl Optimizer for AdamW {
    fn prepare(&mut self, params: &mut [&mut Param], lr: f64) -> Result<()> {
        let params = trainable(params)?;
        self.exp_avg.prepare(OP, KINDS[0], &params, self.steps)?;
        self.exp_avg_sq.prepare(OP, KINDS[1], &params, self.steps)?;
        let Some(first) = params.first() else { return Ok(()) };
        let numbers = scalars(self.hyper, Step::new(lr, self.steps + 1));
        self.scalars.set(&numbers, first.master.dtype(), first.master.device())?;
        Ok(())
    }

    fn launch(&mut self, params: &mut [&mut Param], grads: &Grads, clip: Option<f64>) -> Result<()> {
        let mut params = trainable(params)?;
        let gradients = gradients(&params, grads)?;
        let Some(first) = params.first() else { return Ok(()) };
        let (dtype, device) = (first.master.dtype(), first.master.device().clone());
        let norm = self.norm.launch(&gradients, clip, dtype, &device)?;
        let state = self.exp_avg.by_name().zip(self.exp_avg_sq.by_name());
        let mut items = Vec::with_capacity(params.len());
        for ((p, g), (m, v)) in params.iter_mut().zip(&gradients).zip(state) {
            let group = self.rules.group(p.name(), p.master.shape());
            let Param { master: w, compute, .. } = &mut **p;
            let (lr_scale, weight_decay) = (group.lr_scale, group.weight_decay);
            let compute = compute.as_mut();
            items.push(Item { w, m, v, g, compute, lr_scale, weight_decay, teacher: None, group: 0 });
        }
        adamw(&mut items, self.hyper, self.scalars.get(OP)?, Some(norm), &mut self.work)
    }

    fn finish(&mut self, params: &mut [&mut Param], grads: &Grads) -> Result<StepStats> {
        self.norm.finish(&mut self.steps, params, grads)
    }

    /// The state as named tensors: `exp_avg.<name>`, `exp_avg_sq.<name>` and `step`.
    fn state(&self) -> Result<Vec<(String, Tensor)>> {
        let moments = self.exp_avg.save(KINDS[0]).chain(self.exp_avg_sq.save(KINDS[1]));
        Ok(moments.chain([save_step(self.steps)?]).collect())
    }

    fn load_state(&mut self, state: Vec<(String, Tensor)>) -> Result<()> {
        let ([exp_avg, exp_avg_sq], steps) = load(OP, KINDS, state)?;
        (self.exp_avg, self.exp_avg_sq, self.steps) = (exp_avg, exp_avg_sq, steps);
        Ok(())
    }
}
