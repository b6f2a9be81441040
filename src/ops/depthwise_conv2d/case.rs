//! Shapes of depthwise convolutions in the recipes.

use super::depthwise_conv2d;
use crate::DType;
use crate::ops::{Case, Fill, Input};

/// `maps: [B, H, W, C]` and kernels of side `k`.
pub fn case(maps: [usize; 4], k: usize) -> Case {
    let [batch, height, width, channels] = maps;
    let (pixels, taps) = (batch * height * width, k * k);
    let inputs = vec![
        Input::normal("x", maps),
        Input::param("w", [channels, 1, k, k]).filled(Fill::Normal(0.0, 1.0 / k as f64)),
        Input::param("b", [channels]),
    ];
    Case::new("depthwise_conv2d", format!("{batch}x{height}x{width}x{channels}-k{k}"), inputs, |tape, v| {
        Ok(vec![depthwise_conv2d(tape, &v[0], &v[1], &v[2])?])
    })
    .bytes(move |dtype: DType| ((2 * pixels + taps + 1) * channels * dtype.size()) as u64)
    .flops((2 * pixels * channels * taps) as u64)
    .terms(pixels.max(taps + 1))
}

/// Memory encoder of SAM 2 at 1024 x 1024 pixels: one object and three.
pub fn cases() -> Vec<Case> {
    vec![case([1, 64, 64, 256], 7), case([3, 64, 64, 256], 7)]
}
