//! Shapes of linear layers in the recipes.

use super::linear;
use crate::DType;
use crate::ops::add::add;
use crate::ops::{Case, Fill, Input};

/// `x: [rows, inner]`, `w: [outer, inner]`, with bias, with or without residual.
pub fn case(rows: usize, inner: usize, outer: usize, residual: bool) -> Case {
    build(rows, inner, outer, true, residual)
}

/// With or without bias.
pub(super) fn build(rows: usize, inner: usize, outer: usize, bias: bool, residual: bool) -> Case {
    let std = (inner as f64).powf(-0.5);
    let mut inputs =
        vec![Input::normal("x", [rows, inner]), Input::param("w", [outer, inner]).filled(Fill::Normal(0.0, std))];
    if bias {
        inputs.push(Input::param("b", [outer]));
    }
    if residual {
        inputs.push(Input::normal("residual", [rows, outer]));
    }
    let kind = format!("{}{}", if bias { "" } else { "_no_bias" }, if residual { "_residual" } else { "" });
    let case = Case::new("linear", format!("{rows}x{inner}x{outer}{kind}"), inputs, move |tape, v| {
        let (bias, rest) = v[2..].split_at(bias.into());
        Ok(vec![linear(tape, &v[0], &v[1], bias.first(), rest.first())?])
    })
    .bytes(move |d: DType| {
        let outputs = rows * outer * if residual { 2 } else { 1 };
        ((rows * inner + outer * inner + if bias { outer } else { 0 } + outputs) * d.size()) as u64
    })
    .flops(2 * (rows * inner * outer) as u64)
    .terms(rows.max(inner).max(outer));
    if !residual {
        return case;
    }
    case.composed(move |tape, v| {
        let (bias, rest) = v[2..].split_at(bias.into());
        Ok(vec![add(tape, &linear(tape, &v[0], &v[1], bias.first(), None)?, &rest[0])?])
    })
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
