//! Shapes of row gathering in the recipes.

use super::gather_rows;
use crate::DType;
use crate::ops::{Case, Fill, Input, indices};

/// `picked` random rows of `x: [rows, cols]`.
pub fn case(rows: usize, picked: usize, cols: usize) -> Case {
    let ids = indices::example(1, rows, picked).keep;
    let inputs = vec![Input::normal("x", [rows, cols]), Input::constant("ids", [picked], Fill::I32(ids))];
    Case::new("gather_rows", format!("{picked}of{rows}x{cols}"), inputs, |tape, v| {
        Ok(vec![gather_rows(tape, &v[0], v[1].value())?])
    })
    .bytes(move |dtype: DType| (2 * picked * cols * dtype.size() + 4 * picked) as u64)
}

/// Class rows of an MAE fine-tuning batch and masked rows of its decoder, batch 256.
pub fn cases() -> Vec<Case> {
    vec![case(256 * 197, 256, 1024), case(256 * 197, 256 * 147, 512)]
}
