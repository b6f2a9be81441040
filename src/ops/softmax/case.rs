//! Shapes of softmax in the recipes.

use super::softmax;
use crate::DType;
use crate::ops::{Case, Fill, Input};

/// `x: [rows, cols]`.
pub fn case(rows: usize, cols: usize) -> Case {
    let inputs = vec![Input::normal("x", [rows, cols]).filled(Fill::Normal(0.5, 3.0))];
    Case::new("softmax", format!("{rows}x{cols}"), inputs, |tape, v| Ok(vec![softmax(tape, &v[0])?]))
        .bytes(move |dtype: DType| (2 * rows * cols * dtype.size()) as u64)
        .terms(cols)
        .stored(2) // the output, of which the backward reads the stored values
}

/// Classes of ImageNet for a large batch, and scores of one ViT-S layer as unfused attention has them.
pub fn cases() -> Vec<Case> {
    [(16384, 1000), (49152, 257)].map(|(r, c)| case(r, c)).into()
}
