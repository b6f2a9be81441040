//! Shapes of windows in the recipes.

use super::{Window, fold, unfold};
use crate::DType;
use crate::ops::{Case, Input};

fn id([batch, height, width, channels]: [usize; 4], Window { kernel, stride, padding }: Window) -> String {
    format!("{batch}x{height}x{width}x{channels}-k{kernel}s{stride}p{padding}")
}

/// Positions of the window and columns of a row; no positions where the window does not fit.
fn extents([_, height, width, channels]: [usize; 4], window: Window) -> [usize; 3] {
    let positions = |n| window.positions(n).unwrap_or(0);
    [positions(height), positions(width), channels * window.kernel * window.kernel]
}

/// Bytes of maps and of their windows: each element once.
fn bytes(maps: [usize; 4], window: Window) -> impl Fn(DType) -> u64 {
    let count = maps.iter().product::<usize>() + maps[0] * extents(maps, window).iter().product::<usize>();
    move |dtype| (count * dtype.size()) as u64
}

/// Entries that lie on one pixel at most.
fn overlap(window: Window) -> usize {
    window.kernel.div_ceil(window.stride).pow(2)
}

/// The windows of `maps: [B, H, W, C]`.
pub fn case(maps: [usize; 4], window: Window) -> Case {
    let run = move |tape: &_, v: &[_]| Ok(vec![unfold(tape, &v[0], window)?]);
    Case::new("unfold", id(maps, window), vec![Input::normal("x", maps)], run)
        .bytes(bytes(maps, window))
        .terms(overlap(window))
}

/// Windows put back to `maps: [B, H, W, C]`.
pub fn fold_case(maps: [usize; 4], window: Window) -> Case {
    let [batch, height, width, _] = maps;
    let [down, across, values] = extents(maps, window);
    let inputs = vec![Input::normal("cols", [batch, down, across, values])];
    let run = move |tape: &_, v: &[_]| Ok(vec![fold(tape, &v[0], window, [height, width])?]);
    Case::new("unfold", format!("{}-fold", id(maps, window)), inputs, run)
        .bytes(bytes(maps, window))
        .terms(overlap(window))
}

/// SAM 2 at 1024 x 1024 pixels: patch embedding, the four convolutions of the mask downsampler, those of a mask given
/// as prompt, and the transposed convolutions of the mask decoder.
pub fn cases() -> Vec<Case> {
    let tiles = |kernel| Window { kernel, stride: kernel, padding: 0 };
    let halving = Window { kernel: 3, stride: 2, padding: 1 };
    vec![
        case([1, 1024, 1024, 3], Window { kernel: 7, stride: 4, padding: 3 }),
        case([1, 1024, 1024, 1], halving),
        case([1, 512, 512, 4], halving),
        case([1, 256, 256, 16], halving),
        case([1, 128, 128, 64], halving),
        case([1, 256, 256, 1], tiles(2)),
        case([1, 128, 128, 4], tiles(2)),
        case([1, 1024, 1024, 1], tiles(4)),
        fold_case([1, 128, 128, 64], tiles(2)),
        fold_case([1, 256, 256, 32], tiles(2)),
    ]
}
