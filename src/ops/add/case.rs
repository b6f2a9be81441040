//! Shapes of sums in the recipes.

use super::add;
use crate::DType;
use crate::ops::{Case, Input};

/// `a, b: [rows, cols]`.
pub fn case(rows: usize, cols: usize) -> Case {
    let inputs = vec![Input::normal("a", [rows, cols]), Input::normal("b", [rows, cols])];
    Case::new("add", format!("{rows}x{cols}"), inputs, |tape, v| Ok(vec![add(tape, &v[0], &v[1])?]))
        .bytes(move |dtype: DType| (3 * rows * cols * dtype.size()) as u64)
}

/// Residual stream of the MAE encoder ViT-L and decoder.
pub fn cases() -> Vec<Case> {
    [(12800, 1024), (50432, 512)].map(|(r, c)| case(r, c)).into()
}
