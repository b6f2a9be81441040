//! The tables of a map from one size to another, made on the host and kept on a device.

use super::OP;
use super::taps::{Filter, Read, taps, transposed};
use crate::{Device, Error, Result, Tensor};

/// What each position of one axis is read from: `count` positions from `first`, `step` apart.
#[derive(Clone, Debug)]
pub(super) struct Table {
    /// `[n, 2]`, i32: first and count.
    range: Tensor,
    /// `[n, taps]`, f32; zero from `count` on.
    weights: Tensor,
    step: usize,
}

impl Table {
    /// `reads`: positions that are `step` apart.
    fn new(reads: &[Read], step: usize, device: &Device) -> Result<Self> {
        let count = |read: &Read| match (read.first(), read.last()) {
            (Some((first, _)), Some((last, _))) => (last - first) / step + 1,
            _ => 0,
        };
        let taps = reads.iter().map(count).max().unwrap_or(0).max(1);
        let mut range = Vec::with_capacity(2 * reads.len());
        let mut weights = vec![0f32; taps * reads.len()];
        for (read, weights) in reads.iter().zip(weights.chunks_exact_mut(taps)) {
            let first = read.first().map_or(0, |(at, _)| *at);
            range.extend([first as i32, count(read) as i32]); // below 2^31: `Plan::new`
            for &(at, weight) in read {
                weights[(at - first) / step] = weight as f32;
            }
        }
        let range = Tensor::from_slice(&range, [reads.len(), 2], device)?;
        Ok(Self { range, weights: Tensor::from_slice(&weights, [reads.len(), taps], device)?, step })
    }

    pub(super) fn range(&self) -> &Tensor {
        &self.range
    }

    pub(super) fn weights(&self) -> &Tensor {
        &self.weights
    }

    /// Row length of the weights.
    pub(super) fn taps(&self) -> usize {
        self.weights.shape()[1]
    }

    pub(super) fn step(&self) -> usize {
        self.step
    }
}

/// A map between two sizes `[H, W]`, for any number of maps and channels; cheap to clone. Weights are computed in f64 with
/// the scale `from / to` and rounded to f32.
#[derive(Clone, Debug)]
pub struct Plan {
    from: [usize; 2],
    to: [usize; 2],
    /// Of rows and of columns.
    forward: [Table; 2],
    backward: [Table; 2],
}

impl Plan {
    /// Between the two nearest rows and columns, not antialiased: PyTorch's `bilinear`, `align_corners=False`.
    ///
    /// # Errors
    /// As every plan: when a side is 0 or not below 2^31.
    pub fn bilinear(from: [usize; 2], to: [usize; 2], device: &Device) -> Result<Self> {
        Self::new(from, to, Filter::Bilinear, device)
    }

    /// The same with the triangle stretched where a side shrinks: PyTorch's `bilinear`, `antialias=True`.
    ///
    /// # Errors
    /// As [`bilinear`](Self::bilinear).
    pub fn bilinear_antialias(from: [usize; 2], to: [usize; 2], device: &Device) -> Result<Self> {
        Self::new(from, to, Filter::BilinearAntialias, device)
    }

    /// Keys' cubic with a = -0.75 over four rows and columns, not antialiased; beyond the border lies the border: PyTorch's
    /// `bicubic`, `align_corners=False`.
    ///
    /// # Errors
    /// As [`bilinear`](Self::bilinear).
    pub fn bicubic(from: [usize; 2], to: [usize; 2], device: &Device) -> Result<Self> {
        Self::new(from, to, Filter::Bicubic, device)
    }

    /// Row `⌊i · from / to⌋` and the column likewise: PyTorch's `nearest`.
    ///
    /// # Errors
    /// As [`bilinear`](Self::bilinear).
    pub fn nearest(from: [usize; 2], to: [usize; 2], device: &Device) -> Result<Self> {
        Self::new(from, to, Filter::Nearest, device)
    }

    /// Row `i mod from` and the column likewise: the map repeated, the last copy cut where it does not fit.
    ///
    /// # Errors
    /// As [`bilinear`](Self::bilinear).
    pub fn tile(from: [usize; 2], to: [usize; 2], device: &Device) -> Result<Self> {
        Self::new(from, to, Filter::Tile, device)
    }

    /// By any filter, the same along both axes.
    ///
    /// # Errors
    /// As [`bilinear`](Self::bilinear).
    pub fn new(from: [usize; 2], to: [usize; 2], filter: Filter, device: &Device) -> Result<Self> {
        for (arg, size) in [("from", from), ("to", to)] {
            if size.iter().any(|&n| n == 0 || i32::try_from(n).is_err()) {
                return Err(Error::value(OP, arg, format!("{size:?}"), "sides from 1 to 2^31 - 1"));
            }
        }
        let reads = [0, 1].map(|axis| taps(from[axis], to[axis], filter));
        let table = |axis: usize| Table::new(&reads[axis], 1, device);
        let back = |axis: usize| {
            let step = if filter == Filter::Tile { from[axis] } else { 1 };
            Table::new(&transposed(&reads[axis], from[axis]), step, device)
        };
        Ok(Self { from, to, forward: [table(0)?, table(1)?], backward: [back(0)?, back(1)?] })
    }

    /// Rows and columns of what it is applied to.
    pub fn from(&self) -> [usize; 2] {
        self.from
    }

    /// Rows and columns of what it gives.
    pub fn to(&self) -> [usize; 2] {
        self.to
    }

    pub(super) fn forward(&self) -> &[Table; 2] {
        &self.forward
    }

    pub(super) fn backward(&self) -> &[Table; 2] {
        &self.backward
    }
}
