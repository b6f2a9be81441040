//! Shapes of LayerScale residuals in the recipes.

use std::sync::{Mutex, PoisonError};

use super::{RowMap, layer_scale};
use crate::ops::{Case, Fill, Input};
use crate::{DType, Device, Result};

/// One list of equally long sequences of the packed tokens: sequences, tokens of each, sequences kept.
pub type Part = [usize; 3];

fn inputs(tokens: usize, rows: usize, cols: usize) -> Vec<Input> {
    vec![
        Input::normal("x", [tokens, cols]),
        Input::normal("branch", [rows, cols]),
        Input::param("gamma", [cols]).filled(Fill::Normal(0.1, 0.5)),
    ]
}

/// A map made once for a device: making one uploads, which is no part of the operation.
fn kept(make: impl Fn(&Device) -> Result<RowMap>) -> impl Fn(&Device) -> Result<RowMap> {
    let held = Mutex::new(None::<RowMap>);
    move |device| {
        let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
        match held.as_ref().filter(|map| map.sequence().device() == device) {
            Some(map) => Ok(map.clone()),
            None => Ok(held.insert(make(device)?).clone()),
        }
    }
}

/// Every token of `sequences` of `tokens` each, with a factor per sequence.
pub fn case(sequences: usize, tokens: usize, cols: usize) -> Case {
    let rows = sequences * tokens;
    let mut inputs = inputs(rows, rows, cols);
    inputs.push(Input::constant("scale", [sequences], Fill::AccUniform(0.0, 2.0)));
    let offsets: Vec<i32> = (0..=sequences).map(|i| (i * tokens) as i32).collect();
    let map = kept(move |device| RowMap::all(&offsets, device));
    Case::new("layer_scale", format!("{sequences}x{tokens}x{cols}"), inputs, move |tape, v| {
        let map = map(v[0].value().device())?;
        Ok(vec![layer_scale(tape, &v[0], &v[1], Some(&v[2]), Some((&map, v[3].value())))?])
    })
    .bytes(move |dtype: DType| (3 * rows * cols * dtype.size() + 4 * rows) as u64)
    .terms(rows)
}

/// The branch has rows of the kept sequences alone, spread over each part, with the factor `sequences / kept`.
pub fn subset_case(parts: &[Part], cols: usize) -> Case {
    let (mut offsets, mut kept, mut scale) = (vec![0], vec![], vec![]);
    for &[sequences, tokens, keep] in parts {
        let first = offsets.len() - 1;
        // An odd step visits every sequence of a part once, out of order.
        let step = (1..).step_by(2).find(|s| *s > sequences / 3 && gcd(*s, sequences.max(1)) == 1).unwrap_or(1);
        kept.extend((0..keep).map(|i| first + i * step % sequences));
        scale.extend((0..keep).map(|_| sequences as f64 / keep as f64));
        let last = offsets[first];
        offsets.extend((1..=sequences).map(|i| last + (i * tokens) as i32));
    }
    let rows: usize = parts.iter().map(|[_, tokens, keep]| tokens * keep).sum();
    let tokens = offsets[offsets.len() - 1] as usize;
    let id = format!("{}x{cols}", parts.iter().map(|p| format!("{p:?}")).collect::<String>());
    let mut inputs = inputs(tokens, rows, cols);
    inputs.push(Input::constant("scale", [kept.len()], Fill::Acc(scale)));
    let map = self::kept(move |device| RowMap::subset(&offsets, &kept, device));
    Case::new("layer_scale", id, inputs, move |tape, v| {
        let map = map(v[0].value().device())?;
        Ok(vec![layer_scale(tape, &v[0], &v[1], Some(&v[2]), Some((&map, v[3].value())))?])
    })
    .bytes(move |dtype: DType| ((2 * tokens + rows) * cols * dtype.size() + 8 * tokens) as u64)
    .terms(rows)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// DINOv2 ViT-L/14 and ViT-g/14 packed as in training, and a ViT-B/14 that drops nothing.
pub fn cases() -> Vec<Case> {
    vec![
        subset_case(&[[64, 257, 38], [256, 50, 153]], 1024),
        subset_case(&[[24, 257, 14], [96, 50, 57]], 1536),
        case(128, 257, 768),
    ]
}
