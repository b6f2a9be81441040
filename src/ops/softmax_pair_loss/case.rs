//! Shapes of the softmax pair loss in the recipes.

use super::{Block, Sides, softmax_pair_loss};
use crate::DType;
use crate::ops::{Case, Fill, Input, Role};

/// All pairs of `n` rows with `n` others of width `dim`, at CLIP's first temperature.
pub fn case(n: usize, dim: usize) -> Case {
    build(format!("{n}x{dim}"), [n, n], dim, (1.0f64 / 0.07).ln(), move |tape, v| {
        let (loss, logits) = softmax_pair_loss(tape, &v[0], &v[1], &v[2], Block::whole(n), Sides::Both)?;
        Ok(vec![loss, crate::Var::constant(logits)])
    })
}

/// `rows x cols` pairs with a log scale.
pub(super) fn build(
    id: String,
    [rows, cols]: [usize; 2],
    dim: usize,
    log_scale: f64,
    run: impl Fn(&crate::Tape, &[crate::Var]) -> crate::Result<Vec<crate::Var>> + Send + Sync + 'static,
) -> Case {
    let embeddings = Fill::Normal(0.0, (dim.max(1) as f64).powf(-0.5)); // rows of a length near 1
    let inputs = vec![
        Input::normal("x", [rows, dim]).filled(embeddings.clone()),
        Input::normal("y", [cols, dim]).filled(embeddings),
        Input { role: Role::Param, ..Input::constant("log_scale", [1], Fill::Acc(vec![log_scale])) },
    ];
    Case::new("softmax_pair_loss", id, inputs, run)
        .bytes(move |dtype: DType| ((rows + cols) * dim * dtype.size() + 16) as u64)
        .flops(2 * (rows * cols * dim) as u64)
        .terms(rows.max(cols).max(dim))
}

/// The peer of SigLIP B/16 at a batch of 4096.
pub fn cases() -> Vec<Case> {
    vec![case(4096, 768)]
}
