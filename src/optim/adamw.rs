//! AdamW over the parameters of a model.

use super::Rules;
use super::state::{Named, Norm, StepStats, gradients, load, save_step, trainable};
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

    /// One step with the learning rate `lr`, gradients clipped to the global norm `clip` if given. Updates masters and
    /// compute copies of the trainable parameters; `grads` stay, [`clear`](Grads::clear) them before the next step.
    ///
    /// # Errors
    /// [`Error::MissingGradients`](crate::Error::MissingGradients) with the names, and
    /// [`Error::NonFinite`](crate::Error::NonFinite) with the first tensor whose gradient is not finite; no weight, no
    /// moment and no count has changed then.
    pub fn step(&mut self, params: &mut [&mut Param], grads: &Grads, lr: f64, clip: Option<f64>) -> Result<StepStats> {
        self.prepare(params, lr)?;
        self.launch(params, grads, clip)?;
        self.finish(params, grads)
    }

    /// The part of a step before its launches: moments, and the numbers of this step on the device.
    pub(crate) fn prepare(&mut self, params: &mut [&mut Param], lr: f64) -> Result<()> {
        let params = trainable(params)?;
        self.exp_avg.prepare(OP, KINDS[0], &params, self.steps)?;
        self.exp_avg_sq.prepare(OP, KINDS[1], &params, self.steps)?;
        let Some(first) = params.first() else { return Ok(()) };
        let numbers = scalars(self.hyper, Step::new(lr, self.steps + 1));
        self.scalars.set(&numbers, first.master.dtype(), first.master.device())?;
        Ok(())
    }

    /// The launches of a step that is [prepared](Self::prepare): they can be recorded and run again.
    pub(crate) fn launch(&mut self, params: &mut [&mut Param], grads: &Grads, clip: Option<f64>) -> Result<()> {
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

    /// Reads what the launches found. The device has checked the norm itself, so it is read only now that the update is
    /// under way.
    pub(crate) fn finish(&mut self, params: &mut [&mut Param], grads: &Grads) -> Result<StepStats> {
        let params = trainable(params)?;
        if params.is_empty() {
            return Ok(StepStats { grad_norm: 0.0, clip_factor: 1.0 });
        }
        let stats = self.norm.read(self.steps + 1, &params, &gradients(&params, grads)?)?;
        self.steps += 1;
        Ok(stats)
    }

    /// The state as named tensors: `exp_avg.<name>`, `exp_avg_sq.<name>` and `step`.
    pub fn state(&self) -> Result<Vec<(String, Tensor)>> {
        let moments = self.exp_avg.save(KINDS[0]).chain(self.exp_avg_sq.save(KINDS[1]));
        Ok(moments.chain([save_step(self.steps)?]).collect())
    }

    /// Takes over a state that [`state`](Self::state) gave. Names and shapes are compared with the parameters in the next
    /// step.
    ///
    /// # Errors
    /// When it is not the state of an AdamW: unknown names, moments without their partner, no step count.
    pub fn load_state(&mut self, state: impl IntoIterator<Item = (String, Tensor)>) -> Result<()> {
        let ([exp_avg, exp_avg_sq], steps) = load(OP, KINDS, state)?;
        (self.exp_avg, self.exp_avg_sq, self.steps) = (exp_avg, exp_avg_sq, steps);
        Ok(())
    }
}
