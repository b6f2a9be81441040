//! Grids and arguments of kernels/unfold.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::{Dims, FOLD, OP};
use crate::device::Launch;
use crate::ops::indices::count32;
use crate::{DType, Error, Result, Tensor};

/// Threads of a block at most; not measured yet.
const THREADS: usize = 256;
/// Units that a thread of the forward writes: it works out where their entries are in about as many instructions as it
/// takes to write two; not measured yet.
const UNITS: usize = 8;
/// Lines of the maps to a block of the backward: of windows of three that step by two, it reads five lines of positions
/// for four of its own; not measured yet.
const LINES: u32 = 8;

/// `struct Unfold`: both directions; `from` is x or cols, `to` the other.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Args {
    from: u64,
    to: u64,
    height: u32,
    width: u32,
    channels: u32,
    down: u32,
    across: u32,
    kernel: u32,
    stride: u32,
    padding: u32,
    vector: u32,
    rows: u32,
    lines: u32,
    group: u32,
}

/// What a thread of the forward writes at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unit {
    /// Entries.
    pub vector: usize,
    /// Rows of the matrix that whole vectors make up; they divide those of a line of positions.
    pub rows: usize,
}

impl Unit {
    /// 16 bytes where some rows of `values` entries are a multiple of it and `across` a multiple of those rows, else an
    /// entry.
    pub fn of(values: usize, across: usize, dtype: DType) -> Self {
        let vector = 16 / dtype.size(); // a power of two
        let rows = vector >> values.trailing_zeros().min(vector.trailing_zeros());
        if across.is_multiple_of(rows) { Self { vector, rows } } else { Self { vector: 1, rows: 1 } }
    }
}

/// Lines of positions in x; threads for the vectors of a unit, in y those that are more than a block has; parts of a
/// line in z.
pub(super) fn fwd_grid(lines: u32, values: usize, across: usize, unit: Unit) -> Result<Launch> {
    let vectors = unit.rows * values / unit.vector;
    let slots = (THREADS / vectors.max(1)).max(1);
    let threads = (slots * vectors).next_multiple_of(32).min(THREADS);
    let parts = (across / unit.rows).div_ceil(slots * UNITS).clamp(1, 65535);
    let grid = [lines, count32(OP, "window", vectors.div_ceil(THREADS))?, parts as u32];
    Ok(Launch { grid, block: [threads.max(32) as u32, 1, 1], shared: 0 })
}

/// Groups of lines in x, elements of a line in y; kernels stride over elements that are left.
pub(super) fn bwd_grid(lines: u32, length: u32) -> Launch {
    let grid = [lines.div_ceil(LINES), length.div_ceil(THREADS as u32).min(65535), 1];
    Launch { grid, block: [THREADS as u32, 1, 1], shared: 0 }
}

fn args(op: &'static str, arg: &'static str, from: &Tensor, to: &mut Tensor, dims: Dims, unit: Unit) -> Result<Args> {
    let Dims { height, width, channels, out: [down, across], window, .. } = dims;
    // Kernels compare coordinates that wrapped around zero, and set others outside by adding 2^31.
    if let Some(side) = [height, width].into_iter().find(|&side| side > 1 << 30) {
        return Err(Error::argument(op, arg, "side", side.to_string(), "at most 2^30"));
    }
    count32(op, arg, dims.values() * unit.rows)?;
    count32(op, arg, (window.kernel * (width + 1) + unit.rows * window.stride) * channels)?; // pixels under a unit
    Ok(Args {
        from: from.ptr(),
        to: to.ptr_mut(op)?,
        height: height as u32,
        width: width as u32,
        channels: channels as u32,
        down: down as u32, // at most height + 2 padding
        across: across as u32,
        kernel: window.kernel as u32, // at most 65535, as stride and padding
        stride: window.stride as u32,
        padding: window.padding as u32,
        vector: unit.vector as u32,
        rows: unit.rows as u32,
        lines: 0,
        group: LINES,
    })
}

pub(super) fn forward(x: &Tensor, dims: Dims, cols: &mut Tensor) -> Result<()> {
    let [down, across] = dims.out;
    let unit = Unit::of(dims.values(), across, x.dtype());
    let grid = fwd_grid(count32(OP, "x", dims.batch * down)?, dims.values(), across, unit)?;
    let args = args(OP, "x", x, cols, dims, unit)?;
    // SAFETY: `Dims::check` took the extents of struct Unfold from x, and `forward` in mod.rs made cols of them;
    // `Unit::of` chose vectors that lines of cols are whole ones of.
    unsafe { x.device().launch(OP, "unfold_fwd", x.dtype(), grid, &args) }
}

pub(super) fn backward(cols: &Tensor, dims: Dims, x: &mut Tensor) -> Result<()> {
    let lines = count32(FOLD, "size", dims.batch * dims.height)?;
    let args = Args { lines, ..args(FOLD, "size", cols, x, dims, Unit { vector: 1, rows: 1 })? };
    let grid = bwd_grid(lines, args.width * args.channels);
    // SAFETY: `backward` in mod.rs compared cols with the extents of struct Unfold, and made x of them.
    unsafe { cols.device().launch(OP, "unfold_bwd", cols.dtype(), grid, &args) }
}
