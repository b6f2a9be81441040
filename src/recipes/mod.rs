//! The recipes: configuration, model, loss and step of each; the training loop is shared and drives a [`Task`].

pub mod mae;

use std::path::{Path, PathBuf};

use crate::data::Batch;
use crate::nn::Module;
use crate::{Grads, Result};

/// Named numbers, in order: what a step or an evaluation reports.
pub type Numbers = Vec<(&'static str, f64)>;

/// What a recipe brings to the loop.
pub trait Task {
    /// Element of a batch's samples: u8 pixels or f32 values.
    type Value: Copy + Send + 'static;

    /// The weights.
    fn module(&mut self) -> &mut dyn Module;

    /// Forward and backward of one micro-batch: adds the gradient times `scale` to `grads`, returns the loss.
    ///
    /// Everything random depends on the seed and the batch's position only.
    fn micro_step(&mut self, batch: &Batch<Self::Value>, scale: f64, grads: &mut Grads) -> Result<f64>;

    /// Numbers to log at the end of an epoch.
    fn end_of_epoch(&mut self, _epoch: u64) -> Result<Numbers> {
        Ok(vec![])
    }

    /// Draws pictures into a folder; returns the files.
    fn pictures(&mut self, _folder: &Path, _name: &str) -> Result<Vec<PathBuf>> {
        Ok(vec![])
    }
}
