//! Shapes of choices between rows in the recipes.

use super::select_rows;
use crate::DType;
use crate::ops::{Case, Fill, Input};

fn with_other(rows: usize, cols: usize, name: &str, other: Input, terms: usize) -> Case {
    let inputs =
        vec![Input::constant("flags", [rows], Fill::AccNormal(0.5, 1.0)), Input::normal("x", [rows, cols]), other];
    let more = inputs[2].shape.numel();
    Case::new("select_rows", format!("{rows}x{cols}-{name}"), inputs, |tape, v| {
        Ok(vec![select_rows(tape, v[0].value(), &v[1], &v[2])?])
    })
    // A row is read from one of the two.
    .bytes(move |dtype: DType| ((2 * rows * cols + more.min(cols)) * dtype.size() + 4 * rows) as u64)
    .terms(terms)
}

/// `x: [rows, cols]` or rows of another.
pub fn case(rows: usize, cols: usize) -> Case {
    with_other(rows, cols, "rows", Input::normal("other", [rows, cols]), 1)
}

/// Or one row.
pub fn row_case(rows: usize, cols: usize) -> Case {
    with_other(rows, cols, "row", Input::param("other", [cols]), rows)
}

/// Or one number.
pub fn one_case(rows: usize, cols: usize) -> Case {
    with_other(rows, cols, "one", Input::normal("other", [1]), rows * cols)
}

/// 64 objects of SAM-2: pointers, the maps of their memories, and three masks each.
pub fn cases() -> Vec<Case> {
    vec![row_case(64, 256), case(64, 64 * 64 * 64), one_case(64, 3 * 256 * 256)]
}
