//! Grid and arguments of kernels/ema.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::{Item, OP};
use crate::device::Launch;
use crate::ops::multi_tensor::{THREADS, Workspace};
use crate::{DType, Result, Tensor};

/// `struct EmaTensor`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Record {
    teacher: u64,
    student: u64,
    compute: u64,
    n: u64,
}

/// `struct Ema`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Args {
    records: u64,
    chunks: u64,
    scalars: u64,
    chunk: u32,
    pad: u32,
}

pub(super) fn ema(items: &mut [Item], scalars: &Tensor, compute: DType, work: &mut Workspace) -> Result<()> {
    let device = scalars.device().clone();
    let record = |item: &mut Item| {
        Ok(Record {
            teacher: item.teacher.ptr_mut(OP)?,
            student: item.student.ptr(),
            compute: item.compute.as_mut().map_or(Ok(0), |c| c.ptr_mut(OP))?,
            n: item.teacher.numel() as u64,
        })
    };
    let records = items.iter_mut().map(record).collect::<Result<Vec<_>>>()?;
    let lengths: Vec<usize> = items.iter().map(|item| item.teacher.numel()).collect();
    let table = work.table(&records, &lengths, &device)?;
    let scalars = scalars.ptr();
    let args = Args { records: table.records, chunks: table.chunks, scalars, chunk: table.chunk, pad: 0 };
    // SAFETY: `check` compared the lengths of each item's operands with the record's `n`; the items are borrowed for the
    // call, the table lives in `work`, and `ptr_mut` refuses a teacher that something else shares.
    unsafe { device.launch(OP, OP, compute, Launch::linear(table.blocks, THREADS), &args) }
}
