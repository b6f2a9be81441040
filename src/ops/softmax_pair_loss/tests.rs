use super::case::build;
use super::{Block, Dims, Panel, Sides, case, forward, in_panels, softmax_pair_loss};
use crate::ops::Case;
use crate::ops::sigmoid_pair_loss::{self, sigmoid_pair_loss};
use crate::testing::{check, check_gradients, devices};
use crate::{DType, Device, Grads, Tape, Tensor, Var};

const SMALL: Panel = Panel { rows: 128, cols: 128 };
const START: f64 = 2.6593;

fn everywhere() -> Vec<Device> {
    [Device::Cpu].into_iter().chain(devices()).collect()
}

/// `rows x cols` pairs, the first row being column `row0`.
fn part(rows: usize, cols: usize, dim: usize, log_scale: f64, row0: usize, sides: Sides) -> Case {
    let block = Block { row0, col0: 0, divisor: rows.max(1) };
    let id = format!("{rows}x{cols}x{dim} from {row0}, {log_scale}, {sides:?}");
    build(id, [rows, cols], dim, log_scale, move |tape, v| {
        let (loss, logits) = in_panels(tape, &v[0], &v[1], &v[2], block, sides, SMALL)?;
        Ok(vec![loss, Var::constant(logits)])
    })
}

#[test]
fn matches_the_oracle_on_odd_shapes() {
    for (n, dim) in [(1, 7), (0, 5), (2, 1), (17, 48), (33, 40)] {
        check(&part(n, n, dim, START, 0, Sides::Both)).unwrap();
    }
    for (rows, cols, dim, row0) in [(1, 9, 7, 8), (0, 4, 3, 0), (9, 21, 28, 0), (5, 12, 33, 7)] {
        check(&part(rows, cols, dim, START, row0, Sides::Rows)).unwrap();
    }
}

/// Panels beside each other, below each other, and cut.
#[test]
fn matches_the_oracle_in_panels() {
    check(&part(140, 140, 24, START, 0, Sides::Both)).unwrap();
    check(&part(40, 270, 16, START, 131, Sides::Rows)).unwrap();
}

#[test]
fn matches_the_oracle_at_any_temperature() {
    for log_scale in [-4.0, 100f64.ln(), 6.0] {
        check(&part(21, 21, 16, log_scale, 0, Sides::Both)).unwrap();
    }
}

#[test]
fn gradients_match_finite_differences() {
    for n in [1, 2, 5] {
        check_gradients(&part(n, n, 4, 1.2, 0, Sides::Both)).unwrap();
    }
    check_gradients(&part(3, 7, 4, 0.5, 2, Sides::Rows)).unwrap();
}

fn unit(n: usize, dim: usize, seed: f64) -> Vec<f64> {
    let row = |i: usize| -> Vec<f64> {
        let v: Vec<f64> = (0..dim).map(|j| ((i * dim + j) as f64 * 0.713 + seed).sin() + 0.2).collect();
        let norm = v.iter().map(|v| v * v).sum::<f64>().sqrt();
        v.into_iter().map(|v| v / norm).collect()
    };
    (0..n).flat_map(row).collect()
}

/// Loss, dx, dy and dlog_scale, one after the other.
fn run(x: &[f64], y: &[f64], dim: usize, log_scale: f64, dtype: DType, device: &Device, panel: Panel) -> Vec<f64> {
    let tensor = |v: &[f64], shape: &[usize], dtype: DType| {
        Tensor::from_slice(v, shape, &Device::Cpu).unwrap().cast(dtype).unwrap().to_device(device).unwrap()
    };
    let n = x.len() / dim;
    let tape = Tape::new();
    let vars =
        [tensor(x, &[n, dim], dtype), tensor(y, &[n, dim], dtype), tensor(&[log_scale], &[1], dtype.accumulate())];
    let vars = vars.map(|t| tape.leaf(t));
    let (loss, _) = in_panels(&tape, &vars[0], &vars[1], &vars[2], Block::whole(n), Sides::Both, panel).unwrap();
    let mut grads = Grads::new();
    tape.backward_scaled(&loss, 1.0, &mut grads).unwrap();
    let mut all = vec![loss.value().item().unwrap()];
    vars.iter().for_each(|v| all.extend(grads.take(v).unwrap().to_f64().unwrap()));
    all
}

#[test]
fn every_tiling_is_the_plain_formula() {
    let (n, dim, t) = (270, 5, 3.0f64);
    let (x, y) = (unit(n, dim, 0.0), unit(n, dim, 2.0));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let s: Vec<f64> = x.chunks(dim).flat_map(|x| y.chunks(dim).map(move |y| dot(x, y))).collect();
    let row = |i: usize| (0..n).map(|j| (t * s[i * n + j]).exp()).sum::<f64>();
    let col = |j: usize| (0..n).map(|i| (t * s[i * n + j]).exp()).sum::<f64>();
    let (rows, cols): (Vec<f64>, Vec<f64>) = ((0..n).map(row).collect(), (0..n).map(col).collect());
    let mut plain = vec![0.0; 1 + 2 * n * dim + 1];
    for i in 0..n {
        plain[0] += (rows[i].ln() + cols[i].ln() - 2.0 * t * s[i * n + i]) / (2 * n) as f64;
        for j in 0..n {
            let e = (t * s[i * n + j]).exp();
            let positive = if i == j { 2.0 } else { 0.0 };
            let g = (e / rows[i] + e / cols[j] - positive) / (2 * n) as f64;
            for k in 0..dim {
                plain[1 + i * dim + k] += t * g * y[j * dim + k];
                plain[1 + (n + j) * dim + k] += t * g * x[i * dim + k];
            }
            plain[1 + 2 * n * dim] += t * g * s[i * n + j];
        }
    }
    for (rows, cols) in [(128, 128), (128, 4096), (256, 128), (1024, 1024)] {
        let got = run(&x, &y, dim, t.ln(), DType::F64, &Device::Cpu, Panel { rows, cols });
        let far = got.iter().zip(&plain).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(far < 1e-12, "panels of {rows}x{cols}: {far}");
    }
}

/// Cosines of exactly 1 and -1 at t = 1e4: nothing overflows, and what is right costs nothing.
#[test]
fn extreme_logits_stay_finite() {
    let axis = |signs: &[f64]| signs.iter().flat_map(|&s| [s, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]).collect::<Vec<_>>();
    for device in everywhere() {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let right = run(&axis(&[1.0, -1.0]), &axis(&[1.0, -1.0]), 8, 1e4f64.ln(), dtype, &device, SMALL);
            assert!(right.iter().all(|v| v.abs() < 1e-6), "{right:?}");
            let wrong = run(&axis(&[1.0, -1.0]), &axis(&[-1.0, 1.0]), 8, 1e4f64.ln(), dtype, &device, SMALL);
            assert!((wrong[0] / 2e4 - 1.0).abs() < 1e-5, "{wrong:?} on {device}");
            assert!(wrong.iter().all(|v| v.is_finite()));
        }
    }
}

/// The loss of a constant added to all logits is the same; the sigmoid loss's is not.
#[test]
fn only_differences_of_logits_count() {
    let (n, dim) = (6, 4);
    let (mut x, mut y) = (vec![0.0; n * (dim + 1)], vec![0.0; n * (dim + 1)]);
    let shifted = |x: &mut [f64], y: &mut [f64], by: f64| {
        for (to, from) in [(&mut *x, unit(n, dim, 0.0)), (&mut *y, unit(n, dim, 1.0))] {
            for (to, from) in to.chunks_mut(dim + 1).zip(from.chunks(dim)) {
                to[..dim].copy_from_slice(from);
                to[dim] = by;
            }
        }
    };
    let tensor = |v: &[f64], shape: &[usize]| Tensor::from_slice(v, shape, &Device::Cpu).unwrap();
    let mut losses = [vec![], vec![]];
    for by in [0.0, 3.0] {
        shifted(&mut x, &mut y, by);
        let [x, y] = [&x, &y].map(|v| tensor(v, &[n, dim + 1]));
        let (t, b) = (tensor(&[0.5], &[1]), tensor(&[-1.0], &[1]));
        losses[0].push(forward(&x, &y, &t, Block::whole(n), Sides::Both).unwrap().0.item().unwrap());
        losses[1].push(sigmoid_pair_loss::forward(&x, &y, &t, &b, Block::whole(n)).unwrap().0.item().unwrap());
    }
    assert!((losses[0][0] - losses[0][1]).abs() < 1e-12 && (losses[1][0] - losses[1][1]).abs() > 1.0, "{losses:?}");
}

/// Both sides are half of the rows' loss and half of the columns'.
#[test]
fn both_sides_are_halves_of_each() {
    let (n, dim) = (9, 6);
    let tensor = |v: &[f64], shape: &[usize]| Tensor::from_slice(v, shape, &Device::Cpu).unwrap();
    let (x, y, t) =
        (tensor(&unit(n, dim, 0.0), &[n, dim]), tensor(&unit(n, dim, 1.0), &[n, dim]), tensor(&[1.0], &[1]));
    let value = |x: &Tensor, y: &Tensor, sides| forward(x, y, &t, Block::whole(n), sides).unwrap().0.item().unwrap();
    let halves = 0.5 * (value(&x, &y, Sides::Rows) + value(&y, &x, Sides::Rows));
    assert!((value(&x, &y, Sides::Both) - halves).abs() < 1e-13);
}

/// As the sigmoid loss has them, whose bias is 0.
#[test]
fn statistics_are_those_of_the_sigmoid_loss() {
    let (n, dim) = (150, 12);
    for device in everywhere() {
        let tensor = |v: &[f64], shape: &[usize]| {
            Tensor::from_slice(v, shape, &Device::Cpu).unwrap().cast(DType::F32).unwrap().to_device(&device).unwrap()
        };
        let tape = Tape::no_grad();
        let [x, y, t, b] = [
            tensor(&unit(n, dim, 0.0), &[n, dim]),
            tensor(&unit(n, dim, 1.0), &[n, dim]),
            tensor(&[2.0], &[1]),
            tensor(&[0.0], &[1]),
        ]
        .map(Var::constant);
        let (_, ours) = softmax_pair_loss(&tape, &x, &y, &t, Block::whole(n), Sides::Both).unwrap();
        let (_, theirs) = sigmoid_pair_loss(&tape, &x, &y, &t, &b, Block::whole(n)).unwrap();
        for (a, b) in ours.to_f64().unwrap().iter().zip(theirs.to_f64().unwrap()) {
            assert!((a - b).abs() < 1e-5, "{a} {b} on {device}");
        }
    }
}

#[test]
fn only_wanted_gradients_are_made() {
    for device in everywhere() {
        let tensor = |v: &[f64], shape: &[usize], dtype| {
            Tensor::from_slice(v, shape, &Device::Cpu).unwrap().cast(dtype).unwrap().to_device(&device).unwrap()
        };
        let (n, dim) = (10, 6);
        let all = [
            tensor(&unit(n, dim, 0.0), &[n, dim], DType::BF16),
            tensor(&unit(n, dim, 1.0), &[n, dim], DType::BF16),
            tensor(&[1.0], &[1], DType::F32),
        ];
        let gradients = |bits: usize| {
            let tape = Tape::new();
            let var =
                |i: usize| if bits & 1 << i != 0 { tape.leaf(all[i].clone()) } else { Var::constant(all[i].clone()) };
            let vars = [var(0), var(1), var(2)];
            let (loss, _) =
                softmax_pair_loss(&tape, &vars[0], &vars[1], &vars[2], Block::whole(n), Sides::Both).unwrap();
            let mut grads = Grads::new();
            if bits != 0 {
                tape.backward_scaled(&loss, 1.0, &mut grads).unwrap();
            }
            vars.map(|v| grads.take(&v).map(|g| g.to_f64().unwrap()))
        };
        let full = gradients(7);
        for bits in 0..7usize {
            for (i, got) in gradients(bits).into_iter().enumerate() {
                assert_eq!(got, full[i].clone().filter(|_| bits & 1 << i != 0), "input {i} of {bits:b} on {device}");
            }
        }
    }
}

#[test]
fn the_memory_is_what_the_formula_says() {
    let measure = |n: usize, dim: usize, dtype: DType, device: &Device| {
        let tensor = |v: &[f64], shape: &[usize], dtype: DType| {
            Tensor::from_slice(v, shape, &Device::Cpu).unwrap().cast(dtype).unwrap().to_device(device).unwrap()
        };
        let [x, y] = [0.0, 1.0].map(|seed| tensor(&unit(n, dim, seed), &[n, dim], dtype));
        let [scale, seed] = [2.0, 1.0].map(|v| tensor(&[v], &[1], dtype.accumulate()));
        let seed = seed.deep_clone().unwrap();
        let step = || {
            let tape = Tape::new();
            let vars = [x, y, scale].map(|t| tape.leaf(t));
            let (loss, logits) =
                softmax_pair_loss(&tape, &vars[0], &vars[1], &vars[2], Block::whole(n), Sides::Both).unwrap();
            let mut grads = Grads::new();
            tape.backward(&loss, seed, &mut grads).unwrap();
            (loss, logits, grads)
        };
        let (_, held) = device.peak_bytes(step).unwrap();
        assert_eq!(held, super::peak_bytes(n, dim, dtype, device), "{n} {dim} {dtype} on {device}");
    };
    for (n, dim, dtype) in [(1100, 16, DType::F32), (300, 200, DType::BF16), (20, 300, DType::F16), (7, 3, DType::F64)]
    {
        measure(n, dim, dtype, &Device::Cpu);
    }
    for device in devices().into_iter().filter(Device::is_host) {
        measure(130, 24, DType::F32, &device);
        measure(20, 80, DType::BF16, &device);
    }
}

#[test]
fn wrong_arguments_are_named() {
    let t = |s: &[usize], dtype| Tensor::zeros(s, dtype, &Device::Cpu).unwrap();
    let (x, one) = (t(&[3, 4], DType::F32), t(&[1], DType::F32));
    let message = |x: &Tensor, y: &Tensor, log_scale: &Tensor, block: Block, sides: Sides| {
        Dims::check(x, y, log_scale, block, sides).unwrap_err().to_string()
    };
    let (whole, f32) = (Block::whole(3), |s: &[usize]| t(s, DType::F32));
    let at = |row0, col0| Block { row0, col0, divisor: 3 };
    for (got, expected) in [
        (message(&f32(&[3, 0]), &x, &one, whole, Sides::Both), "`x` has shape [3, 0], expected at least one column"),
        (message(&x, &f32(&[3, 5]), &one, whole, Sides::Both), "`y` has shape [3, 5], expected [3, 4]"),
        (message(&x, &x, &f32(&[2]), whole, Sides::Both), "`log_scale` has shape [2], expected [1]"),
        (
            message(&x, &x, &one, Block::whole(0), Sides::Both),
            "`block` has value a divisor of 0, expected a divisor of at least 1",
        ),
        (
            message(&x, &f32(&[4, 4]), &one, whole, Sides::Both),
            "`block` has value rows 0..3, columns 0..4, expected the same rows and columns",
        ),
        (
            message(&x, &f32(&[5, 4]), &one, at(3, 0), Sides::Rows),
            "`block` has value rows 3..6, columns 0..5, expected rows that are columns too",
        ),
        (
            message(&x, &f32(&[5, 4]), &one, at(0, 1), Sides::Rows),
            "`block` has value rows 0..3, columns 1..6, expected rows that are columns too",
        ),
    ] {
        assert_eq!(got, format!("softmax_pair_loss: {expected}"));
    }
    assert_eq!(case(4096, 768).flops, 2 * 4096 * 4096 * 768);
}
