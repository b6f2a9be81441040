//! Shapes of attention in the recipes.

use super::{KeyValues, Packing, attention, cross_attention};
use crate::DType;
use crate::ops::{Case, Fill, Input};

/// `cu_seqlens` of these lengths.
fn offsets(name: &'static str, lengths: &[usize]) -> Input {
    let ends = lengths.iter().scan(0, |at, &n| {
        *at += n;
        Some(*at as i32)
    });
    let values: Vec<i32> = std::iter::once(0).chain(ends).collect();
    Input::constant(name, [values.len()], Fill::I32(values))
}

/// Runs of equal lengths: `128x257+512x50`.
fn runs(lengths: &[usize]) -> String {
    let runs = lengths.chunk_by(|a, b| a == b).map(|run| format!("{}x{}", run.len(), run[0]));
    runs.collect::<Vec<_>>().join("+")
}

/// Sequences of these lengths, `heads` heads of `dim`.
pub fn case(lengths: &[usize], heads: usize, dim: usize) -> Case {
    let tokens: usize = lengths.iter().sum();
    let longest = lengths.iter().copied().max().unwrap_or(0);
    // One run is the usual `batch x heads x length x dim`.
    let id = match lengths.chunk_by(|a, b| a == b).collect::<Vec<_>>()[..] {
        [run] => format!("{}x{heads}x{}x{dim}", run.len(), run[0]),
        _ => format!("({})x{heads}x{dim}", runs(lengths)),
    };
    let inputs = vec![Input::normal("qkv", [tokens, 3, heads, dim]), offsets("cu_seqlens", lengths)];
    let pairs: usize = lengths.iter().map(|n| n * n).sum();
    let scale = 1.0 / (dim as f32).sqrt();
    Case::new("attention", id, inputs, move |tape, v| Ok(vec![attention(tape, &v[0], v[1].value(), longest, scale)?]))
        .bytes(move |dtype: DType| (4 * tokens * heads * dim * dtype.size() + 4 * heads * tokens) as u64)
        .flops((4 * pairs * heads * dim) as u64)
        .terms(longest.max(dim))
        .stored(2) // the output, of which the backward reads the stored values
}

/// Sequences of these numbers of queries and of keys; keys and values `packed` in one tensor or apart.
pub fn cross_case(queries: &[usize], keys: &[usize], heads: usize, dim: usize, packed: bool) -> Case {
    between(queries, keys, heads, [dim, dim], packed)
}

/// The same with values of `v_dim` columns, apart from the keys.
pub fn narrow_case(queries: &[usize], keys: &[usize], heads: usize, dim: usize, v_dim: usize) -> Case {
    between(queries, keys, heads, [dim, v_dim], false)
}

fn between(queries: &[usize], keys: &[usize], heads: usize, [dim, v_dim]: [usize; 2], packed: bool) -> Case {
    let [q, k] = [queries, keys].map(|lengths| lengths.iter().sum::<usize>());
    let [max_q, max_k] = [queries, keys].map(|lengths| lengths.iter().copied().max().unwrap_or(0));
    let (equal_q, equal_k) = (queries.windows(2).all(|n| n[0] == n[1]), keys.windows(2).all(|n| n[0] == n[1]));
    let columns = if v_dim == dim { dim.to_string() } else { format!("{dim}v{v_dim}") };
    let id = match (equal_q && equal_k, queries, keys) {
        (true, [n, ..], [m, ..]) => format!("{}x{heads}x{n}/{m}x{columns}", queries.len()),
        _ => format!("({}/{})x{heads}x{columns}", runs(queries), runs(keys)),
    };
    let mut inputs = vec![Input::normal("q", [q, heads, dim])];
    if packed {
        inputs.push(Input::normal("kv", [k, 2, heads, dim]));
    } else {
        inputs.extend([Input::normal("k", [k, heads, dim]), Input::normal("v", [k, heads, v_dim])]);
    }
    inputs.extend([offsets("cu_seqlens_q", queries), offsets("cu_seqlens_k", keys)]);
    let pairs: usize = queries.iter().zip(keys).map(|(n, m)| n * m).sum();
    let scale = 1.0 / (dim as f32).sqrt();
    let run = move |tape: &crate::Tape, v: &[crate::Var]| {
        let [.., cu_q, cu_k] = v else { unreachable!("five operands, or four") };
        let of_q = Packing { cu_seqlens: cu_q.value(), max_seqlen: max_q };
        let of_k = Packing { cu_seqlens: cu_k.value(), max_seqlen: max_k };
        let kv = if packed { KeyValues::Packed(&v[1]) } else { KeyValues::Apart(&v[1], &v[2]) };
        Ok(vec![cross_attention(tape, &v[0], kv, of_q, of_k, scale)?])
    };
    Case::new("attention", id, inputs, run)
        .bytes(move |dtype: DType| ((q + k) * heads * (dim + v_dim) * dtype.size() + 4 * heads * q) as u64)
        .flops((2 * pairs * heads * (dim + v_dim)) as u64)
        .terms(max_q.max(max_k).max(dim))
        .stored(2)
}

/// MAE encoders ViT-L/16 and ViT-H/14 and decoder, Hiera-B+ windows, DINOv2 B/14 and L/14 at 518 px, SigLIP So400m/14 and
/// B/16 at 512 px (performance.md 1.1); the three of the CPU table; DINOv2 S/14 with global and local crops in one pack;
/// SAM-2's memory attention, to itself and to 28 736 memories of one head of 256, with projected values and with the
/// memories themselves; SigLIP's probe.
pub fn cases() -> Vec<Case> {
    let crops = [vec![257; 128], vec![50; 512]].concat();
    let equal = [(256, 50, 16, 64), (256, 65, 16, 80), (256, 197, 16, 32), (1024, 64, 2, 56)];
    let long = [(128, 257, 12, 64), (8, 1370, 16, 64), (64, 729, 16, 72), (64, 1024, 12, 64), (1, 4096, 1, 256)];
    let small = [(8, 50, 3, 64), (8, 197, 4, 32), (8, 257, 6, 64)];
    let packed = [equal.as_slice(), &long, &small].concat().into_iter().map(|(b, n, h, d)| case(&vec![n; b], h, d));
    let memory = cross_case(&[4096], &[28736], 1, 256, false);
    let raw_memory = narrow_case(&[4096], &[28736], 1, 256, 64);
    let probe = cross_case(&[1; 256], &[196; 256], 12, 64, true);
    packed.chain([case(&crops, 6, 64), memory, raw_memory, probe]).collect()
}
