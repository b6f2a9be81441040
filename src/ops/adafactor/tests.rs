use super::case::build;
use super::{Groups, Hyper, Item, Second, View, adafactor, case, scalars};
use crate::ops::multi_tensor::{CHUNK, Scalars, Workspace};
use crate::testing::check;
use crate::{DType, Device, Error, Result, Shape, Tensor};

/// Without roundings, which turn a difference in the last digit into one in the third.
const PLAIN: Hyper = Hyper { momentum: 0.9, round: false, exponent: 0.8, cap: 0.95, eps: 1e-30 };

fn view(groups: usize, rows: usize, cols: usize, place: Groups) -> (Shape, Option<View>) {
    ([groups * rows * cols].into(), Some(View { groups, rows, cols, place }))
}

#[test]
fn matches_the_oracle() {
    let whole = |n: usize| (Shape::from([n]), None);
    for place in [Groups::First, Groups::Middle, Groups::Last] {
        let tensors =
            [view(1, 1, 1, place), whole(5), view(3, 7, 33, place), whole(0), view(2, 40, 70, place), whole(257)];
        check(&build(format!("{place:?}"), &tensors, PLAIN)).unwrap();
    }
    check(&build("whole", &[whole(31)], PLAIN)).unwrap();
    check(&build("none", &[], PLAIN)).unwrap();
}

#[test]
fn matches_the_oracle_across_chunks() {
    check(&build("chunks", &[view(2, 9, CHUNK / 16 + 1, Groups::Middle), view(1, 260, 259, Groups::First)], PLAIN))
        .unwrap();
}

/// A tensor on the CPU.
fn tensor(x: &[f64]) -> Tensor {
    Tensor::from_slice(x, [x.len()], &Device::Cpu).unwrap()
}

/// Weights, momentum, rows and columns after steps with the same gradient.
fn run(w: &[f64], g: &[f64], view: Option<View>, hyper: Hyper, steps: u64, norm: &[f64]) -> Result<[Vec<f64>; 4]> {
    let zeros = |n: usize| tensor(&vec![0.0; n]);
    let (mut w, mut m, g, norm) = (tensor(w), zeros(w.len()), tensor(g), tensor(norm));
    let (mut rows, mut cols) =
        view.map_or((zeros(g.numel()), zeros(0)), |v| (zeros(v.groups * v.rows), zeros(v.groups * v.cols)));
    for t in 1..=steps {
        let second = match view {
            Some(view) => Second::Factored { rows: &mut rows, cols: &mut cols, view },
            None => Second::Full(&mut rows),
        };
        let item = Item { w: &mut w, m: &mut m, second, g: &g, compute: None, lr_scale: 0.5, weight_decay: 0.1 };
        let mut numbers = Scalars::new();
        let numbers = numbers.set(&scalars(hyper, 0.2, t), DType::F64, &Device::Cpu)?;
        adafactor(&mut [item], hyper, numbers, Some(&norm), &mut Workspace::new())?;
    }
    Ok([w.to_vec()?, m.to_vec()?, rows.to_vec()?, cols.to_vec()?])
}

#[track_caller]
fn near(a: &[f64], b: &[f64]) {
    assert!(a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12), "{a:?}, expected {b:?}");
}

/// The first step takes over the squares (d = 0); the gradient of rank one is scaled to its signs.
#[test]
fn follows_the_equations() {
    assert_eq!(scalars(PLAIN, 0.2, 1), [0.2, 0.0, 1.0]);
    near(&scalars(PLAIN, 0.2, 2), &[0.2, 1.0 - 2f64.powf(-0.8), 2f64.powf(-0.8)]);
    near(&scalars(PLAIN, 0.2, 1000), &[0.2, 0.95, 0.05]);
    let (w, g) = ([1.0, -1.0, 0.5, 2.0, 0.0, 3.0], [1.0, 2.0, -4.0, 3.0, 6.0, -12.0]);
    let signs = [1.0, 1.0, -1.0, 1.0, 1.0, -1.0];
    for view in [Some(View::matrix(2, 3)), None] {
        let [after, m, rows, cols] = run(&w, &g, view, PLAIN, 1, &[1.0, 2.0]).unwrap();
        near(&m, &signs.map(|s| 0.1 * s));
        near(&after, &std::array::from_fn::<_, 6, _>(|i| w[i] - 0.1 * 0.1 * w[i] - 0.1 * m[i]));
        match view {
            Some(_) => near(&[rows, cols].concat(), &[4.0 * 7.0, 4.0 * 63.0, 4.0 * 5.0, 4.0 * 20.0, 4.0 * 80.0]),
            None => near(&rows, &g.map(|g| 4.0 * g * g)),
        }
        let [_, m, ..] = run(&w, &g, view, PLAIN, 2, &[1.0, 2.0]).unwrap();
        near(&m, &signs.map(|s| 0.19 * s));
    }
}

/// What a head's matrix is scaled by does not depend on the other heads.
#[test]
fn groups_are_matrices_of_their_own() {
    let g: Vec<f64> = (0..24).map(|i| ((i * 7 % 11) as f64 - 4.5) * (1.0 + i as f64)).collect();
    let w = [0.0; 24];
    let one = |g: &[f64], view| run(&w[..g.len()], g, Some(view), PLAIN, 1, &[1.0, 1.0]).unwrap();
    let each: Vec<Vec<f64>> = g.chunks(12).map(|g| one(g, View::matrix(3, 4))[1].clone()).collect();
    near(&one(&g, View { groups: 2, rows: 3, cols: 4, place: Groups::First })[1], &each.concat());
    let index = |place, [group, row, col]: [usize; 3]| match place {
        Groups::First => (group * 3 + row) * 4 + col,
        Groups::Middle => (row * 2 + group) * 4 + col,
        Groups::Last => (row * 4 + col) * 2 + group,
    };
    for place in [Groups::Middle, Groups::Last] {
        let mut moved = vec![0.0; 24];
        let mut expected = vec![0.0; 24];
        for (group, row, col) in (0..2).flat_map(|g| (0..3).flat_map(move |r| (0..4).map(move |c| (g, r, c)))) {
            moved[index(place, [group, row, col])] = g[index(Groups::First, [group, row, col])];
            expected[index(place, [group, row, col])] = each[group][row * 4 + col];
        }
        near(&one(&moved, View { groups: 2, rows: 3, cols: 4, place })[1], &expected);
    }
}

/// The momentum has the digits of bf16, and so has what is left of it.
#[test]
fn rounding_is_that_of_bf16() {
    let hyper = Hyper { round: true, ..PLAIN };
    assert_eq!(hyper.momentum(), [0.8984375, 1.0 - 0.9]);
    let round = |x: f64| f64::from(half::bf16::from_f64(x).to_f32());
    let [_, m, ..] = run(&[1.0], &[3.0], None, hyper, 1, &[1.0, 1.0]).unwrap();
    assert_eq!(m, [round(0.1)]);
    let [w, m, ..] = run(&[1.0], &[3.0], None, hyper, 2, &[1.0, 1.0]).unwrap();
    let second = 0.1 + round(0.8984375 * round(0.1));
    near(&m, &[round(second)]);
    // The step itself is not rounded.
    let first = 1.0 - 0.01 - 0.1 * 0.1;
    near(&w, &[first - 0.01 * first - 0.1 * second]);
}

#[test]
fn rows_without_gradient_stay() {
    let g = [0.0, 0.0, 0.0, 1.0, 2.0, 3.0];
    let [w, m, ..] = run(&[0.0; 6], &g, Some(View::matrix(2, 3)), PLAIN, 3, &[1.0, 1.0]).unwrap();
    assert!(w[..3] == [0.0; 3] && m[..3] == [0.0; 3] && w.iter().all(|w| w.is_finite()), "{w:?} {m:?}");
}

#[test]
fn a_norm_that_is_not_finite_leaves_everything() {
    let [w, m, rows, _] = run(&[1.0, 2.0], &[f64::NAN, 1.0], None, PLAIN, 1, &[f64::NAN, 1.0]).unwrap();
    assert_eq!((w, m, rows), (vec![1.0, 2.0], vec![0.0; 2], vec![0.0; 2]));
}

#[test]
fn wrong_arguments_are_named() {
    let t = |n: usize| tensor(&vec![0.0; n]);
    let error = |rows: usize, cols: usize, view: View| {
        let (mut w, mut m, g, mut rows, mut cols, step) = (t(6), t(6), t(6), t(rows), t(cols), t(3));
        let second = Second::Factored { rows: &mut rows, cols: &mut cols, view };
        let item = Item { w: &mut w, m: &mut m, second, g: &g, compute: None, lr_scale: 1.0, weight_decay: 0.0 };
        adafactor(&mut [item], PLAIN, &step, None, &mut Workspace::new()).unwrap_err().to_string()
    };
    let view = View::matrix(2, 3);
    assert_eq!(error(3, 3, view), "adafactor: `rows[0]` has shape [3], expected 2 elements");
    assert_eq!(error(2, 2, view), "adafactor: `cols[0]` has shape [2], expected 3 elements");
    assert!(error(2, 3, View::matrix(2, 2)).contains("`view[0]` has value View"));
    let (mut w, g, mut v, step) = (t(2), t(2), t(2), t(3));
    let mut m = t(2);
    let shared = m.clone();
    let item = Item {
        w: &mut w,
        m: &mut m,
        second: Second::Full(&mut v),
        g: &g,
        compute: None,
        lr_scale: 1.0,
        weight_decay: 0.0,
    };
    let error = adafactor(&mut [item], PLAIN, &step, None, &mut Workspace::new()).unwrap_err();
    assert!(matches!(error, Error::SharedTensor { .. }), "{error}");
    drop(shared);
    assert_eq!(case("one", &[[64, 3].into()]).inputs.len(), 7);
}
