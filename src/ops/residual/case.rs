//! Shapes of residual connections in the recipes.

use super::residual;
use crate::DType;
use crate::ops::{Case, Fill, Input};

/// `x, branch: [groups · rows, cols]`, `scale: [groups]`.
pub fn case(groups: usize, rows: usize, cols: usize) -> Case {
    let total = groups * rows;
    let inputs = vec![
        Input::normal("x", [total, cols]),
        Input::normal("branch", [total, cols]),
        Input::constant("scale", [groups], Fill::AccUniform(0.0, 2.0)),
    ];
    Case::new("residual", format!("{groups}x{rows}x{cols}"), inputs, |tape, v| {
        Ok(vec![residual(tape, &v[0], &v[1], Some(v[2].value()))?])
    })
    .bytes(move |dtype: DType| (3 * total * cols * dtype.size() + 4 * groups) as u64)
}

/// Fine-tuning ViT-B and ViT-L, DINOv2 S/14 (performance.md 1.2).
pub fn cases() -> Vec<Case> {
    [(128, 197, 768), (64, 197, 1024), (128, 257, 384)].map(|(g, r, c)| case(g, r, c)).into()
}
