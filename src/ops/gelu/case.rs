//! Shapes of GELU in the recipes.

use super::gelu;
use crate::DType;
use crate::ops::{Case, Fill, Input};

/// `x: [rows, cols]`.
pub fn case(rows: usize, cols: usize) -> Case {
    let inputs = vec![Input::normal("x", [rows, cols]).filled(Fill::Normal(0.0, 2.0))];
    Case::new("gelu", format!("{rows}x{cols}"), inputs, |tape, v| Ok(vec![gelu(tape, &v[0])?]))
        .bytes(move |dtype: DType| (2 * rows * cols * dtype.size()) as u64)
}

/// Hidden layers of the MAE encoders ViT-L and ViT-B and of the decoder (performance.md 1.2).
pub fn cases() -> Vec<Case> {
    [(12800, 4096), (12800, 3072), (50432, 2048)].map(|(r, c)| case(r, c)).into()
}
