//! Shapes of the KoLeo regulariser in the recipes.

use super::koleo;
use crate::DType;
use crate::ops::{Case, Input};

/// `x: [groups · rows, cols]`.
pub fn case(groups: usize, rows: usize, cols: usize) -> Case {
    let inputs = vec![Input::normal("x", [groups * rows, cols])];
    Case::new("koleo", format!("{groups}x{rows}x{cols}"), inputs, move |tape, v| Ok(vec![koleo(tape, &v[0], groups)?]))
        .bytes(move |dtype: DType| (groups * rows * cols * dtype.size()) as u64)
        .flops((2 * groups * rows * rows * cols) as u64)
        .terms(cols + rows)
}

/// Class tokens of the two global crops of DINOv2 ViT-L/14 and ViT-g/14, and a batch gathered from many devices.
pub fn cases() -> Vec<Case> {
    [(2, 32, 1024), (2, 12, 1536), (1, 4096, 1024)].map(|(g, r, c)| case(g, r, c)).into()
}
