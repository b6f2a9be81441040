//! Shapes of attention in the recipes.

use super::attention;
use crate::DType;
use crate::ops::{Case, Fill, Input};

/// Sequences of these lengths, `heads` heads of `dim`.
pub fn case(lengths: &[usize], heads: usize, dim: usize) -> Case {
    let tokens: usize = lengths.iter().sum();
    let offsets = lengths.iter().scan(0, |at, &n| {
        *at += n;
        Some(*at as i32)
    });
    let offsets: Vec<i32> = std::iter::once(0).chain(offsets).collect();
    let longest = lengths.iter().copied().max().unwrap_or(0);
    // Runs of equal lengths, `128x257+512x50`; one run is the usual `batch x heads x length x dim`.
    let runs: Vec<&[usize]> = lengths.chunk_by(|a, b| a == b).collect();
    let id = match runs[..] {
        [run] => format!("{}x{heads}x{}x{dim}", run.len(), run[0]),
        _ => {
            let runs: Vec<String> = runs.iter().map(|run| format!("{}x{}", run.len(), run[0])).collect();
            format!("({})x{heads}x{dim}", runs.join("+"))
        }
    };
    let inputs = vec![
        Input::normal("qkv", [tokens, 3, heads, dim]),
        Input::constant("cu_seqlens", [offsets.len()], Fill::I32(offsets)),
    ];
    let pairs: usize = lengths.iter().map(|n| n * n).sum();
    let scale = 1.0 / (dim as f32).sqrt();
    Case::new("attention", id, inputs, move |tape, v| Ok(vec![attention(tape, &v[0], v[1].value(), longest, scale)?]))
        .bytes(move |dtype: DType| (4 * tokens * heads * dim * dtype.size() + 4 * heads * tokens) as u64)
        .flops((4 * pairs * heads * dim) as u64)
        .terms(longest.max(dim))
        .stored(2) // the output, of which the backward reads the stored values
}

/// MAE encoders ViT-L/16 and ViT-H/14 and decoder, Hiera-B+ windows, DINOv2 B/14 and L/14 at 518 px, SigLIP So400m/14 and
/// B/16 at 512 px (performance.md 1.1); the three of the CPU table; DINOv2 S/14 with global and local crops in one pack.
pub fn cases() -> Vec<Case> {
    let crops = [vec![257; 128], vec![50; 512]].concat();
    let equal = [(256, 50, 16, 64), (256, 65, 16, 80), (256, 197, 16, 32), (1024, 64, 2, 56)];
    let long = [(128, 257, 12, 64), (8, 1370, 16, 64), (64, 729, 16, 72), (64, 1024, 12, 64)];
    let small = [(8, 50, 3, 64), (8, 197, 4, 32), (8, 257, 6, 64)];
    let packed = [equal.as_slice(), &long, &small].concat().into_iter().map(|(b, n, h, d)| case(&vec![n; b], h, d));
    packed.chain([case(&crops, 6, 64)]).collect()
}
