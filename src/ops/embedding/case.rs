//! Shapes of embeddings in the recipes.

use super::lookup::order;
use super::{Lookup, embedding};
use crate::DType;
use crate::ops::{Case, Fill, Input};
use crate::random::stream;

/// `picked` rows of a table `[rows, cols]`, half of them row 0 as with padded texts and the others random; `added` to
/// rows that are there.
pub fn case(rows: usize, picked: usize, cols: usize, added: bool) -> Case {
    use rand::RngExt;
    let mut rng = stream(11, rows as u64);
    let mut one = |_| if rng.random::<f64>() < 0.5 { 0 } else { rng.random_range(0..rows as i32) };
    of("padded", rows, (0..picked).map(&mut one).collect(), cols, added)
}

/// Every row in turn, `times` times: positions of a batch.
fn positions(rows: usize, times: usize, cols: usize) -> Case {
    of("turns", rows, (0..times).flat_map(|_| 0..rows as i32).collect(), cols, true)
}

pub(super) fn of(name: &str, rows: usize, ids: Vec<i32>, cols: usize, added: bool) -> Case {
    let picked = ids.len();
    let order = order(&ids, rows).unwrap_or_default();
    let longest = order.chunk_by(|a, b| ids[*a as usize] == ids[*b as usize]).map(<[i32]>::len).max().unwrap_or(1);
    let mut inputs = vec![
        Input::param("table", [rows, cols]),
        Input::constant("ids", [picked], Fill::I32(ids)),
        Input::constant("order", [picked], Fill::I32(order)),
    ];
    inputs.extend(added.then(|| Input::normal("x", [picked, cols])));
    let id = format!("{picked}of{rows}x{cols}-{name}{}", if added { "-added" } else { "" });
    Case::new("embedding", id, inputs, move |tape, v| {
        let lookup = Lookup::of([v[1].value().clone(), v[2].value().clone()], rows);
        Ok(vec![embedding(tape, &v[0], &lookup, v.get(3))?])
    })
    .terms(longest)
    .bytes(move |dtype: DType| ((2 + usize::from(added)) * picked * cols * dtype.size() + 4 * picked) as u64)
}

/// Tokens of SigLIP's base size with both vocabularies, batch 256 of 64 tokens; positions of its image tower.
pub fn cases() -> Vec<Case> {
    vec![case(32_000, 256 * 64, 768, false), case(256_000, 256 * 64, 768, false), positions(196, 256, 768)]
}
