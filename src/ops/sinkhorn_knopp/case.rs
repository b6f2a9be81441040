//! Shapes of teacher logits in the recipes.

use super::{ITERATIONS, sinkhorn_knopp};
use crate::ops::{Case, Fill, Input};
use crate::{DType, Var};

/// `logits: [rows, cols]` at temperature `temp`; gives the logarithms of the factors.
pub fn case(rows: usize, cols: usize, temp: f64, iterations: usize) -> Case {
    counted(format!("{rows}x{cols}-t{temp}-n{iterations}"), [rows, cols], None, temp, iterations)
}

/// The same of a batch that is the first `count` rows.
pub fn counted_case(rows: usize, count: usize, cols: usize, temp: f64, iterations: usize) -> Case {
    counted(format!("{count}of{rows}x{cols}-t{temp}-n{iterations}"), [rows, cols], Some(count), temp, iterations)
}

fn counted(id: String, [rows, cols]: [usize; 2], count: Option<usize>, temp: f64, iterations: usize) -> Case {
    let mut inputs = vec![
        Input::constant("logits", [rows, cols], Fill::Normal(0.0, 0.3)),
        Input::constant("temp", [1], Fill::Acc(vec![temp])),
    ];
    inputs.extend(count.map(|n| Input::constant("count", [1], Fill::I32(vec![n as i32]))));
    let rows = count.unwrap_or(rows);
    Case::new("sinkhorn_knopp", id, inputs, move |_, v| {
        let teacher = sinkhorn_knopp(v[0].value(), v[1].value(), iterations, v.get(2).map(Var::value))?;
        Ok(vec![Var::constant(teacher.prototypes), Var::constant(teacher.rows)])
    })
    .bytes(move |dtype: DType| ((iterations + 1) * rows * cols * dtype.size() + 4 * (rows + cols)) as u64)
    .terms((rows + cols) * iterations)
}

/// DINOv2 ViT-L/14: class tokens and masked patches of 32 images; the widest batch of 65536 prototypes. The bytes are
/// those of one read for the first masses and one per step.
pub fn cases() -> Vec<Case> {
    [[64, 131_072], [2458, 131_072], [4096, 65_536]].map(|[r, k]| case(r, k, 0.07, ITERATIONS)).into()
}
