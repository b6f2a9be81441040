//! Rows of a table by index, with repetition, and their sum with what is there already: token and position embeddings.
//!
//! `y[m] = table[ids[m]]`, or `y[m] = x[m] + table[ids[m]]`. Gradients: `dtable[v] = Σ dy[m]` over the `m` with
//! `ids[m] = v`, zero where there is none, and `dx = dy`.
//!
//! The sums follow `order`, the positions sorted by their index, which is made with the indices on the host: a row has its
//! sources side by side, in a fixed order, and a row that half of a batch asks for (padding) is summed in parts.
//!
//! Source: Mikolov et al. 2013, arXiv 1301.3781, section 2 (a projection layer shared by positions); positions that are added:
//! Vaswani et al. 2017, arXiv 1706.03762, section 3.5.

mod case;
mod launch;
mod lookup;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases};
pub use lookup::Lookup;

use crate::ops::{float, on, same, shaped};
use crate::{Device, Error, Result, Tape, Tensor, Var};

const OP: &str = "embedding";

/// Extents checked once, used by reference and launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dims {
    /// Rows of the table.
    rows: usize,
    /// Rows of `y`.
    picked: usize,
    cols: usize,
}

impl Dims {
    fn check(rows: usize, cols: usize, lookup: &Lookup, like: &Tensor) -> Result<Self> {
        on(OP, "ids", lookup.ids(), like)?;
        if lookup.rows() != rows {
            let expected = format!("{} rows, as the indices were made for", lookup.rows());
            return Err(Error::argument(OP, "table", "length", rows.to_string(), expected));
        }
        Ok(Self { rows, picked: lookup.len(), cols })
    }
}

/// Rows `lookup` of `table: [V, D]`, added to `x: [M, D]` if there is one; returns `[M, D]`.
///
/// dtypes: f32, bf16, f16 (f64 on the CPU), one for all. Saves the indices. The table's gradient is summed in f32 and
/// computed only when wanted; that by `x` is `dy` itself. Deterministic.
///
/// # Errors
/// When the indices were made for a table of another length, or shapes, dtypes or devices do not fit. Indices out of range
/// are found when a [`Lookup`] is made.
pub fn embedding(tape: &Tape, table: &Var, lookup: &Lookup, x: Option<&Var>) -> Result<Var> {
    let y = forward(table.value(), lookup, x.map(Var::value))?;
    let (to_table, to_x) = (table.slot(), x.and_then(Var::slot));
    let rows = lookup.rows();
    let inputs: Vec<&Var> = [Some(table), x].into_iter().flatten().collect();
    Ok(tape.record(OP, y, &inputs, lookup.parts(), move |dy, parts, grads| {
        if to_table.is_some() {
            grads.add(to_table, backward(&dy, &Lookup::of(parts, rows))?)?;
        }
        grads.add(to_x, dy)
    }))
}

/// `y: [M, D]`.
pub fn forward(table: &Tensor, lookup: &Lookup, x: Option<&Tensor>) -> Result<Tensor> {
    float(OP, "table", table)?;
    let [rows, cols] = table.dims(OP, "table")?;
    let dims = Dims::check(rows, cols, lookup, table)?;
    if let Some(x) = x {
        shaped(OP, "x", x, &[dims.picked, cols])?;
        same(OP, "x", x, table)?;
    }
    let mut y = Tensor::uninit([dims.picked, cols], table.dtype(), table.device())?;
    match table.device() {
        Device::Cpu => reference::forward(table, lookup, x, dims, &mut y)?,
        _ => launch::forward(table, lookup, x, dims, &mut y)?,
    }
    Ok(y)
}

/// Gradient by the table, `[V, D]` in f32 (f64 for f64).
pub fn backward(dy: &Tensor, lookup: &Lookup) -> Result<Tensor> {
    float(OP, "dy", dy)?;
    let [_, cols] = dy.dims(OP, "dy")?;
    let dims = Dims::check(lookup.rows(), cols, lookup, dy)?;
    shaped(OP, "dy", dy, &[dims.picked, cols])?;
    let mut dtable = Tensor::zeros([dims.rows, cols], dy.dtype().accumulate(), dy.device())?;
    match dy.device() {
        Device::Cpu => reference::backward(dy, lookup, dims, &mut dtable)?,
        _ => launch::backward(dy, lookup, dims, &mut dtable)?,
    }
    Ok(dtable)
}
