//! Shapes of products with a number in the recipes.

use super::scale;
use crate::DType;
use crate::ops::{Case, Input};

/// `x: [rows, cols]`, times `factor`.
pub fn case(rows: usize, cols: usize, factor: f32) -> Case {
    let inputs = vec![Input::normal("x", [rows, cols])];
    Case::new("scale", format!("{rows}x{cols}"), inputs, move |tape, v| Ok(vec![scale(tape, &v[0], factor)?]))
        .bytes(move |dtype: DType| (2 * rows * cols * dtype.size()) as u64)
}

/// A residual stream of the MAE encoder ViT-L.
pub fn cases() -> Vec<Case> {
    vec![case(12800, 1024, 0.3)]
}
