//! What the losses over all pairs of two sets of embeddings share: blocks of the matrix of pairs, and the panels and products
//! by which it is gone through, since it is never made as a whole.

use crate::device::gemm::{GemmSpec, Layout, Offsets, gemm_part};
use crate::{Device, Result, Tensor};

/// Rows and columns of a tile of the kernels (`SIDE` in sigmoid_pair_loss.cuh).
pub(super) const SIDE: usize = 128;

/// Where a block of pairs lies in the matrix of all pairs, and what the loss is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Number of the first row of `x` in the whole batch.
    pub row0: usize,
    /// Number of the first row of `y`. Offsets that never meet make every pair a negative.
    pub col0: usize,
    /// `n`: pairs of the whole batch. Losses and gradients of blocks with one divisor add up to those of the whole.
    pub divisor: usize,
}

impl Block {
    /// All pairs of `n` rows with `n` rows.
    pub const fn whole(n: usize) -> Self {
        Self { row0: 0, col0: 0, divisor: n }
    }
}

/// Rows and columns of a panel at most, multiples of [`SIDE`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Panel {
    pub rows: usize,
    pub cols: usize,
}

impl Panel {
    /// GPUs: 32 MiB in 16-bit types, which stay in the 50 MiB of an H100's L2 between the three products that touch them,
    /// and 192 tiles of 128 x 128 for each product of 768 columns; not measured yet. CPU: 4 MiB of f32, for the cache.
    pub fn of(device: &Device) -> Self {
        match device {
            Device::Cpu => Self { rows: 1024, cols: 1024 },
            _ => Self { rows: 4096, cols: 4096 },
        }
    }

    /// The panels' size for these rows and columns: as few as the limit allows, of equal size in whole tiles.
    pub fn fit(self, rows: usize, cols: usize) -> Self {
        let step = |n: usize, most: usize| {
            let parts = n.div_ceil(most).max(1);
            n.div_ceil(parts).next_multiple_of(SIDE).min(n)
        };
        Self { rows: step(rows, self.rows), cols: step(cols, self.cols) }
    }
}

/// A part of the pairs: rows and columns from a first one on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub row: usize,
    pub col: usize,
    pub rows: usize,
    pub cols: usize,
    /// Pair `(i, j)` of the part is a positive iff `j - i` is this.
    pub shift: i64,
}

/// The parts of `rows x cols` pairs, of which `(i, j)` is a positive iff `j - i` is `shift`: row after row of panels.
pub(super) fn parts(panel: Panel, rows: usize, cols: usize, shift: i64) -> impl Iterator<Item = Part> {
    let columns = move |row: usize| {
        (0..cols).step_by(panel.cols.max(1)).map(move |col| {
            let (rows, cols) = (panel.rows.min(rows - row), panel.cols.min(cols - col));
            let shift = (shift + row as i64 - col as i64).clamp(-(rows as i64), cols as i64);
            Part { row, col, rows, cols, shift }
        })
    };
    (0..rows).step_by(panel.rows.max(1)).flat_map(columns)
}

/// `s = x y^T` of some rows of each.
pub(super) fn product(
    op: &'static str,
    x: &Tensor,
    of_x: (usize, usize),
    y: &Tensor,
    of_y: (usize, usize),
    dim: usize,
    s: &mut Tensor,
) -> Result<()> {
    let ((row, rows), (col, cols)) = (of_x, of_y);
    let (input, output) = (x.dtype(), s.dtype());
    let layout = Layout { m: rows, n: cols, k: dim, trans_a: false, trans_b: true, input, output };
    let at = Offsets { a: row * dim, b: col * dim, d: 0 };
    gemm_part(&GemmSpec { layout, alpha: 1.0, beta: 0.0 }, at, x.storage(), y.storage(), s.storage_mut(op)?)
}

/// Adds `g` times the part's rows of `y` to its rows of `dx`, or, `transposed`, `g^T` times those of `x` to those of `dy`. The
/// first part of each overwrites what is there.
pub(super) fn accumulate(
    op: &'static str,
    g: &Tensor,
    part: Part,
    with: &Tensor,
    dim: usize,
    transposed: bool,
    sums: &mut Tensor,
) -> Result<()> {
    let Part { row, col, rows, cols, .. } = part;
    let (m, k, to, from) = if transposed { (cols, rows, col, row) } else { (rows, cols, row, col) };
    let layout = Layout { m, n: dim, k, trans_a: transposed, trans_b: false, input: g.dtype(), output: sums.dtype() };
    let spec = GemmSpec { layout, alpha: 1.0, beta: if from == 0 { 0.0 } else { 1.0 } };
    let at = Offsets { a: 0, b: from * dim, d: to * dim };
    gemm_part(&spec, at, g.storage(), with.storage(), sums.storage_mut(op)?)
}
