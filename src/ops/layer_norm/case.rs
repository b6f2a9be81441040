//! Shapes of LayerNorm in the recipes.

use super::layer_norm;
use crate::DType;
use crate::ops::{Case, Fill, Input};

/// `x: [rows, cols]`.
pub fn case(rows: usize, cols: usize) -> Case {
    let inputs = vec![
        Input::normal("x", [rows, cols]).filled(Fill::Normal(0.5, 2.0)),
        Input::param("w", [cols]).filled(Fill::Normal(1.0, 0.3)),
        Input::param("b", [cols]),
    ];
    Case::new("layer_norm", format!("{rows}x{cols}"), inputs, |tape, v| {
        Ok(vec![layer_norm(tape, &v[0], &v[1], &v[2], 1e-6)?])
    })
    .bytes(move |dtype: DType| (2 * rows * cols * dtype.size() + 8 * rows) as u64)
    .terms(rows.max(cols))
}

/// MAE encoder ViT-L and decoder, DINOv2 S/14, SigLIP So400m (performance.md 1.2).
pub fn cases() -> Vec<Case> {
    [(12800, 1024), (50432, 512), (32896, 384), (46656, 1152)].map(|(r, c)| case(r, c)).into()
}
