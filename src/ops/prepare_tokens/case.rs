//! Shapes of the encoder's input in the recipes.

use super::{Part, prepare_tokens};
use crate::DType;
use crate::ops::{Case, Fill, Input};

/// Arguments of each part.
const NAMES: [[&str; 2]; 3] = [["patches", "pos_embed"], ["patches_1", "pos_embed_1"], ["patches_2", "pos_embed_2"]];

/// `parts`, at most three: images and patches of each; the first part has masks that hide about a third.
pub fn case(parts: &[[usize; 2]], registers: usize, cols: usize) -> Case {
    let mut inputs = vec![Input::param("cls_token", [1, 1, cols]), Input::param("mask_token", [1, cols])];
    for (&[images, len], [patches, pos_embed]) in parts.iter().zip(NAMES) {
        inputs.push(Input::normal(patches, [images * len, cols]));
        inputs.push(Input::param(pos_embed, [1, 1 + len, cols]));
    }
    let [images, len] = parts.first().copied().unwrap_or_default();
    let hidden = (0..images * len).map(|i| i32::from(i * 7 % 3 == 1)).collect();
    inputs.push(Input::constant("masks", [images, len], Fill::I32(hidden)));
    if registers > 0 {
        inputs.push(Input::param("register_tokens", [1, registers, cols]));
    }
    let id = parts.iter().map(|[images, len]| format!("{images}x{len}+")).collect::<String>();
    let count = parts.len();
    Case::new("prepare_tokens", format!("{id}{registers}x{cols}"), inputs, move |tape, v| {
        let masks = v[2 + 2 * count].value();
        let part =
            |i: usize| Part { patches: &v[2 + 2 * i], pos_embed: &v[3 + 2 * i], masks: (i == 0).then_some(masks) };
        let parts: Vec<Part> = (0..count).map(part).collect();
        Ok(vec![prepare_tokens(tape, &parts, &v[0], &v[1], v.get(3 + 2 * count))?])
    })
    .terms(parts.iter().map(|[images, len]| images * len).max().unwrap_or(1))
    .bytes({
        let rows: usize = parts.iter().map(|[n, len]| n * (2 * len + 1 + registers) + len + 1).sum();
        move |dtype: DType| (rows * cols * dtype.size() + 4 * images * len) as u64
    })
}

/// DINOv2's crops: ViT-L/14 with 32 images, and with registers; ViT-g/14 with 12.
pub fn cases() -> Vec<Case> {
    vec![
        case(&[[64, 256], [256, 49]], 0, 1024),
        case(&[[64, 256], [256, 49]], 4, 1024),
        case(&[[24, 256], [96, 49]], 0, 1536),
    ]
}
