//! Shapes of choices in the recipes.

use super::best_row;
use crate::DType;
use crate::Var;
use crate::ops::{Case, Fill, Input};

/// `scores: [rows, cols]`.
pub fn case(rows: usize, cols: usize) -> Case {
    let inputs = vec![Input::constant("scores", [rows, cols], Fill::Uniform(0.0, 1.0))];
    Case::new("argmax", format!("{rows}x{cols}"), inputs, |_, v| Ok(vec![Var::constant(best_row(v[0].value())?)]))
        .bytes(move |dtype: DType| (rows * (cols * dtype.size() + 4)) as u64)
}

/// SAM-2's three masks by predicted IoU: the objects of an image, and the points of a grid.
pub fn cases() -> Vec<Case> {
    vec![case(64, 3), case(1024, 3)]
}
