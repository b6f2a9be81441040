//! Residual connection through LayerScale and stochastic depth, over packed sequences.
//!
//! `y[t] = x[t] + s[q(r)] · γ ⊙ branch[r]` where row `r` of the branch belongs to token `t` and to sequence `q(r)`, and
//! `y[t] = x[t]` where the branch has no row for the token. `dbranch[r] = s[q(r)] · γ ⊙ dy[t(r)]`,
//! `dγ = Σ_r s[q(r)] · dy[t(r)] ⊙ branch[r]`, `dx = dy`.
//!
//! Source: LayerScale: Touvron et al. 2021, arXiv 2103.17239, equation 7. Stochastic depth: Huang et al. 2016, arXiv
//! 1603.09382; by factors per sequence, or computing the branch for a subset of the sequences alone, whose rows come back
//! with the factor `sequences / kept`: Oquab et al. 2023, arXiv 2304.07193, section 4.

mod case;
mod launch;
mod reference;
mod rows;
#[cfg(test)]
mod tests;

pub use case::{case, cases, subset_case};
pub use rows::RowMap;

use crate::ops::{float, on, same, shaped, typed};
use crate::{Device, Error, Result, Tape, Tensor, Var};

const OP: &str = "layer_scale";

/// Where rows of the branch go and the factor of each sequence: `scale: [sequences of the map]`, f32.
pub type Drop<'a> = (&'a RowMap, &'a Tensor);

/// Extents checked once, used by reference and launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dims {
    tokens: usize,
    /// Rows of the branch.
    rows: usize,
    cols: usize,
}

impl Dims {
    fn check(branch: &Tensor, gamma: Option<&Tensor>, drop: Option<Drop>) -> Result<Self> {
        float(OP, "branch", branch)?;
        let [rows, cols] = branch.dims(OP, "branch")?;
        if let Some(gamma) = gamma {
            shaped(OP, "gamma", gamma, &[cols])?;
            same(OP, "gamma", gamma, branch)?;
        }
        let Some((map, scale)) = drop else { return Ok(Self { tokens: rows, rows, cols }) };
        if map.rows() != rows {
            return Err(Error::shape(OP, "branch", branch.shape(), format!("{} rows, as the map has", map.rows())));
        }
        on(OP, "map", map.sequence(), branch)?;
        shaped(OP, "scale", scale, &[map.sequences()])?;
        typed(OP, "scale", scale, branch.dtype().accumulate())?;
        on(OP, "scale", scale, branch)?;
        Ok(Self { tokens: map.tokens(), rows, cols })
    }

    fn check_stream(self, arg: &'static str, x: &Tensor, branch: &Tensor) -> Result<Self> {
        shaped(OP, arg, x, &[self.tokens, self.cols])?;
        same(OP, arg, x, branch)?;
        Ok(self)
    }
}

/// `x: [T, D]` plus `branch: [R, D]`, each row scaled by `gamma: [D]` (1 without) and by its sequence's factor, put where
/// the map of `drop` says; without `drop`, `R = T` and the factor is 1. Returns `[T, D]`.
///
/// dtypes: f32, bf16, f16 (f64 on the CPU), the same for `x`, `branch` and `gamma`. Saves `branch` and `gamma`, with
/// `drop` 4 bytes per sequence and 4 to 8 per row. The gradient of `gamma` is f32 and summed in a fixed order: deterministic.
/// One pass forward, one pass and a short sum backward.
///
/// # Errors
/// When shapes, dtypes or devices do not fit each other or the map.
pub fn layer_scale(tape: &Tape, x: &Var, branch: &Var, gamma: Option<&Var>, drop: Option<Drop>) -> Result<Var> {
    let y = forward(x.value(), branch.value(), gamma.map(Var::value), drop)?;
    let (to_x, to_branch, to_gamma) = (x.slot(), branch.slot(), gamma.and_then(Var::slot));
    let inputs: Vec<&Var> = [Some(x), Some(branch), gamma].into_iter().flatten().collect();
    let (gamma, drop) = (gamma.map(|g| g.value().clone()), drop.map(|(map, scale)| (map.clone(), scale.clone())));
    Ok(tape.record(OP, y, &inputs, [branch.value().clone()], move |dy, [branch], grads| {
        if to_branch.is_some() || to_gamma.is_some() {
            let drop = drop.as_ref().map(|(map, scale)| (map, scale));
            let (dbranch, dgamma) = backward(&dy, &branch, gamma.as_ref(), drop)?;
            grads.add(to_branch, dbranch)?;
            if let Some(dgamma) = dgamma {
                grads.add(to_gamma, dgamma)?;
            }
        }
        grads.add(to_x, dy)
    }))
}

/// `y: [T, D]`.
pub fn forward(x: &Tensor, branch: &Tensor, gamma: Option<&Tensor>, drop: Option<Drop>) -> Result<Tensor> {
    let dims = Dims::check(branch, gamma, drop)?.check_stream("x", x, branch)?;
    let mut y = Tensor::uninit_like(x)?;
    match x.device() {
        Device::Cpu => reference::forward(x, branch, gamma, drop, dims, &mut y)?,
        _ => launch::forward(x, branch, gamma, drop, dims, &mut y)?,
    }
    Ok(y)
}

/// Gradients by `branch` (in its dtype) and, if there is one, by `gamma` (f32); that by `x` is `dy` itself.
pub fn backward(
    dy: &Tensor,
    branch: &Tensor,
    gamma: Option<&Tensor>,
    drop: Option<Drop>,
) -> Result<(Tensor, Option<Tensor>)> {
    let dims = Dims::check(branch, gamma, drop)?.check_stream("dy", dy, branch)?;
    let mut dbranch = Tensor::uninit_like(branch)?;
    let weight = |_| Tensor::uninit([dims.cols], branch.dtype().accumulate(), branch.device());
    let mut dgamma = gamma.map(weight).transpose()?;
    match dy.device() {
        Device::Cpu => reference::backward(dy, branch, gamma, drop, dims, &mut dbranch, dgamma.as_mut())?,
        _ => launch::backward(dy, branch, gamma, drop, dims, &mut dbranch, dgamma.as_mut())?,
    }
    Ok((dbranch, dgamma))
}
