//! Grids and arguments of kernels/softmax_centering.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::{OP, Outputs};
use crate::ops::tiles::{RowFactors, Tiles};
use crate::{DType, Result, Tensor};

/// `struct SoftmaxCenteringFwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct FwdArgs {
    logits: u64,
    temp: u64,
    centre: u64,
    a: u64,
    sums: u64,
    part: u64,
    count: u64,
    rows: u32,
    cols: u32,
}

/// `struct SoftmaxCenteringMean`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct MeanArgs {
    part: u64,
    centre: u64,
    mean: u64,
    count: u64,
    parts: u32,
    cols: u32,
    rows: u32,
    pad: u32,
}

/// Bytes of the sums of parts and tiles.
pub(super) fn bytes(rows: usize, cols: usize, dtype: DType) -> Result<usize> {
    let t = tiles(rows, cols, dtype)?;
    Ok(4 * t.parts as usize * cols + 8 * rows * t.tiles as usize)
}

/// One part at least: it writes the factors of the prototypes.
fn tiles(rows: usize, cols: usize, dtype: DType) -> Result<Tiles> {
    let t = Tiles::new(OP, rows, cols, dtype)?;
    Ok(Tiles { parts: t.parts.max(1), ..t })
}

pub(super) fn forward(
    logits: &Tensor,
    temp: &Tensor,
    centre: &Tensor,
    count: Option<&Tensor>,
    out: &mut Outputs,
) -> Result<()> {
    let count = count.map_or(0, Tensor::ptr);
    let (device, rows, cols) = (logits.device(), out.rows.numel(), out.mean.numel());
    let t = tiles(rows, cols, logits.dtype())?;
    let mut sums = Tensor::uninit([rows, t.tiles as usize, 2], DType::F32, device)?;
    let mut part = Tensor::uninit([t.parts as usize, cols], DType::F32, device)?;
    let args = FwdArgs {
        logits: logits.ptr(),
        temp: temp.ptr(),
        centre: centre.ptr(),
        a: out.prototypes.ptr_mut(OP)?,
        sums: sums.ptr_mut(OP)?,
        part: part.ptr_mut(OP)?,
        count,
        rows: t.rows,
        cols: t.cols,
    };
    // SAFETY: `super::softmax_centering` checked logits [rows, cols], temp [1], centre [cols] and count [1] and made a [cols]; sums
    // and part have the extents that struct SoftmaxCenteringFwd states.
    unsafe { device.launch(OP, "softmax_centering_fwd", logits.dtype(), t.grid(), &args)? };
    let args = RowFactors { sums: sums.ptr(), l: out.rows.ptr_mut(OP)?, count, rows: t.rows, tiles: t.tiles };
    // SAFETY: the launch before filled the sums of the rows that count; l is [rows].
    unsafe { device.launch(OP, "softmax_centering_rows", DType::F32, t.row_warps(), &args)? };
    let args = MeanArgs {
        part: part.ptr(),
        centre: centre.ptr(),
        mean: out.mean.ptr_mut(OP)?,
        count,
        parts: t.parts,
        cols: t.cols,
        rows: t.rows,
        pad: 0,
    };
    // SAFETY: the first launch filled the parts; centre and mean are [cols].
    unsafe { device.launch(OP, "softmax_centering_mean", DType::F32, t.columns(), &args) }
}
