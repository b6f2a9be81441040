//! Shapes of residual sums before a LayerNorm in the recipes.

use super::add_layer_norm;
use crate::DType;
use crate::ops::add::add;
use crate::ops::layer_norm::layer_norm;
use crate::ops::{Case, Fill, Input};

fn inputs(rows: usize, cols: usize) -> Vec<Input> {
    vec![
        Input::normal("x", [rows, cols]).filled(Fill::Normal(0.5, 2.0)),
        Input::normal("r", [rows, cols]),
        Input::param("w", [cols]).filled(Fill::Normal(1.0, 0.3)),
        Input::param("b", [cols]),
    ]
}

/// `x, r: [rows, cols]`; the sum and its LayerNorm.
pub fn case(rows: usize, cols: usize) -> Case {
    Case::new("add_layer_norm", format!("{rows}x{cols}"), inputs(rows, cols), |tape, v| {
        let (sum, y) = add_layer_norm(tape, &v[0], &v[1], &v[2], &v[3], 1e-6)?;
        Ok(vec![sum, y])
    })
    .composed(|tape, v| {
        let sum = add(tape, &v[0], &v[1])?;
        let y = layer_norm(tape, &sum, &v[2], &v[3], 1e-6)?;
        Ok(vec![sum, y])
    })
    .bytes(move |dtype: DType| (4 * rows * cols * dtype.size() + 8 * rows) as u64)
    .terms(rows.max(cols))
    .stored(2) // the sum
    .independent(0, "w")
    .independent(0, "b")
}

/// As [`case`] with one output that depends on both, as in a block: `sum + y`.
pub fn joint_case(rows: usize, cols: usize) -> Case {
    Case::new("add_layer_norm", format!("{rows}x{cols}-joint"), inputs(rows, cols), |tape, v| {
        let (sum, y) = add_layer_norm(tape, &v[0], &v[1], &v[2], &v[3], 1e-6)?;
        Ok(vec![add(tape, &sum, &y)?])
    })
    .bytes(move |dtype: DType| (7 * rows * cols * dtype.size() + 8 * rows) as u64)
    .terms(rows.max(cols))
    .stored(3) // the sum and its norm
}

/// MAE encoder ViT-L and decoder, DINOv2 S/14, SigLIP So400m (performance.md 1.2).
pub fn cases() -> Vec<Case> {
    [(12800, 1024), (50432, 512), (32896, 384), (46656, 1152)].map(|(r, c)| case(r, c)).into()
}
