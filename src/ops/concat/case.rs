//! Shapes of concatenations and slices in the recipes.

use std::ops::Range;

use super::{concat, slice};
use crate::DType;
use crate::ops::{Case, Input};

/// Tensors of extents `lens` along the middle axis: `[outer, len, inner]` each.
pub fn case(outer: usize, lens: &[usize], inner: usize) -> Case {
    const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let input = |(&len, name)| Input::normal(name, [outer, len, inner]);
    let inputs: Vec<Input> = lens.iter().zip(NAMES).map(input).collect();
    let elements = outer * lens.iter().sum::<usize>() * inner;
    Case::new("concat", format!("{outer}x{lens:?}x{inner}"), inputs, |tape, v| {
        Ok(vec![concat(tape, &v.iter().collect::<Vec<_>>(), 1)?])
    })
    .bytes(move |dtype: DType| (2 * elements * dtype.size()) as u64)
}

/// Part `range` of `x: [outer, len, inner]` along the middle axis.
pub fn slice_case(outer: usize, len: usize, inner: usize, range: Range<usize>) -> Case {
    let inputs = vec![Input::normal("x", [outer, len, inner])];
    let elements = outer * range.len() * inner;
    Case::new("concat", format!("slice-{outer}x{len}x{inner}-{range:?}"), inputs, move |tape, v| {
        Ok(vec![slice(tape, &v[0], 1, range.clone())?])
    })
    .bytes(move |dtype: DType| (2 * elements * dtype.size()) as u64)
}

/// SAM 2: the memories of eight objects (seven frames of 64 channels and the pointers), tokens of the mask decoder
/// before and after the two-way transformer, and the mask token within.
pub fn cases() -> Vec<Case> {
    vec![
        case(8, &[4096, 4096, 4096, 4096, 4096, 4096, 4096, 64], 64),
        case(64, &[6, 2], 256),
        slice_case(64, 8, 256, 2..6),
        slice_case(64, 4, 65536, 1..4),
    ]
}
