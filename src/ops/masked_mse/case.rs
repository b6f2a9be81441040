//! Shapes of the reconstruction loss in the recipes.

use super::masked_mse;
use crate::DType;
use crate::ops::{Case, Fill, Input, indices};

/// Scores all but `keep` patches of side `p` of each of `batch` images of `channels` channels and `hg x wg` patches.
pub fn case(bytes: bool, [batch, channels, hg, wg]: [usize; 4], p: usize, keep: usize, norm_pix: bool) -> Case {
    let (shape, values) = ([batch, channels, hg * p, wg * p], channels * p * p);
    let (ids, scored) = (indices::example(batch, hg * wg, keep).masked, hg * wg - keep);
    let fill = if bytes { Fill::U8 } else { Fill::Normal(0.5, 1.0) };
    let inputs = vec![
        Input::normal("pred", [batch * scored, values]),
        Input::constant("images", shape, fill),
        Input::constant("norm", [2, channels], Fill::AccUniform(0.2, 0.6)),
        Input::constant("ids", [batch, scored], Fill::I32(ids)),
    ];
    let kind = format!("{}{}", if bytes { "u8" } else { "float" }, if norm_pix { "-norm" } else { "" });
    let id = format!("{kind}-{batch}x{channels}x{hg}x{wg}-p{p}-m{scored}");
    Case::new("masked_mse", id, inputs, move |tape, v| {
        let (norm, ids) = (Some(v[2].value()), v[3].value());
        Ok(vec![masked_mse(tape, &v[0], v[1].value(), norm, ids, p, norm_pix)?])
    })
    .terms(batch * scored * values)
    .bytes(move |dtype: DType| {
        let pixel = if bytes { 1 } else { dtype.size() };
        (batch * scored * (values * (pixel + dtype.size()) + 4)) as u64
    })
}

/// MAE pre-training at 224 pixels, ViT-L/16 and ViT-H/14, normalised targets.
pub fn cases() -> Vec<Case> {
    vec![
        case(true, [256, 3, 14, 14], 16, 49, true),
        case(false, [256, 3, 14, 14], 16, 49, true),
        case(true, [256, 3, 16, 16], 14, 64, true),
    ]
}
