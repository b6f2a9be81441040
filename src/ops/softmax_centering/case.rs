//! Shapes of teacher logits in the recipes.

use super::softmax_centering;
use crate::ops::{Case, Fill, Input};
use crate::{DType, Var};

/// `logits: [rows, cols]` at temperature `temp`; gives the logarithms of the factors and the mean.
pub fn case(rows: usize, cols: usize, temp: f64) -> Case {
    counted(format!("{rows}x{cols}-t{temp}"), [rows, cols], None, temp)
}

/// The same of a batch that is the first `count` rows.
pub fn counted_case(rows: usize, count: usize, cols: usize, temp: f64) -> Case {
    counted(format!("{count}of{rows}x{cols}-t{temp}"), [rows, cols], Some(count), temp)
}

fn counted(id: String, [rows, cols]: [usize; 2], count: Option<usize>, temp: f64) -> Case {
    let mut inputs = vec![
        Input::constant("logits", [rows, cols], Fill::Normal(0.1, 0.3)),
        Input::constant("temp", [1], Fill::Acc(vec![temp])),
        Input::constant("centre", [cols], Fill::AccNormal(0.0, 0.1)),
    ];
    inputs.extend(count.map(|n| Input::constant("count", [1], Fill::I32(vec![n as i32]))));
    let rows = count.unwrap_or(rows);
    Case::new("softmax_centering", id, inputs, move |_, v| {
        let count = v.get(3).map(Var::value);
        let (teacher, mean) = softmax_centering(v[0].value(), v[1].value(), v[2].value(), count)?;
        Ok([teacher.prototypes, teacher.rows, mean].map(Var::constant).into())
    })
    .bytes(move |dtype: DType| (rows * cols * dtype.size() + 4 * (rows + 3 * cols)) as u64)
    .terms(rows + cols)
}

/// DINOv2 ViT-L/16: class tokens and masked patches of 64 images.
pub fn cases() -> Vec<Case> {
    [[128, 65_536], [3725, 65_536]].map(|[r, k]| case(r, k, 0.07)).into()
}
