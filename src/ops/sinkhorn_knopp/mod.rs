//! Sinkhorn-Knopp assignment of rows to prototypes by scaling factors; the matrix is read and never written.
//!
//! With `M = exp(Z / T)`, repeated `n` times from `v = 1`: `u_k = 1 / Σ_b M_bk v_b`, `v_b = 1 / Σ_k M_bk u_k`; the result
//! is `P_bk = M_bk u_k v_b`. Its rows sum to 1; the masses of the prototypes approach `rows / K` with `n`. The usual form,
//! which normalises the matrix itself to totals of `1 / K` and `1 / rows`, differs in constants that cancel.
//!
//! Kept are the logarithms `a = ln u`, `l = ln v`, so `P = exp(Z / T + a + l)`, and no logits are too large:
//! - `a_k = -max_b(Z_bk / T)` first, which is exact: a factor per prototype cancels in `u`. (A factor per row, such as the
//!   row's maximum, does not cancel after `n` steps.)
//! - After that `a_k -= ln m_k` with the mass `m_k = Σ_b exp(Z_bk / T + a_k + l_b)` of the prototype so far. Its terms
//!   are entries of a matrix whose rows sum to 1: none exceeds 1. Nor do they all vanish: the step before left the
//!   column with a term of at least `1 / rows`, and a row's factor falls by `K` at most, so `m_k ≥ 1 / (rows · K)`.
//! - `l_b = -ln Σ_k exp(Z_bk / T + a_k)`, relative to the row's maximum: only in the first step can a whole row vanish.
//!
//! On a GPU the matrix comes from memory `n + 1` times: once for the first masses, then once per step, since a step
//! needs a row's sum before the row can be added to the next masses. A row of 131072 16-bit logits is 256 KiB, more than
//! a multiprocessor holds, and without clusters blocks cannot wait for each other: so rows go in groups of 16 MiB, and
//! while one group is summed, the group before is read again from the second-level cache, its factors known. The last
//! step needs sums alone. What it needs beside the logits is [`workspace_bytes`].
//!
//! Source: Cuturi 2013, arXiv 1306.0895; Caron et al. 2020, arXiv 2006.09882, section 3; Oquab et al. 2023, arXiv
//! 2304.07193, section 4, with three steps.

mod case;
mod launch;
mod reference;
#[cfg(test)]
pub(crate) mod tests;

pub use case::{case, cases, counted_case};

use crate::ops::teacher::{Across, Reduce, Teacher, check, check_count, counted};
use crate::{DType, Device, Error, Result, Tensor};

const OP: &str = "sinkhorn_knopp";

/// Steps that recipes use.
pub const ITERATIONS: usize = 3;

/// Extents checked once, used by reference and launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dims {
    rows: usize,
    cols: usize,
}

/// Teacher probabilities of `logits: [rows, K]` at temperature `temp: [1]` after `iterations` steps. The batch is the first
/// `count` rows, see [`Teacher`], all without.
///
/// dtypes of `logits`: f32, f16, and bf16 for those who accept its rounding, which changes single probabilities by
/// percents (f64 on the CPU); `temp` is f32 in device memory, so that a recorded step reads the present one. No gradient.
/// Deterministic. Any number of rows.
///
/// # Errors
/// When shapes or dtypes do not fit, there is no prototype, `iterations` is 0, or host memory holds a count of more rows
/// than there are.
pub fn sinkhorn_knopp(logits: &Tensor, temp: &Tensor, iterations: usize, count: Option<&Tensor>) -> Result<Teacher> {
    solve(logits, temp, iterations, count, None)
}

/// [`sinkhorn_knopp`] of a batch whose rows are spread over processes, with the result it has for all
/// rows together: prototypes share their masses, rows stay where they are. `across` is called for one maximum and
/// `iterations` sums of `K` numbers.
pub fn sinkhorn_knopp_across(
    logits: &Tensor,
    temp: &Tensor,
    iterations: usize,
    count: Option<&Tensor>,
    across: &mut Across<'_>,
) -> Result<Teacher> {
    solve(logits, temp, iterations, count, Some(across))
}

fn solve(
    logits: &Tensor,
    temp: &Tensor,
    iterations: usize,
    count: Option<&Tensor>,
    across: Option<&mut Across<'_>>,
) -> Result<Teacher> {
    let [rows, cols] = check(OP, logits, temp)?;
    check_count(OP, count, rows, logits)?;
    if iterations == 0 {
        return Err(Error::value(OP, "iterations", iterations, "at least 1"));
    }
    let dims = Dims { rows, cols };
    let (acc, device) = (logits.dtype().accumulate(), logits.device());
    let mut factors = Factors {
        prototypes: Tensor::uninit([cols], acc, device)?,
        rows: Tensor::uninit([rows], acc, device)?,
        mass: Tensor::uninit([cols], acc, device)?,
    };
    match device {
        Device::Cpu => {
            let count = counted(count, rows)?;
            run(&mut reference::Host { logits, temp, count }, &mut factors, iterations, across)?;
        }
        _ => run(&mut launch::Kernels::new(logits, temp, count, dims)?, &mut factors, iterations, across)?,
    }
    Teacher::new(logits.clone(), temp.clone(), factors.prototypes, factors.rows)
}

/// What the steps write.
struct Factors {
    prototypes: Tensor,
    rows: Tensor,
    /// Of each prototype, `[K]`: first its maximum, then relative to the factors so far.
    mass: Tensor,
}

/// The parts of a step, as each device does them.
trait Steps {
    /// `a = -max_b(Z / T)`; `combine` makes the maximum that of all processes.
    fn start(&mut self, f: &mut Factors, combine: &mut Across<'_>) -> Result<()>;
    /// Masses of the first step, relative to the maxima.
    fn first_masses(&mut self, f: &mut Factors) -> Result<()>;
    /// `l` of all rows and the masses with it.
    fn masses(&mut self, f: &mut Factors) -> Result<()>;
    /// `l` of all rows.
    fn rows(&mut self, f: &mut Factors) -> Result<()>;
    /// `a -= ln mass`
    fn prototypes(&mut self, f: &mut Factors) -> Result<()>;
}

fn run(steps: &mut dyn Steps, f: &mut Factors, iterations: usize, across: Option<&mut Across<'_>>) -> Result<()> {
    let mut alone = |_: Reduce, _: &mut Tensor| Ok(());
    let across = across.unwrap_or(&mut alone);
    steps.start(f, across)?;
    for step in 0..iterations {
        if step == 0 {
            steps.first_masses(f)?;
        } else {
            steps.masses(f)?;
        }
        across(Reduce::Sum, &mut f.mass)?;
        steps.prototypes(f)?;
    }
    steps.rows(f)
}

/// Bytes that [`sinkhorn_knopp`] holds at most beside logits and temperature, its result (4 bytes per
/// prototype and row) included: on the CPU 4 more per prototype, for its mass; on other devices also 8 for each part of
/// the rows (at most 264 blocks, and 16 rows or more to a part) and 8 for each row and tile of columns (4096 of 16 bits,
/// 2048 of 32).
pub fn workspace_bytes(rows: usize, cols: usize, dtype: DType, device: &Device) -> Result<usize> {
    let held = dtype.accumulate().size() * (2 * cols + rows);
    Ok(held + if *device == Device::Cpu { 0 } else { launch::bytes(rows, cols, dtype)? })
}
