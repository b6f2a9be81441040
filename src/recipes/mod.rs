//! The recipes: configuration, model, loss and step of each; the training loop is shared and drives a [`Task`].

pub mod dinov2;
pub mod encoder;
pub mod mae;
pub mod sam2;
pub mod siglip;

use crate::checkpoint::StateDict;
use crate::data::{Batch, Image};
use crate::nn::Module;
use crate::optim::Rates;
use crate::{Grads, Result, Tensor};

pub use encoder::Encoder;

/// Named numbers, in order: what a step or an evaluation reports.
pub type Numbers = Vec<(&'static str, f64)>;

/// What a micro-batch brings to the device, randomness included.
pub trait Inputs {
    /// All tensors, in a fixed order: the next batch is copied over them when a recorded step runs again. So nobody else holds
    /// one of them once the step is done.
    fn tensors(&mut self) -> Vec<&mut Tensor>;
}

/// What a micro-step found, on the device.
#[derive(Clone, Debug)]
pub struct Found {
    /// The loss, `[1]`.
    pub loss: Tensor,
    /// Numbers beside it, which [`Task::notes`] names; none of most recipes.
    pub statistics: Option<Tensor>,
}

impl From<Tensor> for Found {
    fn from(loss: Tensor) -> Self {
        Self { loss, statistics: None }
    }
}

/// A loss that couples the micro-batches of an update, as one over all pairs of a batch does: its gradient is not the mean of
/// theirs. Two passes over them give that of the whole batch exactly (Gao et al. 2021, arXiv 2101.06983).
pub trait Joint {
    /// [`Task::Value`].
    type Value: Copy;
    /// [`Task::Inputs`].
    type Inputs;

    /// First pass: what the model makes of each micro-batch, without a tape, and the loss of all of it. Keeps the gradient
    /// of the loss by it.
    fn measure(&mut self, batches: &[Batch<Self::Value>]) -> Result<Found>;

    /// Second pass: a micro-batch with its part of that gradient. [`Task::micro_step`] runs the model again, with a tape.
    fn share(&mut self, batch: &Batch<Self::Value>, index: usize) -> Result<Self::Inputs>;
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

    /// Forward and backward of one micro-batch: adds the gradient times `scale` to `grads`, returns the loss and what was
    /// found beside it.
    ///
    /// On a GPU it is recorded and run again with other inputs, so everything that changes is among them, and nothing is
    /// copied to the device or read back. What cannot be recorded runs too, launch by launch.
    fn micro_step(&mut self, inputs: &Self::Inputs, scale: f64, grads: &mut Grads) -> Result<Found>;

    /// Whether [`micro_step`](Self::micro_step) may be recorded: not if what it does depends on more than its inputs' tensors.
    fn records(&self) -> bool {
        true
    }

    /// The loss over all micro-batches of an update, if it is not their mean.
    fn joint(&mut self) -> Option<&mut dyn Joint<Value = Self::Value, Inputs = Self::Inputs>> {
        None
    }

    /// What steers update number `step` (from 0), `lr` being the learning rate of the run's schedule.
    fn rates(&self, _step: u64, lr: f64) -> Rates {
        Rates::new(lr)
    }

    /// After each update, launch by launch: brings a parameter back into its range, in place.
    fn updated(&mut self) -> Result<()> {
        Ok(())
    }

    /// Numbers to log beside the loss, from the statistics of the last micro-step. An error ends the run.
    fn notes(&mut self, _statistics: &[f64]) -> Result<Numbers> {
        Ok(vec![])
    }

    /// Whether the weights are worth keeping over those of the last checkpoint.
    fn healthy(&self) -> bool {
        true
    }

    /// Draws what the weights do, with a name that says what is seen.
    fn picture(&self) -> Result<Option<(&'static str, Image)>> {
        Ok(None)
    }
}
