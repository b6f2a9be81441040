//! Optimizers with one tensor of state for each parameter: what Lion and LARS share.

use super::common::{Common, StepStats, gradients, trainable};
use super::state::{Named, load, save_step};
use super::{Group, Optimizer, Rates, Rules};
use crate::ops::multi_tensor::Workspace;
use crate::{Grads, Param, Result, Tensor};

/// The equations of such an optimizer: its constants.
pub trait Rule: Copy + Send {
    /// Name of the operation, in errors.
    const OP: &'static str;
    /// What the state is called in files.
    const KIND: &'static str;

    /// One step of all parameters, with the learning rate in `lr: [1]` and norm and factor of the gradients in `norm: [2]`.
    ///
    /// # Errors
    /// Those of the operation.
    fn step(self, items: Vec<Item>, lr: &Tensor, norm: Option<&Tensor>, work: &mut Workspace) -> Result<()>;
}

/// One parameter and what belongs to it.
pub struct Item<'a> {
    /// Weights, f32.
    pub w: &'a mut Tensor,
    /// State, f32.
    pub m: &'a mut Tensor,
    /// Gradient, f32.
    pub g: &'a Tensor,
    /// Copy of the weights in a compute type.
    pub compute: Option<&'a mut Tensor>,
    /// Factor of the learning rate.
    pub lr_scale: f64,
    /// Weight decay; 0 for none.
    pub weight_decay: f64,
}

/// An optimizer with the state of each trainable parameter by name.
pub struct Momentum<R> {
    rule: R,
    common: Common,
    state: Named,
    work: Workspace,
}

impl<R: Rule> Momentum<R> {
    /// An optimizer before its first step. `rules` give each parameter its share of the learning rate and its decay.
    pub fn new(rule: R, rules: Rules) -> Self {
        Self { rule, common: Common::new(R::OP, rules), state: Named::default(), work: Workspace::new() }
    }

    /// Steps done.
    pub fn steps(&self) -> u64 {
        self.common.steps
    }
}

impl<R: Rule> Optimizer for Momentum<R> {
    fn prepare(&mut self, params: &mut [&mut Param], rates: &Rates) -> Result<bool> {
        self.common.refuse_groups()?;
        let params = trainable(params)?;
        self.state.prepare(R::OP, R::KIND, &params, self.common.steps)?;
        self.common.prepare(&params, &[rates.lr], rates.decay, rates.freeze_last_layer)
    }

    fn launch(&mut self, params: &mut [&mut Param], grads: &Grads, clip: Option<f64>) -> Result<()> {
        let mut params = trainable(params)?;
        let gradients = gradients(&params, grads)?;
        if params.is_empty() {
            return Ok(());
        }
        self.common.launch_norm(&params, &gradients, clip)?;
        let mut items = Vec::with_capacity(params.len());
        for ((p, g), m) in params.iter_mut().zip(gradients).zip(self.state.by_name()) {
            let Group { lr_scale, weight_decay } = self.common.group(p);
            let Param { master: w, compute, .. } = &mut **p;
            items.push(Item { w, m, g, compute: compute.as_mut(), lr_scale, weight_decay });
        }
        self.rule.step(items, self.common.scalars()?, self.common.norm(), &mut self.work)
    }

    fn finish(&mut self, params: &mut [&mut Param], grads: &Grads) -> Result<StepStats> {
        self.common.finish(params, grads)
    }

    /// The state as named tensors: `<kind>.<name>` and `step`.
    fn state(&self) -> Result<Vec<(String, Tensor)>> {
        Ok(self.state.save(R::KIND).chain([save_step(self.common.steps)?]).collect())
    }

    fn load_state(&mut self, state: Vec<(String, Tensor)>) -> Result<()> {
        let ([tensors], steps) = load(R::OP, [R::KIND], state)?;
        (self.state, self.common.steps) = (tensors, steps);
        Ok(())
    }
}
