use proptest::prelude::*;

use super::{Centering, case, counted_case, softmax_centering, workspace_bytes};
use crate::dtype::Element;
use crate::ops::Fill;
use crate::ops::sinkhorn_knopp::tests::check_probabilities;
use crate::ops::teacher::Reduce;
use crate::random::{normal, stream};
use crate::testing::{check, check_dtype, devices, distance};
use crate::{DType, Device, Tensor};

#[test]
fn matches_the_oracle_on_odd_shapes() {
    for (rows, cols) in [(0, 5), (1, 257), (3, 1), (5, 33), (37, 257), (67, 8)] {
        check(&case(rows, cols, 0.07)).unwrap();
    }
    check_dtype(&case(2, 4104, 0.04), DType::F16).unwrap();
    check_dtype(&case(2, 1031, 0.04), DType::BF16).unwrap();
}

/// The batch is the first rows of what is there: all of it, some, none.
#[test]
fn counted_rows_match_the_oracle() {
    for (rows, count, cols) in [(5, 5, 33), (37, 20, 257), (40, 3, 8), (19, 0, 12)] {
        check(&counted_case(rows, count, cols, 0.07)).unwrap();
    }
    check_dtype(&counted_case(5, 2, 4104, 0.04), DType::F16).unwrap();
}

/// Rows after the batch are not read: whatever they hold, factors and mean are those of the batch alone, and their own say
/// that they have no probabilities.
#[test]
fn rows_after_the_batch_change_nothing() {
    let cols = 70;
    for (device, count) in
        devices().into_iter().chain([Device::Cpu]).flat_map(|d| [0, 1, 17, 32].map(|n| (d.clone(), n)))
    {
        let mut z = logits(9, 40, cols);
        let on = |t: Tensor| t.cast(DType::F32).unwrap().to_device(&device).unwrap();
        let (temp, centre) = (on(tensor(&[0.05], &[1])), on(tensor(&logits(10, 1, cols), &[cols])));
        let batch = on(tensor(&z[..count * cols], &[count, cols]));
        let (alone, mean) = softmax_centering(&batch, &temp, &centre, None).unwrap();
        z[count * cols..].iter_mut().enumerate().for_each(|(i, z)| *z = [f64::NAN, f64::INFINITY][i % 2]);
        let n = Tensor::full([1], count as i32, &device).unwrap();
        let (t, moved) = softmax_centering(&on(tensor(&z, &[40, cols])), &temp, &centre, Some(&n)).unwrap();
        let values = |t: &Tensor| t.to_f64().unwrap();
        assert_eq!(values(&t.prototypes), values(&alone.prototypes), "{device} {count}");
        assert_eq!(values(&t.rows)[..count], values(&alone.rows), "{device} {count}");
        assert!(values(&t.rows)[count..].iter().all(|&l| l == f64::NEG_INFINITY), "{device} {count}");
        // Parts of other lengths add the rows up in another order.
        let (far, at) = distance(&values(&moved), &values(&mean));
        assert!(far <= if device == Device::Cpu { 0.0 } else { 1e-6 }, "{device} {count}: {far} at {at}");
    }
}

#[test]
fn extreme_logits_and_temperatures_match_the_oracle() {
    for (temp, std) in [(0.04, 5.0), (1e-3, 0.3), (1e4, 1.0), (0.04, 0.0)] {
        let mut case = case(5, 40, temp);
        case.id += &format!("-std{std}");
        case.inputs[0].fill = Fill::Normal(0.1, std);
        check(&case).unwrap();
    }
}

#[test]
fn probabilities_match_those_in_f64() {
    for shape in [[1, 1], [1, 257], [5, 33], [19, 64]] {
        for (temp, std) in [(0.07, 0.3), (0.04, 5.0), (1e-3, 0.3), (1e4, 1.0)] {
            check_probabilities(shape, [temp, std], |z, t| {
                let centre: Vec<f64> = (0..shape[1]).map(|k| 0.1 * (k as f64).sin()).collect();
                let centre = tensor(&centre, &[shape[1]]).cast(DType::F32)?.cast(t.dtype())?;
                Ok(softmax_centering(z, t, &centre.to_device(z.device())?, None)?.0)
            });
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]
    #[test]
    fn matches_the_oracle(rows in 1usize..40, cols in 2usize..300) {
        check(&case(rows, cols, 0.05)).unwrap();
    }
}

fn tensor<T: Element>(values: &[T], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
}

fn logits(seed: u64, rows: usize, cols: usize) -> Vec<f64> {
    normal(&mut stream(seed, 0), rows * cols)
}

/// The mean of a step is in the centre of the next one.
#[test]
fn the_centre_is_late() {
    let (cols, temp) = (5, tensor(&[0.1], &[1]));
    let mut centering = Centering::new("c", &Tensor::zeros([cols], DType::F64, &Device::Cpu).unwrap(), 0.9).unwrap();
    let (mut centre, mut pending) = (vec![0.0; cols], None::<Vec<f64>>);
    for (step, rows) in [3, 0, 2, 4].into_iter().enumerate() {
        if let Some(mean) = pending.take() {
            centre.iter_mut().zip(mean).for_each(|(c, m)| *c = 0.9 * *c + 0.1 * m);
        }
        let z = logits(step as u64, rows, cols);
        let t = centering.teacher(&tensor(&z, &[rows, cols]), &temp, None, None).unwrap();
        for (p, z) in t.probabilities().unwrap().to_vec::<f64>().unwrap().chunks(cols).zip(z.chunks(cols)) {
            let e: Vec<f64> = z.iter().zip(&centre).map(|(z, c)| ((z - c) / 0.1).exp()).collect();
            let total: f64 = e.iter().sum();
            assert!(p.iter().zip(&e).all(|(p, e)| (p - e / total).abs() < 1e-12));
        }
        // no rows move nothing
        let mean = |k: usize| (0..rows).map(|b| z[b * cols + k]).sum::<f64>() / rows as f64;
        pending = Some(if rows == 0 { centre.clone() } else { (0..cols).map(mean).collect() });
    }
    centering.update().unwrap();
    centre.iter_mut().zip(pending.unwrap()).for_each(|(c, m)| *c = 0.9 * *c + 0.1 * m);
    let now = centering.center.master.to_vec::<f64>().unwrap();
    assert!(now.iter().zip(&centre).all(|(a, b)| (a - b).abs() < 1e-12));
    centering.update().unwrap();
    assert_eq!(now, centering.center.master.to_vec::<f64>().unwrap(), "a mean enters once");
}

#[test]
fn processes_average_their_means() {
    let temp = tensor(&[0.1f32], &[1]);
    let mut centering = Centering::new("c", &Tensor::zeros([2], DType::F32, &Device::Cpu).unwrap(), 0.5).unwrap();
    let mut asked = vec![];
    let z = tensor(&[1f32, 2.0, 3.0, 6.0], &[2, 2]);
    let mut across = |how, mean: &mut Tensor| {
        asked.push((how, mean.to_vec::<f32>()?));
        mean.copy_from(&tensor(&[10f32, 20.0], &[2]))
    };
    centering.teacher(&z, &temp, None, Some(&mut across)).unwrap();
    centering.update().unwrap();
    assert_eq!(asked, [(Reduce::Mean, vec![2.0, 4.0])]);
    assert_eq!(centering.center.master.to_vec::<f32>().unwrap(), [5.0, 10.0]);
}

#[test]
fn two_runs_give_the_same_bits() {
    for device in devices().into_iter().chain([Device::Cpu]) {
        let z = tensor(&logits(8, 40, 100), &[40, 100]).cast(DType::BF16).unwrap().to_device(&device).unwrap();
        let (temp, centre) =
            (Tensor::full([1], 0.05f32, &device).unwrap(), Tensor::full([100], 0.1f32, &device).unwrap());
        let go = || {
            let (t, mean) = softmax_centering(&z, &temp, &centre, None).unwrap();
            [t.prototypes, t.rows, mean].map(|t| t.to_vec::<f32>().unwrap())
        };
        assert_eq!(go(), go(), "{device}");
    }
}

#[test]
fn memory_is_what_is_documented() {
    for device in devices().into_iter().filter(Device::is_host).chain([Device::Cpu]) {
        for (dtype, [rows, cols]) in [(DType::F32, [70, 500]), (DType::F16, [64, 4104]), (DType::BF16, [3, 333])] {
            let z = Tensor::zeros([rows, cols], dtype, &device).unwrap();
            let (temp, centre) =
                (Tensor::full([1], 0.07f32, &device).unwrap(), Tensor::full([cols], 0f32, &device).unwrap());
            let (t, peak) = device.peak_bytes(|| softmax_centering(&z, &temp, &centre, None)).unwrap();
            assert_eq!(peak, workspace_bytes(rows, cols, dtype, &device).unwrap(), "{device} {dtype}");
            assert_eq!(t.unwrap().1.to_vec::<f32>().unwrap(), vec![0.0; cols]);
        }
    }
}

#[test]
fn wrong_arguments_are_named() {
    let z = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let temp = tensor(&[0.1f32], &[1]);
    let error = |centre: &Tensor| softmax_centering(&z(&[2, 3]), &temp, centre, None).unwrap_err().to_string();
    assert_eq!(error(&z(&[2])), "softmax_centering: `centre` has shape [2], expected [3]");
    let expected = "softmax_centering: `centre` has dtype f64, expected f32";
    assert_eq!(error(&tensor(&[0.0f64; 3], &[3])), expected);
    let three = tensor(&[3i32], &[1]);
    let error = softmax_centering(&z(&[2, 3]), &temp, &z(&[3]), Some(&three)).unwrap_err().to_string();
    assert_eq!(error, "softmax_centering: `count` has value 3, expected 0 to 2");
    let new = |centre: Tensor, momentum| Centering::new("c", &centre, momentum).err().unwrap().to_string();
    assert_eq!(new(z(&[3]), 1.5), "softmax_centering: `momentum` has value 1.5, expected 0 to 1");
    assert_eq!(new(z(&[3, 1]), 0.9), "softmax_centering: `centre` has shape [3, 1], expected 1 axes");
    let half = z(&[3]).cast(DType::F16).unwrap();
    assert_eq!(new(half, 0.9), "softmax_centering: `centre` has dtype f16, expected f32");
}
