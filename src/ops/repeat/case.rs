//! Shapes of copies in the recipes.

use super::repeat;
use crate::DType;
use crate::ops::{Case, Input};

/// `x: [..extents]`, a weight or a computed value, `times` times.
pub fn case(extents: &[usize], times: usize, weight: bool) -> Case {
    let n = extents.iter().product::<usize>();
    let x = if weight { Input::param("x", extents) } else { Input::normal("x", extents) };
    let id = format!("{times}x{extents:?}{}", if weight { "-weight" } else { "" });
    Case::new("repeat", id, vec![x], move |tape, v| Ok(vec![repeat(tape, &v[0], times)?]))
        .bytes(move |dtype: DType| ((1 + times) * n * dtype.size()) as u64)
        .terms(times)
}

/// SAM 2: image features shared by eight objects, and the output tokens of 64 prompts.
pub fn cases() -> Vec<Case> {
    vec![case(&[64, 64, 256], 8, false), case(&[6, 256], 64, true)]
}
