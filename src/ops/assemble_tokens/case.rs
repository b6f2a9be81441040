//! Shapes of the encoder's input in the recipes.

use super::assemble_tokens;
use crate::DType;
use crate::ops::{Case, Fill, Input, indices};

/// `keep` of `len` patches in each of `batch` images, with all gradients.
pub fn case(batch: usize, len: usize, keep: usize, cols: usize) -> Case {
    let m = indices::example(batch, len, keep);
    let inputs = vec![
        Input::normal("patches", [batch * keep, cols]),
        Input::param("cls_token", [1, 1, cols]),
        Input::param("pos_embed", [1, len + 1, cols]),
        Input::constant("ids_keep", [batch, keep], Fill::I32(m.keep)),
        Input::constant("ids_restore", [batch, len], Fill::I32(m.restore)),
    ];
    Case::new("assemble_tokens", format!("{batch}x{keep}of{len}x{cols}"), inputs, |tape, v| {
        Ok(vec![assemble_tokens(tape, &v[0], &v[1], &v[2], v[3].value(), v[4].value())?])
    })
    .terms(batch)
    .bytes(move |dtype: DType| {
        let rows = batch * keep + batch * (keep + 1) + len + 2; // patches, tokens, positions and class token
        (rows * cols * dtype.size() + 4 * batch * keep) as u64
    })
}

/// MAE pre-training ViT-L/16 and ViT-H/14, fine-tuning ViT-B/16 on all patches.
pub fn cases() -> Vec<Case> {
    vec![case(256, 196, 49, 1024), case(256, 256, 64, 1280), case(128, 196, 196, 768)]
}
