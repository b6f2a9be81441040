//! Optimizers and what steers them: learning-rate schedules, and rules that map parameter names to factors.

pub mod adafactor;
mod adamw;
mod common;
pub mod groups;
mod lars;
mod lion;
mod momentum;
pub mod schedule;
mod state;
#[cfg(test)]
mod tests;

use crate::{Grads, Param, Result, Tensor};

/// What the schedules of a run say about one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Learning rate.
    pub lr: f64,
    /// Factor of every group's weight decay.
    pub decay: f64,
    /// Momentum of what [averages](Rules::average) the weights: 1 keeps the average, 0 copies the weights.
    pub momentum: f64,
    /// Whether the [last layer](Rules::last_layer) has the learning rate 0: it does not move or decay, while its moments
    /// advance and its gradient counts in the norm.
    pub freeze_last_layer: bool,
}

impl Rates {
    /// A learning rate, decay as the rules say, and averages that stay as they are.
    pub fn new(lr: f64) -> Self {
        Self { lr, decay: 1.0, momentum: 1.0, freeze_last_layer: false }
    }
}

/// What the training loop asks of an optimizer: a step in three parts, of which the second can be recorded and run again.
pub trait Optimizer: Send {
    /// Before the launches of a step: state, and the numbers of this step on the device. Gives whether a recording of the
    /// launches of an earlier step does this one too; if not, they have to be launched, after which it is good again.
    ///
    /// # Errors
    /// When the state belongs to other parameters, or the rules ask for what this optimizer does not have.
    fn prepare(&mut self, params: &mut [&mut Param], rates: &Rates) -> Result<bool>;

    /// The launches of a step that is [prepared](Self::prepare), gradients clipped to the norm `clip` if given, of all of
    /// them together or of each [group](Rules::clip_groups).
    ///
    /// # Errors
    /// [`Error::MissingGradients`](crate::Error::MissingGradients) with the names.
    fn launch(&mut self, params: &mut [&mut Param], grads: &Grads, clip: Option<f64>) -> Result<()>;

    /// Reads what the launches found.
    ///
    /// # Errors
    /// [`Error::NonFinite`](crate::Error::NonFinite) with the first tensor whose gradient is not finite; nothing has changed
    /// then.
    fn finish(&mut self, params: &mut [&mut Param], grads: &Grads) -> Result<StepStats>;

    /// The state as named tensors, `step` among them.
    ///
    /// # Errors
    /// More steps than a state can count.
    fn state(&self) -> Result<Vec<(String, Tensor)>>;

    /// Takes over a state that [`state`](Self::state) gave. Names and shapes are compared with the parameters in the next
    /// step.
    ///
    /// # Errors
    /// When it is not the state of this kind of optimizer.
    fn load_state(&mut self, state: Vec<(String, Tensor)>) -> Result<()>;

    /// A whole step. Updates masters and compute copies of the trainable parameters; `grads` stay,
    /// [`clear`](Grads::clear) them before the next step.
    ///
    /// # Errors
    /// Those of its parts; no weight, no state and no count has changed then.
    fn step(
        &mut self,
        params: &mut [&mut Param],
        grads: &Grads,
        rates: &Rates,
        clip: Option<f64>,
    ) -> Result<StepStats> {
        self.prepare(params, rates)?;
        self.launch(params, grads, clip)?;
        self.finish(params, grads)
    }
}

pub use adafactor::Adafactor;
pub use adamw::AdamW;
pub use common::StepStats;
pub use groups::{Group, Rules};
pub use lars::Lars;
pub use lion::Lion;
pub use momentum::Momentum;
