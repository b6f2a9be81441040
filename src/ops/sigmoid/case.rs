//! Shapes of the logistic function in the recipes.

use super::sigmoid;
use crate::DType;
use crate::ops::{Case, Fill, Input};

/// `x: [rows, cols]`.
pub fn case(rows: usize, cols: usize, scale: f32, bias: f32) -> Case {
    let inputs = vec![Input::normal("x", [rows, cols]).filled(Fill::Normal(0.0, 3.0))];
    Case::new("sigmoid", format!("{rows}x{cols}-scale{scale}-bias{bias}"), inputs, move |tape, v| {
        Ok(vec![sigmoid(tape, &v[0], scale, bias)?])
    })
    .bytes(move |dtype: DType| (2 * rows * cols * dtype.size()) as u64)
}

/// SAM 2: mask logits of eight objects for the memory encoder, and predicted IoUs.
pub fn cases() -> Vec<Case> {
    vec![case(8, 1024 * 1024, 20.0, -10.0), case(64, 4, 1.0, 0.0)]
}
