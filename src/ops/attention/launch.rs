//! Arguments of kernels/attention.cu and kernels/attention_bwd.cu; which of them run on what grid: choice.rs.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::OP;
use super::choice::{
    Family, Pass, Tiles, bwd, family, fwd, grid, k_tiles, long_bwd, long_fwd, long_grid, long_pairs, most_k, most_q,
    per_query, short_bwd, short_fwd, short_grid, sum_grid,
};
use super::operands::{Dims, Place, Problem, View};
use crate::device::Launch;
use crate::{DType, Result, Tensor};

const STEM_BWD: &str = "attention_bwd";

/// `struct AttentionFwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct FwdArgs {
    q: u64,
    k: u64,
    v: u64,
    cu_q: u64,
    cu_k: u64,
    o: u64,
    lse: u64,
    q_stride: u32,
    k_stride: u32,
    v_stride: u32,
    queries: u32,
    keys: u32,
    heads: u32,
    dim: u32,
    v_dim: u32,
    tiles: u32,
    key_tiles: u32,
    scale: f32,
    pad: u32,
}

/// `struct AttentionCombine`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct CombineArgs {
    parts: u64,
    part_lse: u64,
    o: u64,
    lse: u64,
    queries: u32,
    heads: u32,
    dim: u32,
    splits: u32,
}

/// `struct AttentionBwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct BwdArgs {
    q: u64,
    k: u64,
    v: u64,
    o: u64,
    d_o: u64,
    lse: u64,
    delta: u64,
    cu_q: u64,
    cu_k: u64,
    dq: u64,
    dk: u64,
    dv: u64,
    parts: u64,
    q_stride: u32,
    k_stride: u32,
    v_stride: u32,
    queries: u32,
    keys: u32,
    heads: u32,
    dim: u32,
    v_dim: u32,
    tiles: u32,
    pairs: u32,
    scale: f32,
    pad: u32,
}

/// `struct AttentionSum`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct SumArgs {
    parts: u64,
    to: u64,
    step: u64,
    rows: u32,
    width: u32,
    stride: u32,
    count: u32,
}

/// Of the first element at a place of a tensor that begins at `ptr`.
fn at(ptr: u64, place: Place, dims: Dims, dtype: DType) -> u64 {
    ptr + (dims.offset(place) * dtype.size()) as u64
}

pub(super) fn forward(x: &Problem, o: &mut Tensor, lse: &mut Tensor) -> Result<()> {
    let (dims, dtype, device) = (x.dims, x.dtype(), x.device());
    let ptr = |view: View| at(view.tensor.ptr(), view.place, dims, dtype);
    let [q_stride, k_stride, v_stride] = x.places().map(|place| dims.stride(place) as u32);
    let (kernel, (tiles, launch), count) = match family(Pass::Forward, dtype, x.scale, dims, device.shared_limit()) {
        Family::Short => (short_fwd(dims.dim), short_grid(Pass::Forward, dims), 1),
        Family::Long => {
            let long = long_fwd(dims);
            let grid = long_grid(Pass::Forward, long, dims, most_q(dims), most_k(dims));
            (long.kernel, grid, grid.1.grid[1] as usize)
        }
        Family::Tiled => {
            let Tiles { kernel, tile } = fwd(dims.dim);
            (kernel, grid(tile, dims, most_q(dims))?, 1)
        }
    };
    let mut args = FwdArgs {
        q: ptr(x.q),
        k: ptr(x.k),
        v: ptr(x.v),
        cu_q: x.cu_q.ptr(),
        cu_k: x.cu_k.ptr(),
        o: o.ptr_mut(OP)?,
        lse: lse.ptr_mut(OP)?,
        q_stride,
        k_stride,
        v_stride,
        queries: dims.queries as u32,
        keys: dims.keys as u32,
        heads: dims.heads as u32,
        dim: dims.dim as u32,
        v_dim: dims.v_dim as u32,
        tiles,
        key_tiles: k_tiles(dims) as u32,
        scale: x.scale,
        pad: 0,
    };
    // SAFETY: `Problem::check` fixed the extents of the operands and of both cu_seqlens that struct AttentionFwd states,
    // and that dim and v_dim fit the kernel's tiles; `forward` made o and lse to them, or they are parts as below. The
    // kernel takes no offset beyond queries and keys from cu_seqlens. `family` saw to it that rows of the tensor-core
    // kernels lie at multiples of 16 bytes.
    let run = |args: &FwdArgs| unsafe { device.launch(OP, kernel, dtype, launch, args) };
    if count == 1 {
        return run(&args);
    }
    let mut parts = Tensor::uninit([count, dims.queries, dims.heads * dims.v_dim], DType::F32, device)?;
    let mut part_lse = Tensor::uninit([count, dims.heads, dims.queries], DType::F32, device)?;
    let combine = CombineArgs {
        parts: parts.ptr_mut(OP)?,
        part_lse: part_lse.ptr_mut(OP)?,
        o: args.o,
        lse: args.lse,
        queries: args.queries,
        heads: args.heads,
        dim: args.v_dim,
        splits: count as u32,
    };
    (args.o, args.lse) = (combine.parts, combine.part_lse);
    run(&args)?;
    // SAFETY: the launch before, on the same stream, filled all parts, made to the extents that struct AttentionCombine
    // states, as are o and lse; a row of a multiple of 8 elements starts at a multiple of 16 bytes.
    unsafe { device.launch(OP, "attention_fwd_combine", dtype, per_query(dims), &combine) }
}

pub(super) fn backward(d_o: &Tensor, x: &Problem, o: &Tensor, lse: &Tensor, gradients: &mut [Tensor]) -> Result<()> {
    let (dims, dtype, device) = (x.dims, x.dtype(), x.device());
    let ptr = |view: View| at(view.tensor.ptr(), view.place, dims, dtype);
    let strides = x.places().map(|place| dims.stride(place) as u32);
    let mut to = [0; 3];
    for (to, place) in to.iter_mut().zip(x.places()) {
        *to = at(gradients[place.tensor].ptr_mut(OP)?, place, dims, dtype);
    }
    let args = BwdArgs {
        q: ptr(x.q),
        k: ptr(x.k),
        v: ptr(x.v),
        o: o.ptr(),
        d_o: d_o.ptr(),
        lse: lse.ptr(),
        delta: 0, // of all but the short kernels
        cu_q: x.cu_q.ptr(),
        cu_k: x.cu_k.ptr(),
        dq: to[0],
        dk: to[1],
        dv: to[2],
        parts: 0, // of the long kernels
        q_stride: strides[0],
        k_stride: strides[1],
        v_stride: strides[2],
        queries: dims.queries as u32,
        keys: dims.keys as u32,
        heads: dims.heads as u32,
        dim: dims.dim as u32,
        v_dim: dims.v_dim as u32,
        tiles: 0,
        pairs: 0, // of the long kernels
        scale: x.scale,
        pad: 0,
    };
    let run = |kernel, (tiles, launch): (u32, Launch), args: BwdArgs| {
        // SAFETY: `backward` checked o, do and lse against the extents of the operands, and made the gradients as their
        // operands; delta and parts are as struct AttentionBwd states where a kernel takes them, delta filled by the
        // launch before on the same stream where it reads it. `family` saw to it that rows of the tensor-core kernels
        // lie at multiples of 16 bytes. Kernels take no offset beyond queries and keys from cu_seqlens.
        unsafe { device.launch(STEM_BWD, kernel, dtype, launch, &BwdArgs { tiles, ..args }) }
    };
    match family(Pass::Backward, dtype, x.scale, dims, device.shared_limit()) {
        Family::Short => run(short_bwd(dims.dim).0, short_grid(Pass::Backward, dims), args),
        Family::Long => {
            let (q, kv) = long_bwd(dims);
            let mut pairs = Tensor::uninit([dims.heads, long_pairs(dims), 2], DType::F32, device)?;
            let args = BwdArgs { delta: pairs.ptr_mut(OP)?, pairs: long_pairs(dims) as u32, ..args };
            let widths = x.places().map(|place| dims.heads * place.dim);
            // One launch, in parts where its grid has them; then the sums of these parts: `rows` rows of each of
            // `outputs`, one behind the other.
            let run_in_parts = |kernel, (tiles, launch): (u32, Launch), rows: usize, outputs: &[usize]| {
                let count = launch.grid[1] as usize;
                if count == 1 {
                    return run(kernel, (tiles, launch), args);
                }
                let step = outputs.iter().map(|&output| rows * widths[output]).sum();
                let mut parts = Tensor::uninit([count, step], DType::F32, device)?;
                let mut part = parts.ptr_mut(OP)?;
                run(kernel, (tiles, launch), BwdArgs { parts: part, ..args })?;
                for &output in outputs {
                    let width = widths[output];
                    let sum = SumArgs {
                        parts: part,
                        to: to[output],
                        step: step as u64,
                        rows: rows as u32,
                        width: width as u32,
                        stride: strides[output],
                        count: count as u32,
                    };
                    let launch = sum_grid(rows * width);
                    // SAFETY: the launch before, on the same stream, filled all parts; `to` and its stride are those of
                    // a gradient of `rows` rows. Rows of multiples of 8 elements start at multiples of 16 bytes.
                    unsafe { device.launch(STEM_BWD, "attention_bwd_sum", dtype, launch, &sum)? };
                    part += (4 * rows * width) as u64;
                }
                Ok(())
            };
            let (most_q, most_k) = (most_q(dims), most_k(dims));
            let of_q = long_grid(Pass::Backward, q, dims, most_q, most_k);
            run_in_parts(q.kernel, of_q, dims.queries, &[0])?; // dq; fills the pairs
            let of_kv = long_grid(Pass::Backward, kv, dims, most_k, most_q);
            run_in_parts(kv.kernel, of_kv, dims.keys, &[1, 2]) // dk and dv
        }
        Family::Tiled => {
            let (kv, q) = bwd(dims.dim);
            let mut delta = Tensor::uninit([dims.heads, dims.queries], DType::F32, device)?;
            let args = BwdArgs { delta: delta.ptr_mut(OP)?, ..args };
            run("attention_bwd_delta", (0, per_query(dims)), args)?;
            run(kv.kernel, grid(kv.tile, dims, most_k(dims))?, args)?; // dk and dv
            run(q.kernel, grid(q.tile, dims, most_q(dims))?, args) // dq
        }
    }
}
