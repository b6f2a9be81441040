//! Shapes of the rectifier in the recipes.

use super::relu;
use crate::DType;
use crate::ops::{Case, Input};

/// `x: [rows, cols]`.
pub fn case(rows: usize, cols: usize) -> Case {
    let inputs = vec![Input::normal("x", [rows, cols])];
    Case::new("relu", format!("{rows}x{cols}"), inputs, |tape, v| Ok(vec![relu(tape, &v[0])?]))
        .bytes(move |dtype: DType| (2 * rows * cols * dtype.size()) as u64)
}

/// Hidden layers of SAM 2's memory attention, for one object and for eight, and of its mask decoder's tokens.
pub fn cases() -> Vec<Case> {
    [(4096, 2048), (32768, 2048), (512, 2048)].map(|(r, c)| case(r, c)).into()
}
