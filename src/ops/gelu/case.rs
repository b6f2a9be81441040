//! Shapes of GELU in the recipes.

use super::{Form, gelu};
use crate::DType;
use crate::ops::{Case, Fill, Input};

/// `x: [rows, cols]`.
pub fn case(rows: usize, cols: usize) -> Case {
    form_case(rows, cols, Form::Erf)
}

/// In either form.
pub fn form_case(rows: usize, cols: usize, form: Form) -> Case {
    let inputs = vec![Input::normal("x", [rows, cols]).filled(Fill::Normal(0.0, 2.0))];
    let id = format!("{rows}x{cols}{}", if form == Form::Tanh { "-tanh" } else { "" });
    Case::new("gelu", id, inputs, move |tape, v| Ok(vec![gelu(tape, &v[0], form)?]))
        .bytes(move |dtype: DType| (2 * rows * cols * dtype.size()) as u64)
}

/// Hidden layers of the MAE encoders ViT-L and ViT-B and of the decoder, and of SigLIP B/16 and So400m/14.
pub fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = [(12800, 4096), (12800, 3072), (50432, 2048)].map(|(r, c)| case(r, c)).into();
    cases.extend([(50176, 3072), (46656, 4304)].map(|(r, c)| form_case(r, c, Form::Tanh)));
    cases
}
