use std::sync::{Barrier, Mutex};
use std::thread;

use proptest::prelude::*;

use super::{Dims, Factors, case, counted_case, launch, run, sinkhorn_knopp, sinkhorn_knopp_across, workspace_bytes};
use crate::device::host::with_poison;
use crate::dtype::Element;
use crate::ops::Fill;
use crate::ops::teacher::{Across, Reduce, Teacher};
use crate::random::{normal, stream};
use crate::testing::{DTYPES, check, check_dtype, devices, distance};
use crate::{DType, Device, Result, Tensor};

/// Roundings between logits and a probability that are relative to `z / T`, `a` or `l`: of the temperature's reciprocal,
/// its product with a logit, the factors as stored and converted to powers of two and back, and the sums of all; on both
/// sides of the factors.
const ROUNDINGS: f64 = 12.0;

/// Compares the probabilities that `make` gives on every device with those in f64: each of them is off by a share of
/// itself.
pub(crate) fn check_probabilities(
    [rows, cols]: [usize; 2],
    [temp, std]: [f64; 2],
    make: impl Fn(&Tensor, &Tensor) -> Result<Teacher>,
) {
    let z: Vec<f64> = normal(&mut stream(cols as u64, 0), rows * cols).iter().map(|x| std * x).collect();
    for (dtype, device) in
        DTYPES.into_iter().flat_map(|t| devices().into_iter().chain([Device::Cpu]).map(move |d| (t, d)))
    {
        let z = tensor(&z, &[rows, cols]).cast(dtype).unwrap();
        let temp = tensor(&[temp as f32], &[1]);
        let on = |t: &Tensor| t.to_device(&device).unwrap();
        let wide = |t: &Tensor| t.cast(DType::F64).unwrap();
        let got = with_poison(|| make(&on(&z), &on(&temp))).unwrap().probabilities().unwrap().to_f64().unwrap();
        let oracle = make(&wide(&z), &wide(&temp)).unwrap();
        let largest = |t: &Tensor| t.to_f64().unwrap().iter().fold(0.0f64, |m, x| m.max(x.abs()));
        let size = largest(&z) / f64::from(temp.to_vec::<f32>().unwrap()[0])
            + largest(&oracle.prototypes)
            + largest(&oracle.rows);
        let bound = ROUNDINGS * f64::from(f32::EPSILON) / 2.0 * (size + 1.0);
        for (i, (p, truth)) in got.iter().zip(oracle.probabilities().unwrap().to_f64().unwrap()).enumerate() {
            let error = (p - truth).abs();
            assert!(error <= truth * bound + 1e-37, "{device} {dtype} {rows}x{cols} at {i}: {p} instead of {truth}");
        }
    }
}

#[test]
fn matches_the_oracle_on_odd_shapes() {
    for (rows, cols, iterations) in [(0, 5, 3), (1, 257, 2), (3, 1, 1), (5, 33, 10), (19, 257, 3), (67, 8, 3)] {
        check(&case(rows, cols, 0.07, iterations)).unwrap();
    }
}

#[test]
fn probabilities_match_those_in_f64() {
    for (shape, iterations) in [([1, 1], 3), ([1, 257], 3), ([5, 33], 1), ([19, 64], 3)] {
        for (temp, std) in [(0.07, 0.3), (0.04, 5.0), (1e-3, 0.3), (1e4, 1.0)] {
            check_probabilities(shape, [temp, std], |z, t| sinkhorn_knopp(z, t, iterations, None));
        }
    }
}

/// The batch is the first rows of what is there: all of it, some, none.
#[test]
fn counted_rows_match_the_oracle() {
    for (rows, count, cols) in [(5, 5, 33), (37, 20, 257), (40, 3, 8), (19, 0, 12)] {
        check(&counted_case(rows, count, cols, 0.07, 3)).unwrap();
    }
    check_dtype(&counted_case(5, 2, 4104, 0.07, 2), DType::F16).unwrap();
}

/// Rows after the batch are not read: whatever they hold, the factors are those of the batch alone, and theirs say that they
/// have no probabilities. Also where groups of rows and parts end within the batch or begin after it.
#[test]
fn rows_after_the_batch_change_nothing() {
    let (cols, counts) = (70, [45, 32, 17, 1]);
    let mut z = logits(12, 45, cols);
    let truths = counts.map(|n| probabilities(&z[..n * cols], n, 0.07, 3));
    for (count, truth) in counts.into_iter().zip(truths) {
        z[count * cols..].iter_mut().enumerate().for_each(|(i, z)| *z = [f64::NAN, f64::INFINITY][i % 2]);
        for (device, group) in devices().into_iter().flat_map(|d| [(d.clone(), 16), (d, 45)]).chain([(Device::Cpu, 0)])
        {
            let dtype = if device == Device::Cpu { DType::F64 } else { DType::F32 };
            let on = |t: Tensor| t.cast(dtype).unwrap().to_device(&device).unwrap();
            let (all, temp) = (on(tensor(&z, &[45, cols])), on(tensor(&[0.07], &[1])));
            let n = Tensor::full([1], count as i32, &device).unwrap();
            let t = match device {
                Device::Cpu => sinkhorn_knopp(&all, &temp, 3, Some(&n)).unwrap(),
                _ => with_poison(|| {
                    let empty = |n: usize| Tensor::uninit([n], DType::F32, &device).unwrap();
                    let mut f = Factors { prototypes: empty(cols), rows: empty(45), mass: empty(cols) };
                    let mut kernels = launch::Kernels::new(&all, &temp, Some(&n), Dims { rows: 45, cols }).unwrap();
                    (kernels.group, kernels.tiles.parts) = (group, 3);
                    run(&mut kernels, &mut f, 3, None).unwrap();
                    Teacher::new(all.clone(), temp.clone(), f.prototypes, f.rows).unwrap()
                }),
            };
            let p = t.probabilities().unwrap().to_f64().unwrap();
            assert_close(&p[..count * cols], &truth, if device == Device::Cpu { 0.0 } else { 1e-5 });
            assert!(t.rows.to_f64().unwrap()[count..].iter().all(|&l| l == f64::NEG_INFINITY), "{device}");
        }
    }
}

/// More columns than a tile has, with whole vectors and without; the last tile has idle warps.
#[test]
fn several_tiles_match_the_oracle() {
    check_dtype(&case(3, 4104, 0.07, 3), DType::F16).unwrap();
    check_dtype(&case(3, 2052, 0.07, 2), DType::F32).unwrap();
    check_dtype(&case(3, 1031, 0.07, 2), DType::BF16).unwrap();
}

#[test]
fn extreme_logits_and_temperatures_match_the_oracle() {
    for (temp, std) in [(0.04, 5.0), (1e-3, 0.3), (1e4, 1.0), (0.04, 0.0)] {
        let mut case = case(9, 40, temp, 3);
        case.id += &format!("-std{std}");
        case.inputs[0].fill = Fill::Normal(0.0, std);
        check(&case).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]
    #[test]
    fn matches_the_oracle(rows in 1usize..40, cols in 2usize..300, iterations in 1usize..5) {
        check(&case(rows, cols, 0.05, iterations)).unwrap();
    }
}

fn tensor<T: Element>(values: &[T], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
}

fn logits(seed: u64, rows: usize, cols: usize) -> Vec<f64> {
    normal(&mut stream(seed, 0), rows * cols).iter().map(|x| 0.3 * x).collect()
}

/// In f64 on the CPU.
fn probabilities(z: &[f64], rows: usize, temp: f64, iterations: usize) -> Vec<f64> {
    let t = sinkhorn_knopp(&tensor(z, &[rows, z.len() / rows]), &tensor(&[temp], &[1]), iterations, None).unwrap();
    t.probabilities().unwrap().to_vec().unwrap()
}

fn assert_close(a: &[f64], b: &[f64], tolerance: f64) {
    let (d, at) = distance(a, b);
    assert!(a.len() == b.len() && d <= tolerance, "{d:e} at {at}: {} and {}", a[at], b[at]);
}

/// The upstream code: the matrix itself is normalised, with its counts of rows and prototypes.
fn upstream(z: &[f64], rows: usize, temp: f64, iterations: usize, counts: (f64, f64)) -> Vec<f64> {
    let cols = z.len() / rows;
    let mut q: Vec<f64> = z.iter().map(|z| (z / temp).exp()).collect();
    let total: f64 = q.iter().sum();
    q.iter_mut().for_each(|q| *q /= total);
    for _ in 0..iterations {
        for k in 0..cols {
            let mass: f64 = (0..rows).map(|b| q[b * cols + k]).sum();
            (0..rows).for_each(|b| q[b * cols + k] /= mass * counts.1);
        }
        for row in q.chunks_mut(cols) {
            let mass: f64 = row.iter().sum();
            row.iter_mut().for_each(|q| *q /= mass * counts.0);
        }
    }
    q.iter().map(|q| q * counts.0).collect()
}

#[test]
fn is_the_upstream_algorithm_whatever_its_counts() {
    let z = logits(1, 6, 10);
    for iterations in [1, 3, 7] {
        let p = probabilities(&z, 6, 0.07, iterations);
        for counts in [(6.0, 10.0), (1000.0, 3.0)] {
            assert_close(&p, &upstream(&z, 6, 0.07, iterations, counts), 1e-13);
        }
    }
}

#[test]
fn rows_sum_to_one_and_masses_approach_equality() {
    let (rows, cols, z) = (12, 30, logits(2, 12, 30));
    let mut before = f64::INFINITY;
    for iterations in [1, 2, 3, 5, 10, 300] {
        let p = probabilities(&z, rows, 0.1, iterations);
        assert!(p.iter().all(|&p| p >= 0.0));
        p.chunks(cols).for_each(|row| assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-12));
        let mass = |k: usize| (0..rows).map(|b| p[b * cols + k]).sum::<f64>() * cols as f64 / rows as f64;
        let worst = (0..cols).map(|k| (mass(k) - 1.0).abs()).fold(0.0, f64::max);
        assert!(worst <= before, "{worst} after {before}");
        before = worst;
    }
    assert!(before < 1e-9);
}

#[test]
fn shifts_of_prototypes_are_exact_and_shifts_of_rows_are_not() {
    let (rows, cols, z) = (5, 9, logits(3, 5, 9));
    let shifted = |by: &dyn Fn(usize, usize) -> f64| {
        let z: Vec<f64> = z.iter().enumerate().map(|(i, z)| z + by(i / cols, i % cols)).collect();
        probabilities(&z, rows, 0.07, 3)
    };
    let p = shifted(&|_, _| 0.0);
    assert_close(&p, &shifted(&|_, _| 11.0), 1e-11);
    assert_close(&p, &shifted(&|_, k| 3.0 * (k as f64).sin()), 1e-11);
    let rows_moved = shifted(&|b, _| -z[b * cols..][..cols].iter().fold(f64::MIN, |m, &z| m.max(z)));
    assert!(distance(&p, &rows_moved).0 > 1e-3, "three steps are not the limit");
}

#[test]
fn permutations_of_rows_and_prototypes_permute_the_result() {
    let (rows, cols, z) = (5, 7, logits(4, 5, 7));
    let permuted = |x: &[f64]| -> Vec<f64> {
        (0..x.len()).map(|i| x[(i / cols * 2 % rows) * cols + i % cols * 3 % cols]).collect()
    };
    assert_close(&permuted(&probabilities(&z, rows, 0.07, 3)), &probabilities(&permuted(&z), rows, 0.07, 3), 1e-12);
}

#[test]
fn one_row_and_infinite_temperature_are_uniform_and_equal_rows_stay_equal() {
    let z = logits(5, 1, 24);
    assert_close(&probabilities(&z, 1, 0.04, 3), &[1.0 / 24.0; 24], 1e-15);
    assert_close(&probabilities(&logits(6, 4, 6), 4, 1e12, 3), &[1.0 / 6.0; 24], 1e-12);
    let twice: Vec<f64> = [&z[..], &z[..12], &z[..12]].concat();
    let p = probabilities(&twice, 4, 0.07, 3);
    assert_eq!((&p[..12], &p[24..36]), (&p[24..36], &p[36..]));
}

/// A row far below all others vanishes in the sums of prototypes, and a prototype may have no mass at all.
#[test]
fn rows_far_apart_and_prototypes_without_mass_stay_finite() {
    let mut z: Vec<f32> = logits(7, 4, 33).iter().map(|&z| z as f32).collect();
    z[33..66].iter_mut().for_each(|z| *z -= 1e4);
    z.iter_mut().skip(2).step_by(33).for_each(|z| *z = f32::NEG_INFINITY);
    for device in devices().into_iter().chain([Device::Cpu]) {
        let on = |t: Tensor| t.to_device(&device).unwrap();
        let t = sinkhorn_knopp(&on(tensor(&z, &[4, 33])), &on(tensor(&[0.04f32], &[1])), 3, None).unwrap();
        let p = t.probabilities().unwrap().to_f64().unwrap();
        for row in p.chunks(33) {
            // the logarithms of the factors are 2.5e5, of which f32 keeps 1.6e-2
            assert!((row.iter().sum::<f64>() - 1.0).abs() < 5e-2 && row[2] == 0.0, "{device}: {row:?}");
        }
    }
}

#[test]
fn two_runs_give_the_same_bits() {
    for device in devices().into_iter().chain([Device::Cpu]) {
        let z = tensor(&logits(8, 21, 600), &[21, 600]).cast(DType::F16).unwrap().to_device(&device).unwrap();
        let temp = Tensor::full([1], 0.05f32, &device).unwrap();
        let go = || {
            let t = sinkhorn_knopp(&z, &temp, 3, None).unwrap();
            (t.prototypes.to_vec::<f32>().unwrap(), t.rows.to_vec::<f32>().unwrap())
        };
        assert_eq!(go(), go(), "{device}");
    }
}

/// Groups of rows that follow each other through the cache, and parts of more rows than a block finishes at once.
#[test]
fn groups_of_rows_match_one_group() {
    let z = logits(9, 45, 70);
    let truth = probabilities(&z, 45, 0.07, 3);
    for device in devices() {
        let z = tensor(&z, &[45, 70]).cast(DType::F32).unwrap().to_device(&device).unwrap();
        let temp = Tensor::full([1], 0.07f32, &device).unwrap();
        for (group, parts) in [(1, 3), (16, 3), (45, 3), (45, 1)] {
            let empty = |n: usize| Tensor::uninit([n], DType::F32, &device).unwrap();
            let mut f = Factors { prototypes: empty(70), rows: empty(45), mass: empty(70) };
            let mut kernels = launch::Kernels::new(&z, &temp, None, Dims { rows: 45, cols: 70 }).unwrap();
            (kernels.group, kernels.tiles.parts) = (group, parts);
            run(&mut kernels, &mut f, 3, None).unwrap();
            let t = Teacher::new(z.clone(), temp.clone(), f.prototypes, f.rows).unwrap();
            assert_close(&t.probabilities().unwrap().to_f64().unwrap(), &truth, 1e-5);
        }
    }
}

#[test]
fn launches_sum_and_weigh_every_row_once_in_order() {
    for (rows, group) in [(1, 16), (16, 16), (17, 16), (100, 33)] {
        let (mut summed, mut weighed) = (0, 0);
        for [sum, weigh] in launch::schedule(rows, group) {
            assert!(weigh[1] <= summed && (weigh[0] == weigh[1] || weigh[0] == weighed));
            assert!(sum[0] == summed && sum[1] - sum[0] <= group && weigh[1] - weigh[0] <= group);
            (summed, weighed) = (sum[1], weighed.max(weigh[1]));
        }
        assert_eq!((summed, weighed), (rows, rows));
    }
    assert!(launch::group(131_072, DType::F16) == 64 && launch::group(1 << 30, DType::F32) == 16);
}

/// What one process hands in, combined in the order of processes.
struct Exchange {
    barrier: Barrier,
    slots: Mutex<Vec<Vec<f64>>>,
}

impl Exchange {
    fn across(&self, rank: usize, how: Reduce, x: &mut Tensor) -> Result<()> {
        self.slots.lock().unwrap()[rank] = x.to_f64()?;
        self.barrier.wait();
        let combined: Vec<f64> = {
            let slots = self.slots.lock().unwrap();
            let pick = |i: usize| slots.iter().map(move |v| v[i]);
            let combine = |i| if how == Reduce::Max { pick(i).fold(f64::MIN, f64::max) } else { pick(i).sum() };
            (0..x.numel()).map(combine).collect()
        };
        self.barrier.wait();
        x.copy_from(&tensor(&combined, x.shape()).cast(x.dtype())?)
    }
}

#[test]
fn rows_spread_over_processes_give_what_they_give_together() {
    let (cols, z) = (37, logits(10, 11, 37));
    let truth = probabilities(&z, 11, 0.05, 3);
    let places = devices().into_iter().map(|d| (d, DType::F32, 1e-5));
    for (device, dtype, tolerance) in places.chain([(Device::Cpu, DType::F64, 1e-13)]) {
        let split = [0, 4, 4, 11]; // the second process has no rows
        let exchange = Exchange { barrier: Barrier::new(3), slots: Mutex::new(vec![vec![]; 3]) };
        let part = |rank: usize| {
            let rows = split[rank]..split[rank + 1];
            let z = tensor(&z[rows.start * cols..rows.end * cols], &[rows.len(), cols]);
            let z = z.cast(dtype).unwrap().to_device(&device).unwrap();
            let temp = tensor(&[0.05], &[1]).cast(dtype).unwrap().to_device(&device).unwrap();
            let across: &mut Across<'_> = &mut |how, x: &mut Tensor| exchange.across(rank, how, x);
            let t = sinkhorn_knopp_across(&z, &temp, 3, None, across).unwrap();
            t.probabilities().unwrap().to_f64().unwrap()
        };
        let parts: Vec<Vec<f64>> = thread::scope(|s| {
            let part = &part;
            let handles: Vec<_> = (0..3).map(|rank| s.spawn(move || part(rank))).collect();
            handles.into_iter().map(|h| h.join().unwrap()).collect()
        });
        assert_close(&parts.concat(), &truth, tolerance);
    }
}

/// Of the logits there is no second matrix, of whatever type.
#[test]
fn memory_is_what_is_documented() {
    for device in devices().into_iter().filter(Device::is_host).chain([Device::Cpu]) {
        for (dtype, [rows, cols]) in [(DType::F32, [70, 500]), (DType::F16, [64, 4104]), (DType::BF16, [3, 333])] {
            let z = Tensor::zeros([rows, cols], dtype, &device).unwrap();
            let temp = Tensor::full([1], 0.07f32, &device).unwrap();
            let (t, peak) = device.peak_bytes(|| sinkhorn_knopp(&z, &temp, 3, None)).unwrap();
            assert_eq!(peak, workspace_bytes(rows, cols, dtype, &device).unwrap(), "{device} {dtype}");
            assert_eq!(t.unwrap().prototypes.to_vec::<f32>().unwrap().len(), cols);
        }
    }
    for [rows, cols] in [[2458, 131_072], [4096, 65_536]] {
        let held = workspace_bytes(rows, cols, DType::F16, &Device::Emulated).unwrap();
        assert!(held * 40 < rows * cols * 2, "{held} bytes");
    }
}

#[test]
fn wrong_arguments_are_named() {
    let z = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let error = |z: &Tensor, temp: &Tensor, n| sinkhorn_knopp(z, temp, n, None).unwrap_err().to_string();
    let temp = tensor(&[0.1f32], &[1]);
    assert_eq!(error(&z(&[2, 3]), &temp, 0), "sinkhorn_knopp: `iterations` has value 0, expected at least 1");
    let expected = "sinkhorn_knopp: `logits` has shape [2, 0], expected at least one prototype";
    assert_eq!(error(&z(&[2, 0]), &temp, 3), expected);
    assert_eq!(error(&z(&[2]), &temp, 3), "sinkhorn_knopp: `logits` has shape [2], expected 2 axes");
    let expected = "sinkhorn_knopp: `temp` has shape [2], expected [1]";
    assert_eq!(error(&z(&[2, 3]), &z(&[2]), 3), expected);
    let expected = "sinkhorn_knopp: `temp` has dtype f64, expected f32";
    assert_eq!(error(&z(&[2, 3]), &tensor(&[0.1f64], &[1]), 3), expected);
    let expected = "sinkhorn_knopp: `temp` has value 0, expected a positive number";
    assert_eq!(error(&z(&[2, 3]), &z(&[1]), 3), expected);
    let ids = Tensor::zeros([2, 3], DType::I32, &Device::Cpu).unwrap();
    assert_eq!(error(&ids, &temp, 3), "sinkhorn_knopp: `logits` has dtype i32, expected a float type");
    let counted = |n: &Tensor| sinkhorn_knopp(&z(&[2, 3]), &temp, 3, Some(n)).unwrap_err().to_string();
    for wrong in [-1i32, 3] {
        let expected = format!("sinkhorn_knopp: `count` has value {wrong}, expected 0 to 2");
        assert_eq!(counted(&tensor(&[wrong], &[1])), expected);
    }
    assert_eq!(counted(&z(&[1])), "sinkhorn_knopp: `count` has dtype f32, expected i32");
    assert_eq!(counted(&tensor(&[1i32, 1], &[2])), "sinkhorn_knopp: `count` has shape [2], expected [1]");
    let t = |a: &[usize], l: &[usize]| Teacher::new(z(&[2, 3]), temp.clone(), z(a), z(l)).unwrap_err().to_string();
    assert_eq!(t(&[2], &[2]), "teacher: `prototypes` has shape [2], expected [3]");
    assert_eq!(t(&[3], &[3]), "teacher: `rows` has shape [3], expected [2]");
}
