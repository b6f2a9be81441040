//! Shapes of patch gathering in the recipes.

use super::masked_gather;
use crate::DType;
use crate::ops::gather_rows::gather_rows;
use crate::ops::{Case, Fill, Input, indices};

/// What the images of a case are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Images {
    /// Bytes.
    Bytes,
    /// Floats of the storage type, differentiated.
    Storage,
    /// f32 whatever the storage type, differentiated.
    Single,
}

/// `keep` patches of side `p` of each of `batch` images of `channels` channels and `hg x wg` patches.
pub fn case(images: Images, [batch, channels, hg, wg]: [usize; 4], p: usize, keep: usize, normalised: bool) -> Case {
    let (shape, values) = ([batch, channels, hg * p, wg * p], channels * p * p);
    let ids = indices::example(batch, hg * wg, keep).keep;
    let every: Vec<i32> = (0..batch).flat_map(|_| 0..(hg * wg) as i32).collect();
    let rows: Vec<i32> = ids.iter().enumerate().map(|(at, id)| (at / keep * hg * wg) as i32 + id).collect();
    let (image, kind) = match images {
        Images::Bytes => (Input::constant("images", shape, Fill::U8), "u8"),
        Images::Storage => (Input::normal("images", shape).filled(Fill::Normal(0.5, 1.0)), "float"),
        Images::Single => (Input::normal("images", shape).filled(Fill::AccNormal(0.5, 1.0)), "single"),
    };
    let inputs = vec![
        image,
        Input::constant("ids_keep", [batch, keep], Fill::I32(ids)),
        Input::constant("norm", [2, channels], Fill::AccUniform(0.2, 0.6)),
        Input::constant("like", [1], Fill::Normal(0.0, 1.0)), // names the storage type
        Input::constant("every", [batch, hg * wg], Fill::I32(every)), // composed: all patches, then the kept rows
        Input::constant("rows", [batch * keep], Fill::I32(rows)),
    ];
    let id = format!("{kind}-{batch}x{channels}x{hg}x{wg}-p{p}-k{keep}{}", if normalised { "-norm" } else { "" });
    Case::new("masked_gather", id, inputs, move |tape, v| {
        let norm = normalised.then_some(v[2].value());
        Ok(vec![masked_gather(tape, &v[0], v[1].value(), p, norm, v[3].value().dtype())?])
    })
    .composed(move |tape, v| {
        let norm = normalised.then_some(v[2].value());
        let patches = masked_gather(tape, &v[0], v[4].value(), p, norm, v[3].value().dtype())?;
        Ok(vec![gather_rows(tape, &patches, v[5].value())?])
    })
    .bytes(move |dtype: DType| {
        let pixel = match images {
            Images::Bytes => 1,
            Images::Storage => dtype.size(),
            Images::Single => 4,
        };
        (batch * keep * (values * (pixel + dtype.size()) + 4)) as u64
    })
}

/// MAE pre-training at 224 pixels, ViT-L/16 and ViT-H/14, from bytes and from floats.
pub fn cases() -> Vec<Case> {
    vec![
        case(Images::Bytes, [256, 3, 14, 14], 16, 49, true),
        case(Images::Storage, [256, 3, 14, 14], 16, 49, true),
        case(Images::Bytes, [256, 3, 16, 16], 14, 64, true),
    ]
}
