//! Sigmoid loss over all pairs of two sets of embeddings, without the matrix of pairs.
//!
//! `l_ij = t x_i · y_j + b` with `t = exp(log_scale)`, `z_ij = 1` where row `row0 + i` of the whole batch is column
//! `col0 + j`, else `-1`; `L = -1/n Σ_ij log sigmoid(z_ij l_ij)`, `n` the divisor. With
//! `g_ij = -z_ij sigmoid(-z_ij l_ij) / n` (`dL/dl_ij`) the gradients are `dx = t g y`, `dy = t gᵀ x`,
//! `dlog_scale = t Σ g_ij x_i · y_j` and `dbias = Σ g_ij`.
//!
//! `g` depends on nothing but its own pair, so one sweep over panels of pairs makes the loss and all gradients: three
//! products instead of the four of a forward and a backward. A panel is bounded by a constant, whatever the numbers of
//! rows: [`peak_bytes`] says what is held. What the sweep leaves is the gradient for a `dloss` of 1; the backward multiplies.
//! `t / n` waits for that multiplication too: `t` is on the device and no factor of a library's product can be; and a `g`
//! between 0 and 1 keeps more digits in 16 bits than one times `t / n`.
//!
//! `log(1 + e)` is `e + e² q(e)`, not a logarithm: trained biases are -12 to -16, where `log` of an f32 `1 + e` is wrong in
//! the second digit. A tile's sums are f32, all others f64: those of `log_scale` and `bias` cancel.
//!
//! Source: SigLIP, arXiv 2303.15343, algorithm 1 (its equation has another sign of `b`, which nobody trains with).

mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases};

pub use crate::ops::pairs::Block;
use crate::ops::pairs::{Panel, Part, accumulate, parts, product};
use crate::ops::{float, on, same, shaped, typed};
use crate::{DType, Device, Error, Result, Tape, Tensor, Var};

const OP: &str = "sigmoid_pair_loss";

/// Extents checked once, used by reference and launch.
#[derive(Clone, Copy, Debug)]
struct Dims {
    rows: usize,
    cols: usize,
    dim: usize,
    /// Pair `(i, j)` is a positive iff `j - i` is this; the number of columns, or minus that of rows, if none is.
    shift: i64,
    divisor: usize,
}

impl Dims {
    fn check(x: &Tensor, y: &Tensor, log_scale: &Tensor, bias: &Tensor, block: Block) -> Result<Self> {
        float(OP, "x", x)?;
        let [rows, dim] = x.dims(OP, "x")?;
        if dim == 0 {
            return Err(Error::shape(OP, "x", x.shape(), "at least one column"));
        }
        let [cols, _] = y.dims(OP, "y")?;
        shaped(OP, "y", y, &[cols, dim])?;
        same(OP, "y", y, x)?;
        for (arg, scalar) in [("log_scale", log_scale), ("bias", bias)] {
            shaped(OP, arg, scalar, &[1])?;
            typed(OP, arg, scalar, x.dtype().accumulate())?;
            on(OP, arg, scalar, x)?;
        }
        if block.divisor == 0 {
            return Err(Error::value(OP, "block", "a divisor of 0", "a divisor of at least 1"));
        }
        let shift = (block.row0 as i128 - block.col0 as i128).clamp(-(rows as i128), cols as i128) as i64;
        Ok(Self { rows, cols, dim, shift, divisor: block.divisor })
    }

    /// How many pairs are positives, and how many are not.
    fn counts(&self) -> [usize; 2] {
        let (rows, cols) = (self.rows as i64, self.cols as i64);
        let positives = (rows.min(cols - self.shift) - 0.max(-self.shift)).max(0) as usize;
        [positives, self.rows * self.cols - positives]
    }
}

/// The loss `[1]` of `x: [n, d]` with `y: [m, d]`, rows of length 1, and of its logits the mean of the positives, the mean of
/// the negatives and the largest negative, `[3]` (NaN where there are none); both f32 (f64 for f64).
///
/// `log_scale: [1]` and `bias: [1]` are f32 (f64 for f64); those of `x` and `y` f32, bf16, f16 (f64 on the CPU), of which sums
/// are f32. On kernels `g` is stored in that type (f16: times 2^15), on the CPU in f32. Saves the gradients, `4 d (n + m) +
/// 12` bytes, nothing of what is without a gradient. Deterministic.
///
/// # Errors
/// When shapes, dtypes or devices do not fit, or the divisor is 0.
pub fn sigmoid_pair_loss(
    tape: &Tape,
    x: &Var,
    y: &Var,
    log_scale: &Var,
    bias: &Var,
    block: Block,
) -> Result<(Var, Tensor)> {
    in_panels(tape, x, y, log_scale, bias, block, Panel::of(x.value().device()))
}

/// The same with other panels.
fn in_panels(
    tape: &Tape,
    x: &Var,
    y: &Var,
    log_scale: &Var,
    bias: &Var,
    block: Block,
    panel: Panel,
) -> Result<(Var, Tensor)> {
    let inputs = [x, y, log_scale, bias];
    let wanted = tape.records() && inputs.iter().any(|v| v.slot().is_some());
    let wanted = wanted.then_some([x.slot().is_some(), y.slot().is_some()]);
    let [x, y, log_scale, bias] = inputs.map(Var::value);
    let (loss, logits, gradients) = sweep(x, y, log_scale, bias, block, panel, wanted)?;
    let Some(Gradients { dx, dy, factor, dlog_scale, dbias }) = gradients else {
        return Ok((Var::constant(loss), logits));
    };
    let slots = inputs.map(Var::slot);
    let dtype = x.dtype();
    let saved = [dx, dy, factor, dlog_scale, dbias];
    let backward = move |dloss: Tensor, [dx, dy, factor, dlog_scale, dbias]: [Tensor; 5], grads: &mut crate::Grads| {
        let factors = [Some(&factor), Some(&factor), None, None];
        let dtypes = [dtype, dtype, dlog_scale.dtype(), dbias.dtype()];
        for (((to, sums), factor), dtype) in slots.into_iter().zip([dx, dy, dlog_scale, dbias]).zip(factors).zip(dtypes)
        {
            if to.is_some() {
                grads.add(to, scaled(OP, sums, factor, &dloss, dtype)?)?;
            }
        }
        Ok(())
    };
    Ok((tape.record(OP, loss, &inputs, saved, backward), logits))
}

/// The loss and the statistics of the logits, without gradients: one product.
///
/// # Errors
/// As [`sigmoid_pair_loss`].
pub fn forward(x: &Tensor, y: &Tensor, log_scale: &Tensor, bias: &Tensor, block: Block) -> Result<(Tensor, Tensor)> {
    let (loss, logits, _) = sweep(x, y, log_scale, bias, block, Panel::of(x.device()), None)?;
    Ok((loss, logits))
}

/// What a sweep leaves for the backward, for a `dloss` of 1.
struct Gradients {
    /// `[n, d]` or empty, f32 (f64 for f64): `dx` is this times `factor`.
    dx: Tensor,
    /// `[m, d]` or empty, likewise.
    dy: Tensor,
    /// `[1]`
    factor: Tensor,
    /// `[1]`
    dlog_scale: Tensor,
    /// `[1]`
    dbias: Tensor,
}

/// Loss, statistics and, if some are wanted, gradients: of `x` and `y` those said.
fn sweep(
    x: &Tensor,
    y: &Tensor,
    log_scale: &Tensor,
    bias: &Tensor,
    block: Block,
    panel: Panel,
    wanted: Option<[bool; 2]>,
) -> Result<(Tensor, Tensor, Option<Gradients>)> {
    let dims = Dims::check(x, y, log_scale, bias, block)?;
    let (acc, device) = (x.dtype().accumulate(), x.device());
    let on_cpu = *device == Device::Cpu;
    let scalar = || Tensor::uninit([1], acc, device);
    let (mut loss, mut logits) = (scalar()?, Tensor::uninit([3], acc, device)?);
    let sums = |wanted: bool, rows: usize, others: usize| match (wanted, others) {
        (false, _) => Tensor::uninit([0], acc, device),
        (true, 0) => Tensor::zeros([rows, dims.dim], acc, device), // no product writes them
        (true, _) => Tensor::uninit([rows, dims.dim], acc, device),
    };
    let mut gradients = match wanted {
        Some([of_x, of_y]) => Some(Gradients {
            dx: sums(of_x, dims.rows, dims.cols)?,
            dy: sums(of_y, dims.cols, dims.rows)?,
            factor: scalar()?,
            dlog_scale: scalar()?,
            dbias: scalar()?,
        }),
        None => None,
    };
    let [of_x, of_y] = wanted.unwrap_or_default();
    // The CPU computes in f32 (f64): rows are widened once, not in each of the products that read them.
    let (x, y) = if on_cpu { (x.cast(acc)?, y.cast(acc)?) } else { (x.clone(), y.clone()) };
    let panel = panel.fit(dims.rows, dims.cols);
    let mut g =
        if on_cpu || of_x || of_y { Some(Tensor::uninit([panel.rows * panel.cols], x.dtype(), device)?) } else { None };
    let mut totals = Totals::new(device, panel)?;
    for part in parts(panel, dims.rows, dims.cols, dims.shift) {
        match &mut totals {
            Totals::Host(totals) => {
                let Some(g) = &mut g else { continue };
                product(OP, &x, (part.row, part.rows), &y, (part.col, part.cols), dims.dim, g)?;
                reference::panel(g, log_scale, bias, part, wanted.is_some(), totals)?;
            }
            Totals::Device(totals) => {
                launch::panel(&x, &y, log_scale, bias, dims, part, wanted.is_some(), g.as_mut(), totals)?;
            }
        }
        if let (Some(g), Some(gradients)) = (&g, &mut gradients) {
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
            reference::finish(&totals, log_scale, bias, dims, &mut loss, &mut logits, gradients.as_mut())?;
        }
        Totals::Device(totals) => {
            launch::finish(&totals, x.dtype(), log_scale, bias, dims, &mut loss, &mut logits, gradients.as_mut())?;
        }
    }
    Ok((loss, logits, gradients))
}

/// What is added up from panel to panel.
enum Totals {
    Host(reference::Sums),
    Device(launch::Tiles),
}

impl Totals {
    fn new(device: &Device, panel: Panel) -> Result<Self> {
        Ok(match device {
            Device::Cpu => Self::Host(reference::Sums::default()),
            _ => Self::Device(launch::Tiles::new(device, panel)?),
        })
    }
}

/// What `g` is stored times on kernels.
pub(super) fn gain(dtype: DType) -> f64 {
    launch::gain(dtype)
}

/// `dloss · factor · sums` in `dtype`, in place where that is the type of the sums.
pub(super) fn scaled(
    op: &'static str,
    mut sums: Tensor,
    factor: Option<&Tensor>,
    dloss: &Tensor,
    dtype: DType,
) -> Result<Tensor> {
    shaped(op, "dloss", dloss, &[1])?;
    typed(op, "dloss", dloss, sums.dtype())?;
    on(op, "dloss", dloss, &sums)?;
    let mut other =
        if dtype == sums.dtype() { None } else { Some(Tensor::uninit(sums.shape().clone(), dtype, sums.device())?) };
    match sums.device() {
        Device::Cpu => reference::scaled(&mut sums, factor, dloss, other.as_mut())?,
        _ => launch::scaled(&mut sums, factor, dloss, other.as_mut())?,
    }
    Ok(other.unwrap_or(sums))
}

/// Bytes that the loss of `x: [n, d]` with `y: [m, d]` and its backward hold on a device at most, all gradients wanted, beyond
/// inputs, the gradient of the loss and the scratch of the GEMM library: the gradients, and a panel that does not grow beyond
/// a constant.
///
/// `a (d (n + m) + 7)` for the sums of the gradients and the scalars, `a` bytes each (4; 8 for f64); to that the larger of what
/// the sweep and what the backward needs for itself. Sweep: a panel of at most 4096 x 4096 `g` and 48 bytes for each 128 x 128
/// of its pairs; on the CPU at most 1024 x 1024 `g` in f32, and `x` and `y` widened from 16-bit types. Backward of 16-bit
/// types: the finished gradients, of which that of `x` is there before its sums go.
pub fn peak_bytes(n: usize, m: usize, d: usize, dtype: DType, device: &Device) -> usize {
    let acc = dtype.accumulate().size();
    let narrow = dtype != dtype.accumulate();
    let panel = Panel::of(device).fit(n, m);
    let pairs = panel.rows * panel.cols;
    let sweep = match device {
        Device::Cpu => acc * pairs + if narrow { acc * d * (n + m) } else { 0 },
        _ => dtype.size() * pairs + launch::Tiles::bytes(panel),
    };
    // Gradients of x, then of y when the sums of x are gone.
    let backward =
        if narrow { (dtype.size() * d * n).max((dtype.size() * d * (n + m)).saturating_sub(acc * d * n)) } else { 0 };
    acc * (d * (n + m) + 7) + sweep.max(backward)
}
