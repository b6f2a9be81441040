//! Shapes of weight normalisation in the recipes.

use super::weight_norm;
use crate::DType;
use crate::ops::{Case, Fill, Input};

/// `v: [rows, cols]`, `g: [rows, 1]`.
pub fn case(rows: usize, cols: usize) -> Case {
    let inputs = vec![
        Input::param("v", [rows, cols]).filled(Fill::Uniform(-0.5, 0.5)),
        Input::param("g", [rows, 1]).filled(Fill::Normal(1.0, 0.2)),
    ];
    Case::new("weight_norm", format!("{rows}x{cols}"), inputs, |tape, v| {
        Ok(vec![weight_norm(tape, &v[0], Some(&v[1]))?])
    })
    .bytes(move |dtype: DType| (2 * rows * cols * dtype.size() + rows * (dtype.size() + 4)) as u64)
    .terms(cols)
}

/// Last layers of the heads of DINOv2: both of ViT-L/14 and ViT-g/14, and the shared one.
pub fn cases() -> Vec<Case> {
    [(131_072, 384), (131_072, 256), (65_536, 256)].map(|(r, c)| case(r, c)).into()
}
