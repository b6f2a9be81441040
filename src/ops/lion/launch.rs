//! Grid and arguments of kernels/lion.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::{Hyper, Item, OP};
use crate::device::Launch;
use crate::ops::multi_tensor::{THREADS, Workspace};
use crate::{DType, Result, Tensor};

/// `struct LionTensor`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Record {
    w: u64,
    m: u64,
    g: u64,
    compute: u64,
    n: u64,
    lr_scale: f32,
    weight_decay: f32,
}

/// `struct Lion`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Args {
    records: u64,
    chunks: u64,
    lr: u64,
    norm: u64,
    beta1: [f32; 2],
    beta2: [f32; 2],
    chunk: u32,
    pad: u32,
}

pub(super) fn lion(
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
            m: item.m.ptr_mut(OP)?,
            g: item.g.ptr(),
            compute: item.compute.as_mut().map_or(Ok(0), |c| c.ptr_mut(OP))?,
            n: item.w.numel() as u64,
            lr_scale: item.lr_scale as f32,
            weight_decay: item.weight_decay as f32,
        })
    };
    let records = items.iter_mut().map(record).collect::<Result<Vec<_>>>()?;
    let lengths: Vec<usize> = items.iter().map(|item| item.w.numel()).collect();
    let table = work.table(&records, &lengths, &device)?;
    let betas = |beta: f64| [beta as f32, (1.0 - beta) as f32];
    let args = Args {
        records: table.records,
        chunks: table.chunks,
        lr: lr.ptr(),
        norm: norm.map_or(0, Tensor::ptr),
        beta1: betas(hyper.beta1),
        beta2: betas(hyper.beta2),
        chunk: table.chunk,
        pad: 0,
    };
    // SAFETY: `check` compared the lengths of each item's operands with the record's `n`; the items are borrowed for the
    // call and the table lives in `work`. A tensor that occurs twice is shared, which `ptr_mut` refuses.
    unsafe { device.launch(OP, "lion", compute, Launch::linear(table.blocks, THREADS), &args) }
}
