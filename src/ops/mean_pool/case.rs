//! Shapes of mean pooling in the recipes.

use super::mean_pool;
use crate::DType;
use crate::ops::{Case, Input};

/// `batch` sequences of `rows` rows, of which `skip` are left out.
pub fn case(batch: usize, rows: usize, skip: usize, cols: usize) -> Case {
    let inputs = vec![Input::normal("x", [batch * rows, cols])];
    Case::new("mean_pool", format!("{batch}x{rows}-{skip}x{cols}"), inputs, move |tape, v| {
        Ok(vec![mean_pool(tape, &v[0], rows, skip)?])
    })
    .bytes(move |dtype: DType| (batch * (rows - skip + 1) * cols * dtype.size()) as u64)
    .terms(rows - skip)
}

/// MAE fine-tuning, ViT-B and ViT-L, batch 128.
pub fn cases() -> Vec<Case> {
    vec![case(128, 197, 1, 768), case(128, 197, 1, 1024)]
}
