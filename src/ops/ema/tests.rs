use proptest::prelude::*;

use super::case::build;
use super::{Item, ema, scalars};
use crate::ops::multi_tensor::{CHUNK, Scalars, TASK, Workspace};
use crate::testing::check;
use crate::{DType, Device, Shape, Tensor};

fn shapes(lengths: &[usize]) -> Vec<Shape> {
    lengths.iter().map(|&n| Shape::from([n])).collect()
}

#[test]
fn matches_the_oracle_on_odd_lengths() {
    check(&build("odd", &shapes(&[1, 0, 3, 4, 5, 31, 257, 1030]), |i| i % 3 != 2)).unwrap();
    check(&build("no copies", &shapes(&[7, 260]), |_| false)).unwrap();
}

#[test]
fn matches_the_oracle_across_tasks_and_chunks() {
    check(&build("chunks", &shapes(&[TASK + 3, CHUNK + 5]), |_| true)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn matches_the_oracle(lengths in prop::collection::vec(0usize..300, 1..6)) {
        check(&build(format!("{lengths:?}"), &shapes(&lengths), |i| i % 2 == 0)).unwrap();
    }
}

#[test]
fn momentum_one_keeps_and_zero_copies() {
    for (momentum, expected) in [(1.0, [1.0f32, -2.0]), (0.0, [5.0, 7.0]), (0.75, [2.0, 0.25])] {
        let t = |x: &[f32]| Tensor::from_slice(x, [2], &Device::Cpu).unwrap();
        let (mut teacher, student) = (t(&[1.0, -2.0]), t(&[5.0, 7.0]));
        let mut step = Scalars::new();
        let step = step.set(&scalars(momentum), DType::F32, &Device::Cpu).unwrap();
        let item = Item { teacher: &mut teacher, student: &student, compute: None };
        ema(&mut [item], step, &mut Workspace::new()).unwrap();
        assert_eq!(teacher.to_vec::<f32>().unwrap(), expected);
    }
}

#[test]
fn wrong_arguments_are_named() {
    let t = |n: usize, dtype| Tensor::zeros([n], dtype, &Device::Cpu).unwrap();
    let message = |student: Tensor, scalars: usize| {
        let (mut teacher, scalars) = (t(3, DType::F32), t(scalars, DType::F32));
        let item = Item { teacher: &mut teacher, student: &student, compute: None };
        ema(&mut [item], &scalars, &mut Workspace::new()).unwrap_err().to_string()
    };
    assert_eq!(message(t(4, DType::F32), 2), "ema: `student[0]` has shape [4], expected 3 elements");
    assert_eq!(message(t(3, DType::F16), 2), "ema: `student[0]` has dtype f16, expected f32");
    assert_eq!(message(t(3, DType::F32), 1), "ema: `scalars` has shape [1], expected [2]");
}
