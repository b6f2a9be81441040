mod memory;

use super::case::build;
use super::{Block, Dims, Panel, case, forward, in_panels, launch, sigmoid_pair_loss};
use crate::ops::Case;
use crate::ops::pairs::SIDE;
use crate::testing::{check, check_gradients, devices};
use crate::{DType, Device, Grads, Param, Tape, Tensor, Var};

const SMALL: Panel = Panel { rows: 128, cols: 128 };
const START: [f64; 2] = [std::f64::consts::LN_10, -10.0];
/// Of the released L/16 at 384 pixels.
const TRAINED: [f64; 2] = [4.7724, -12.7];

/// The CPU and the devices whose kernels are tested.
fn everywhere() -> Vec<Device> {
    [Device::Cpu].into_iter().chain(devices()).collect()
}

/// `rows x cols` pairs, the first row being number `row0` and the first column `col0`.
fn part(rows: usize, cols: usize, dim: usize, numbers: [f64; 2], [row0, col0]: [usize; 2]) -> Case {
    let block = Block { row0, col0, divisor: rows.max(1) };
    let id = format!("{rows}x{cols}x{dim} from {row0} {col0}, {numbers:?}");
    build(id, [rows, cols], dim, numbers, move |tape, v| {
        let (loss, logits) = in_panels(tape, &v[0], &v[1], &v[2], &v[3], block, SMALL)?;
        Ok(vec![loss, Var::constant(logits)])
    })
}

#[test]
fn matches_the_oracle_on_odd_shapes() {
    for (rows, cols, dim, from) in [
        (1, 1, 7, [0, 0]),
        (2, 3, 1, [0, 0]),
        (0, 5, 8, [0, 0]),
        (5, 0, 8, [0, 0]),
        (17, 17, 48, [0, 0]),
        (13, 13, 40, [0, 100]),       // negatives only
        (9, 21, 28, [0, 0]),          // a rectangle with every positive
        (12, 5, 20, [3, 6]),          // one whose diagonal enters from above
        (5, 12, 33, [usize::MAX, 0]), // an offset no i32 holds
    ] {
        check(&part(rows, cols, dim, START, from)).unwrap();
    }
}

/// Panels of one tile: beside each other, below each other, and cut; two stages and more of the rows' elements.
#[test]
fn matches_the_oracle_in_panels() {
    check(&part(130, 130, 72, START, [0, 0])).unwrap();
    check(&part(40, 270, 24, START, [0, 131])).unwrap();
    check(&part(270, 40, 136, TRAINED, [7, 140])).unwrap();
}

/// Whole tiles, which take another path where no positive is in them: the diagonal passes by, or ends in a corner.
#[test]
fn matches_the_oracle_in_whole_tiles() {
    for from in [[0, 128], [0, 127], [127, 0], [0, 0]] {
        check(&part(128, 128, 8, START, from)).unwrap();
    }
}

#[test]
fn matches_the_oracle_at_any_temperature() {
    for numbers in [TRAINED, [-6.0, 0.0], [8.5, 3.0], [2.0, -16.0]] {
        check(&part(19, 21, 16, numbers, [0, 0])).unwrap();
        check(&part(19, 21, 16, numbers, [50, 0])).unwrap();
    }
}

#[test]
fn gradients_match_finite_differences() {
    for (rows, cols, dim, from) in
        [(1, 1, 3, [0, 0]), (4, 4, 5, [0, 0]), (3, 6, 4, [2, 0]), (6, 3, 4, [0, 2]), (3, 3, 2, [9, 0])]
    {
        check_gradients(&part(rows, cols, dim, [1.2, -1.5], from)).unwrap();
    }
}

/// Inputs of one evaluation in f64.
#[derive(Clone)]
struct Problem {
    x: Vec<f64>,
    y: Vec<f64>,
    dim: usize,
    numbers: [f64; 2],
    block: Block,
}

/// Loss, dx, dy, dlog_scale and dbias.
#[derive(Clone, Debug)]
struct Answer {
    loss: f64,
    dx: Vec<f64>,
    dy: Vec<f64>,
    numbers: [f64; 2],
}

impl Problem {
    fn new(rows: usize, cols: usize, dim: usize, numbers: [f64; 2], block: Block) -> Self {
        let unit = |n: usize, seed: f64| -> Vec<f64> {
            let row = |i: usize| -> Vec<f64> {
                let v: Vec<f64> = (0..dim).map(|j| ((i * dim + j) as f64 * 0.713 + seed).sin() + 0.2).collect();
                let norm = v.iter().map(|v| v * v).sum::<f64>().sqrt();
                v.into_iter().map(|v| v / norm).collect()
            };
            (0..n).flat_map(row).collect()
        };
        Self { x: unit(rows, 0.0), y: unit(cols, 2.0), dim, numbers, block }
    }

    /// Rows and columns of this from the first ones on; the divisor stays.
    fn cut(&self, rows: std::ops::Range<usize>, cols: std::ops::Range<usize>) -> Self {
        let d = self.dim;
        let Block { row0, col0, divisor } = self.block;
        Self {
            x: self.x[rows.start * d..rows.end * d].to_vec(),
            y: self.y[cols.start * d..cols.end * d].to_vec(),
            block: Block { row0: row0 + rows.start, col0: col0 + cols.start, divisor },
            ..self.clone()
        }
    }

    /// The equations, pair by pair.
    fn plain(&self) -> Answer {
        let (d, n) = (self.dim, self.block.divisor as f64);
        let [t, b] = [self.numbers[0].exp(), self.numbers[1]];
        let mut answer =
            Answer { loss: 0.0, dx: vec![0.0; self.x.len()], dy: vec![0.0; self.y.len()], numbers: [0.0; 2] };
        for (i, x) in self.x.chunks(d).enumerate() {
            for (j, y) in self.y.chunks(d).enumerate() {
                let s: f64 = x.iter().zip(y).map(|(x, y)| x * y).sum();
                let z = if self.block.row0 + i == self.block.col0 + j { 1.0 } else { -1.0 };
                let a = -z * (t * s + b);
                answer.loss += (a.max(0.0) + (-a.abs()).exp().ln_1p()) / n;
                let g = -z / (1.0 + (-a).exp()) / n;
                answer.numbers[0] += t * g * s;
                answer.numbers[1] += g;
                for k in 0..d {
                    answer.dx[i * d + k] += t * g * y[k];
                    answer.dy[j * d + k] += t * g * x[k];
                }
            }
        }
        answer
    }

    /// The operation, in f64 on the CPU or in `dtype`, with a gradient of the loss.
    fn run(&self, dtype: DType, device: &Device, panel: Panel, dloss: f64) -> Answer {
        let tensor = |v: &[f64], dtype: DType| {
            let t = Tensor::from_slice(v, [v.len() / self.dim, self.dim], &Device::Cpu).unwrap();
            t.cast(dtype).unwrap().to_device(device).unwrap()
        };
        let scalar = |v: f64| {
            let t = Tensor::from_slice(&[v], [1], &Device::Cpu).unwrap();
            t.cast(dtype.accumulate()).unwrap().to_device(device).unwrap()
        };
        let tape = Tape::new();
        let inputs = [tensor(&self.x, dtype), tensor(&self.y, dtype), scalar(self.numbers[0]), scalar(self.numbers[1])];
        let inputs = inputs.map(|t| tape.leaf(t));
        let [x, y, log_scale, bias] = &inputs;
        let (loss, _) = in_panels(&tape, x, y, log_scale, bias, self.block, panel).unwrap();
        let mut grads = Grads::new();
        tape.backward(&loss, scalar(dloss), &mut grads).unwrap();
        let [dx, dy, dlog_scale, dbias] = inputs.map(|v| grads.take(&v).unwrap().to_f64().unwrap());
        Answer { loss: loss.value().item().unwrap(), dx, dy, numbers: [dlog_scale[0], dbias[0]] }
    }

    fn oracle(&self) -> Answer {
        self.run(DType::F64, &Device::Cpu, SMALL, 1.0)
    }
}

impl Answer {
    /// Largest difference of each part, over its largest value.
    fn assert_near(&self, other: &Self, tolerance: f64, what: &str) {
        let parts = |a: &Self| [vec![a.loss], a.dx.clone(), a.dy.clone(), vec![a.numbers[0]], vec![a.numbers[1]]];
        for (name, (a, b)) in
            ["loss", "dx", "dy", "dlog_scale", "dbias"].into_iter().zip(parts(self).into_iter().zip(parts(other)))
        {
            assert_eq!(a.len(), b.len());
            let largest = b.iter().fold(1e-300f64, |m, v| m.max(v.abs()));
            let error = a.iter().zip(&b).fold(0.0f64, |m, (a, b)| m.max((a - b).abs())) / largest;
            assert!(error <= tolerance, "{what}: {name} is off by {error:.1e} of its largest value");
        }
    }

    /// Adds the answer of rows and columns from the first ones on.
    fn add(&mut self, part: &Self, row: usize, col: usize, dim: usize) {
        self.loss += part.loss;
        self.dx[row * dim..].iter_mut().zip(&part.dx).for_each(|(sum, v)| *sum += v);
        self.dy[col * dim..].iter_mut().zip(&part.dy).for_each(|(sum, v)| *sum += v);
        self.numbers.iter_mut().zip(part.numbers).for_each(|(sum, v)| *sum += v);
    }
}

#[test]
fn every_tiling_is_the_plain_formula() {
    let problem = Problem::new(301, 270, 5, [1.5, -3.0], Block { row0: 20, col0: 3, divisor: 300 });
    let plain = problem.plain();
    for (rows, cols) in [(128, 128), (128, 4096), (256, 128), (4096, 256), (1024, 1024)] {
        let got = problem.run(DType::F64, &Device::Cpu, Panel { rows, cols }, 1.0);
        got.assert_near(&plain, 1e-12, &format!("panels of {rows}x{cols}"));
    }
}

/// Blocks with one divisor add up: squares and rectangles, on every device.
#[test]
fn blocks_add_up_to_the_whole() {
    let n = 37;
    let whole = Problem::new(n, n, 9, [2.0, -4.0], Block::whole(n));
    let expected = whole.plain();
    let nothing = Answer { loss: 0.0, dx: vec![0.0; n * 9], dy: vec![0.0; n * 9], numbers: [0.0; 2] };
    let splits = [(2, 2), (3, 3), (4, 4), (7, 7), (1, 7), (3, 1)];
    let sum = |down: usize, across: usize, run: &dyn Fn(&Problem) -> Answer| {
        let mut sum = nothing.clone();
        for row in (0..n).step_by(n.div_ceil(down)) {
            for col in (0..n).step_by(n.div_ceil(across)) {
                let block = whole.cut(row..n.min(row + n.div_ceil(down)), col..n.min(col + n.div_ceil(across)));
                sum.add(&run(&block), row, col, 9);
            }
        }
        sum
    };
    for (down, across) in splits {
        sum(down, across, &Problem::oracle).assert_near(&expected, 1e-12, &format!("{down} x {across} blocks"));
    }
    for device in devices() {
        let on_device = |block: &Problem| block.run(DType::F32, &device, SMALL, 1.0);
        sum(2, 3, &on_device).assert_near(&expected, 2e-5, "2 x 3 blocks of f32");
    }
}

#[test]
fn the_roles_are_symmetric() {
    let problem = Problem::new(11, 14, 6, TRAINED, Block { row0: 2, col0: 0, divisor: 11 });
    let mut swapped = problem.clone();
    std::mem::swap(&mut swapped.x, &mut swapped.y);
    swapped.block = Block { row0: 0, col0: 2, divisor: 11 };
    let mut answer = swapped.oracle();
    std::mem::swap(&mut answer.dx, &mut answer.dy);
    answer.assert_near(&problem.oracle(), 1e-12, "swapped");
}

#[test]
fn the_gradient_of_the_loss_scales_all_gradients() {
    for device in everywhere() {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let problem = Problem::new(6, 6, 8, START, Block::whole(6));
            let [one, four] = [1.0, 4.0].map(|dloss| problem.run(dtype, &device, SMALL, dloss));
            let times = |v: Vec<f64>| v.into_iter().map(|v| 4.0 * v).collect::<Vec<_>>();
            let scaled = Answer { dx: times(one.dx), dy: times(one.dy), numbers: one.numbers.map(|v| 4.0 * v), ..one };
            // f16 gradients of 1 are small enough to lose digits that those of 4 keep.
            four.assert_near(&scaled, if dtype == DType::F16 { 1e-3 } else { 0.0 }, &format!("{dtype} on {device}"));
        }
    }
}

/// Cosines of exactly 1 and -1 at t = 1e4: the loss is linear, gradients are 0 or 1, and nothing overflows.
#[test]
fn extreme_logits_stay_finite() {
    let axis = |signs: &[f64]| signs.iter().flat_map(|&s| [s, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]).collect::<Vec<_>>();
    let problem = Problem {
        x: axis(&[1.0, 1.0, -1.0]),
        y: axis(&[1.0, -1.0, -1.0]),
        dim: 8,
        numbers: [1e4f64.ln(), 0.0],
        block: Block::whole(3),
    };
    // Logits, in 1e4: row 0: +1 -1 -1, row 1: +1 -1 -1, row 2: -1 +1 +1. Wrong are (1, 0), (1, 1) and (2, 1).
    for device in everywhere() {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let got = problem.run(dtype, &device, SMALL, 1.0);
            let expected = Answer {
                loss: 1e4,
                dx: axis(&[0.0, 2e4 / 3.0, -1e4 / 3.0]),
                dy: axis(&[1e4 / 3.0, -2e4 / 3.0, 0.0]),
                numbers: [1e4, 1.0 / 3.0],
            };
            got.assert_near(&expected, if dtype == DType::BF16 { 4e-3 } else { 1e-3 }, &format!("{dtype} on {device}"));
            assert!((got.loss - 1e4).abs() < 0.01 && (got.numbers[1] - 1.0 / 3.0).abs() < 1e-6, "{got:?}");
        }
    }
}

/// Far in the tails, where `log(1 + e)` of f32 has lost its digits, the loss and its gradients keep theirs.
#[test]
fn trained_biases_keep_their_digits() {
    for device in everywhere() {
        for bias in [-10.0, -12.7, -16.0, -20.0] {
            let negatives = Problem::new(40, 24, 16, [1.0, bias], Block { row0: 0, col0: 500, divisor: 40 });
            let got = negatives.run(DType::F32, &device, SMALL, 1.0);
            got.assert_near(&negatives.plain(), 4e-6, &format!("negatives at {bias} on {device}"));
            assert!(got.numbers[1] > 0.0);
            let whole = Problem::new(24, 24, 16, [1.0, bias], Block::whole(24));
            let got = whole.run(DType::F32, &device, SMALL, 1.0);
            got.assert_near(&whole.plain(), 4e-6, &format!("all pairs at {bias} on {device}"));
            assert!((got.numbers[1] + 1.0).abs() < 1e-2, "tends to -1 with the bias to -inf");
        }
    }
}

/// `sigmoid(-17)` is no normal number of f16, and is kept to all digits of one nevertheless.
#[test]
fn small_gradients_survive_in_f16() {
    let problem = Problem::new(32, 32, 16, [0.0, -17.0], Block { row0: 0, col0: 100, divisor: 32 });
    let exact = problem.run(DType::F64, &Device::Cpu, SMALL, 65536.0 * 256.0);
    for device in everywhere() {
        let got = problem.run(DType::F16, &device, SMALL, 65536.0 * 256.0);
        let largest = exact.dx.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        let error = got.dx.iter().zip(&exact.dx).fold(0.0f64, |m, (a, b)| m.max((a - b).abs()));
        assert!(error < largest * 2e-3, "{device}: {error:.1e} of {largest:.1e}");
    }
}

#[test]
fn repeats_are_equal_bit_for_bit() {
    let problem = Problem::new(140, 135, 20, START, Block::whole(140));
    let bits = |a: &Answer| {
        let all = [&a.dx[..], &a.dy, &a.numbers, &[a.loss]].concat();
        all.into_iter().map(f64::to_bits).collect::<Vec<_>>()
    };
    for device in everywhere() {
        let run = || bits(&problem.run(DType::BF16, &device, SMALL, 0.7));
        assert_eq!(run(), run(), "{device}");
    }
    let threads = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| bits(&problem.run(DType::F32, &Device::Cpu, SMALL, 0.7)))
    };
    assert_eq!(threads(1), threads(3));
}

/// Inputs on a device: embeddings of `n` and `m` rows in `dtype`, log scale and bias.
fn inputs(n: usize, m: usize, d: usize, dtype: DType, device: &Device) -> [Tensor; 4] {
    let Problem { x, y, numbers, .. } = Problem::new(n, m, d, START, Block::whole(n));
    let tensor = |v: &[f64], shape: &[usize], dtype| {
        Tensor::from_slice(v, shape, &Device::Cpu).unwrap().cast(dtype).unwrap().to_device(device).unwrap()
    };
    let scalar = |v| tensor(&[v], &[1], dtype.accumulate());
    [tensor(&x, &[n, d], dtype), tensor(&y, &[m, d], dtype), scalar(numbers[0]), scalar(numbers[1])]
}

/// A locked tower's log scale and bias as parameters, whose gradients add up over steps.
#[test]
fn gradients_of_parameters_accumulate() {
    let [x, y, log_scale, bias] = inputs(5, 5, 4, DType::BF16, &Device::Cpu);
    let [log_scale, bias] = [log_scale, bias].map(|t| Param::new("p", t, DType::F32).unwrap());
    let mut grads = Grads::new();
    let mut once = 0.0;
    for step in 1..3 {
        let tape = Tape::new();
        let [x, y] = [&x, &y].map(|t| Var::constant(t.clone()));
        let (loss, _) =
            sigmoid_pair_loss(&tape, &x, &y, &tape.param(&log_scale), &tape.param(&bias), Block::whole(5)).unwrap();
        tape.backward_scaled(&loss, 1.0, &mut grads).unwrap();
        let sum = grads.get(&bias).unwrap().item().unwrap();
        once = if step == 1 { sum } else { once };
        assert_eq!(sum, f64::from(step) * once);
    }
}

#[test]
fn statistics_are_of_positives_and_negatives() {
    for device in everywhere() {
        let axis = |i: usize, sign: f32| std::array::from_fn::<f32, 8, _>(|k| if k == i { sign } else { 0.0 });
        let tensor = |rows: &[[f32; 8]]| Tensor::from_slice(&rows.concat(), [rows.len(), 8], &device).unwrap();
        let scalar = |v: f32| Tensor::from_slice(&[v], [1], &device).unwrap();
        let (x, y) = (tensor(&[axis(0, 1.0), axis(1, 1.0)]), tensor(&[axis(0, 1.0), axis(1, 0.5), axis(0, -1.0)]));
        let statistics = |row0: usize, rows: &Tensor| {
            let block = Block { row0, col0: 0, divisor: 2 };
            forward(rows, &y, &scalar(4f32.ln()), &scalar(-1.0), block).unwrap().1.to_vec::<f32>().unwrap()
        };
        let near = |got: Vec<f32>, expected: [f32; 3]| {
            let same = |(a, b): (&f32, &f32)| (a.is_nan() && b.is_nan()) || (a - b).abs() < 1e-5;
            assert!(got.iter().zip(&expected).all(same), "{got:?}, expected {expected:?} on {device}");
        };
        // Cosines: [1 0 -1; 0 0.5 0], logits 4 s - 1.
        near(statistics(0, &x), [2.0, -2.0, -1.0]);
        near(statistics(9, &x), [f32::NAN, -2.0 / 3.0, 3.0]);
        near(statistics(0, &tensor(&[])), [f32::NAN; 3]);
    }
}

#[test]
fn the_loss_of_random_towers_is_ten_and_a_little() {
    let n = 1024;
    let values = |seed| crate::random::normal(&mut crate::random::stream(3, seed), n * 64);
    let rows = |seed| {
        let x = Tensor::from_slice(&values(seed), [n, 64], &Device::Cpu).unwrap().cast(DType::F32).unwrap();
        crate::ops::l2_normalize::forward(&x).unwrap().0
    };
    let scalar = |v: f64| Tensor::from_slice(&[v as f32], [1], &Device::Cpu).unwrap();
    let (loss, _) = forward(&rows(1), &rows(2), &scalar(START[0]), &scalar(START[1]), Block::whole(n)).unwrap();
    // Cosines of std 1/8 make the mean of e^(10 s) about e^(100/128) instead of 1.
    let expected = 10.0 + 4.5e-5 * 1023.0 * (100.0f64 / 128.0).exp();
    assert!((loss.item().unwrap() - expected).abs() < 0.15, "{loss:?}");
}

#[test]
fn panels_and_grids_cover_every_pair() {
    for (n, m) in [(0, 0), (1, 1), (127, 4096), (4097, 8193), (32768, 1_000_000)] {
        let panel = Panel { rows: 4096, cols: 4096 }.fit(n, m);
        for (n, step) in [(n, panel.rows), (m, panel.cols)] {
            assert!(step <= 4096 && step <= n && (step > 0 || n == 0));
            assert!(step == n || step % SIDE == 0);
            assert_eq!(n.div_ceil(step.max(1)), n.div_ceil(4096), "as few as the limit allows");
        }
        let grid = launch::grid(panel.rows, panel.cols, DType::BF16);
        assert!(grid.grid[0] as usize * SIDE * SIDE >= panel.rows * panel.cols);
        assert_eq!((grid.block[0] % 32, grid.shared), (0, 64 << 10));
    }
}

#[test]
fn positives_are_counted() {
    for (rows, cols) in [(1, 1), (3, 5), (5, 3), (4, 4), (0, 3), (3, 0)] {
        for (row0, col0) in [(0, 0), (1, 0), (0, 1), (2, 4), (4, 2), (9, 0), (0, 9), (usize::MAX, 0), (0, usize::MAX)] {
            let [x, y, log_scale, bias] = inputs(rows, cols, 2, DType::F32, &Device::Cpu);
            let block = Block { row0, col0, divisor: 1 };
            let dims = Dims::check(&x, &y, &log_scale, &bias, block).unwrap();
            let meet = |i: usize, j: usize| row0 as u128 + i as u128 == col0 as u128 + j as u128;
            let count = (0..rows).flat_map(|i| (0..cols).map(move |j| (i, j))).filter(|&(i, j)| meet(i, j)).count();
            assert_eq!(dims.counts(), [count, rows * cols - count], "{rows}x{cols} from {row0} {col0}");
        }
    }
}

#[test]
fn wrong_arguments_are_named() {
    let t = |s: &[usize], dtype| Tensor::zeros(s, dtype, &Device::Cpu).unwrap();
    let (x, one) = (t(&[3, 4], DType::BF16), t(&[1], DType::F32));
    let message = |x: &Tensor, y: &Tensor, log_scale: &Tensor, bias: &Tensor, divisor: usize| {
        forward(x, y, log_scale, bias, Block::whole(divisor)).unwrap_err().to_string()
    };
    let bf16 = |s: &[usize]| t(s, DType::BF16);
    for (got, expected) in [
        (message(&bf16(&[3]), &x, &one, &one, 1), "`x` has shape [3], expected 2 axes"),
        (message(&bf16(&[3, 0]), &bf16(&[3, 0]), &one, &one, 1), "`x` has shape [3, 0], expected at least one column"),
        (message(&t(&[3, 4], DType::I32), &x, &one, &one, 1), "`x` has dtype i32, expected a float type"),
        (message(&x, &bf16(&[3, 5]), &one, &one, 1), "`y` has shape [3, 5], expected [3, 4]"),
        (message(&x, &t(&[3, 4], DType::F32), &one, &one, 1), "`y` has dtype f32, expected bf16"),
        (message(&x, &x, &t(&[2], DType::F32), &one, 1), "`log_scale` has shape [2], expected [1]"),
        (message(&x, &x, &one, &bf16(&[1]), 1), "`bias` has dtype bf16, expected f32"),
        (message(&x, &x, &one, &one, 0), "`block` has value a divisor of 0, expected a divisor of at least 1"),
    ] {
        assert_eq!(got, format!("sigmoid_pair_loss: {expected}"));
    }
}

#[test]
fn the_cases_are_the_recipes() {
    assert_eq!(case(4096, 768).flops, 2 * 4096 * 4096 * 768);
}
