//! Shapes of windows of attention in the recipes.

use super::{window_partition, window_unpartition};
use crate::DType;
use crate::ops::{Case, Input};

/// Windows of the maps, and bytes of both.
fn extents([batch, height, width, channels]: [usize; 4], window: usize) -> (usize, impl Fn(DType) -> u64) {
    let windows = batch * height.div_ceil(window) * width.div_ceil(window);
    let count = (batch * height * width + windows * window * window) * channels;
    (windows, move |dtype: DType| (count * dtype.size()) as u64)
}

fn id([batch, height, width, channels]: [usize; 4], window: usize) -> String {
    format!("{batch}x{height}x{width}x{channels}-w{window}")
}

/// `maps: [B, H, W, C]` cut into windows.
pub fn case(maps: [usize; 4], window: usize) -> Case {
    Case::new("window_partition", id(maps, window), vec![Input::normal("x", maps)], move |tape, v| {
        Ok(vec![window_partition(tape, &v[0], window)?])
    })
    .bytes(extents(maps, window).1)
}

/// `maps: [B, H, W, C]` put together from windows.
pub fn unpartition_case(maps: [usize; 4], window: usize) -> Case {
    let [_, height, width, channels] = maps;
    let (windows, bytes) = extents(maps, window);
    let inputs = vec![Input::normal("y", [windows, window, window, channels])];
    Case::new("window_partition", format!("{}-back", id(maps, window)), inputs, move |tape, v| {
        Ok(vec![window_unpartition(tape, &v[0], [height, width])?])
    })
    .bytes(bytes)
}

/// SAM 2 at 1024 x 1024 pixels: the first, the third and the last stage of the tiny Hiera, the third of the large one.
pub fn cases() -> Vec<Case> {
    vec![
        case([1, 256, 256, 96], 8),
        case([1, 64, 64, 384], 14),
        case([1, 32, 32, 768], 7),
        case([1, 64, 64, 576], 16),
        unpartition_case([1, 256, 256, 96], 8),
        unpartition_case([1, 64, 64, 384], 14),
    ]
}
