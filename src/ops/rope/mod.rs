//! Rotary position embedding by a table, in its axial form for grids.
//!
//! Pairs of neighbouring channels are complex numbers: `(y₂ₖ, y₂ₖ₊₁) = (x₂ₖ, x₂ₖ₊₁) · (cos φ + i sin φ)`, φ the angle of
//! channel `k` at the token's position. In the axial table of a grid `W` wide the first half of the `d/2` angles are
//! `(t mod W) · f_k`, the second `(t div W) · f_k`, with `f_k = θ^(-4k/d)` for `k < d/4`. The gradient is the rotation back.
//!
//! Source: Su et al. 2021, arXiv 2104.09864, equation 34; axial with θ = 10000, repeated over the frames of the keys and
//! without the last of them, in the memory attention of Ravi et al. 2024, arXiv 2408.00714, appendix C.

mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases};

use crate::ops::{float, on, typed};
use crate::{Device, Error, Result, Tape, Tensor, Var};

const OP: &str = "rope";

/// Extents checked once, used by reference and launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dims {
    tokens: usize,
    /// Of a token's parts, those that are there and those that are rotated.
    parts: usize,
    rotated: usize,
    heads: usize,
    dim: usize,
    positions: usize,
    sequence: usize,
    excluded: usize,
}

impl Dims {
    fn check(x: &Tensor, table: &Tensor, Place { sequence, excluded }: Place) -> Result<Self> {
        float(OP, "x", x)?;
        let [tokens, parts, heads, dim] = x.dims(OP, "x")?;
        let [positions, pairs, two] = table.dims(OP, "table")?;
        if two != 2 || 2 * pairs != dim || positions == 0 {
            let expected = format!("[positions, {}, 2] for {dim} channels of a head", dim / 2);
            return Err(Error::shape(OP, "table", table.shape(), expected));
        }
        typed(OP, "table", table, x.dtype().accumulate())?;
        on(OP, "table", table, x)?;
        if sequence == 0 || tokens % sequence != 0 {
            return Err(Error::value(OP, "sequence", sequence, format!("a divisor of {tokens}, the number of tokens")));
        }
        if excluded > sequence || (sequence - excluded) % positions != 0 {
            let expected = format!("so many that a multiple of {positions}, the positions, is left of {sequence}");
            return Err(Error::value(OP, "excluded", excluded, expected));
        }
        Ok(Self { tokens, parts, rotated: parts.min(2), heads, dim, positions, sequence, excluded })
    }

    /// Position of a token; none if it is not rotated.
    fn position(self, token: usize) -> Option<usize> {
        let at = token % self.sequence;
        (at < self.sequence - self.excluded).then(|| at % self.positions)
    }
}

/// Where the tokens are in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Tokens of a sequence. Its positions are those of the table, repeated as often as they fit.
    pub sequence: usize,
    /// Tokens at the end of each sequence that are not rotated.
    pub excluded: usize,
}

/// Rotates the first two parts (queries and keys) of `x: [tokens, 3, heads, dim]`, or all of `[tokens, 1, heads, dim]`, by
/// `table: [positions, dim / 2, 2]` of cosines and sines; returns the shape of `x`.
///
/// Written over `x` where nobody else holds it, else into a copy. dtypes: f32, bf16, f16 (f64 on the CPU); the table is
/// f32. Saves nothing but the table. Deterministic.
///
/// # Errors
/// When the table does not fit the heads, or the positions do not fit the tokens.
pub fn rope(tape: &Tape, mut x: Var, table: &Tensor, place: Place) -> Result<Var> {
    rotate(x.value_mut(), table, place, Direction::Forward)?;
    let (y, to_x) = (x.value().clone(), x.slot());
    Ok(tape.record(OP, y, &[&x], [table.clone()], move |mut dy, [table], grads| {
        rotate(&mut dy, &table, place, Direction::Back)?;
        grads.add(to_x, dy)
    }))
}

/// Of the rotation: with the angles, or against them for the gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// By the angles.
    Forward,
    /// By the opposite angles.
    Back,
}

/// Rotates `x` in place; one that is shared is replaced by its rotated copy.
pub fn rotate(x: &mut Tensor, table: &Tensor, place: Place, direction: Direction) -> Result<()> {
    let dims = Dims::check(x, table, place)?;
    if x.storage_mut(OP).is_err() {
        *x = x.deep_clone()?;
    }
    match x.device() {
        Device::Cpu => reference::rotate(x, table, direction, dims),
        _ => launch::rotate(x, table, direction, dims),
    }
}

/// The axial table `[width · height, dim / 2, 2]` of a grid for heads of `dim` channels, f32.
///
/// # Errors
/// When `dim` is not a multiple of 4.
pub fn axial_table(dim: usize, width: usize, height: usize, theta: f64, device: &Device) -> Result<Tensor> {
    if dim == 0 || !dim.is_multiple_of(4) {
        return Err(Error::value(OP, "dim", dim, "a multiple of 4"));
    }
    let values: Vec<f32> =
        axial_angles(dim, width, height, theta).flat_map(|a| [a.cos() as f32, a.sin() as f32]).collect();
    Tensor::from_slice(&values, [width * height, dim / 2, 2], device)
}

fn axial_angles(dim: usize, width: usize, height: usize, theta: f64) -> impl Iterator<Item = f64> {
    let quarter = dim / 4;
    let frequency = move |k: usize| theta.powf(-4.0 * k as f64 / dim as f64);
    (0..width * height).flat_map(move |t| {
        let along = move |at: usize| (0..quarter).map(move |k| at as f64 * frequency(k));
        along(t % width).chain(along(t / width))
    })
}
