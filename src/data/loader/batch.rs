//! Samples put together.

use super::Position;
use crate::{Error, Result};

/// Samples side by side.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch<T> {
    /// What the transform made of each sample, one after the other: `[B, C, H, W]` for images in planes.
    pub images: Vec<T>,
    /// Class of each sample, -1 where there is none: `[B]`.
    pub labels: Vec<i32>,
    /// A caption of each sample, `[B]`: one at random when shuffled, else the first; empty in a data set without captions.
    pub captions: Vec<String>,
    /// Number of each sample in the data set: `[B]`.
    pub indices: Vec<u32>,
    /// Epoch, from 0.
    pub epoch: u64,
    /// Batch inside the epoch, from 0.
    pub step_in_epoch: u64,
}

/// A transformed sample; `None` if it was left out.
pub(super) type Sample<T> = Option<Made<T>>;

/// What a sample was made into.
pub(super) struct Made<T> {
    pub index: u32,
    pub label: i32,
    pub values: Vec<T>,
    pub caption: Option<String>,
}

/// The batch of these samples, without those that were left out.
pub(super) fn assemble<T: Copy>(at: Position, samples: Vec<Option<Result<Sample<T>>>>) -> Result<Batch<T>> {
    let samples = samples.into_iter().flatten().filter_map(Result::transpose).collect::<Result<Vec<_>>>()?;
    let values = samples.first().map_or(0, |made| made.values.len());
    let mut batch = Batch {
        images: Vec::with_capacity(values * samples.len()),
        labels: Vec::with_capacity(samples.len()),
        captions: Vec::new(),
        indices: Vec::with_capacity(samples.len()),
        epoch: at.epoch,
        step_in_epoch: at.step,
    };
    for made in samples {
        if made.values.len() != values {
            let expected = format!("{values}, as the first sample of the batch");
            return Err(Error::argument("loader", "transform", "length", made.values.len().to_string(), expected));
        }
        batch.images.extend_from_slice(&made.values);
        batch.labels.push(made.label);
        batch.captions.extend(made.caption);
        batch.indices.push(made.index);
    }
    Ok(batch)
}
