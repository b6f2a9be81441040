use proptest::prelude::*;

use super::{Dims, Filter, Plan, backward, case, forward, launch, resample};
use crate::testing::{check, check_gradients, devices, with_shared_limit};
use crate::{DType, Device, Error, Tape, Tensor, Var};

const ALL: [Filter; 5] = [Filter::Bilinear, Filter::BilinearAntialias, Filter::Bicubic, Filter::Nearest, Filter::Tile];

#[test]
fn matches_the_oracle_on_odd_shapes() {
    for filter in ALL {
        for (batch, from, to, channels) in [
            (2, [3, 5], [7, 4], 3),
            (1, [1, 1], [5, 9], 1),
            (3, [8, 8], [32, 16], 1),  // vectors of columns
            (2, [16, 32], [4, 8], 1),  // shrinking
            (1, [7, 7], [14, 20], 16), // vectors of channels
            (0, [2, 2], [3, 3], 2),
            (2, [2, 2], [3, 3], 0),
        ] {
            check(&case(filter, batch, from, to, channels)).unwrap();
        }
    }
}

/// Rows of more sums than a block holds: some of the channels at a time, of whole vectors or not.
#[test]
fn matches_the_oracle_in_parts_of_channels() {
    for (width, channels, limit) in
        [(600, 20, 1 << 20), (600, 24, 1 << 20), (40, 24, 1500), (40, 23, 1500), (40, 3, 200)]
    {
        with_shared_limit(limit, || check(&case(Filter::Bilinear, 1, [3, width], [2, width / 2 + 1], channels)))
            .unwrap();
    }
}

#[test]
fn gradients_match_finite_differences() {
    for filter in ALL {
        check_gradients(&case(filter, 2, [3, 4], [5, 3], 2)).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn matches_the_oracle(which in 0usize..5, h in 1usize..20, w in 1usize..20, to in [1usize..20, 1usize..20], c in 1usize..10) {
        check(&case(ALL[which], 2, [h, w], to, c)).unwrap();
    }
}

fn tensor(values: &[f64], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
}

fn wave(phase: f64, n: usize) -> Vec<f64> {
    (0..n).map(|i| (phase + 0.7 * i as f64).sin()).collect()
}

/// ⟨A x, y⟩ = ⟨x, Aᵀ y⟩.
#[test]
fn the_gradient_is_the_adjoint() {
    for filter in ALL {
        for (from, to) in [([5, 7], [11, 3]), ([40, 40], [13, 10]), ([8, 3], [32, 40]), ([1, 9], [4, 1])] {
            let plan = Plan::new(from, to, filter, &Device::Cpu).unwrap();
            let x = tensor(&wave(0.1, 2 * from[0] * from[1] * 3), &[2, from[0], from[1], 3]);
            let y = tensor(&wave(0.5, 2 * to[0] * to[1] * 3), &[2, to[0], to[1], 3]);
            let dot = |a: &Tensor, b: &Tensor| {
                a.to_f64().unwrap().iter().zip(b.to_f64().unwrap()).map(|(a, b)| a * b).sum::<f64>()
            };
            let (left, right) = (dot(&forward(&x, &plan).unwrap(), &y), dot(&x, &backward(&y, &plan).unwrap()));
            assert!((left - right).abs() < 1e-12 * (1.0 + left.abs()), "{filter:?} {from:?} {to:?}: {left} {right}");
        }
    }
}

#[test]
fn constants_stay_constants() {
    for filter in ALL {
        for to in [[1, 1], [3, 20], [14, 7], [9, 9]] {
            let plan = Plan::new([9, 8], to, filter, &Device::Cpu).unwrap();
            let y = forward(&tensor(&[2.5; 72], &[1, 9, 8, 1]), &plan).unwrap().to_f64().unwrap();
            assert!(y.len() == to[0] * to[1] && y.iter().all(|y| (y - 2.5).abs() < 1e-6), "{filter:?} {y:?}");
        }
    }
}

/// Rows worked out by hand from the definitions of `torch.nn.functional.interpolate`.
#[test]
fn known_values() {
    let row = |filter, values: &[f64], to| {
        let plan = Plan::new([1, values.len()], [1, to], filter, &Device::Cpu).unwrap();
        forward(&tensor(values, &[1, 1, values.len(), 1]), &plan).unwrap().to_f64().unwrap()
    };
    assert_eq!(row(Filter::Bilinear, &[0., 8., 0., 0.], 2), [4., 0.]);
    assert_eq!(row(Filter::Bilinear, &[0., 8., 0., 0.], 8), [0., 2., 6., 6., 2., 0., 0., 0.]);
    let y = row(Filter::BilinearAntialias, &[0., 8., 0., 0.], 2); // 3/7 and 1/7 of it
    assert!((y[0] - 24. / 7.).abs() < 1e-6 && (y[1] - 8. / 7.).abs() < 1e-6, "{y:?}");
    // Weights at a quarter: -0.10546875, 0.87890625, 0.26171875, -0.03515625, the outer ones on the border.
    assert_eq!(row(Filter::Bicubic, &[1., 0.], 4), [1.10546875, 0.7734375, 0.2265625, -0.10546875]);
    assert_eq!(row(Filter::Nearest, &[1., 2., 3.], 5), [1., 1., 2., 2., 3.]);
    assert_eq!(row(Filter::Nearest, &[1., 2., 3., 4., 5.], 2), [1., 3.]);
    assert_eq!(row(Filter::Tile, &[1., 2., 3.], 7), [1., 2., 3., 1., 2., 3., 1.]);
}

#[test]
fn an_equal_size_gives_the_value_itself() {
    let (tape, plan) = (Tape::new(), Plan::bicubic([2, 3], [2, 3], &Device::Cpu).unwrap());
    let x = tape.leaf(tensor(&wave(0.0, 6), &[1, 2, 3, 1]));
    let y = resample(&tape, &x, &plan).unwrap();
    assert_eq!((y.slot(), y.value().ptr()), (x.slot(), x.value().ptr()));
}

#[test]
fn plans_belong_to_a_device() {
    for device in devices() {
        let plan = Plan::nearest([1, 1], [2, 2], &device).unwrap();
        let error = forward(&Tensor::zeros([1, 1, 1, 1], DType::F32, &Device::Cpu).unwrap(), &plan).unwrap_err();
        assert_eq!(error.to_string(), format!("resample: `plan` has device {device}, expected cpu"));
    }
}

#[test]
fn grids_cover_every_row_and_channel_within_the_memory() {
    for limit in [48 << 10, 227 << 10] {
        for (batch, from, to, channels) in [
            (192, [256, 256], [1024, 1024], 1),
            (1, [1, 1], [1, 1], 1),
            (8, [32, 32], [64, 64], 256),
            (1, [256, 256], [7, 7], 144),
            (1, [2000, 3000], [10, 11], 13),
            (1, [10, 12_000], [10, 11], 3),
        ] {
            let dims = Dims { batch, from, to, channels };
            let tile = launch::Tile::new(dims, limit).unwrap();
            let (groups, grid) = tile.grid(dims).unwrap();
            assert!(groups as usize * tile.rows >= to[0] && grid.grid[0] as usize == batch * groups as usize);
            assert!((groups as usize - 1) * tile.rows < to[0], "no empty block");
            assert!(grid.grid[1] as usize * tile.channels >= channels && tile.channels <= channels);
            assert!(grid.shared as usize == tile.rows * from[1] * tile.channels * 4 && grid.shared as usize <= limit);
            assert!(tile.channels == channels || tile.channels.is_multiple_of(8) || from[1] > 1500);
        }
        let wide = Dims { batch: 1, from: [1, 60_000], to: [1, 5], channels: 1 };
        assert_eq!(launch::Tile::new(wide, limit), None);
    }
}

#[test]
fn wrong_arguments_are_named() {
    let plan = Plan::bilinear([2, 3], [4, 6], &Device::Cpu).unwrap();
    let message = |shape: &[usize], dtype| {
        let x = Var::constant(Tensor::zeros(shape, dtype, &Device::Cpu).unwrap());
        let error = resample(&Tape::no_grad(), &x, &plan).unwrap_err();
        assert!(matches!(error, Error::Argument { .. }));
        error.to_string()
    };
    assert_eq!(message(&[1, 3, 2, 1], DType::F32), "resample: `x` has shape [1, 3, 2, 1], expected [B, 2, 3, C]");
    assert_eq!(message(&[2, 3], DType::F32), "resample: `x` has shape [2, 3], expected 4 axes");
    assert_eq!(message(&[1, 2, 3, 1], DType::U8), "resample: `x` has dtype u8, expected a float type");
    let error = Plan::tile([2, 0], [4, 6], &Device::Cpu).unwrap_err().to_string();
    assert_eq!(error, "resample: `from` has value [2, 0], expected sides from 1 to 2^31 - 1");
}
