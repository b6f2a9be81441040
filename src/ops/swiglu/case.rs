//! Shapes of SwiGLU in the recipes.

use super::swiglu;
use crate::DType;
use crate::ops::{Case, Fill, Input};

/// `x: [rows, 2 hidden]`.
pub fn case(rows: usize, hidden: usize) -> Case {
    let inputs = vec![Input::normal("x", [rows, 2 * hidden]).filled(Fill::Normal(0.0, 2.0))];
    Case::new("swiglu", format!("{rows}x{hidden}"), inputs, |tape, v| Ok(vec![swiglu(tape, &v[0])?]))
        .bytes(move |dtype: DType| (3 * rows * hidden * dtype.size()) as u64)
}

/// DINOv2 ViT-g/14 (kept rows of the student, all of a teacher's) and ViT-L/14 from scratch.
pub fn cases() -> Vec<Case> {
    [(6448, 4096), (10968, 4096), (17416, 2736)].map(|(r, h)| case(r, h)).into()
}
