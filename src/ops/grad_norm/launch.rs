//! Grid and arguments of kernels/grad_norm.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::OP;
use crate::device::Launch;
use crate::ops::multi_tensor::{THREADS, Workspace};
use crate::{DType, Result, Tensor};

/// Threads of a block that adds the sums: few of them for each to wait for; not measured yet.
const FINISH_THREADS: u32 = 512;

/// `struct GradNormTensor`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Record {
    g: u64,
    n: u64,
    group: u32,
    pad: u32,
}

/// `struct GradNorm`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Args {
    records: u64,
    chunks: u64,
    sums: u64,
    chunk: u32,
    pad: u32,
}

/// `struct GradNormFinish`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct FinishArgs {
    records: u64,
    chunks: u64,
    sums: u64,
    out: u64,
    max_norm: f64,
    count: u32,
    clip: u32,
}

pub(super) fn grad_norm(
    grads: &[&Tensor],
    groups: &[usize],
    max_norm: Option<f64>,
    out: &mut Tensor,
    work: &mut Workspace,
) -> Result<()> {
    let device = out.device().clone();
    let record =
        |(g, &group): (&&Tensor, &usize)| Record { g: g.ptr(), n: g.numel() as u64, group: group as u32, pad: 0 };
    let records: Vec<Record> = grads.iter().zip(groups).map(record).collect();
    let lengths: Vec<usize> = grads.iter().map(|g| g.numel()).collect();
    let table = work.table(&records, &lengths, &device)?;
    let sums = work.scratch(OP, table.blocks as usize, &device)?;
    let args = Args { records: table.records, chunks: table.chunks, sums, chunk: table.chunk, pad: 0 };
    // SAFETY: each record states the length of its own tensor; `sums` has one f64 per block; both live in `work`.
    unsafe { device.launch(OP, "grad_norm", DType::F32, Launch::linear(table.blocks, THREADS), &args)? };
    let rows = out.numel() as u32 / 2; // one per group
    let args = FinishArgs {
        records: table.records,
        chunks: table.chunks,
        sums,
        out: out.ptr_mut(OP)?,
        max_norm: max_norm.unwrap_or_default(),
        count: table.blocks,
        clip: max_norm.is_some().into(),
    };
    // SAFETY: `out` has two f32 per block; the launch before on the same stream filled the `count` sums, one per chunk.
    unsafe { device.launch(OP, "grad_norm_finish", DType::F32, Launch::linear(rows, FINISH_THREADS), &args) }
}
