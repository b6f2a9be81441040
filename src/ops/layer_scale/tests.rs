use proptest::prelude::*;

use super::{RowMap, case, launch, layer_scale, subset_case};
use crate::ops::{Case, Input};
use crate::testing::{check, check_gradients};
use crate::{DType, Device, Error, Tape, Tensor, Var};

/// Without factors, with or without gamma.
fn plain(rows: usize, cols: usize, gamma: bool) -> Case {
    let mut inputs = vec![Input::normal("x", [rows, cols]), Input::normal("branch", [rows, cols])];
    if gamma {
        inputs.push(Input::param("gamma", [cols]));
    }
    Case::new("layer_scale", format!("plain {rows}x{cols}"), inputs, |tape, v| {
        Ok(vec![layer_scale(tape, &v[0], &v[1], v.get(2), None)?])
    })
    .terms(rows)
}

#[test]
fn matches_the_oracle_on_odd_shapes() {
    for (sequences, tokens, cols) in [(0, 3, 5), (1, 1, 1), (2, 3, 7), (3, 5, 33), (5, 2, 264), (1, 19, 40)] {
        check(&case(sequences, tokens, cols)).unwrap();
    }
    check(&plain(3, 67, true)).unwrap();
    check(&plain(9, 24, false)).unwrap();
}

#[test]
fn a_subset_matches_the_oracle() {
    for (parts, cols) in [
        (&[[4, 3, 2]][..], 16),
        (&[[5, 4, 3], [7, 2, 4]], 21),
        (&[[3, 1, 1], [2, 9, 2]], 520),
        (&[[4, 3, 0]], 8),
        (&[[3, 2, 3]], 12),
    ] {
        check(&subset_case(parts, cols)).unwrap();
    }
}

#[test]
fn gradients_match_finite_differences() {
    check_gradients(&case(3, 2, 5)).unwrap();
    check_gradients(&subset_case(&[[4, 2, 2], [3, 1, 2]], 5)).unwrap();
    check_gradients(&plain(3, 5, true)).unwrap();
    check_gradients(&plain(3, 5, false)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn matches_the_oracle(sequences in 1usize..6, tokens in 1usize..7, keep in 0usize..6, cols in 1usize..150) {
        check(&subset_case(&[[sequences, tokens, keep.min(sequences)]], cols)).unwrap();
    }
}

fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
}

#[test]
fn a_subset_that_keeps_all_is_the_whole_and_dropped_rows_keep_their_bits() {
    let offsets = [0, 2, 5, 6];
    let wave = |phase: f32, n: usize| (0..n).map(|i| (phase + 0.7 * i as f32).sin()).collect::<Vec<f32>>();
    let (x, gamma) = (tensor(&wave(0.1, 24), &[6, 4]), tensor(&wave(0.5, 4), &[4]));
    let branch = tensor(&wave(0.9, 24), &[6, 4]);
    let scale = tensor(&[1.0, 1.0, 1.0], &[3]);
    let all = RowMap::all(&offsets, &Device::Cpu).unwrap();
    let kept = RowMap::subset(&offsets, &[0, 1, 2], &Device::Cpu).unwrap();
    let run = |map: &RowMap, branch: &Tensor, scale: &Tensor| {
        super::forward(&x, branch, Some(&gamma), Some((map, scale))).unwrap().to_vec::<f32>().unwrap()
    };
    assert_eq!(run(&all, &branch, &scale), run(&kept, &branch, &scale));
    assert_eq!(kept.ids().unwrap().to_vec::<i32>().unwrap(), [0, 1, 2, 3, 4, 5]);

    let some = RowMap::subset(&offsets, &[2, 0], &Device::Cpu).unwrap();
    assert_eq!(some.ids().unwrap().to_vec::<i32>().unwrap(), [5, 0, 1]);
    assert_eq!(some.cu_seqlens().to_vec::<i32>().unwrap(), [0, 1, 3]);
    assert_eq!((some.tokens(), some.rows(), some.sequences()), (6, 3, 2));
    let y = run(&some, &tensor(&wave(0.9, 12), &[3, 4]), &tensor(&[1.5, 3.0], &[2]));
    assert_eq!(y[8..20], x.to_vec::<f32>().unwrap()[8..20], "rows of the dropped sequence");
    let (b, g) = (wave(0.9, 12), wave(0.5, 4));
    let expected = |row: usize, token: usize, s: f32| {
        (0..4).map(|c| wave(0.1, 24)[token * 4 + c] + s * g[c] * b[row * 4 + c]).collect::<Vec<_>>()
    };
    assert_eq!(y[20..], expected(0, 5, 1.5));
    assert_eq!(y[..4], expected(1, 0, 3.0));
}

/// The mean over all subsets of one size is the residual without dropping.
#[test]
fn the_mean_over_all_subsets_is_the_whole() {
    let x = tensor(&[0.5; 6], &[3, 2]);
    let rows: Vec<f32> = (0..6).map(|i| i as f32).collect();
    let mut mean = [0.0f32; 6];
    for kept in [[0, 1], [0, 2], [1, 2]] {
        let map = RowMap::subset(&[0, 1, 2, 3], &kept, &Device::Cpu).unwrap();
        let branch: Vec<f32> = kept.iter().flat_map(|&k| [rows[2 * k], rows[2 * k + 1]]).collect();
        let y = super::forward(&x, &tensor(&branch, &[2, 2]), None, Some((&map, &tensor(&[1.5; 2], &[2])))).unwrap();
        y.to_vec::<f32>().unwrap().iter().zip(&mut mean).for_each(|(y, m)| *m += y / 3.0);
    }
    mean.iter().zip(&rows).for_each(|(m, b)| assert!((m - 0.5 - b).abs() < 1e-5, "{mean:?}"));
}

#[test]
fn grids_cover_every_row() {
    for rows in [0, 1, 7, 8, 4224, 4225, 100_000] {
        let grid = launch::fwd_grid(rows as u32);
        assert!(grid.grid[0] as usize * (grid.block[0] / 32) as usize >= rows);
        let (parts, per_part) = launch::split(rows);
        assert!(parts * per_part >= rows && parts <= 528);
        assert!(rows == 0 || (parts - 1) * per_part < rows, "no empty part");
    }
}

#[test]
fn wrong_arguments_are_named() {
    let v = |s: &[usize]| Var::constant(Tensor::zeros(s, DType::F32, &Device::Cpu).unwrap());
    let map = RowMap::subset(&[0, 2, 4], &[1], &Device::Cpu).unwrap();
    let message = |x: &[usize], branch: &[usize], gamma: &[usize], scale: &[usize]| {
        let scale = v(scale);
        let drop = Some((&map, scale.value()));
        let error = layer_scale(&Tape::no_grad(), &v(x), &v(branch), Some(&v(gamma)), drop).unwrap_err();
        assert!(matches!(error, Error::Argument { .. }));
        error.to_string()
    };
    assert_eq!(
        message(&[4, 3], &[4, 3], &[3], &[1]),
        "layer_scale: `branch` has shape [4, 3], expected 2 rows, as the map has"
    );
    assert_eq!(message(&[2, 3], &[2, 3], &[3], &[1]), "layer_scale: `x` has shape [2, 3], expected [4, 3]");
    assert_eq!(message(&[4, 3], &[2, 3], &[2], &[1]), "layer_scale: `gamma` has shape [2], expected [3]");
    assert_eq!(message(&[4, 3], &[2, 3], &[3], &[2]), "layer_scale: `scale` has shape [2], expected [1]");
    let subset = |offsets: &[i32], kept: &[usize]| RowMap::subset(offsets, kept, &Device::Cpu).unwrap_err().to_string();
    assert_eq!(subset(&[0, 2], &[1]), "layer_scale: `kept[0]` has value 1, expected a sequence below 1");
    assert_eq!(subset(&[0, 2], &[0, 0]), "layer_scale: `kept[1]` has value 0, expected each sequence once");
    assert_eq!(
        subset(&[0, 2, 1], &[]),
        "layer_scale: `cu_seqlens[2]` has value 1, expected at least 2, the offset before it"
    );
    assert_eq!(subset(&[1, 2], &[]), "layer_scale: `cu_seqlens[0]` has value 1, expected 0");
    assert_eq!(subset(&[], &[]), "layer_scale: `cu_seqlens` has length 0, expected sequences + 1");
}
