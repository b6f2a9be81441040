//! Shapes of pooling in the recipes.

use super::max_pool2d;
use crate::DType;
use crate::ops::{Case, Input};

/// `maps: [B, H, W, C]`.
pub fn case(maps: [usize; 4]) -> Case {
    let [batch, height, width, channels] = maps;
    let pooled = batch * (height / 2) * (width / 2) * channels;
    let id = format!("{batch}x{height}x{width}x{channels}");
    Case::new("max_pool2d", id, vec![Input::normal("x", maps)], |tape, v| Ok(vec![max_pool2d(tape, &v[0])?]))
        .bytes(move |dtype: DType| (5 * pooled * dtype.size() + pooled) as u64)
}

/// SAM 2 at 1024 x 1024 pixels, where the tiny Hiera halves its maps: shortcuts, and queries in windows.
pub fn cases() -> Vec<Case> {
    vec![
        case([1, 256, 256, 192]),
        case([1, 128, 128, 384]),
        case([1, 64, 64, 768]),
        case([1024, 8, 8, 192]),
        case([25, 14, 14, 768]),
    ]
}
