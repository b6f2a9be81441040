use super::case::in_place_case;
use super::{Direction, Place, axial_table, case, launch, rope, rotate};
use crate::ops::scale::scale;
use crate::testing::{check, check_gradients};
use crate::{DType, Device, Error, Tape, Tensor, Var};

#[test]
fn matches_the_oracle() {
    check(&case([2, 1, 0], [3, 3], 3, 2, 8)).unwrap();
    check(&case([1, 2, 3], [2, 3], 1, 1, 32)).unwrap();
    check(&case([2, 1, 1], [4, 1], 2, 3, 4)).unwrap();
    check(&case([1, 1, 0], [1, 1], 1, 1, 12)).unwrap();
    check(&case([1, 1, 0], [2, 2], 3, 1, 256)).unwrap();
    check(&case([0, 1, 0], [2, 2], 3, 1, 8)).unwrap();
    check(&in_place_case(2, [3, 2], 2, 16)).unwrap();
}

#[test]
fn gradients_match_finite_differences() {
    check_gradients(&case([2, 2, 1], [2, 2], 1, 2, 4)).unwrap();
    check_gradients(&case([1, 1, 0], [2, 3], 3, 1, 8)).unwrap();
    check_gradients(&in_place_case(1, [2, 2], 1, 4)).unwrap();
}

#[test]
fn a_value_nobody_else_holds_stays_where_it_is() {
    let table = axial_table(4, 2, 1, 10_000.0, &Device::Cpu).unwrap();
    let place = Place { sequence: 2, excluded: 0 };
    let leaf = Var::constant(Tensor::full([2, 3, 1, 4], 1.0f32, &Device::Cpu).unwrap());
    let tape = Tape::no_grad();
    let held = rope(&tape, leaf.clone(), &table, place).unwrap();
    assert_eq!(leaf.value().to_vec::<f32>().unwrap(), [1.0; 24], "a shared value is left alone");
    let alone = scale(&tape, &leaf, 1.0).unwrap();
    let at = alone.value().ptr();
    let y = rope(&tape, alone, &table, place).unwrap();
    assert_eq!(y.value().ptr(), at);
    assert_eq!(y.value().to_vec::<f32>().unwrap(), held.value().to_vec::<f32>().unwrap());
    let values = y.value().to_vec::<f32>().unwrap();
    assert_eq!(values[20..24], [1.0; 4], "values are not rotated");
    let expected = [1f32.cos() - 1f32.sin(), 1f32.sin() + 1f32.cos(), 1.0, 1.0];
    values[12..16].iter().zip(expected).for_each(|(y, e)| assert!((y - e).abs() < 1e-6, "{values:?}"));
}

#[test]
fn the_way_back_undoes_the_rotation_and_norms_stay() {
    let x: Vec<f32> = (0..7 * 12).map(|i| (0.7 * i as f32).sin()).collect();
    let table = axial_table(12, 3, 1, 10_000.0, &Device::Cpu).unwrap();
    let place = Place { sequence: 7, excluded: 1 };
    let mut y = Tensor::from_slice(&x, [7, 1, 1, 12], &Device::Cpu).unwrap();
    rotate(&mut y, &table, place, Direction::Forward).unwrap();
    let turned = y.to_vec::<f32>().unwrap();
    assert_eq!(turned[72..], x[72..], "an excluded token");
    let norm = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>();
    x.chunks(12).zip(turned.chunks(12)).for_each(|(a, b)| assert!((norm(a) - norm(b)).abs() < 1e-5));
    rotate(&mut y, &table, place, Direction::Back).unwrap();
    y.to_vec::<f32>().unwrap().iter().zip(&x).for_each(|(a, b)| assert!((a - b).abs() < 1e-6));
}

/// Products of rotated queries and keys depend on the distance in the grid alone.
#[test]
fn scores_depend_on_the_distance() {
    let (width, height, dim) = (4, 3, 8);
    let table = axial_table(dim, width, height, 10_000.0, &Device::Cpu).unwrap();
    let rotated = |phase: f32| {
        let one: Vec<f32> = (0..dim).map(|i| (phase + i as f32).sin()).collect();
        let mut x = Tensor::from_slice(&one.repeat(width * height), [width * height, 1, 1, dim], &Device::Cpu).unwrap();
        rotate(&mut x, &table, Place { sequence: width * height, excluded: 0 }, Direction::Forward).unwrap();
        x.to_vec::<f32>().unwrap()
    };
    let (q, k) = (rotated(0.3), rotated(1.1));
    let score = |a: usize, b: usize| (0..dim).map(|c| q[a * dim + c] * k[b * dim + c]).sum::<f32>();
    for (a, b) in [(0, 5), (1, 6), (2, 7), (4, 9), (6, 11)] {
        assert!((score(a, b) - score(0, 5)).abs() < 1e-5, "one right, one down");
    }
    assert!((score(0, 4) - score(0, 1)).abs() > 1e-3, "axes differ");
}

/// From the upstream code: a head of 8 on a grid of 3 x 3.
#[test]
fn the_axial_table_is_upstreams() {
    let table = axial_table(8, 3, 3, 10_000.0, &Device::Cpu).unwrap();
    let at = |t: usize| table.to_vec::<f32>().unwrap()[8 * t..][..8].to_vec();
    let close = |t: usize, expected: [f32; 8]| {
        at(t).iter().zip(expected).for_each(|(a, e)| assert!((a - e).abs() < 1e-6, "{t}: {:?}", at(t)));
    };
    let (one, two) = ([0.540_302, 0.841_471, 0.999_95, 0.01], [-0.416_147, 0.909_297, 0.999_8, 0.019_999]);
    let join = |x: [f32; 4], y: [f32; 4]| [x[0], x[1], x[2], x[3], y[0], y[1], y[2], y[3]];
    close(0, join([1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 1.0, 0.0]));
    close(1, join(one, [1.0, 0.0, 1.0, 0.0]));
    close(5, join(two, one));
    close(7, join(one, two));
}

#[test]
fn grids_cover_every_row() {
    for (tokens, rotated) in [(0, 1), (1, 1), (4096, 2), (28_736, 1)] {
        let grid = launch::grid(tokens, rotated);
        assert!(grid.grid[0] * (grid.block[0] / 32) >= tokens * rotated);
    }
}

#[test]
fn wrong_arguments_are_named() {
    let table = axial_table(8, 2, 2, 10_000.0, &Device::Cpu).unwrap();
    let message = |shape: &[usize], sequence: usize, excluded: usize| {
        let x = Var::constant(Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap());
        let error = rope(&Tape::no_grad(), x, &table, Place { sequence, excluded }).unwrap_err();
        assert!(matches!(error, Error::Argument { .. }), "{error}");
        error.to_string()
    };
    let wrong = message(&[4, 3, 1, 12], 4, 0);
    assert_eq!(wrong, "rope: `table` has shape [4, 4, 2], expected [positions, 6, 2] for 12 channels of a head");
    let wrong = message(&[4, 3, 1, 8], 3, 0);
    assert_eq!(wrong, "rope: `sequence` has value 3, expected a divisor of 4, the number of tokens");
    let wrong = message(&[4, 3, 1, 8], 4, 1);
    assert_eq!(
        wrong,
        "rope: `excluded` has value 1, expected so many that a multiple of 4, the positions, is left of 4"
    );
    let error = axial_table(6, 1, 1, 1.0, &Device::Cpu).unwrap_err().to_string();
    assert_eq!(error, "rope: `dim` has value 6, expected a multiple of 4");
}
