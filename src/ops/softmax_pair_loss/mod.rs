//! Softmax loss over all pairs of two sets of embeddings, without the matrix of pairs: CLIP's, the sigmoid loss's peer.
//!
//! `l_ij = t x_i · y_j` with `t = exp(log_scale)`; the positive of row `i` is the column of its number in the whole batch.
//! With `r_i = log Σ_j exp(l_ij)` and `c_j = log Σ_i exp(l_ij)`,
//! `L = 1/(2n) (Σ_i (r_i - l_i+) + Σ_j (c_j - l_+j))`, and
//! `g_ij = dL/dl_ij = 1/(2n) (exp(l_ij - r_i) + exp(l_ij - c_j) - 2 [positive])`. [`Sides::Rows`] has the first sum alone, over
//! `n`: what a rank of a group computes for its images, and, with the arguments exchanged, for its texts. The gradients are
//! `dx = t g y`, `dy = t gᵀ x` and `dlog_scale = t Σ g_ij x_i · y_j`.
//!
//! `g` needs the sums of a whole row and column, so there are two sweeps over panels of pairs, where the
//! [sigmoid loss](super::sigmoid_pair_loss) has one: the first leaves maximum and sum of each row and column, the second makes
//! `g` panel by panel. Four products instead of three; memory is as there, and 28 bytes a row and 8 a column.
//!
//! Exponents are from a row's or column's largest logit, so nothing overflows. Rows' sums are f32 on kernels, those over
//! all rows f64.
//!
//! Source: Radford et al. 2021, arXiv 2103.00020, figure 3; open_clip at 89fb801, `loss.py`, `ClipLoss`.

mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases};

pub use crate::ops::pairs::Block;
use crate::ops::pairs::{Panel, accumulate, parts, product};
use crate::ops::sigmoid_pair_loss::scaled;
use crate::ops::{float, on, same, shaped, typed};
use crate::{DType, Device, Error, Result, Tape, Tensor, Var};

const OP: &str = "softmax_pair_loss";

/// Which softmaxes the loss is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sides {
    /// Over rows and over columns, half of each: every row's positive is a column, and every column's a row.
    Both,
    /// Over the columns of each row: every row's positive is a column.
    Rows,
}

impl Sides {
    /// Weights of the softmax over a row and of that over a column.
    fn weights(self) -> [f64; 2] {
        match self {
            Self::Both => [0.5, 0.5],
            Self::Rows => [1.0, 0.0],
        }
    }
}

/// Extents checked once, used by reference and launch.
#[derive(Clone, Copy, Debug)]
struct Dims {
    rows: usize,
    cols: usize,
    dim: usize,
    /// Pair `(i, j)` is a positive iff `j - i` is this: not negative, every row has one.
    shift: usize,
    divisor: usize,
    sides: Sides,
}

impl Dims {
    fn check(x: &Tensor, y: &Tensor, log_scale: &Tensor, block: Block, sides: Sides) -> Result<Self> {
        float(OP, "x", x)?;
        let [rows, dim] = x.dims(OP, "x")?;
        if dim == 0 {
            return Err(Error::shape(OP, "x", x.shape(), "at least one column"));
        }
        let [cols, _] = y.dims(OP, "y")?;
        shaped(OP, "y", y, &[cols, dim])?;
        same(OP, "y", y, x)?;
        shaped(OP, "log_scale", log_scale, &[1])?;
        typed(OP, "log_scale", log_scale, x.dtype().accumulate())?;
        on(OP, "log_scale", log_scale, x)?;
        if block.divisor == 0 {
            return Err(Error::value(OP, "block", "a divisor of 0", "a divisor of at least 1"));
        }
        let last = block.row0.saturating_add(rows).checked_sub(block.col0);
        let inside = block.row0 >= block.col0 && last.is_some_and(|last| last <= cols);
        let square = block.row0 == block.col0 && rows == cols;
        if rows > 0 && !(if sides == Sides::Both { square } else { inside }) {
            let given =
                format!("rows {}..{}, columns {}..{}", block.row0, block.row0 + rows, block.col0, block.col0 + cols);
            let expected = if sides == Sides::Both { "the same rows and columns" } else { "rows that are columns too" };
            return Err(Error::value(OP, "block", given, expected));
        }
        let shift = block.row0.saturating_sub(block.col0);
        Ok(Self { rows, cols, dim, shift, divisor: block.divisor, sides })
    }

    /// How many pairs are positives, and how many are not.
    fn counts(&self) -> [usize; 2] {
        [self.rows, self.rows * self.cols - self.rows.min(self.rows * self.cols)]
    }
}

/// The loss `[1]` of `x: [n, d]` with `y: [m, d]`, rows of length 1, and of its logits the mean of the positives, the mean of
/// the negatives and the largest negative, `[3]` (NaN where there are none); both f32 (f64 for f64).
///
/// `log_scale: [1]` is f32 (f64 for f64); `x` and `y` f32, bf16, f16 (f64 on the CPU). On kernels `g` is stored in that type
/// (f16: times 2^15), on the CPU in f32. Saves the gradients, `4 d (n + m) + 8` bytes, nothing of what is without a gradient.
/// Deterministic.
///
/// # Errors
/// When shapes, dtypes or devices do not fit, a row (for [`Sides::Both`] a column) has no positive, or the divisor is 0.
pub fn softmax_pair_loss(
    tape: &Tape,
    x: &Var,
    y: &Var,
    log_scale: &Var,
    block: Block,
    sides: Sides,
) -> Result<(Var, Tensor)> {
    in_panels(tape, x, y, log_scale, block, sides, Panel::of(x.value().device()))
}

/// The same with other panels.
fn in_panels(
    tape: &Tape,
    x: &Var,
    y: &Var,
    log_scale: &Var,
    block: Block,
    sides: Sides,
    panel: Panel,
) -> Result<(Var, Tensor)> {
    let inputs = [x, y, log_scale];
    let wanted = tape.records() && inputs.iter().any(|v| v.slot().is_some());
    let wanted = wanted.then_some([x.slot().is_some(), y.slot().is_some()]);
    let [x, y, log_scale] = inputs.map(Var::value);
    let (loss, logits, gradients) = sweeps(x, y, log_scale, block, sides, panel, wanted)?;
    let Some(Gradients { dx, dy, factor, dlog_scale }) = gradients else {
        return Ok((Var::constant(loss), logits));
    };
    let slots = inputs.map(Var::slot);
    let dtype = x.dtype();
    let backward = move |dloss: Tensor, [dx, dy, factor, dlog_scale]: [Tensor; 4], grads: &mut crate::Grads| {
        let dtypes = [dtype, dtype, dlog_scale.dtype()];
        let factors = [Some(&factor), Some(&factor), None];
        for (((to, sums), factor), dtype) in slots.into_iter().zip([dx, dy, dlog_scale]).zip(factors).zip(dtypes) {
            if to.is_some() {
                grads.add(to, scaled(OP, sums, factor, &dloss, dtype)?)?;
            }
        }
        Ok(())
    };
    Ok((tape.record(OP, loss, &inputs, [dx, dy, factor, dlog_scale], backward), logits))
}

/// The loss and the statistics of the logits, without gradients: one product.
///
/// # Errors
/// As [`softmax_pair_loss`].
pub fn forward(x: &Tensor, y: &Tensor, log_scale: &Tensor, block: Block, sides: Sides) -> Result<(Tensor, Tensor)> {
    let (loss, logits, _) = sweeps(x, y, log_scale, block, sides, Panel::of(x.device()), None)?;
    Ok((loss, logits))
}

/// What the sweeps leave for the backward, for a `dloss` of 1.
struct Gradients {
    /// `[n, d]` or empty, f32 (f64 for f64): `dx` is this times `factor`.
    dx: Tensor,
    /// `[m, d]` or empty, likewise.
    dy: Tensor,
    /// `[1]`
    factor: Tensor,
    /// `[1]`
    dlog_scale: Tensor,
}

/// Loss, statistics and, if some are wanted, gradients: of `x` and `y` those said.
fn sweeps(
    x: &Tensor,
    y: &Tensor,
    log_scale: &Tensor,
    block: Block,
    sides: Sides,
    panel: Panel,
    wanted: Option<[bool; 2]>,
) -> Result<(Tensor, Tensor, Option<Gradients>)> {
    let dims = Dims::check(x, y, log_scale, block, sides)?;
    let (acc, device) = (x.dtype().accumulate(), x.device());
    let on_cpu = *device == Device::Cpu;
    let sums = |wanted: bool, rows: usize, others: usize| match (wanted, others) {
        (false, _) => Tensor::uninit([0], acc, device),
        (true, 0) => Tensor::zeros([rows, dims.dim], acc, device), // no product writes them
        (true, _) => Tensor::uninit([rows, dims.dim], acc, device),
    };
    let scalar = || Tensor::uninit([1], acc, device);
    let (mut loss, mut logits) = (scalar()?, Tensor::uninit([3], acc, device)?);
    let [of_x, of_y] = wanted.unwrap_or_default();
    let mut gradients = match wanted {
        Some(_) => Some(Gradients {
            dx: sums(of_x, dims.rows, dims.cols)?,
            dy: sums(of_y, dims.cols, dims.rows)?,
            factor: scalar()?,
            dlog_scale: scalar()?,
        }),
        None => None,
    };
    // The CPU computes in f32 (f64): rows are widened once, not in each of the products that read them.
    let (x, y) = if on_cpu { (x.cast(acc)?, y.cast(acc)?) } else { (x.clone(), y.clone()) };
    let panel = panel.fit(dims.rows, dims.cols);
    let mut s = Tensor::uninit([panel.rows * panel.cols], acc, device)?;
    // On kernels `g` is read by tensor cores; of f32 it takes the place of the cosines.
    let mut narrow = match x.dtype() != acc && (of_x || of_y) {
        true => Some(Tensor::uninit([panel.rows * panel.cols], x.dtype(), device)?),
        false => None,
    };
    let mut totals = Totals::new(device, dims, panel)?;
    let parts = || parts(panel, dims.rows, dims.cols, dims.shift as i64);
    for part in parts() {
        product(OP, &x, (part.row, part.rows), &y, (part.col, part.cols), dims.dim, &mut s)?;
        match &mut totals {
            Totals::Host(totals) => reference::statistics(&s, log_scale, dims, part, totals)?,
            Totals::Device(totals) => launch::statistics(&s, log_scale, dims, part, totals)?,
        }
    }
    for part in parts().filter(|_| wanted.is_some()) {
        if panel.rows < dims.rows || panel.cols < dims.cols {
            product(OP, &x, (part.row, part.rows), &y, (part.col, part.cols), dims.dim, &mut s)?;
        }
        match &mut totals {
            Totals::Host(totals) => reference::panel(&mut s, log_scale, dims, part, totals)?,
            Totals::Device(totals) => launch::panel(&mut s, narrow.as_mut(), log_scale, part, totals)?,
        }
        let g = narrow.as_ref().unwrap_or(&s);
        if let Some(gradients) = &mut gradients {
            if of_x {
                accumulate(OP, g, part, &y, dims.dim, false, &mut gradients.dx)?;
            }
            if of_y {
                accumulate(OP, g, part, &x, dims.dim, true, &mut gradients.dy)?;
            }
        }
    }
    match totals {
        Totals::Host(totals) => {
            reference::finish(&totals, log_scale, dims, &mut loss, &mut logits, gradients.as_mut())?
        }
        Totals::Device(totals) => {
            launch::finish(&totals, x.dtype(), log_scale, dims, &mut loss, &mut logits, gradients.as_mut())?;
        }
    }
    Ok((loss, logits, gradients))
}

/// What is added up from panel to panel.
enum Totals {
    Host(reference::Sums),
    Device(Box<launch::Sums>),
}

impl Totals {
    fn new(device: &Device, dims: Dims, panel: Panel) -> Result<Self> {
        Ok(match device {
            Device::Cpu => Self::Host(reference::Sums::new(dims)),
            _ => Self::Device(Box::new(launch::Sums::new(device, dims, panel)?)),
        })
    }
}

/// Bytes that the loss of `x: [n, d]` with `y: [n, d]` over [both sides](Sides::Both) and its backward hold on a device at most,
/// all gradients wanted, beyond inputs, the gradient of the loss and the scratch of the GEMM library: the gradients, and a
/// panel that does not grow beyond a constant.
///
/// `a (2 d n + 6)` for the sums of the gradients and the scalars, `a` bytes each (4; 8 for f64); to that the larger of what the
/// sweeps and what the backward needs for itself. Sweeps: a panel of at most 4096 x 4096 cosines in f32, of 16-bit types as many
/// `g`, and 28 bytes a row and 8 a row of a panel; on the CPU at most 1024 x 1024 cosines, and `x` and `y` widened from
/// 16-bit types (what is kept of rows and columns, 56 bytes, is not counted). Backward of 16-bit types: the finished gradients,
/// of which that of `x` is there before its sums go.
pub fn peak_bytes(n: usize, d: usize, dtype: DType, device: &Device) -> usize {
    let acc = dtype.accumulate().size();
    let narrow = dtype != dtype.accumulate();
    let panel = Panel::of(device).fit(n, n);
    let pairs = panel.rows * panel.cols;
    let sweeps = match device {
        Device::Cpu => acc * pairs + if narrow { 2 * acc * d * n } else { 0 },
        _ => acc * pairs + if narrow { dtype.size() * pairs } else { 0 } + launch::Sums::bytes(n, panel),
    };
    let backward =
        if narrow { (dtype.size() * d * n).max((2 * dtype.size() * d * n).saturating_sub(acc * d * n)) } else { 0 };
    acc * (2 * d * n + 6) + sweeps.max(backward)
}
