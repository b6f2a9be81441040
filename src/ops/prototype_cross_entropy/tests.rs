use proptest::prelude::*;

use super::{Dims, Pairing, backward, case, forward, launch, prototype_cross_entropy, workspace_bytes};
use crate::dtype::Element;
use crate::ops::sinkhorn_knopp::sinkhorn_knopp;
use crate::ops::teacher::Teacher;
use crate::ops::tiles::Tiles;
use crate::ops::{Case, Fill};
use crate::random::{normal, stream};
use crate::testing::{DTYPES, check, check_dtype, check_gradients, devices, distance, scheduled, ulp};
use crate::{DType, Device, Grads, Tape, Tensor, Var};

#[test]
fn matches_the_oracle_on_odd_shapes() {
    for [rows, cols, teachers, group] in
        [[0, 5, 3, 1], [1, 1, 1, 1], [1, 257, 1, 1], [3, 31, 3, 1], [5, 33, 2, 2], [19, 257, 4, 3], [67, 8, 67, 1]]
    {
        check(&case(rows, cols, teachers, group)).unwrap();
    }
}

/// More columns than a tile has, with whole vectors and without; the last tile has idle warps.
#[test]
fn several_tiles_match_the_oracle() {
    check_dtype(&case(2, 4104, 2, 1), DType::F16).unwrap();
    check_dtype(&case(2, 2052, 3, 2), DType::F32).unwrap();
    check_dtype(&case(2, 1031, 2, 1), DType::BF16).unwrap();
}

fn extreme(std: f64, mean: f64) -> Case {
    let mut case = case(5, 40, 5, 1);
    case.id += &format!("-std{std}-mean{mean}");
    case.inputs[0].fill = Fill::Normal(mean, std);
    case
}

#[test]
fn extreme_logits_match_the_oracle() {
    for (std, mean) in [(50.0, 0.0), (0.3, 1000.0), (0.0, -7.0)] {
        check(&extreme(std, mean)).unwrap();
    }
}

#[test]
fn gradients_match_finite_differences() {
    check_gradients(&case(3, 7, 3, 1)).unwrap();
    check_gradients(&case(4, 33, 2, 2)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]
    #[test]
    fn matches_the_oracle(rows in 1usize..30, cols in 1usize..300, teachers in 1usize..5, group in 1usize..4) {
        check(&case(rows, cols, teachers, group)).unwrap();
    }
}

fn tensor<T: Element>(values: &[T], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
}

fn logits(seed: u64, rows: usize, cols: usize) -> Vec<f64> {
    normal(&mut stream(seed, 0), rows * cols).iter().map(|x| 0.3 * x).collect()
}

/// A teacher of f64 whose rows sum to 1.
fn teacher(seed: u64, rows: usize, cols: usize) -> Teacher {
    sinkhorn_knopp(&tensor(&logits(seed, rows, cols), &[rows, cols]), &tensor(&[0.07], &[1]), 3, None).unwrap()
}

/// Loss, `H` of each row, and gradient.
fn run(s: &[f64], t: &Teacher, pairing: Pairing<'_>, weights: &[f64], normaliser: f64) -> (f64, Vec<f64>, Vec<f64>) {
    let rows = weights.len();
    let (s, weights) = (tensor(s, &[rows, s.len() / rows]), tensor(weights, &[rows]));
    let (loss, stats) = forward(&s, 0.1, t, pairing, &weights, normaliser).unwrap();
    let h = stats.to_vec::<f64>().unwrap().chunks(4).map(|s| s[3]).collect();
    let ds = backward(&tensor(&[1.0], &[1]), s, 0.1, t, pairing, &weights, normaliser, &stats).unwrap();
    (loss.item().unwrap(), h, ds.to_vec().unwrap())
}

fn assert_close(a: &[f64], b: &[f64], tolerance: f64) {
    let (d, at) = distance(a, b);
    assert!(a.len() == b.len() && d <= tolerance, "{d:e} at {at}: {} and {}", a[at], b[at]);
}

#[test]
fn is_the_plain_formula() {
    let (rows, cols) = (4, 9);
    let (s, t, w) = (logits(1, rows, cols), teacher(2, rows, cols), [0.5, 1.0, 2.0, 0.25]);
    let p = t.probabilities().unwrap().to_vec::<f64>().unwrap();
    let (mut loss, mut rows_h) = (0.0, vec![]);
    for (b, s) in s.chunks(cols).enumerate() {
        let lse = s.iter().map(|s| (s / 0.1).exp()).sum::<f64>().ln();
        let h: f64 = s.iter().zip(&p[b * cols..]).map(|(s, p)| -p * (s / 0.1 - lse)).sum();
        loss += w[b] * h / 3.0;
        rows_h.push(h);
    }
    let got = run(&s, &t, Pairing::Same, &w, 3.0);
    assert_close(&[got.0], &[loss], 1e-12);
    assert_close(&got.1, &rows_h, 1e-12);
}

#[test]
fn gradients_of_a_row_cancel_and_an_offset_of_a_row_changes_nothing() {
    let (rows, cols) = (3, 50);
    let (s, t) = (logits(3, rows, cols), teacher(4, rows, cols));
    let (loss, h, ds) = run(&s, &t, Pairing::Same, &[1.0; 3], 3.0);
    ds.chunks(cols).for_each(|row| assert!(row.iter().sum::<f64>().abs() < 1e-13));
    let moved: Vec<f64> = s.iter().enumerate().map(|(i, s)| s + [5.0, -1e3, 0.0][i / cols]).collect();
    let got = run(&moved, &t, Pairing::Same, &[1.0; 3], 3.0);
    assert_close(&[got.0], &[loss], 1e-10);
    assert_close(&got.1, &h, 1e-10);
    assert_close(&got.2, &ds, 1e-10);
}

/// The entropy of the teacher is the least, reached where the student predicts the same.
#[test]
fn is_at_least_the_entropy_of_the_teacher() {
    let (rows, cols) = (3, 20);
    let t = teacher(5, rows, cols);
    let p = t.probabilities().unwrap().to_vec::<f64>().unwrap();
    let entropy: Vec<f64> = p.chunks(cols).map(|p| p.iter().map(|p| -p * p.ln()).sum()).collect();
    let (_, h, _) = run(&logits(6, rows, cols), &t, Pairing::Same, &[1.0; 3], 1.0);
    assert!(h.iter().zip(&entropy).all(|(h, e)| h > e));
    let same: Vec<f64> = p.iter().map(|p| 0.1 * p.ln()).collect();
    let (_, h, ds) = run(&same, &t, Pairing::Same, &[1.0; 3], 1.0);
    assert_close(&h, &entropy, 1e-12);
    assert_close(&ds, &[0.0; 60], 1e-12);
}

#[test]
fn the_sum_of_two_teachers_costs_the_sum_of_both() {
    let (rows, cols) = (4, 11);
    let (s, t) = (logits(7, rows, cols), teacher(8, 3, cols));
    let pairs = |p: &[i32]| tensor(p, &[rows, p.len() / rows]);
    let go = |p: &[i32]| run(&s, &t, Pairing::Rows(&pairs(p)), &[1.0; 4], 2.0);
    let (first, second, none) = ([0, 1, 2, 0], [2, 2, 1, 1], [-1; 4]);
    let both: Vec<i32> = first.iter().zip(second).zip(none).flat_map(|((&a, b), c)| [a, c, b]).collect();
    let (a, b, sum) = (go(&first), go(&second), go(&both));
    assert_close(&[sum.0], &[a.0 + b.0], 1e-12);
    assert_close(&sum.2, &a.2.iter().zip(&b.2).map(|(a, b)| a + b).collect::<Vec<_>>(), 1e-12);
    assert_eq!(go(&none).0, 0.0);
}

#[test]
fn permuted_rows_cost_the_same() {
    let (rows, cols) = (5, 12);
    let (s, t) = (logits(9, rows, cols), teacher(10, rows, cols));
    let (w, order) = ([1.0, 0.5, 0.2, 2.0, 1.5], [3, 0, 4, 1, 2]);
    let pairs = tensor(&order.map(|b| b as i32), &[rows, 1]);
    let moved: Vec<f64> = order.iter().flat_map(|b| s[b * cols..][..cols].to_vec()).collect();
    let a = run(&s, &t, Pairing::Same, &w, 4.0);
    let b = run(&moved, &t, Pairing::Rows(&pairs), &order.map(|b| w[b]), 4.0);
    assert_close(&[a.0], &[b.0], 1e-13);
    let back: Vec<f64> = order.iter().flat_map(|b| a.2[b * cols..][..cols].to_vec()).collect();
    assert_close(&b.2, &back, 1e-13);
}

/// Rows of weight 0 are padding: whatever they hold, loss and gradients are those without them.
#[test]
fn rows_of_weight_zero_are_not_read() {
    let nan = f32::NAN;
    for device in devices().into_iter().chain([Device::Cpu]) {
        let on = |v: &[f32], shape: &[usize]| tensor(v, shape).to_device(&device).unwrap();
        let z = on(&[0.1, 0.2, 0.3, nan, nan, nan], &[2, 3]);
        let t = Teacher::new(z, on(&[0.1], &[1]), on(&[0.0; 3], &[3]), on(&[-4.0, nan], &[2])).unwrap();
        let s = on(&[0.3, 0.1, 0.2, nan, nan, nan], &[2, 3]);
        let w = on(&[1.0, 0.0], &[2]);
        let (loss, stats) = forward(&s, 0.1, &t, Pairing::Same, &w, 1.0).unwrap();
        let ds = backward(&on(&[1.0], &[1]), s, 0.1, &t, Pairing::Same, &w, 1.0, &stats).unwrap();
        let ds = ds.to_vec::<f32>().unwrap();
        assert!(loss.item().unwrap() > 0.0 && ds[..3].iter().all(|x| x.is_finite() && *x != 0.0), "{device}: {ds:?}");
        assert_eq!(ds[3..], [0.0; 3], "{device}");
        assert_eq!(stats.to_vec::<f32>().unwrap()[4..], [0.0; 4], "{device}");
    }
}

/// Student and teacher may differ in type.
#[test]
fn every_pair_of_types_matches_the_reference() {
    let pairs = [1i32, 0, -1, 1, 1, -1];
    for (student, z) in DTYPES.into_iter().flat_map(|s| DTYPES.map(|z| (s, z))) {
        let go = |device: &Device| {
            let make = |seed, rows, dtype| {
                tensor(&logits(seed, rows, 48), &[rows, 48]).cast(dtype).unwrap().to_device(device).unwrap()
            };
            let t = sinkhorn_knopp(&make(11, 2, z), &Tensor::full([1], 0.07f32, device).unwrap(), 3, None).unwrap();
            let (s, w) = (make(12, 3, student), Tensor::full([3], 0.5f32, device).unwrap());
            let pairs = tensor(&pairs, &[3, 2]).to_device(device).unwrap();
            let (loss, stats) = forward(&s, 0.1, &t, Pairing::Rows(&pairs), &w, 2.0).unwrap();
            let one = Tensor::full([1], 1f32, device).unwrap();
            let ds = backward(&one, s, 0.1, &t, Pairing::Rows(&pairs), &w, 2.0, &stats).unwrap();
            assert_eq!(ds.dtype(), student);
            (loss.item().unwrap(), ds.to_f64().unwrap())
        };
        let truth = go(&Device::Cpu);
        let largest = truth.1.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        for device in devices() {
            let got = go(&device);
            assert!((got.0 - truth.0).abs() < 1e-5 * truth.0, "{device}: {} and {}", got.0, truth.0);
            assert_close(&got.1, &truth.1, ulp(student, largest) + 1e-5 * largest);
        }
    }
}

#[test]
fn two_runs_give_the_same_bits() {
    let case = case(23, 600, 4, 2);
    for device in devices().into_iter().chain([Device::Cpu]) {
        let go = || {
            let inputs = crate::testing::operands(&case, DType::F16, DType::F16, &device).unwrap();
            let (tape, mut grads) = (Tape::new(), Grads::new());
            let mut vars: Vec<Var> = inputs.into_iter().map(Var::constant).collect();
            vars[0] = tape.leaf(vars[0].value().clone());
            let loss = (case.run)(&tape, &vars).unwrap().remove(0);
            tape.backward_scaled(&loss, 1.0, &mut grads).unwrap();
            (loss.value().item().unwrap(), grads.take(&vars[0]).unwrap().to_f64().unwrap())
        };
        assert_eq!(go(), go(), "{device}");
    }
}

/// No second matrix: the gradient takes the place of the logits, unless somebody holds them.
#[test]
fn memory_is_what_is_documented() {
    for device in devices().into_iter().filter(Device::is_host).chain([Device::Cpu]) {
        for (dtype, [rows, cols]) in [(DType::F32, [37, 500]), (DType::F16, [16, 4104]), (DType::BF16, [3, 333])] {
            let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &device).unwrap();
            let f32s = |n: usize| Tensor::full([n], 1f32, &device).unwrap();
            let t = Teacher::new(zeros(&[rows, cols], dtype), f32s(1), f32s(cols), f32s(rows)).unwrap();
            let (s, w) = (zeros(&[rows, cols], dtype), f32s(rows));
            let go = || forward(&s, 0.1, &t, Pairing::Same, &w, 1.0);
            let (out, peak) = device.peak_bytes(go).unwrap();
            let (_, stats) = out.unwrap();
            assert_eq!(peak, workspace_bytes(rows, cols, dtype, &device).unwrap(), "{device} {dtype}");
            let dloss = f32s(1);
            let sweep = |s: Tensor| backward(&dloss, s, 0.1, &t, Pairing::Same, &w, 1.0, &stats).unwrap();
            let (ds, peak) = device.peak_bytes(|| sweep(s.clone())).unwrap();
            assert_eq!((peak, s.to_f64().unwrap()), (rows * cols * dtype.size(), vec![0.0; rows * cols]));
            let at = s.ptr();
            let (own, peak) = device.peak_bytes(|| sweep(s)).unwrap();
            assert_eq!((peak, own.ptr()), (0, at));
            assert_eq!(own.to_f64().unwrap(), ds.to_f64().unwrap());
        }
    }
}

/// Through the tape, when the variable is gone.
#[test]
fn the_sweep_writes_over_logits_nobody_holds() {
    let t = teacher(13, 2, 5);
    let w = tensor(&[1.0; 2], &[2]);
    let (tape, mut grads) = (Tape::new(), Grads::new());
    let x = tape.leaf(tensor(&logits(14, 2, 5), &[2, 5]));
    let s = crate::ops::scale::scale(&tape, &x, 2.0).unwrap();
    let at = s.value().ptr();
    let loss = prototype_cross_entropy(&tape, &s, 0.1, &t, Pairing::Same, &w, 1.0).unwrap();
    assert_eq!(tape.saved().last().unwrap().1, (10 + 2 + 8 + 10 + 1 + 5 + 2) * 8);
    drop(s);
    let ((), peak) = Device::Cpu.peak_bytes(|| tape.backward_scaled(&loss, 1.0, &mut grads).unwrap()).unwrap();
    let dx = grads.take(&x).unwrap();
    assert!(peak < 2 * dx.bytes() && dx.ptr() != at, "{peak} bytes: the gradient of the scale alone");
}

/// A block takes the rows of a part one after the other, those of weight 0 among them.
#[test]
fn parts_of_many_rows_match_parts_of_one() {
    let (rows, cols) = (7, 520);
    let w: Vec<f32> = (0..rows).map(|b| if b == 2 { 0.0 } else { 1.0 + b as f32 }).collect();
    for device in devices() {
        let on = |t: Tensor| t.cast(DType::F32).unwrap().to_device(&device).unwrap();
        let z = on(tensor(&logits(15, rows, cols), &[rows, cols]));
        let t = sinkhorn_knopp(&z, &Tensor::full([1], 0.07f32, &device).unwrap(), 3, None).unwrap();
        let s = on(tensor(&logits(16, rows, cols), &[rows, cols]));
        let (w, one) = (tensor(&w, &[rows]).to_device(&device).unwrap(), Tensor::full([1], 1f32, &device).unwrap());
        let dims = Dims::check(&s, 0.1, &t, Pairing::Same, &w, 1.0).unwrap();
        let go = |parts: u32| {
            let tiles = Tiles { parts, ..launch::tiles(rows, cols, DType::F32).unwrap() };
            let empty = |shape: &[usize]| Tensor::uninit(shape, DType::F32, &device).unwrap();
            let (mut loss, mut stats, mut ds) = (empty(&[1]), empty(&[rows, 4]), empty(&[rows, cols]));
            launch::forward(&s, &t, Pairing::Same, &w, dims, tiles, &mut loss, &mut stats).unwrap();
            launch::backward(&one, s.ptr(), &t, Pairing::Same, &w, &stats, dims, tiles, &mut ds).unwrap();
            [loss, stats, ds].map(|t| t.to_vec::<f32>().unwrap())
        };
        for schedule in 0..3 {
            let [one, two, seven] = [1, 2, 7].map(|parts| scheduled(schedule, || go(parts)));
            assert!(one == two && one == seven, "{device}, schedule {schedule}");
        }
    }
}

/// Where the host cannot check the pairing, one out of range gives NaN and reads nothing.
#[test]
fn kernels_guard_against_wrong_pairings() {
    for device in devices() {
        let f32s = |v: &[f32], shape: &[usize]| tensor(v, shape).to_device(&device).unwrap();
        let t = Teacher::new(f32s(&[0.1; 3], &[1, 3]), f32s(&[0.1], &[1]), f32s(&[0.0; 3], &[3]), f32s(&[0.0], &[1]));
        let (t, s, w) = (t.unwrap(), f32s(&[0.2; 6], &[2, 3]), f32s(&[1.0; 2], &[2]));
        let pairs = |p: &[i32]| tensor(p, &[2, 1]).to_device(&device).unwrap();
        let good = pairs(&[0, 0]);
        let dims = Dims::check(&s, 0.1, &t, Pairing::Rows(&good), &w, 1.0).unwrap();
        let tiles = launch::tiles(2, 3, DType::F32).unwrap();
        for wrong in [-2, 1] {
            let pairs = pairs(&[0, wrong]);
            let (mut loss, mut stats) = (f32s(&[0.0], &[1]), f32s(&[0.0; 8], &[2, 4]));
            launch::forward(&s, &t, Pairing::Rows(&pairs), &w, dims, tiles, &mut loss, &mut stats).unwrap();
            let mut ds = f32s(&[0.0; 6], &[2, 3]);
            let one = f32s(&[1.0], &[1]);
            launch::backward(&one, s.ptr(), &t, Pairing::Rows(&pairs), &w, &stats, dims, tiles, &mut ds).unwrap();
            let ds = ds.to_vec::<f32>().unwrap();
            assert!(loss.item().unwrap().is_nan() && ds[3..].iter().all(|x| x.is_nan()), "{ds:?}");
            assert!(ds[..3].iter().all(|x| x.is_finite()), "{ds:?}");
        }
    }
}

#[test]
fn grids_cover_every_tile_and_row() {
    for (rows, cols) in [(1, 1), (64, 131_072), (2458, 131_072), (5, 4097), (100_000, 8)] {
        let t = launch::tiles(rows, cols, DType::F16).unwrap();
        assert!(t.parts >= 1 && t.parts as usize <= rows && t.grid().grid == [t.tiles, t.parts, 1]);
    }
    assert_eq!(launch::tiles(0, 5, DType::F16).unwrap().parts, 0);
}

#[test]
fn wrong_arguments_are_named() {
    let z = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let t = |rows: usize, cols: usize| {
        Teacher::new(z(&[rows, cols]), tensor(&[0.1f32], &[1]), z(&[cols]), z(&[rows])).unwrap()
    };
    let call = |s: &[usize], temp: f64, t: &Teacher, pairing: Pairing<'_>, w: &[usize], n: f64| {
        let s = Var::constant(z(s));
        let text = prototype_cross_entropy(&Tape::no_grad(), &s, temp, t, pairing, &z(w), n).unwrap_err().to_string();
        text.strip_prefix("prototype_cross_entropy: ").unwrap().to_string()
    };
    let same = Pairing::Same;
    assert_eq!(call(&[2, 3], 0.1, &t(2, 4), same, &[2], 1.0), "`teacher` has shape [2, 4], expected [_, 3]");
    assert_eq!(call(&[2, 3], 0.1, &t(1, 3), same, &[2], 1.0), "`teacher` has shape [1, 3], expected [2, 3]");
    assert_eq!(call(&[2, 3], 0.1, &t(2, 3), same, &[3], 1.0), "`weights` has shape [3], expected [2]");
    assert_eq!(call(&[2, 3], 0.0, &t(2, 3), same, &[2], 1.0), "`student_temp` has value 0, expected a positive number");
    assert_eq!(call(&[2, 3], 0.1, &t(2, 3), same, &[2], 0.0), "`normaliser` has value 0, expected a positive number");
    let pairs = tensor(&[0i32, 1, 2, -2], &[2, 2]);
    let rows = Pairing::Rows(&pairs);
    assert_eq!(call(&[2, 3], 0.1, &t(2, 3), rows, &[2], 1.0), "`pairing[1, 0]` has value 2, expected -1 to 1");
    assert_eq!(call(&[2, 3], 0.1, &t(9, 3), rows, &[2], 1.0), "`pairing[1, 1]` has value -2, expected -1 to 8");
    assert_eq!(call(&[3, 3], 0.1, &t(9, 3), rows, &[3], 1.0), "`pairing` has shape [2, 2], expected [3, _]");
    let floats = z(&[2, 1]);
    let expected = "`pairing` has dtype f32, expected i32";
    assert_eq!(call(&[2, 3], 0.1, &t(9, 3), Pairing::Rows(&floats), &[2], 1.0), expected);
    let (s, w) = (z(&[2, 3]).cast(DType::F64).unwrap(), tensor(&[1f64; 2], &[2]));
    let error = forward(&s, 0.1, &t(2, 3), same, &w, 1.0).unwrap_err().to_string();
    assert_eq!(error, "prototype_cross_entropy: `teacher` has dtype f32, expected f64");
    let stats = |shape: &[usize]| backward(&z(&[1]), z(&[2, 3]), 0.1, &t(2, 3), same, &z(&[2]), 1.0, &z(shape));
    let error = stats(&[2, 3]).unwrap_err().to_string();
    assert_eq!(error, "prototype_cross_entropy: `stats` has shape [2, 3], expected [2, 4]");
}
