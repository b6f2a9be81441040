//! Shapes of linear layers in the recipes.

use super::linear;
use crate::DType;
use crate::ops::{Case, Fill, Input};

/// `x: [rows, inner]`, `w: [outer, inner]`, with bias, with or without residual.
pub fn case(rows: usize, inner: usize, outer: usize, residual: bool) -> Case {
    let std = (inner as f64).powf(-0.5);
    let mut inputs = vec![
        Input::normal("x", [rows, inner]),
        Input::normal("w", [outer, inner]).filled(Fill::Normal(0.0, std)),
        Input::normal("b", [outer]),
    ];
    if residual {
        inputs.push(Input::normal("residual", [rows, outer]));
    }
    let id = format!("{rows}x{inner}x{outer}{}", if residual { "_residual" } else { "" });
    Case::new("linear", id, inputs, |tape, v| Ok(vec![linear(tape, &v[0], &v[1], Some(&v[2]), v.get(3))?]))
        .bytes(move |d: DType| {
            ((rows * inner + outer * inner + outer + rows * outer * if residual { 2 } else { 1 }) * d.size()) as u64
        })
        .flops(2 * (rows * inner * outer) as u64)
}

/// MAE-tiny and ViT-L layers (performance.md sections 1.2 and 7).
pub fn cases() -> Vec<Case> {
    vec![
        case(400, 192, 768, false),
        case(1576, 128, 512, false),
        case(2056, 384, 1536, false),
        case(12800, 1024, 4096, false),
        case(12800, 1024, 1024, true),
    ]
}
