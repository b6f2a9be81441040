//! Shapes of resampled maps in the recipes.

use std::sync::{Mutex, PoisonError};

use super::taps::{taps, transposed};
use super::{Filter, Plan, resample};
use crate::DType;
use crate::ops::{Case, Input};

/// `x: [batch, from.., channels]` at the size `to`.
pub fn case(filter: Filter, batch: usize, from: [usize; 2], to: [usize; 2], channels: usize) -> Case {
    let id = format!("{filter:?}-{batch}x{}x{}to{}x{}x{channels}", from[0], from[1], to[0], to[1]).to_lowercase();
    let inputs = vec![Input::normal("x", [batch, from[0], from[1], channels])];
    // Made once for a device: making one uploads, which is no part of the operation.
    let held = Mutex::new(None::<Plan>);
    let [forward, backward] = [0, 1].map(|way| {
        let longest = |axis: usize| {
            let reads = taps(from[axis], to[axis], filter);
            let reads = if way == 0 { reads } else { transposed(&reads, from[axis]) };
            reads.iter().map(Vec::len).max().unwrap_or(0)
        };
        longest(0) * longest(1)
    });
    Case::new("resample", id, inputs, move |tape, v| {
        let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
        let device = v[0].value().device();
        let plan = match held.as_ref().filter(|plan| plan.forward()[0].range().device() == device) {
            Some(plan) => plan.clone(),
            None => held.insert(Plan::new(from, to, filter, device)?).clone(),
        };
        Ok(vec![resample(tape, &v[0], &plan)?])
    })
    .bytes(move |dtype: DType| (batch * channels * (from[0] * from[1] + to[0] * to[1]) * dtype.size()) as u64)
    .terms(forward.max(backward))
}

/// SAM-2: three masks of 64 objects to the size of the image, a mask given as prompt to the decoder's size, the deepest map
/// to the next level of the pyramid, and the two position tables of the small trunks.
pub fn cases() -> Vec<Case> {
    vec![
        case(Filter::Bilinear, 3 * 64, [256, 256], [1024, 1024], 1),
        case(Filter::BilinearAntialias, 64, [1024, 1024], [256, 256], 1),
        case(Filter::Nearest, 8, [32, 32], [64, 64], 256),
        case(Filter::Bicubic, 1, [7, 7], [256, 256], 96),
        case(Filter::Tile, 1, [8, 8], [256, 256], 96),
    ]
}
