//! Grids and arguments of kernels/softmax_pair_loss.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::{Dims, Gradients, OP};
use crate::device::{Device, Launch, Storage};
use crate::ops::indices::count32;
use crate::ops::pairs::{Panel, Part};
use crate::ops::sigmoid_pair_loss::gain;
use crate::{DType, Result, Tensor};

/// Threads of a block (`THREADS`); not measured yet.
const THREADS: u32 = 256;
/// Columns of a block that sums columns: a lane each.
const COLUMNS: u32 = 32;
/// Bytes of a row's sums: five f32 (`ROW_SUMS`), and of a column's: two.
const OF_ROW: usize = 20;
const OF_COL: usize = 8;

/// `struct SoftmaxPairLoss`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct SumArgs {
    s: u64,
    log_scale: u64,
    sums: u64,
    rows: u32,
    cols: u32,
    shift: i32,
    add: u32,
}

/// `struct SoftmaxPairLossGrad`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct GradArgs {
    s: u64,
    log_scale: u64,
    by_row: u64,
    by_col: u64,
    g: u64,
    part: u64,
    rows: u32,
    cols: u32,
    shift: i32,
    add: u32,
    gain: f32,
    pad: f32,
}

/// `struct SoftmaxPairLossReduce`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct ReduceArgs {
    by_row: u64,
    by_col: u64,
    part: u64,
    log_scale: u64,
    loss: u64,
    logits: u64,
    factor: u64,
    dlog_scale: u64,
    divisor: f64,
    positives: f64,
    negatives: f64,
    gain: f64,
    rows: u32,
    cols: u32,
    parts: u32,
    pad: u32,
}

/// Sums of rows and columns over the panels so far.
pub(super) struct Sums {
    by_row: Storage,
    by_col: Option<Storage>,
    /// Of the gradient: a number for each row of the largest panel.
    part: Storage,
    parts: usize,
}

impl Sums {
    pub(super) fn new(device: &Device, dims: Dims, panel: Panel) -> Result<Self> {
        let columns = dims.sides.weights()[1] > 0.0;
        Ok(Self {
            by_row: Storage::alloc(device, OF_ROW * dims.rows)?,
            by_col: if columns { Some(Storage::alloc(device, OF_COL * dims.cols)?) } else { None },
            part: Storage::alloc(device, 8 * panel.rows)?,
            parts: panel.rows,
        })
    }

    /// Of `n` rows and as many columns.
    pub(super) fn bytes(n: usize, panel: Panel) -> usize {
        (OF_ROW + OF_COL) * n + 8 * panel.rows
    }

    fn by_row(&self, row: usize) -> u64 {
        self.by_row.ptr() + (row * OF_ROW) as u64
    }

    /// Null where columns have no softmax.
    fn by_col(&self, col: usize) -> u64 {
        self.by_col.as_ref().map_or(0, |held| held.ptr() + (col * OF_COL) as u64)
    }
}

/// Takes in the pairs whose cosines are the part's first `rows x cols` elements of `s`.
pub(super) fn statistics(s: &Tensor, log_scale: &Tensor, dims: Dims, part: Part, sums: &mut Sums) -> Result<()> {
    let (rows, cols, shift) = (part.rows as u32, part.cols as u32, part.shift as i32); // of a panel
    let args = |sums: u64, first: bool| SumArgs {
        s: s.ptr(),
        log_scale: log_scale.ptr(),
        sums,
        rows,
        cols,
        shift,
        add: (!first).into(),
    };
    let (device, by_row, by_col) = (s.device(), sums.by_row(part.row), sums.by_col(part.col));
    let grid = Launch::linear(rows, THREADS);
    // SAFETY: `s` holds a panel, which the part is no larger than; `Sums::new` made room for every row, and the part's rows
    // begin at this address; the part of the first column writes what later ones add to.
    unsafe { device.launch(OP, "softmax_pair_loss_rows", DType::F32, grid, &args(by_row, part.col == 0))? };
    if dims.sides.weights()[1] == 0.0 {
        return Ok(());
    }
    let grid = Launch::linear(cols.div_ceil(COLUMNS), THREADS);
    // SAFETY: as above, of columns.
    unsafe { device.launch(OP, "softmax_pair_loss_cols", DType::F32, grid, &args(by_col, part.row == 0)) }
}

/// Puts `gain · n dL/dl` of a part into `narrow`, or in the place of its cosines.
pub(super) fn panel(
    s: &mut Tensor,
    narrow: Option<&mut Tensor>,
    log_scale: &Tensor,
    part: Part,
    sums: &mut Sums,
) -> Result<()> {
    let from = s.ptr();
    let (g, dtype) = match narrow {
        Some(g) => (g.ptr_mut(OP)?, g.dtype()),
        None => (s.ptr_mut(OP)?, DType::F32),
    };
    let args = GradArgs {
        s: from,
        log_scale: log_scale.ptr(),
        by_row: sums.by_row(part.row),
        by_col: sums.by_col(part.col),
        g,
        part: sums.part.ptr(),
        rows: part.rows as u32, // of a panel
        cols: part.cols as u32,
        shift: part.shift as i32,
        add: (part.row + part.col > 0).into(),
        gain: gain(dtype) as f32,
        pad: 0.0,
    };
    let grid = Launch::linear(part.rows as u32, THREADS);
    // SAFETY: s and g hold a panel, and a thread reads an element before it writes the same; the sums of rows and columns
    // are complete; `part` has a number for each row of the largest panel, the first, which wrote all of them.
    unsafe { s.device().launch(OP, "softmax_pair_loss_grad", dtype, grid, &args) }
}

/// Loss, statistics and gradients from what is known of rows and columns.
pub(super) fn finish(
    sums: &Sums,
    dtype: DType,
    log_scale: &Tensor,
    dims: Dims,
    loss: &mut Tensor,
    logits: &mut Tensor,
    gradients: Option<&mut Gradients>,
) -> Result<()> {
    let [positives, negatives] = dims.counts().map(|count| count as f64);
    let [part, factor, dlog_scale] = match gradients {
        Some(g) => [sums.part.ptr(), g.factor.ptr_mut(OP)?, g.dlog_scale.ptr_mut(OP)?],
        None => [0; 3],
    };
    let args = ReduceArgs {
        by_row: sums.by_row(0),
        by_col: sums.by_col(0),
        part,
        log_scale: log_scale.ptr(),
        loss: loss.ptr_mut(OP)?,
        logits: logits.ptr_mut(OP)?,
        factor,
        dlog_scale,
        divisor: dims.divisor as f64,
        positives,
        negatives,
        gain: gain(dtype),
        rows: count32(OP, "x", dims.rows)?,
        cols: count32(OP, "y", dims.cols)?,
        parts: sums.parts as u32, // of a panel
        pad: 0,
    };
    // SAFETY: loss, factor and dlog_scale are [1], logits [3]; the launches before on the same stream wrote all sums of rows
    // and columns and, with a gradient, every number of `part`.
    unsafe { loss.device().launch(OP, "softmax_pair_loss_reduce", DType::F32, Launch::linear(1, THREADS), &args) }
}
