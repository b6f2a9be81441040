use proptest::prelude::*;

use super::{backward, case, forward, launch, max_pool2d};
use crate::testing::{DTYPES, check, check_gradients, devices};
use crate::{DType, Device, Tape, Tensor, Var};

#[test]
fn matches_the_oracle_on_odd_shapes() {
    for maps in [
        [1, 2, 2, 1],
        [2, 5, 7, 3],
        [1, 4, 6, 8],
        [3, 3, 2, 33],
        [1, 9, 4, 264],
        [2, 1, 4, 5],
        [2, 4, 1, 8],
        [0, 4, 4, 3],
        [2, 0, 4, 3],
        [2, 4, 4, 0],
    ] {
        check(&case(maps)).unwrap();
    }
}

#[test]
fn gradients_match_finite_differences() {
    check_gradients(&case([2, 5, 4, 3])).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn matches_the_oracle(b in 1usize..4, h in 1usize..10, w in 1usize..10, c in 1usize..40) {
        check(&case([b, h, w, c])).unwrap();
    }
}

#[test]
fn grids_cover_every_vector() {
    for (pixels, channels, dtype, vectors) in [
        (0, 8, DType::F32, 0),
        (5, 0, DType::F32, 0),
        (5, 8, DType::F32, 10),
        (5, 8, DType::BF16, 5),
        (5, 12, DType::F16, 60),
        (129, 768, DType::BF16, 129 * 96),
    ] {
        assert_eq!(launch::vectors(pixels, channels, dtype), vectors);
        let grid = launch::grid(vectors as u32);
        assert!(grid.grid[0] * grid.block[0] >= vectors as u32 && grid.block[0].is_multiple_of(32));
    }
}

/// Where the gradient of a single pixel square of values goes, on every device and in every type.
#[test]
fn ties_go_to_the_first_and_of_nans_the_last_counts() {
    let nan = f32::NAN;
    for (square, maximum, place) in [
        ([1.0f32, 2.0, 2.0, 1.0], 2.0, 1),
        ([3.0, 3.0, 3.0, 3.0], 3.0, 0),
        ([-5.0, -4.0, -4.5, -4.0], -4.0, 1),
        ([0.0, -0.0, 0.0, -0.0], 0.0, 0),
        ([f32::NEG_INFINITY; 4], f32::NEG_INFINITY, 0),
        ([1.0, 2.0, f32::INFINITY, f32::INFINITY], f32::INFINITY, 2),
        ([nan, 7.0, 8.0, 9.0], nan, 0),
        ([1.0, nan, 9.0, nan], nan, 3),
        ([1.0, 2.0, nan, 3.0], nan, 2),
    ] {
        for device in devices().into_iter().chain([Device::Cpu]) {
            for dtype in DTYPES {
                // Two channels, of which the second is the first less the square's order.
                let values: Vec<f32> = square.iter().flat_map(|&v| [v, 1.0]).collect();
                let x = Tensor::from_slice(&values, [1, 2, 2, 2], &Device::Cpu).unwrap();
                let x = x.cast(dtype).unwrap().to_device(&device).unwrap();
                let (y, index) = forward(&x, true).unwrap();
                let y = y.to_f64().unwrap();
                assert!(y[0] == f64::from(maximum) || y[0].is_nan() && maximum.is_nan(), "{square:?}: {y:?}");
                assert_eq!(index.unwrap().to_vec::<u8>().unwrap(), [place, 0], "{square:?} {dtype} {device}");
            }
        }
    }
}

#[test]
fn dropped_pixels_have_no_gradient() {
    let x: Vec<f32> = (0..15).map(|i| i as f32).collect();
    let x = Tensor::from_slice(&x, [1, 3, 5, 1], &Device::Cpu).unwrap();
    let (y, index) = forward(&x, true).unwrap();
    assert_eq!(y.to_vec::<f32>().unwrap(), [6.0, 8.0]);
    let dy = Tensor::from_slice(&[1f32, 2.0], [1, 1, 2, 1], &Device::Cpu).unwrap();
    let dx = backward(&dy, &index.unwrap(), [3, 5]).unwrap().to_vec::<f32>().unwrap();
    assert_eq!(dx, [0., 0., 0., 0., 0., 0., 1., 0., 2., 0., 0., 0., 0., 0., 0.]);
}

#[test]
fn nothing_is_saved_where_no_gradient_is_wanted() {
    for device in devices().into_iter().chain([Device::Cpu]) {
        let x = Tensor::from_slice(&[1f32, 4.0, 3.0, 2.0], [1, 2, 2, 1], &device).unwrap();
        let (y, index) = forward(&x, false).unwrap();
        assert!(index.is_none());
        assert_eq!(y.to_vec::<f32>().unwrap(), [4.0]);
        let y = max_pool2d(&Tape::new(), &Var::constant(x)).unwrap();
        assert!(y.slot().is_none());
        assert_eq!(y.value().to_vec::<f32>().unwrap(), [4.0]);
    }
}

#[test]
fn wrong_arguments_are_named() {
    let t = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
    let pooled = |x: Tensor| max_pool2d(&Tape::no_grad(), &Var::constant(x)).unwrap_err().to_string();
    assert_eq!(pooled(t(&[4, 4, 3], DType::F32)), "max_pool2d: `x` has shape [4, 4, 3], expected 4 axes");
    assert_eq!(pooled(t(&[1, 4, 4, 3], DType::U8)), "max_pool2d: `x` has dtype u8, expected a float type");
    let error = |dy: &[usize], index: Tensor| backward(&t(dy, DType::F32), &index, [5, 4]).unwrap_err().to_string();
    assert_eq!(
        error(&[1, 3, 2, 3], t(&[1, 2, 2, 3], DType::U8)),
        "max_pool2d: `dy` has shape [1, 3, 2, 3], expected [1, 2, 2, 3]"
    );
    assert_eq!(
        error(&[1, 2, 2, 3], t(&[1, 2, 2, 4], DType::U8)),
        "max_pool2d: `index` has shape [1, 2, 2, 4], expected [1, 2, 2, 3]"
    );
    assert_eq!(error(&[1, 2, 2, 3], t(&[1, 2, 2, 3], DType::I32)), "max_pool2d: `index` has dtype i32, expected u8");
}
