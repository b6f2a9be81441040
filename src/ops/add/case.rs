//! Shapes of sums in the recipes.

use super::add;
use crate::DType;
use crate::ops::{Case, Input};

/// `a, b: [rows, cols]`.
pub fn case(rows: usize, cols: usize) -> Case {
    let inputs = vec![Input::normal("a", [rows, cols]), Input::normal("b", [rows, cols])];
    Case::new("add", format!("{rows}x{cols}"), inputs, |tape, v| Ok(vec![add(tape, &v[0], &v[1])?]))
        .bytes(move |dtype: DType| (3 * rows * cols * dtype.size()) as u64)
}

/// `a: [rows, ..extents]`, `b: [..extents]`, a weight or a computed value.
pub fn leading_case(rows: usize, extents: &[usize], weight: bool) -> Case {
    let (len, shape) = (extents.iter().product::<usize>(), [&[rows], extents].concat());
    let b = if weight { Input::param("b", extents) } else { Input::normal("b", extents) };
    let id = format!("{rows}+{extents:?}{}", if weight { "-weight" } else { "" });
    Case::new("add", id, vec![Input::normal("a", shape), b], |tape, v| Ok(vec![add(tape, &v[0], &v[1])?]))
        .bytes(move |dtype: DType| ((2 * rows + 1) * len * dtype.size()) as u64)
        .terms(rows)
}

/// Residual stream of the MAE encoder ViT-L and decoder; SAM 2: a table of positions, the embedding of no memory on the
/// features of eight images, and image features shared by the objects of an image.
pub fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = [(12800, 1024), (50432, 512)].map(|(r, c)| case(r, c)).into();
    cases.extend([
        leading_case(8, &[256, 256, 96], true),
        leading_case(32768, &[256], true),
        leading_case(16, &[64, 64, 256], false),
    ]);
    cases
}
