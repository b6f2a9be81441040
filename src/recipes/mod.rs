//! The recipes: configuration, model, loss and step of each; the training loop is shared and drives a [`Task`].

pub mod mae;

use crate::checkpoint::StateDict;
use crate::data::{Batch, Image};
use crate::nn::Module;
use crate::{Grads, Result};

/// Named numbers, in order: what a step or an evaluation reports.
pub type Numbers = Vec<(&'static str, f64)>;

/// What a recipe brings to the loop.
pub trait Task: Send {
    /// Element of a batch's samples: u8 pixels or f32 values.
    type Value: Copy + Send + 'static;

    /// The parameters.
    fn module(&mut self) -> &mut dyn Module;

    /// The weights with what is needed to build their model again, for files.
    fn weights(&self) -> Result<StateDict>;

    /// Forward and backward of one micro-batch: adds the gradient times `scale` to `grads`, returns the loss.
    ///
    /// Everything random depends on the seed and the batch's position only.
    fn micro_step(&mut self, batch: &Batch<Self::Value>, scale: f64, grads: &mut Grads) -> Result<f64>;

    /// Numbers to log at the end of an epoch.
    fn end_of_epoch(&mut self, _epoch: u64) -> Result<Numbers> {
        Ok(vec![])
    }

    /// Draws what the weights do, with a name that says what is seen.
    fn picture(&self) -> Result<Option<(&'static str, Image)>> {
        Ok(None)
    }
}
