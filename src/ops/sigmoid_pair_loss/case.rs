//! Shapes of the pair loss in the recipes.

use super::{Block, sigmoid_pair_loss};
use crate::DType;
use crate::ops::{Case, Fill, Input, Role};

/// All pairs of `n` rows with `n` others of width `dim`, at SigLIP's first temperature and bias.
pub fn case(n: usize, dim: usize) -> Case {
    build(format!("{n}x{dim}"), [n, n], dim, [10f64.ln(), -10.0], move |tape, v| {
        let (loss, logits) = sigmoid_pair_loss(tape, &v[0], &v[1], &v[2], &v[3], Block::whole(n))?;
        Ok(vec![loss, crate::Var::constant(logits)])
    })
}

/// `rows x cols` pairs with a log scale and a bias.
pub(super) fn build(
    id: String,
    [rows, cols]: [usize; 2],
    dim: usize,
    [log_scale, bias]: [f64; 2],
    run: impl Fn(&crate::Tape, &[crate::Var]) -> crate::Result<Vec<crate::Var>> + Send + Sync + 'static,
) -> Case {
    let embeddings = Fill::Normal(0.0, (dim.max(1) as f64).powf(-0.5)); // rows of a length near 1
    let number = |name, value| Input { role: Role::Param, ..Input::constant(name, [1], Fill::Acc(vec![value])) };
    let inputs = vec![
        Input::normal("x", [rows, dim]).filled(embeddings.clone()),
        Input::normal("y", [cols, dim]).filled(embeddings),
        number("log_scale", log_scale),
        number("bias", bias),
    ];
    Case::new("sigmoid_pair_loss", id, inputs, run)
        .bytes(move |dtype: DType| ((rows + cols) * dim * dtype.size() + 24) as u64)
        .flops(2 * (rows * cols * dim) as u64)
        .terms(rows.max(cols).max(dim))
}

/// SigLIP B/16 at batch sizes 4096 and 32768.
pub fn cases() -> Vec<Case> {
    [(4096, 768), (32768, 768)].map(|(n, dim)| case(n, dim)).into()
}
