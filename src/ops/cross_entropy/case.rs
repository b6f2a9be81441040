//! Shapes of classification losses in the recipes.

use super::{Targets, cross_entropy};
use crate::DType;
use crate::ops::{Case, Fill, Input};

fn logits(rows: usize, cols: usize) -> Input {
    Input::normal("logits", [rows, cols]).filled(Fill::Normal(0.0, 3.0))
}

/// `logits: [rows, cols]`, a class per row.
pub fn case(rows: usize, cols: usize, smoothing: f32) -> Case {
    let classes = (0..rows).map(|row| (row * 7919 % cols) as i32).collect();
    let inputs = vec![logits(rows, cols), Input::constant("targets", [rows], Fill::I32(classes))];
    Case::new("cross_entropy", format!("{rows}x{cols}-smoothing{smoothing}"), inputs, move |tape, v| {
        Ok(vec![cross_entropy(tape, &v[0], Targets::Classes(v[1].value()), smoothing)?])
    })
    .bytes(move |dtype: DType| (rows * cols * dtype.size() + 8 * rows + 4) as u64)
    .terms(rows.max(cols))
}

/// `logits: [rows, cols]`, a weight per row and class.
pub fn soft_case(rows: usize, cols: usize) -> Case {
    let soft = Fill::AccUniform(0.0, 2.0 / cols as f64);
    let inputs = vec![logits(rows, cols), Input::constant("targets", [rows, cols], soft)];
    Case::new("cross_entropy", format!("{rows}x{cols}-soft"), inputs, |tape, v| {
        Ok(vec![cross_entropy(tape, &v[0], Targets::Soft(v[1].value()), 0.0)?])
    })
    .bytes(move |dtype: DType| (rows * cols * (dtype.size() + 4) + 4 * rows + 4) as u64)
    .terms(rows.max(cols))
}

/// Linear probe at batch size 16384, fine-tuning at 1024 with label smoothing or mixed images; 1000 classes.
pub fn cases() -> Vec<Case> {
    vec![case(16384, 1000, 0.0), case(1024, 1000, 0.1), soft_case(1024, 1000)]
}
