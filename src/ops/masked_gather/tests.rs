use proptest::prelude::*;

use super::case::Images::{Bytes, Single, Storage};
use super::{Dims, backward, case, forward, launch, masked_gather};
use crate::ops::indices;
use crate::testing::{check, check_gradients, devices};
use crate::{DType, Device, Tape, Tensor};

#[test]
fn matches_the_oracle_on_odd_shapes() {
    for images in [Bytes, Storage, Single] {
        check(&case(images, [1, 1, 1, 1], 1, 1, false)).unwrap();
        check(&case(images, [2, 3, 2, 3], 5, 4, true)).unwrap();
        check(&case(images, [3, 2, 3, 1], 4, 2, true)).unwrap();
        check(&case(images, [1, 3, 2, 2], 14, 3, false)).unwrap();
        check(&case(images, [2, 3, 2, 2], 16, 0, true)).unwrap();
    }
}

#[test]
fn gradients_match_finite_differences() {
    check_gradients(&case(Storage, [2, 2, 2, 2], 3, 2, true)).unwrap();
    check_gradients(&case(Storage, [1, 1, 1, 3], 2, 3, false)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn matches_the_oracle(b in 1usize..4, c in 1usize..5, hg in 1usize..4, wg in 1usize..4, p in 1usize..9, part in 0.0f64..1.0) {
        let keep = ((hg * wg) as f64 * part) as usize;
        check(&case(Bytes, [b, c, hg, wg], p, keep, true)).unwrap();
        check(&case(Storage, [b, c, hg, wg], p, keep, true)).unwrap();
    }
}

#[test]
fn grids_cover_every_patch() {
    for rows in [0u32, 1, 3, 4, 5, 12544, 100_001] {
        let grid = launch::grid(rows);
        assert!(grid.grid[0] * (grid.block[0] / 32) >= rows && grid.block[0].is_multiple_of(32));
    }
}

/// Rows in the order of a convolution kernel, kept patches in the order of `ids_keep`, bytes scaled and normalised.
#[test]
fn order_and_scale_are_as_documented() {
    let shape = [1, 2, 4, 4];
    let x: Vec<u8> = (0..32).collect();
    let images = Tensor::from_slice(&x, shape, &Device::Cpu).unwrap();
    let ids = Tensor::from_slice(&[3i32, 0], [1, 2], &Device::Cpu).unwrap();
    let raw = forward(&images, &ids, 2, None, DType::F64).unwrap().to_vec::<f64>().unwrap();
    let expected = [10.0, 11.0, 14.0, 15.0, 26.0, 27.0, 30.0, 31.0, 0.0, 1.0, 4.0, 5.0, 16.0, 17.0, 20.0, 21.0];
    assert!(raw.iter().zip(expected).all(|(y, x)| (y - x / 255.0).abs() < 1e-15));
    let norm = Tensor::from_slice(&[0.5f64, 0.25, 2.0, 4.0], [2, 2], &Device::Cpu).unwrap();
    let scaled = forward(&images, &ids, 2, Some(&norm), DType::F64).unwrap().to_vec::<f64>().unwrap();
    for (at, (y, x)) in scaled.iter().zip(expected).enumerate() {
        let (mean, std) = if at % 8 < 4 { (0.5, 2.0) } else { (0.25, 4.0) };
        assert!((y - (x / 255.0 - mean) / std).abs() < 1e-15);
    }
}

/// The gradient is exactly zero on removed patches.
#[test]
fn removed_patches_have_no_gradient() {
    let m = indices::example(2, 6, 2);
    let ids = Tensor::from_slice(&m.keep, [2, 2], &Device::Cpu).unwrap();
    let dy = Tensor::full([4, 12], 1f32, &Device::Cpu).unwrap();
    let dx = backward(&dy, &ids, 2, None, [2, 3, 4, 6].into(), DType::F32).unwrap();
    let rows = crate::ops::patchify::patchify(&dx, 2).unwrap().to_vec::<f32>().unwrap();
    for (row, values) in rows.chunks(12).enumerate() {
        let expected = if m.restore[row] < 2 { 1.0 } else { 0.0 };
        assert!(values.iter().all(|&v| v == expected));
    }
}

/// Pixels right of the last whole patch and below it are neither read nor given a gradient.
#[test]
fn borders_belong_to_no_patch() {
    for device in [Device::Cpu].into_iter().chain(devices()) {
        let (p, [h, w]) = (4, [11, 14]);
        let inside = |at: usize| at % w < w / p * p && at / w % h < h / p * p;
        let wide: Vec<f32> = (0..2 * 3 * h * w).map(|at| if inside(at) { at as f32 } else { f32::NAN }).collect();
        let cut: Vec<f32> = wide.iter().copied().filter(|x| !x.is_nan()).collect();
        let images = |v: &[f32], [h, w]: [usize; 2]| Tensor::from_slice(v, [2, 3, h, w], &device).unwrap();
        let ids = Tensor::from_slice(&[5i32, 0, 3, 1], [2, 2], &device).unwrap();
        let y = |images: &Tensor| forward(images, &ids, p, None, DType::F32).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(y(&images(&wide, [h, w])), y(&images(&cut, [h / p * p, w / p * p])));
        let dy = Tensor::full([4, 3 * p * p], 1f32, &device).unwrap();
        let dx = |h, w| backward(&dy, &ids, p, None, [2, 3, h, w].into(), DType::F32).unwrap().to_vec::<f32>().unwrap();
        let (wide, cut) = (dx(h, w), dx(h / p * p, w / p * p));
        assert!(wide.iter().enumerate().all(|(at, &v)| inside(at) || v == 0.0));
        assert_eq!(wide.into_iter().enumerate().filter(|(at, _)| inside(*at)).map(|(_, v)| v).collect::<Vec<_>>(), cut);
    }
}

/// Where the host cannot check the indices, one out of range gives a row of NaN and its gradient goes nowhere.
#[test]
fn kernels_guard_against_wrong_indices() {
    for device in devices() {
        let x = Tensor::full([1, 1, 2, 4], 0.5f32, &device).unwrap();
        let ids = |v: [i32; 2]| Tensor::from_slice(&v, [1, 2], &device).unwrap();
        let dims = Dims::check(&x, &ids([0, 1]), 2, None, DType::F32).unwrap();
        for wrong in [-1, 2] {
            let mut y = Tensor::zeros([2, 4], DType::F32, &device).unwrap();
            launch::forward(&x, &ids([wrong, 0]), None, dims, &mut y).unwrap();
            let rows = y.to_vec::<f32>().unwrap();
            assert!(rows[..4].iter().all(|x| x.is_nan()) && rows[4..].iter().all(|x| *x == 0.5), "{rows:?}");
            let mut dx = Tensor::zeros([1, 1, 2, 4], DType::F32, &device).unwrap();
            launch::backward(&x.reshape([2, 4]).unwrap(), &ids([wrong, 0]), None, dims, &mut dx).unwrap();
            assert_eq!(dx.to_vec::<f32>().unwrap(), [0.5, 0.5, 0., 0., 0.5, 0.5, 0., 0.]);
        }
    }
}

#[test]
fn wrong_arguments_are_named() {
    let tape = Tape::new();
    let images = |h, w| Tensor::zeros([2, 3, h, w], DType::U8, &Device::Cpu).unwrap();
    let ids = |v: &[i32]| Tensor::from_slice(v, [2, v.len() / 2], &Device::Cpu).unwrap();
    let error = |x: Tensor, ids: &Tensor, norm: Option<&Tensor>, dtype| {
        masked_gather(&tape, &crate::Var::constant(x), ids, 4, norm, dtype).unwrap_err().to_string()
    };
    let good = ids(&[0, 1]);
    assert_eq!(
        error(images(11, 3), &good, None, DType::F32),
        "masked_gather: `ids_keep[0, 0]` has value 0, expected an index below 0"
    );
    assert_eq!(
        error(images(8, 8), &ids(&[0, 1, 2, 4]), None, DType::F32),
        "masked_gather: `ids_keep[1, 1]` has value 4, expected an index below 4"
    );
    assert_eq!(
        error(images(8, 8), &ids(&[0, 1, 2, 2]), None, DType::F32),
        "masked_gather: `ids_keep[1, 1]` has value 2, expected each index once"
    );
    let norm = Tensor::zeros([2, 4], DType::F32, &Device::Cpu).unwrap();
    assert_eq!(
        error(images(8, 8), &good, Some(&norm), DType::F32),
        "masked_gather: `norm` has shape [2, 4], expected [2, 3]"
    );
    assert_eq!(
        error(images(8, 8), &good, None, DType::I32),
        "masked_gather: `dtype` has dtype i32, expected a float type"
    );
    let wanted = masked_gather(&tape, &tape.leaf(images(8, 8)), &good, 4, None, DType::F32).unwrap_err().to_string();
    assert_eq!(wanted, "masked_gather: `images` has dtype u8, expected a float type, since a gradient is wanted");
}
