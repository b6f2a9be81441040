//! Shapes of normalised embeddings in the recipes.

use super::l2_normalize;
use crate::DType;
use crate::ops::{Case, Fill, Input};

/// `x: [rows, cols]`.
pub fn case(rows: usize, cols: usize) -> Case {
    let inputs = vec![Input::normal("x", [rows, cols]).filled(Fill::Normal(0.1, 2.0))];
    Case::new("l2_normalize", format!("{rows}x{cols}"), inputs, |tape, v| Ok(vec![l2_normalize(tape, &v[0])?]))
        .bytes(move |dtype: DType| (2 * rows * cols * dtype.size() + 4 * rows) as u64)
        .terms(cols)
}

/// SigLIP's embeddings: B/16 at batch sizes 4096 and 32768, So400m.
pub fn cases() -> Vec<Case> {
    [(4096, 768), (32768, 768), (4096, 1152)].map(|(r, c)| case(r, c)).into()
}
