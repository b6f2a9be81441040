//! Shapes of batch normalisation in the recipes.

use super::{batch_norm, normalize};
use crate::DType;
use crate::Var;
use crate::ops::{Case, Fill, Input, Role};

fn x(rows: usize, cols: usize) -> Input {
    Input::normal("x", [rows, cols]).filled(Fill::Normal(0.5, 2.0))
}

/// `x: [rows, cols]`; the normalised rows, mean and variance.
pub fn case(rows: usize, cols: usize) -> Case {
    Case::new("batch_norm", format!("{rows}x{cols}"), vec![x(rows, cols)], |tape, v| {
        let (y, mean, var) = batch_norm(tape, &v[0], 1e-6)?;
        Ok(vec![y, Var::constant(mean), Var::constant(var)])
    })
    .bytes(move |dtype: DType| (2 * rows * cols * dtype.size() + 8 * cols) as u64)
    .terms(rows)
}

/// `x: [rows, cols]` with given statistics.
pub fn normalize_case(rows: usize, cols: usize) -> Case {
    let inputs = vec![
        Input { role: Role::Constant, ..x(rows, cols) },
        Input::constant("mean", [cols], Fill::AccNormal(0.5, 0.1)),
        Input::constant("var", [cols], Fill::AccUniform(3.0, 5.0)),
    ];
    Case::new("batch_norm", format!("{rows}x{cols}-normalize"), inputs, |_, v| {
        Ok(vec![Var::constant(normalize(v[0].value(), v[1].value(), v[2].value(), 1e-6)?)])
    })
    .bytes(move |dtype: DType| (2 * rows * cols * dtype.size() + 8 * cols) as u64)
}

/// Linear probe of ViT-B and ViT-L at batch size 16384.
pub fn cases() -> Vec<Case> {
    vec![case(16384, 768), case(16384, 1024), normalize_case(16384, 1024)]
}
