//! Grids and arguments of kernels/lars.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::{Hyper, Item, OP};
use crate::device::Launch;
use crate::ops::multi_tensor::{THREADS, Workspace};
use crate::{DType, Result, Tensor};

/// `struct LarsTensor`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Record {
    w: u64,
    mu: u64,
    g: u64,
    compute: u64,
    n: u64,
    lr_scale: f32,
    weight_decay: f32,
    adapt: u32,
    pad: u32,
}

/// `struct Lars`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Args {
    records: u64,
    chunks: u64,
    sums: u64,
    lr: u64,
    norm: u64,
    momentum: f32,
    trust: f32,
    chunk: u32,
    pad: u32,
}

pub(super) fn lars(
    items: &mut [Item],
    hyper: Hyper,
    lr: &Tensor,
    norm: Option<&Tensor>,
    compute: DType,
    work: &mut Workspace,
) -> Result<()> {
    let device = lr.device().clone();
    let record = |item: &mut Item| {
        Ok(Record {
            w: item.w.ptr_mut(OP)?,
            mu: item.mu.ptr_mut(OP)?,
            g: item.g.ptr(),
            compute: item.compute.as_mut().map_or(Ok(0), |c| c.ptr_mut(OP))?,
            n: item.w.numel() as u64,
            lr_scale: item.lr_scale as f32,
            weight_decay: item.weight_decay as f32,
            adapt: hyper.trust_of(item.w).is_some().into(),
            pad: 0,
        })
    };
    let records = items.iter_mut().map(record).collect::<Result<Vec<_>>>()?;
    let lengths: Vec<usize> = items.iter().map(|item| item.w.numel()).collect();
    let table = work.table(&records, &lengths, &device)?;
    let adapts = records.iter().any(|r| r.adapt != 0);
    let args = Args {
        records: table.records,
        chunks: table.chunks,
        sums: if adapts { work.scratch(OP, 2 * table.blocks as usize, &device)? } else { 0 },
        lr: lr.ptr(),
        norm: norm.map_or(0, Tensor::ptr),
        momentum: hyper.momentum as f32,
        trust: hyper.trust.unwrap_or_default() as f32,
        chunk: table.chunk,
        pad: 0,
    };
    let grid = Launch::linear(table.blocks, THREADS);
    if adapts {
        // SAFETY: `check` compared the lengths of each item's operands with the record's `n`; `sums` has two f64 per
        // block; the items are borrowed for the call, table and sums live in `work`.
        unsafe { device.launch(OP, "lars_norms", DType::F32, grid, &args)? };
    }
    // SAFETY: as above; `ptr_mut` refuses what something else shares, and no record that adapts is without its sums.
    unsafe { device.launch(OP, "lars", compute, grid, &args) }
}
