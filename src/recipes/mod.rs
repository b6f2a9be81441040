//! The recipes: configuration, model, loss and step of each; the training loop is shared and drives a [`Task`].

pub mod mae;
pub mod siglip;

use crate::checkpoint::StateDict;
use crate::data::{Batch, Image};
use crate::nn::Module;
use crate::{Grads, Result, Tensor};

/// Named numbers, in order: what a step or an evaluation reports.
pub type Numbers = Vec<(&'static str, f64)>;

/// What a micro-batch brings to the device, randomness included.
pub trait Inputs {
    /// All tensors, in a fixed order: the next batch is copied over them when a recorded step runs again.
    fn tensors(&mut self) -> Vec<&mut Tensor>;
}

/// What a recipe brings to the loop.
pub trait Task: Send {
    /// Element of a batch's samples: u8 pixels or f32 values.
    type Value: Copy + Send + 'static;
    /// A micro-batch on the device.
    type Inputs: Inputs + Send;

    /// The parameters.
    fn module(&mut self) -> &mut dyn Module;

    /// The weights with what is needed to build their model again, for files.
    fn weights(&self) -> Result<StateDict>;

    /// What a micro-batch needs, on the device. Everything random depends on the seed and the batch's position only.
    fn inputs(&mut self, batch: &Batch<Self::Value>) -> Result<Self::Inputs>;

    /// Forward and backward of one micro-batch: adds the gradient times `scale` to `grads`, returns the loss.
    ///
    /// On a GPU it is recorded and run again with other inputs, so everything that changes is among them, and nothing is
    /// copied to the device or read back. What cannot be recorded runs too, launch by launch.
    fn micro_step(&mut self, inputs: &Self::Inputs, scale: f64, grads: &mut Grads) -> Result<Tensor>;

    /// Numbers to log at the end of an epoch.
    fn end_of_epoch(&mut self, _epoch: u64) -> Result<Numbers> {
        Ok(vec![])
    }

    /// Draws what the weights do, with a name that says what is seen.
    fn picture(&self) -> Result<Option<(&'static str, Image)>> {
        Ok(None)
    }
}
