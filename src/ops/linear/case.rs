//! Shapes of linear layers in the recipes.

use super::{batched, linear, transposed};
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

/// `x: [rows, inner]`, `w: [inner, ..outer]`.
pub fn transposed_case(rows: usize, inner: usize, outer: &[usize]) -> Case {
    let (cols, std) = (outer.iter().product::<usize>(), (inner as f64).powf(-0.5));
    let w = Input::param("w", [&[inner], outer].concat()).filled(Fill::Normal(0.0, std));
    let id = format!("{rows}x{inner}x{outer:?}-transposed");
    Case::new("linear", id, vec![Input::normal("x", [rows, inner]), w], |tape, v| {
        Ok(vec![transposed(tape, &v[0], &v[1])?])
    })
    .bytes(move |d: DType| ((rows * inner + inner * cols + rows * cols) * d.size()) as u64)
    .flops(2 * (rows * inner * cols) as u64)
    .terms(rows.max(inner).max(cols))
}

/// `x: [batch, n, k]`, `w: [batch, m, k]`, a weight or computed values.
pub fn batched_case(batch: usize, [n, m, k]: [usize; 3], weight: bool) -> Case {
    let shape = [batch, m, k];
    let w = if weight { Input::param("w", shape) } else { Input::normal("w", shape) };
    let w = w.filled(Fill::Normal(0.0, (k.max(1) as f64).powf(-0.5)));
    let id = format!("{batch}x{n}x{m}x{k}-batched{}", if weight { "-weight" } else { "" });
    Case::new("linear", id, vec![Input::normal("x", [batch, n, k]), w], |tape, v| {
        Ok(vec![batched(tape, &v[0], &v[1])?])
    })
    .bytes(move |d: DType| (batch * (n * k + m * k + n * m) * d.size()) as u64)
    .flops(2 * (batch * n * m * k) as u64)
    .terms(n.max(m).max(k))
}

/// MAE-tiny and ViT-L layers (performance.md sections 1.2 and 7). SAM 2's mask decoder: both transposed convolutions
/// for eight objects, and their masks.
pub fn cases() -> Vec<Case> {
    vec![
        case(400, 192, 768, false),
        case(1576, 128, 512, false),
        case(2056, 384, 1536, false),
        case(12800, 1024, 4096, false),
        case(12800, 1024, 1024, true),
        transposed_case(8 * 64 * 64, 256, &[64, 2, 2]),
        transposed_case(8 * 128 * 128, 64, &[32, 2, 2]),
        batched_case(8, [4, 256 * 256, 32], false),
    ]
}
