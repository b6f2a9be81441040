//! Optimizers and what steers them: learning-rate schedules, and rules that map parameter names to factors.

pub mod adafactor;
mod adamw;
pub mod groups;
mod lars;
mod lion;
pub mod schedule;
mod state;
#[cfg(test)]
mod tests;

use crate::{Grads, Param, Result, Tensor};

/// What the training loop asks of an optimizer: a step in three parts, of which the second can be recorded and run again.
pub trait Optimizer: Send {
    /// Before the launches of a step with the learning rate `lr`: state, and the numbers of this step on the device.
    ///
    /// # Errors
    /// When the state belongs to other parameters.
    fn prepare(&mut self, params: &mut [&mut Param], lr: f64) -> Result<()>;

    /// The launches of a step that is [prepared](Self::prepare), gradients clipped to the global norm `clip` if given.
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
    fn step(&mut self, params: &mut [&mut Param], grads: &Grads, lr: f64, clip: Option<f64>) -> Result<StepStats> {
        self.prepare(params, lr)?;
        self.launch(params, grads, clip)?;
        self.finish(params, grads)
    }
}

pub use adafactor::Adafactor;
pub use adamw::AdamW;
pub use groups::{Group, Rules};
pub use lars::Lars;
pub use lion::Lion;
pub use state::StepStats;
