//! Grids and arguments of kernels/adafactor.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::{Groups, Hyper, Item, OP, Second};
use crate::device::Launch;
use crate::ops::indices::count32;
use crate::ops::multi_tensor::{CHUNK, THREADS, Workspace};
use crate::{DType, Result, Tensor};

/// Rows of a block, a warp each, and columns of a block, a lane each.
const ROWS: usize = 8;
const COLUMNS: usize = 32;
/// Kernels of a step in their order, of which the first three are for factored tensors.
const KERNELS: [&str; 4] = ["adafactor_rows", "adafactor_cols", "adafactor_mean", "adafactor_apply"];

/// `struct AdafactorTensor`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Record {
    w: u64,
    m: u64,
    g: u64,
    compute: u64,
    by_row: u64,
    by_col: u64,
    means: u64,
    n: u64,
    groups: u32,
    rows: u32,
    cols: u32,
    place: u32,
    lr_scale: f32,
    weight_decay: f32,
}

/// `struct Adafactor`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Args {
    records: u64,
    chunks: u64,
    scalars: u64,
    norm: u64,
    momentum: f32,
    take: f32,
    eps: f32,
    round: u32,
    chunk: u32,
    first: u32,
}

/// Blocks of each kernel for one tensor.
fn blocks(item: &Item) -> [usize; 4] {
    let apply = item.w.numel().div_ceil(CHUNK);
    match &item.second {
        Second::Full(_) => [0, 0, 0, apply],
        Second::Factored { view, .. } => {
            [(view.groups * view.rows).div_ceil(ROWS), view.groups * view.cols.div_ceil(COLUMNS), view.groups, apply]
        }
    }
}

pub(super) fn adafactor(
    items: &mut [Item],
    hyper: Hyper,
    scalars: &Tensor,
    norm: Option<&Tensor>,
    compute: DType,
    work: &mut Workspace,
) -> Result<()> {
    let device = scalars.device().clone();
    let groups = |item: &Item| match &item.second {
        Second::Full(_) => 0,
        Second::Factored { view, .. } => view.groups,
    };
    let mut means = work.scratch(OP, items.iter().map(groups).sum::<usize>().max(1), &device)?;
    let record = |item: &mut Item| {
        let of_groups = groups(item);
        let (by_row, by_col, view) = match &mut item.second {
            Second::Full(v) => (v.ptr_mut(OP)?, 0, None),
            Second::Factored { rows, cols, view } => (rows.ptr_mut(OP)?, cols.ptr_mut(OP)?, Some(*view)),
        };
        let count = |n: Option<usize>| count32(OP, "view", n.unwrap_or_default());
        let own = means;
        means += 8 * of_groups as u64;
        Ok(Record {
            w: item.w.ptr_mut(OP)?,
            m: item.m.ptr_mut(OP)?,
            g: item.g.ptr(),
            compute: item.compute.as_mut().map_or(Ok(0), |c| c.ptr_mut(OP))?,
            by_row,
            by_col,
            means: own,
            n: item.w.numel() as u64,
            groups: count(view.map(|v| v.groups))?,
            rows: count(view.map(|v| v.rows))?,
            cols: count(view.map(|v| v.cols))?,
            place: view.map_or(0, |v| match v.place {
                Groups::First => 0,
                Groups::Middle => 1,
                Groups::Last => 2,
            }),
            lr_scale: item.lr_scale as f32,
            weight_decay: item.weight_decay as f32,
        })
    };
    let records = items.iter_mut().map(record).collect::<Result<Vec<_>>>()?;
    // One table for the four kernels: the tensors' blocks of the first, then those of the second, and so on.
    let each: Vec<[usize; 4]> = items.iter().map(blocks).collect();
    let counts: Vec<usize> = (0..4).flat_map(|k| each.iter().map(move |b| b[k])).collect();
    let table = work.table_of(&records, &counts, 1, &device)?;
    let [momentum, take] = hyper.momentum();
    let mut before = 0;
    for (k, kernel) in KERNELS.into_iter().enumerate() {
        let count: usize = each.iter().map(|b| b[k]).sum();
        let args = Args {
            records: table.records,
            chunks: table.chunks + 8 * before as u64, // `struct Chunk`
            scalars: scalars.ptr(),
            norm: norm.map_or(0, Tensor::ptr),
            momentum: momentum as f32,
            take: take as f32,
            eps: hyper.eps as f32,
            round: hyper.round.into(),
            chunk: CHUNK as u32,
            first: (k * items.len()) as u32, // below the number of chunks
        };
        before += count;
        if count > 0 {
            let dtype = if kernel == KERNELS[3] { compute } else { DType::F32 };
            let grid = Launch::linear(count as u32, THREADS); // of at most `table.blocks`
            // SAFETY: `check` compared the lengths of each item's operands with its number of elements and its view; there
            // are as many means as groups; the items are borrowed for the call, table and means live in `work`. A tensor
            // that occurs twice is shared, which `ptr_mut` refuses.
            unsafe { device.launch(OP, kernel, dtype, grid, &args)? };
        }
    }
    Ok(())
}
