//! LARS, or gradient descent with momentum, over the parameters of a model.

use super::Rules;
use super::state::{Named, Norm, StepStats, gradients, load, save_step, trainable};
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

    /// One step with the learning rate `lr`, gradients clipped to the global norm `clip` if given. Updates masters and
    /// compute copies of the trainable parameters; `grads` stay, [`clear`](Grads::clear) them before the next step.
    ///
    /// # Errors
    /// [`Error::MissingGradients`](crate::Error::MissingGradients) with the names, and
    /// [`Error::NonFinite`](crate::Error::NonFinite) with the first tensor whose gradient is not finite; no weight, no
    /// momentum and no count has changed then.
    pub fn step(&mut self, params: &mut [&mut Param], grads: &Grads, lr: f64, clip: Option<f64>) -> Result<StepStats> {
        let mut params = trainable(params)?;
        let gradients = gradients(&params, grads)?;
        self.mu.prepare(OP, KINDS[0], &params, self.steps)?;
        let Some(first) = params.first() else { return Ok(StepStats { grad_norm: 0.0, clip_factor: 1.0 }) };
        let (dtype, device) = (first.master.dtype(), first.master.device().clone());
        let norm = self.norm.launch(&gradients, clip, dtype, &device)?;
        let lr = self.lr.set(&[lr], dtype, &device)?;
        let mut items = Vec::with_capacity(params.len());
        for ((p, g), mu) in params.iter_mut().zip(&gradients).zip(self.mu.by_name()) {
            let group = self.rules.group(p.name(), p.master.shape());
            let Param { master: w, compute, .. } = &mut **p;
            let (lr_scale, weight_decay) = (group.lr_scale, group.weight_decay);
            items.push(Item { w, mu, g, compute: compute.as_mut(), lr_scale, weight_decay });
        }
        lars(&mut items, self.hyper, lr, Some(norm), &mut self.work)?;
        // The device has checked the norm itself, so it is read only now that the update is under way.
        let stats = self.norm.read(self.steps + 1, &params, &gradients)?;
        self.steps += 1;
        Ok(stats)
    }

    /// The state as named tensors: `mu.<name>` and `step`.
    pub fn state(&self) -> Result<Vec<(String, Tensor)>> {
        Ok(self.mu.save(KINDS[0]).chain([save_step(self.steps)?]).collect())
    }

    /// Takes over a state that [`state`](Self::state) gave. Names and shapes are compared with the parameters in the next
    /// step.
    ///
    /// # Errors
    /// When it is not the state of a LARS: unknown names, no step count.
    pub fn load_state(&mut self, state: impl IntoIterator<Item = (String, Tensor)>) -> Result<()> {
        let ([mu], steps) = load(OP, KINDS, state)?;
        (self.mu, self.steps) = (mu, steps);
        Ok(())
    }
}
