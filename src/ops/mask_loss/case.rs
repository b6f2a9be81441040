//! Shapes of SAM-2's loss in training.

use super::{Weights, mask_loss};
use crate::ops::{Case, Fill, Input};
use crate::{DType, Var};

/// Bytes of the large targets, which then repeat. A prime: no two rows are the same.
const DISTINCT: usize = 65_537;

/// Whether pixel `i` of an object lies in its mask, without a pattern of a short period.
fn inside(i: usize) -> bool {
    (i * i / 7 + i / 3) % 5 < 2
}

/// `masks: [objects, masks, pixels]`; the second of every three objects is not there.
pub fn case(objects: usize, masks: usize, pixels: usize, weights: Weights) -> Case {
    let there = |o: usize| o % 3 != 1;
    let bytes = (0..objects * pixels).map(|i| u8::from(there(i / pixels) && inside(i))).collect();
    given(objects, masks, pixels, weights, bytes)
}

fn given(objects: usize, masks: usize, pixels: usize, weights: Weights, targets: Vec<u8>) -> Case {
    let inputs = vec![
        Input::normal("masks", [objects, masks, pixels]).filled(Fill::Normal(-0.5, 3.0)),
        Input::normal("ious", [objects, masks]).filled(Fill::Uniform(0.0, 1.0)),
        Input::normal("object_scores", [objects, 1]).filled(Fill::Normal(0.5, 3.0)),
        Input::constant("targets", [objects, pixels], Fill::Bytes(targets)),
    ];
    let (gamma, all) = (weights.focal_gamma, if weights.supervise_all_iou { "" } else { "-best" });
    let id = format!("{objects}x{masks}x{pixels}-gamma{gamma}{all}");
    Case::new("mask_loss", id, inputs, move |tape, v| {
        let (total, terms) = mask_loss(tape, &v[0], &v[1], &v[2], v[3].value(), &weights, objects.max(1) as f64)?;
        Ok(vec![total, Var::constant(terms)])
    })
    .bytes(move |dtype: DType| (objects * (pixels * (masks * dtype.size() + 1) + 16 * masks)) as u64)
    .terms(pixels + objects * masks)
}

/// Masks of the size of the image: the 64 objects of one, of three masks and of one each, and three of a frame.
pub fn cases() -> Vec<Case> {
    [(64, 3), (64, 1), (3, 3)]
        .map(|(objects, masks)| {
            let targets = (0..DISTINCT).map(|i| u8::from(inside(i))).collect();
            given(objects, masks, 1024 * 1024, Weights::default(), targets)
        })
        .into()
}
