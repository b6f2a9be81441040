//! Grids and arguments of kernels/sigmoid_pair_loss.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::{Dims, Gradients, OP, Panel, Part};
use crate::device::{Device, Launch, Storage};
use crate::ops::indices::count32;
use crate::ops::pairs::SIDE;
use crate::tensor::elementwise;
use crate::{DType, Error, Result, Tensor};

/// Threads of a block (`THREADS`), which has [`SIDE`] x [`SIDE`] pairs: 64 KiB of shared memory and 128 registers a thread let
/// two blocks share a multiprocessor, so that one multiplies while the other takes exponentials. Not measured yet.
const THREADS: u32 = 256;
/// Bytes of a tile's sums: six f64.
const SLOT: usize = 48;
/// Threads of the one block that adds up the tiles' sums: a warp for each of the six.
const REDUCE_THREADS: u32 = 192;

/// `struct SigmoidPairLoss`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct PanelArgs {
    x: u64,
    y: u64,
    log_scale: u64,
    bias: u64,
    g: u64,
    part: u64,
    rows: u32,
    cols: u32,
    dim: u32,
    shift: i32,
    tiles: u32,
    add: u32,
}

/// `struct SigmoidPairLossReduce`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct ReduceArgs {
    part: u64,
    log_scale: u64,
    bias: u64,
    loss: u64,
    logits: u64,
    factor: u64,
    dlog_scale: u64,
    dbias: u64,
    divisor: f64,
    positives: f64,
    negatives: f64,
    gain: f64,
    tiles: u32,
    pad: u32,
}

/// `struct SigmoidPairLossBwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct BwdArgs {
    x: u64,
    factor: u64,
    dloss: u64,
    y: u64,
    count: u64,
}

/// The tiles of a panel, each with its sums over the panels so far.
pub(super) struct Tiles {
    sums: Storage,
    /// Rows and columns of tiles in the largest panel.
    tiles: [usize; 2],
}

impl Tiles {
    pub(super) fn new(device: &Device, panel: Panel) -> Result<Self> {
        Ok(Self { sums: Storage::alloc(device, Self::bytes(panel))?, tiles: tiles(panel.rows, panel.cols) })
    }

    pub(super) fn bytes(panel: Panel) -> usize {
        let [down, across] = tiles(panel.rows, panel.cols);
        down * across * SLOT
    }
}

fn tiles(rows: usize, cols: usize) -> [usize; 2] {
    [rows.div_ceil(SIDE), cols.div_ceil(SIDE)]
}

/// A block per tile, row after row of them. Dynamic shared memory: two stages of 64 columns of a tile's rows in 16-bit types.
pub(super) fn grid(rows: usize, cols: usize, dtype: DType) -> Launch {
    let [down, across] = tiles(rows, cols);
    let shared = if dtype == DType::F32 { 0 } else { 2 * (2 * SIDE) * 64 * 2 };
    Launch { shared: shared as u32, ..Launch::linear((down * across) as u32, THREADS) } // a panel has at most 1024 tiles
}

/// What `g` is stored times (`struct Gain`).
pub(super) fn gain(dtype: DType) -> f64 {
    if dtype == DType::F16 { 32768.0 } else { 1.0 }
}

/// Adds up the pairs of a part and, with `gradient`, writes `gain · n dL/dl` to `g`, if there is one.
pub(super) fn panel(
    x: &Tensor,
    y: &Tensor,
    log_scale: &Tensor,
    bias: &Tensor,
    dims: Dims,
    part: Part,
    gradient: bool,
    g: Option<&mut Tensor>,
    totals: &mut Tiles,
) -> Result<()> {
    let (dtype, kernel) =
        (x.dtype(), if gradient { "sigmoid_pair_loss_fwd_grad_128x128" } else { "sigmoid_pair_loss_fwd_128x128" });
    if dtype.size() > 4 {
        return Err(Error::argument(OP, "x", "dtype", dtype.name(), "f32, bf16 or f16"));
    }
    let first = |t: &Tensor, row: usize| t.ptr() + (row * dims.dim * dtype.size()) as u64;
    let args = PanelArgs {
        x: first(x, part.row),
        y: first(y, part.col),
        log_scale: log_scale.ptr(),
        bias: bias.ptr(),
        g: g.map(|g| g.ptr_mut(OP)).transpose()?.unwrap_or(0),
        part: totals.sums.ptr(),
        rows: part.rows as u32, // of a panel
        cols: part.cols as u32,
        dim: count32(OP, "x", dims.dim)?,
        shift: part.shift as i32,
        tiles: totals.tiles[1] as u32,
        add: (part.row + part.col > 0).into(),
    };
    // SAFETY: `Dims::check` fixed the extents of x and y, of which the part's rows begin at these addresses; log_scale and
    // bias are [1]; g holds the largest panel and `sums` a slot for each of its tiles, which the first part, no smaller than
    // any, has written before one is read; all outlive the call.
    unsafe { x.device().launch(OP, kernel, dtype, grid(part.rows, part.cols, dtype), &args) }
}

/// Loss, statistics and gradients from the sums of all pairs.
pub(super) fn finish(
    totals: &Tiles,
    dtype: DType,
    log_scale: &Tensor,
    bias: &Tensor,
    dims: Dims,
    loss: &mut Tensor,
    logits: &mut Tensor,
    gradients: Option<&mut Gradients>,
) -> Result<()> {
    let [positives, negatives] = dims.counts().map(|count| count as f64);
    let [factor, dlog_scale, dbias] = match gradients {
        Some(g) => [g.factor.ptr_mut(OP)?, g.dlog_scale.ptr_mut(OP)?, g.dbias.ptr_mut(OP)?],
        None => [0; 3],
    };
    let [down, across] = totals.tiles;
    let args = ReduceArgs {
        part: totals.sums.ptr(),
        log_scale: log_scale.ptr(),
        bias: bias.ptr(),
        loss: loss.ptr_mut(OP)?,
        logits: logits.ptr_mut(OP)?,
        factor,
        dlog_scale,
        dbias,
        divisor: dims.divisor as f64,
        positives,
        negatives,
        gain: gain(dtype),
        tiles: (down * across) as u32, // of a panel
        pad: 0,
    };
    // SAFETY: loss, factor, dlog_scale and dbias are [1], logits [3], log_scale and bias [1]; the launches before on the same
    // stream wrote every slot of `sums`.
    unsafe {
        loss.device().launch(OP, "sigmoid_pair_loss_reduce", DType::F32, Launch::linear(1, REDUCE_THREADS), &args)
    }
}

/// `dloss · factor · sums`, into `other` or in place.
pub(super) fn scaled(
    sums: &mut Tensor,
    factor: Option<&Tensor>,
    dloss: &Tensor,
    other: Option<&mut Tensor>,
) -> Result<()> {
    let (x, count, dtype) = (sums.ptr_mut(OP)?, sums.numel(), other.as_ref().map_or(DType::F32, |y| y.dtype()));
    let y = other.map_or(Ok(x), |y| y.ptr_mut(OP))?;
    let args = BwdArgs { x, factor: factor.map_or(0, Tensor::ptr), dloss: dloss.ptr(), y, count: count as u64 };
    // SAFETY: x and y have `count` elements, f32 and `dtype`, and are the same or apart, which the kernel allows: a thread
    // reads an element before it writes it; factor and dloss are [1].
    unsafe { sums.device().launch(OP, "sigmoid_pair_loss_bwd", dtype, elementwise(count, DType::F32), &args) }
}
