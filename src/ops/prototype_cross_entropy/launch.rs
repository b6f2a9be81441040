//! Grids and arguments of kernels/prototype_cross_entropy.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::{Dims, OP, Pairing};
use crate::device::Launch;
use crate::ops::indices::count32;
use crate::ops::teacher::Teacher;
use crate::ops::tiles::Tiles;
use crate::{DType, Error, Result, Tensor};

/// Blocks at most: several waves, since nothing is kept per block; not measured yet.
const BLOCKS: u32 = 1056;
/// Threads of the one block that sums the rows' losses; not measured yet.
const LOSS_THREADS: u32 = 256;
/// Threads per block of the kernel with a thread per row; not measured yet.
const ROW_THREADS: u32 = 64;

/// `struct PrototypeCrossEntropy`: both directions.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Args {
    student: u64,
    logits: u64,
    temp: u64,
    a: u64,
    l: u64,
    pairs: u64,
    weights: u64,
    part: u64,
    stats: u64,
    dloss: u64,
    ds: u64,
    rows: u32,
    cols: u32,
    teachers: u32,
    group: u32,
    scale: f32,
    factor: f32,
}

/// `struct PrototypeCrossEntropyRows`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct RowsArgs {
    part: u64,
    weights: u64,
    stats: u64,
    rows: u32,
    tiles: u32,
    scale: f32,
    pad: u32,
}

/// `struct PrototypeCrossEntropyLoss`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct LossArgs {
    stats: u64,
    weights: u64,
    loss: u64,
    scale: f64,
    rows: u32,
    pad: u32,
}

/// Tiles of the student's type.
pub(super) fn tiles(rows: usize, cols: usize, dtype: DType) -> Result<Tiles> {
    Ok(Tiles::new(OP, rows, cols, dtype)?.without_sums(BLOCKS))
}

/// Bytes of what the tiles of the rows add up to.
pub(super) fn bytes(rows: usize, cols: usize, dtype: DType) -> Result<usize> {
    Ok(16 * rows * tiles(rows, cols, dtype)?.tiles as usize)
}

/// Picks the kernel of a teacher's type.
fn variant(teacher: &Teacher, [f32, bf16, f16]: [&'static str; 3]) -> Result<&'static str> {
    match teacher.logits().dtype() {
        DType::F32 => Ok(f32),
        DType::BF16 => Ok(bf16),
        DType::F16 => Ok(f16),
        other => Err(Error::argument(OP, "teacher", "dtype", other.name(), "f32, bf16 or f16")),
    }
}

/// What both directions share; the pointers of one are null in the other.
fn args(student: u64, teacher: &Teacher, pairing: Pairing<'_>, weights: &Tensor, dims: Dims) -> Result<Args> {
    Ok(Args {
        student,
        logits: teacher.logits.ptr(),
        temp: teacher.temp.ptr(),
        a: teacher.prototypes.ptr(),
        l: teacher.rows.ptr(),
        pairs: match pairing {
            Pairing::Same => 0,
            Pairing::Rows(pairs) => pairs.ptr(),
        },
        weights: weights.ptr(),
        part: 0,
        stats: 0,
        dloss: 0,
        ds: 0,
        rows: count32(OP, "student", dims.rows)?,
        cols: count32(OP, "student", dims.cols)?,
        teachers: count32(OP, "teacher", dims.teachers)?,
        group: count32(OP, "pairing", dims.group)?,
        scale: (std::f64::consts::LOG2_E / dims.temp) as f32,
        factor: (1.0 / (dims.temp * dims.normaliser)) as f32,
    })
}

pub(super) fn forward(
    student: &Tensor,
    teacher: &Teacher,
    pairing: Pairing<'_>,
    weights: &Tensor,
    dims: Dims,
    t: Tiles,
    loss: &mut Tensor,
    stats: &mut Tensor,
) -> Result<()> {
    let kernel = variant(
        teacher,
        [
            "prototype_cross_entropy_fwd_from_f32",
            "prototype_cross_entropy_fwd_from_bf16",
            "prototype_cross_entropy_fwd_from_f16",
        ],
    )?;
    let device = student.device();
    let mut part = Tensor::uninit([dims.rows, t.tiles as usize, 4], DType::F32, device)?;
    let mut args = args(student.ptr(), teacher, pairing, weights, dims)?;
    args.part = part.ptr_mut(OP)?;
    // SAFETY: `Dims::check` and `Teacher::new` fixed the extents of struct PrototypeCrossEntropy; part is [rows, tiles, 4].
    // The kernel does not follow a pairing out of range.
    unsafe { device.launch(OP, kernel, student.dtype(), t.grid(), &args)? };
    let rows = RowsArgs {
        part: part.ptr(),
        weights: weights.ptr(),
        stats: stats.ptr_mut(OP)?,
        rows: t.rows,
        tiles: t.tiles,
        scale: args.scale,
        pad: 0,
    };
    let grid = Launch::linear(t.rows.div_ceil(ROW_THREADS), ROW_THREADS);
    // SAFETY: the launch before filled the parts of every row whose weight is not 0; stats is [rows, 4].
    unsafe { device.launch(OP, "prototype_cross_entropy_rows", DType::F32, grid, &rows)? };
    let sum = LossArgs {
        stats: stats.ptr(),
        weights: weights.ptr(),
        loss: loss.ptr_mut(OP)?,
        scale: 1.0 / dims.normaliser,
        rows: t.rows,
        pad: 0,
    };
    // SAFETY: the launch before filled stats; loss is [1].
    unsafe { device.launch(OP, "prototype_cross_entropy_loss", DType::F32, Launch::linear(1, LOSS_THREADS), &sum) }
}

/// `student`: address of the logits, which may be that of `ds`.
pub(super) fn backward(
    dloss: &Tensor,
    student: u64,
    teacher: &Teacher,
    pairing: Pairing<'_>,
    weights: &Tensor,
    stats: &Tensor,
    dims: Dims,
    t: Tiles,
    ds: &mut Tensor,
) -> Result<()> {
    let kernel = variant(
        teacher,
        [
            "prototype_cross_entropy_bwd_from_f32",
            "prototype_cross_entropy_bwd_from_bf16",
            "prototype_cross_entropy_bwd_from_f16",
        ],
    )?;
    let mut args = args(student, teacher, pairing, weights, dims)?;
    args.stats = stats.ptr();
    args.dloss = dloss.ptr();
    args.ds = ds.ptr_mut(OP)?;
    // SAFETY: as in `forward`; `super::backward` checked dloss [1] and stats [rows, 4], and ds has the shape of the
    // student's logits. A thread reads the logits of its columns before it writes their gradient, and nobody else does.
    unsafe { ds.device().launch(OP, kernel, ds.dtype(), t.grid(), &args) }
}
