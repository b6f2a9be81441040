//! Shapes of rotary embeddings in the recipes.

use super::{Place, axial_angles, rope};
use crate::DType;
use crate::ops::{Case, Fill, Input};

/// `x: [sequences · tokens, parts, heads, dim]` of which each sequence holds `frames` grids of `[width, height]` and
/// `excluded` tokens more.
pub fn case(
    [sequences, frames, excluded]: [usize; 3],
    grid: [usize; 2],
    parts: usize,
    heads: usize,
    dim: usize,
) -> Case {
    let [width, height] = grid;
    let sequence = frames * width * height + excluded;
    let tokens = sequences * sequence;
    let table: Vec<f64> = axial_angles(dim, width, height, 10_000.0).flat_map(|a| [a.cos(), a.sin()]).collect();
    let inputs = vec![
        Input::normal("x", [tokens, parts, heads, dim]),
        Input::constant("table", [width * height, dim / 2, 2], Fill::Acc(table)),
    ];
    let id = format!("{sequences}x({frames}x{width}x{height}+{excluded})x{parts}x{heads}x{dim}");
    Case::new("rope", id, inputs, move |tape, v| {
        let place = Place { sequence, excluded };
        Ok(vec![rope(tape, v[0].clone(), v[1].value(), place)?])
    })
    .bytes(move |dtype: DType| {
        let turned = sequences * (sequence - excluded) * parts.min(2) * heads * dim;
        (2 * turned * dtype.size() + 4 * width * height * dim) as u64
    })
}

/// As [`case`], of a computed value that nobody else holds: rotated where it lies.
#[cfg(test)]
pub(super) fn in_place_case(sequences: usize, grid: [usize; 2], heads: usize, dim: usize) -> Case {
    let sequence = grid[0] * grid[1];
    let held = case([sequences, 1, 0], grid, 3, heads, dim);
    Case::new("rope", format!("{} in place", held.id), held.inputs, move |tape, v| {
        let x = crate::ops::scale::scale(tape, &v[0], 1.0)?;
        Ok(vec![rope(tape, x, v[1].value(), Place { sequence, excluded: 0 })?])
    })
    .stored(2)
}

/// Memory attention of SAM 2: queries and keys of the self-attention, keys of the cross-attention.
pub fn cases() -> Vec<Case> {
    vec![case([1, 1, 0], [64, 64], 3, 1, 256), case([1, 7, 64], [64, 64], 1, 1, 256)]
}
