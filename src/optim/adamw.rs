//! AdamW over the parameters of a model.

use super::common::{Common, StepStats, gradients, with_averages};
use super::state::{Named, load, save_step};
use super::{Group, Optimizer, Rates, Rules};
use crate::ops::adamw::{Hyper, Item, Step, Teacher, adamw, scalars};
use crate::ops::multi_tensor::Workspace;
use crate::{Grads, Param, Result, Tensor};

const OP: &str = "adamw";
const KINDS: [&str; 2] = ["exp_avg", "exp_avg_sq"];

/// AdamW with the state of each trainable parameter by name, and averages of the weights where the rules have them. The
/// equations are in [`ops::adamw`](crate::ops::adamw).
pub struct AdamW {
    hyper: Hyper,
    common: Common,
    exp_avg: Named,
    exp_avg_sq: Named,
    work: Workspace,
}

impl AdamW {
    /// An optimizer before its first step. `rules` give each parameter its share of the learning rate and its decay.
    pub fn new(hyper: Hyper, rules: Rules) -> Self {
        let [exp_avg, exp_avg_sq] = std::array::from_fn(|_| Named::default());
        Self { hyper, common: Common::new(OP, rules), exp_avg, exp_avg_sq, work: Workspace::new() }
    }

    /// Steps done.
    pub fn steps(&self) -> u64 {
        self.common.steps
    }
}

fn teacher(Param { master: average, compute, .. }: &mut Param) -> Teacher<'_> {
    Teacher { average, compute: compute.as_mut() }
}

impl Optimizer for AdamW {
    fn prepare(&mut self, params: &mut [&mut Param], rates: &Rates) -> Result<bool> {
        let (params, _) = with_averages(OP, params, self.common.rules.average)?;
        let t = self.common.steps + 1;
        self.exp_avg.prepare(OP, KINDS[0], &params, self.common.steps)?;
        self.exp_avg_sq.prepare(OP, KINDS[1], &params, self.common.steps)?;
        let &Rates { lr, decay, momentum, freeze_last_layer } = rates;
        let numbers = scalars(self.hyper, Step { lr, t, decay, momentum });
        self.common.prepare(&params, &numbers, 1.0, freeze_last_layer)
    }

    fn launch(&mut self, params: &mut [&mut Param], grads: &Grads, clip: Option<f64>) -> Result<()> {
        let (mut params, averages) = with_averages(OP, params, self.common.rules.average)?;
        let gradients = gradients(&params, grads)?;
        if params.is_empty() {
            return Ok(());
        }
        self.common.launch_norm(&params, &gradients, clip)?;
        let state = self.exp_avg.by_name().zip(self.exp_avg_sq.by_name());
        let mut items = Vec::with_capacity(params.len());
        for (((p, g), average), (m, v)) in params.iter_mut().zip(gradients).zip(averages).zip(state) {
            let Group { lr_scale, weight_decay } = self.common.group(p);
            let group = self.common.rules.clip_group(p.name());
            let Param { master: w, compute, .. } = &mut **p;
            let (compute, teacher) = (compute.as_mut(), average.map(teacher));
            items.push(Item { w, m, v, g, compute, lr_scale, weight_decay, teacher, group });
        }
        adamw(&mut items, self.hyper, self.common.scalars()?, self.common.norm(), &mut self.work)
    }

    fn finish(&mut self, params: &mut [&mut Param], grads: &Grads) -> Result<StepStats> {
        self.common.finish(params, grads)
    }

    /// The state as named tensors: `exp_avg.<name>`, `exp_avg_sq.<name>` and `step`.
    fn state(&self) -> Result<Vec<(String, Tensor)>> {
        let moments = self.exp_avg.save(KINDS[0]).chain(self.exp_avg_sq.save(KINDS[1]));
        Ok(moments.chain([save_step(self.common.steps)?]).collect())
    }

    fn load_state(&mut self, state: Vec<(String, Tensor)>) -> Result<()> {
        let ([exp_avg, exp_avg_sq], steps) = load(OP, KINDS, state)?;
        (self.exp_avg, self.exp_avg_sq, self.common.steps) = (exp_avg, exp_avg_sq, steps);
        Ok(())
    }
}
