use proptest::prelude::*;

use super::{case, concat, slice, slice_case};
use crate::ops::add::add;
use crate::ops::{Case, Input};
use crate::testing::{check, check_gradients};
use crate::{DType, Device, Error, Grads, Param, Tape, Tensor, Var};

#[test]
fn matches_the_oracle_on_odd_shapes() {
    for (outer, lens, inner) in [
        (1, &[1][..], 1),
        (2, &[3, 5], 7),
        (3, &[1, 2, 4], 8),
        (5, &[33, 1], 3),
        (2, &[0, 4, 0], 5),
        (0, &[2, 3], 4),
        (2, &[3, 3], 0),
        (1, &[40, 24, 8], 16),
        (7, &[8, 16], 1),
    ] {
        check(&case(outer, lens, inner)).unwrap();
    }
}

#[test]
fn slices_match_the_oracle_on_odd_shapes() {
    for (outer, len, inner, range) in [
        (1, 1, 1, 0..1),
        (2, 5, 7, 1..4),
        (3, 8, 16, 0..8),
        (3, 8, 16, 3..4),
        (5, 9, 1, 8..9),
        (4, 24, 1, 8..16),
        (2, 4, 3, 2..2),
        (0, 4, 3, 1..2),
        (1, 300, 9, 100..299),
    ] {
        check(&slice_case(outer, len, inner, range)).unwrap();
    }
}

/// Two slices of `x: [outer, len, inner]`, a weight or a computed value, that may overlap, added: their gradients add
/// up.
fn overlap_case(outer: usize, len: usize, inner: usize, starts: [usize; 2], weight: bool) -> Case {
    let shape = [outer, len, inner];
    let x = if weight { Input::param("x", shape) } else { Input::normal("x", shape) };
    let part = len - starts[0].max(starts[1]);
    Case::new("concat", format!("overlap-{outer}x{len}x{inner}-{starts:?}-{weight}"), vec![x], move |tape, v| {
        let [a, b] = starts.map(|start| slice(tape, &v[0], 1, start..start + part));
        Ok(vec![add(tape, &a?, &b?)?])
    })
    .stored(2)
}

/// The first gradient is laid into zeros, the second added to its part.
#[test]
fn gradients_of_several_slices_add_up() {
    for weight in [false, true] {
        check(&overlap_case(3, 7, 5, [0, 2], weight)).unwrap();
        check(&overlap_case(2, 6, 8, [3, 0], weight)).unwrap();
        check(&overlap_case(1, 4, 4, [1, 1], weight)).unwrap();
        check_gradients(&overlap_case(2, 5, 2, [0, 2], weight)).unwrap();
    }
}

#[test]
fn gradients_match_finite_differences() {
    check_gradients(&case(2, &[3, 1, 2], 3)).unwrap();
    check_gradients(&slice_case(2, 5, 3, 1..4)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn matches_the_oracle(outer in 1usize..6, a in 0usize..9, b in 1usize..20, inner in 1usize..70) {
        check(&case(outer, &[a, b], inner)).unwrap();
        check(&slice_case(outer, a + b, inner, a..a + b)).unwrap();
    }
}

fn counted(shape: &[usize], from: usize) -> Tensor {
    let n = shape.iter().product::<usize>();
    let values: Vec<f32> = (from..from + n).map(|i| i as f32).collect();
    Tensor::from_slice(&values, shape, &Device::Cpu).unwrap()
}

#[test]
fn every_axis_is_the_one_named() {
    let (a, b) = (Var::constant(counted(&[2, 2], 0)), Var::constant(counted(&[2, 2], 4)));
    let tape = Tape::no_grad();
    for (axis, shape, values) in
        [(0, [4, 2], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]), (1, [2, 4], [0.0, 1.0, 4.0, 5.0, 2.0, 3.0, 6.0, 7.0])]
    {
        let y = concat(&tape, &[&a, &b], axis).unwrap();
        assert_eq!((&**y.value().shape(), y.value().to_vec::<f32>().unwrap()), (&shape[..], values.to_vec()));
        let back = slice(&tape, &y, axis, 2..4).unwrap();
        assert_eq!(back.value().to_vec::<f32>().unwrap(), b.value().to_vec::<f32>().unwrap());
    }
}

/// Runs of several pieces, in a tensor where each is a task.
#[test]
fn long_runs_are_whole() {
    let (a, b) = (counted(&[2, 20_011], 0), counted(&[2, 3], 50_000));
    let y = concat(&Tape::no_grad(), &[&Var::constant(a.clone()), &Var::constant(b.clone())], 1).unwrap();
    let (a, b) = (a.to_vec::<f32>().unwrap(), b.to_vec::<f32>().unwrap());
    let expected = [&a[..20_011], &b[..3], &a[20_011..], &b[3..]].concat();
    assert_eq!(y.value().to_vec::<f32>().unwrap(), expected);
}

/// Only what wants a gradient gets one; a tensor given twice gets both, and a weight's slices add up in f32.
#[test]
fn gradients_go_where_they_are_wanted() {
    let w = Param::new("w", counted(&[4], 1), DType::BF16).unwrap();
    let mut grads = Grads::new();
    for _ in 0..2 {
        let tape = Tape::new();
        let x = tape.leaf(counted(&[2], 0).cast(DType::BF16).unwrap());
        let part = slice(&tape, &tape.param(&w), 0, 1..3).unwrap();
        let constant = Var::constant(counted(&[1], 0).cast(DType::BF16).unwrap());
        let y = concat(&tape, &[&x, &constant, &part, &x], 0).unwrap();
        let seed = counted(&[7], 1).cast(DType::BF16).unwrap();
        tape.backward(&y, seed, &mut grads).unwrap();
        let dx = grads.take(&x).unwrap();
        assert_eq!(dx.cast(DType::F32).unwrap().to_vec::<f32>().unwrap(), [1.0 + 6.0, 2.0 + 7.0]);
    }
    assert_eq!(grads.get(&w).unwrap().to_vec::<f32>().unwrap(), [0.0, 8.0, 10.0, 0.0]);
}

#[test]
fn wrong_arguments_are_named() {
    let t = |s: &[usize], dtype| Var::constant(Tensor::zeros(s, dtype, &Device::Cpu).unwrap());
    let v = |s: &[usize]| t(s, DType::F32);
    let joined = |xs: &[&Var], axis| {
        let error = concat(&Tape::no_grad(), xs, axis).unwrap_err();
        assert!(matches!(error, Error::Argument { .. }));
        error.to_string()
    };
    assert_eq!(joined(&[], 0), "concat: `xs` has length 0, expected at least one tensor");
    assert_eq!(joined(&[&v(&[2, 3])], 2), "concat: `axis` has value 2, expected an axis of [2, 3]");
    assert_eq!(
        joined(&[&v(&[2, 3]), &v(&[5, 4])], 0),
        "concat: `xs[1]` has shape [5, 4], expected [2, 3] but for axis 0"
    );
    assert_eq!(joined(&[&v(&[2, 3]), &v(&[2])], 1), "concat: `xs[1]` has shape [2], expected [2, 3] but for axis 1");
    assert_eq!(joined(&[&v(&[2]), &t(&[2], DType::BF16)], 0), "concat: `xs[1]` has dtype bf16, expected f32");
    assert_eq!(joined(&[&t(&[2], DType::U8)], 0), "concat: `xs[0]` has dtype u8, expected a float type");
    let cut = |x: &Var, axis, range| slice(&Tape::no_grad(), x, axis, range).unwrap_err().to_string();
    assert_eq!(cut(&v(&[2, 3]), 1, 2..4), "slice: `range` has value 2..4, expected a part of 0..3");
    #[allow(clippy::reversed_empty_ranges)]
    let backward = 2..1;
    assert_eq!(cut(&v(&[2, 3]), 1, backward), "slice: `range` has value 2..1, expected a part of 0..3");
    assert_eq!(cut(&v(&[3]), 1, 0..1), "slice: `axis` has value 1, expected an axis of [3]");
    assert_eq!(cut(&t(&[3], DType::I32), 0, 0..1), "slice: `x` has dtype i32, expected a float type");
}
