//! Shapes of the decoder's input in the recipes.

use super::masked_scatter;
use crate::DType;
use crate::ops::{Case, Fill, Input, indices};

/// `keep` of `len` patches in each of `batch` images, with all gradients.
pub fn case(batch: usize, len: usize, keep: usize, cols: usize) -> Case {
    let restore = indices::example(batch, len, keep).restore;
    let inputs = vec![
        Input::normal("z", [batch * (keep + 1), cols]),
        Input::param("mask_token", [1, 1, cols]),
        Input::param("pos_embed", [1, len + 1, cols]),
        Input::constant("ids_restore", [batch, len], Fill::I32(restore)),
    ];
    Case::new("masked_scatter", format!("{batch}x{keep}of{len}x{cols}"), inputs, |tape, v| {
        Ok(vec![masked_scatter(tape, &v[0], &v[1], &v[2], v[3].value())?])
    })
    .terms(batch * len)
    .bytes(move |dtype: DType| {
        let rows = batch * (keep + 1) + batch * (len + 1) + len + 2; // z, y, positions and mask token
        (rows * cols * dtype.size() + 4 * batch * len) as u64
    })
}

/// MAE decoder, ViT-L/16 and ViT-H/14.
pub fn cases() -> Vec<Case> {
    vec![case(256, 196, 49, 512), case(256, 256, 64, 512)]
}
