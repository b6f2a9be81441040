//! Grid and arguments of kernels/resample.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::{Dims, OP, Table};
use crate::device::Launch;
use crate::ops::indices::count32;
use crate::{Error, Result, Tensor};

/// Threads of a block, `THREADS` in the kernel; not measured yet.
const THREADS: u32 = 256;
/// Sums that a block holds: 32 KB, of which seven blocks fit a multiprocessor of an H100; not measured yet.
const SUMS: usize = 8192;
/// Rows of the result that a block gives at most: loads of several are under way, and a block costs less beside them; not
/// measured yet.
const ROWS: usize = 8;
/// Blocks below which rows are spread over more of them: four per multiprocessor of an H100; not measured yet.
const BLOCKS: usize = 528;
/// Channels at a time where a row is longer than [`SUMS`], a multiple of this: whole vectors of every type.
const CHANNELS: usize = 8;

/// `struct Resample`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Args {
    x: u64,
    row_range: u64,
    row_weights: u64,
    col_range: u64,
    col_weights: u64,
    y: u64,
    height: u32,
    width: u32,
    channels: u32,
    out_height: u32,
    out_width: u32,
    row_taps: u32,
    col_taps: u32,
    row_step: u32,
    col_step: u32,
    rows: u32,
    part: u32,
    groups: u32,
}

/// What a block gives: rows of the result and channels of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tile {
    pub rows: usize,
    pub channels: usize,
}

impl Tile {
    /// `None` if not even one row of one channel fits `limit` bytes.
    pub fn new(Dims { batch, from: [_, width], to: [out_height, _], channels }: Dims, limit: usize) -> Option<Self> {
        let fits = |n: &usize| *n > 0 && width * n * 4 <= limit;
        let part = SUMS / width / CHANNELS * CHANNELS;
        let choices = [if width * channels <= SUMS { channels } else { part }, CHANNELS, 1];
        let part = choices.into_iter().find(fits)?.min(channels);
        let blocks = |rows: usize| batch * out_height.div_ceil(rows) * channels.div_ceil(part);
        let mut rows = (SUMS.min(limit / 4) / (width * part)).clamp(1, ROWS.min(out_height));
        while rows > 1 && blocks(rows) < BLOCKS {
            rows /= 2;
        }
        Some(Self { rows, channels: part })
    }

    /// Groups of rows, and the grid: those of every map in x, channels in y.
    pub fn grid(self, dims: Dims) -> Result<(u32, Launch)> {
        let groups = dims.to[0].div_ceil(self.rows);
        let grid =
            [count32(OP, "x", dims.batch * groups)?, count32(OP, "x", dims.channels.div_ceil(self.channels))?, 1];
        let shared = 4 * self.rows * dims.from[1] * self.channels;
        Ok((groups as u32, Launch { grid, block: [THREADS, 1, 1], shared: shared as u32 }))
    }
}

pub(super) fn apply(arg: &'static str, x: &Tensor, tables: &[Table; 2], dims: Dims, y: &mut Tensor) -> Result<()> {
    if y.numel() == 0 {
        return Ok(());
    }
    let limit = x.device().shared_limit();
    let Some(tile) = Tile::new(dims, limit) else {
        return Err(Error::shape(OP, arg, x.shape(), format!("at most {} columns on {}", limit / 4, x.device())));
    };
    let (groups, grid) = tile.grid(dims)?;
    let [rows, cols] = tables;
    let count = |n| count32(OP, arg, n);
    let args = Args {
        x: x.ptr(),
        row_range: rows.range().ptr(),
        row_weights: rows.weights().ptr(),
        col_range: cols.range().ptr(),
        col_weights: cols.weights().ptr(),
        y: y.ptr_mut(OP)?,
        height: count(dims.from[0])?,
        width: count(dims.from[1])?,
        channels: count(dims.channels)?,
        out_height: count(dims.to[0])?,
        out_width: count(dims.to[1])?,
        row_taps: count(rows.taps())?,
        col_taps: count(cols.taps())?,
        row_step: count(rows.step())?,
        col_step: count(cols.step())?,
        rows: tile.rows as u32,
        part: tile.channels as u32,
        groups,
    };
    // SAFETY: `apply` in mod.rs checked x against the plan and made y; the tables of a `Plan` name positions inside its
    // sizes alone. The block's shared memory holds a line of sums for each of its rows.
    unsafe { x.device().launch(OP, "resample", x.dtype(), grid, &args) }
}
