//! Grid and arguments of kernels/adamw.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::{Hyper, Item, OP};
use crate::device::Launch;
use crate::ops::multi_tensor::{THREADS, Workspace};
use crate::{DType, Result, Tensor};

/// `struct AdamWTensor`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Record {
    w: u64,
    m: u64,
    v: u64,
    g: u64,
    compute: u64,
    teacher: u64,
    teacher_compute: u64,
    n: u64,
    lr_scale: f32,
    weight_decay: f32,
    correction: [f32; 2],
    group: u32,
    pad: u32,
}

/// `struct AdamW`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Args {
    records: u64,
    chunks: u64,
    scalars: u64,
    norm: u64,
    beta1: [f32; 2],
    beta2: [f32; 2],
    eps: f32,
    chunk: u32,
    groups: u32,
    pad: u32,
}

pub(super) fn adamw(
    items: &mut [Item],
    hyper: Hyper,
    scalars: &Tensor,
    norm: Option<&Tensor>,
    compute: DType,
    work: &mut Workspace,
) -> Result<()> {
    let device = scalars.device().clone();
    let copy = |c: &mut Option<&mut Tensor>| c.as_mut().map_or(Ok(0), |c| c.ptr_mut(OP));
    let record = |item: &mut Item| {
        let (teacher, teacher_compute) = match &mut item.teacher {
            Some(teacher) => (teacher.average.ptr_mut(OP)?, copy(&mut teacher.compute)?),
            None => (0, 0),
        };
        Ok(Record {
            teacher,
            teacher_compute,
            group: item.group as u32, // below the number of norms
            pad: 0,
            w: item.w.ptr_mut(OP)?,
            m: item.m.ptr_mut(OP)?,
            v: item.v.ptr_mut(OP)?,
            g: item.g.ptr(),
            compute: copy(&mut item.compute)?,
            n: item.w.numel() as u64,
            lr_scale: item.lr_scale as f32,
            weight_decay: item.weight_decay as f32,
            correction: item.correction.map(|factor| factor as f32),
        })
    };
    let records = items.iter_mut().map(record).collect::<Result<Vec<_>>>()?;
    let lengths: Vec<usize> = items.iter().map(|item| item.w.numel()).collect();
    let table = work.table(&records, &lengths, &device)?;
    let args = Args {
        records: table.records,
        chunks: table.chunks,
        scalars: scalars.ptr(),
        norm: norm.map_or(0, Tensor::ptr),
        beta1: [hyper.beta1 as f32, (1.0 - hyper.beta1) as f32],
        beta2: [hyper.beta2 as f32, (1.0 - hyper.beta2) as f32],
        eps: hyper.eps as f32,
        chunk: table.chunk,
        groups: norm.map_or(0, |norm| norm.numel() / 2) as u32,
        pad: 0,
    };
    // SAFETY: `check` compared the lengths of each item's operands with the record's `n`; the items are borrowed for the
    // call and the table lives in `work`. A tensor that occurs twice is shared, which `ptr_mut` refuses.
    unsafe { device.launch(OP, "adamw", compute, Launch::linear(table.blocks, THREADS), &args) }
}
