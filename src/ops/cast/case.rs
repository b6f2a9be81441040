//! Shapes of casts in the recipes.

use super::cast;
use crate::DType;
use crate::ops::{Case, Input};

/// `x: [n]` to `dtype`.
pub fn case(n: usize, dtype: DType) -> Case {
    let inputs = vec![Input::normal("x", [n])];
    Case::new("cast", format!("{n}-to-{dtype}"), inputs, move |tape, v| Ok(vec![cast(tape, &v[0], dtype)?]))
        .bytes(move |from: DType| if from == dtype { 0 } else { (n * (from.size() + dtype.size())) as u64 })
}

/// Weights of one ViT-L layer's MLP to the compute type, and an output of the model to f32.
pub fn cases() -> Vec<Case> {
    vec![case(1024 * 4096, DType::BF16), case(37632 * 768, DType::F32)]
}
