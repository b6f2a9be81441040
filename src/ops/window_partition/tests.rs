use proptest::prelude::*;

use super::{backward, case, forward, launch, unpartition_case, window_partition, window_unpartition};
use crate::testing::{check, check_gradients};
use crate::{DType, Device, Tape, Tensor, Var};

#[test]
fn matches_the_oracle_on_odd_shapes() {
    for (maps, window) in [
        ([1, 1, 1, 1], 1),
        ([2, 7, 5, 3], 3),
        ([1, 8, 4, 16], 4),
        ([2, 3, 10, 33], 5),
        ([1, 5, 6, 40], 7),
        ([1, 9, 2, 264], 2),
        ([0, 5, 4, 3], 2),
        ([2, 5, 4, 0], 2),
    ] {
        check(&case(maps, window)).unwrap();
        check(&unpartition_case(maps, window)).unwrap();
    }
}

#[test]
fn gradients_match_finite_differences() {
    for window in [2, 3, 6] {
        check_gradients(&case([2, 5, 4, 2], window)).unwrap();
        check_gradients(&unpartition_case([2, 5, 4, 2], window)).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn matches_the_oracle(b in 1usize..3, h in 1usize..12, w in 1usize..12, c in 1usize..40, window in 1usize..8) {
        check(&case([b, h, w, c], window)).unwrap();
        check(&unpartition_case([b, h, w, c], window)).unwrap();
    }

    /// By the definition, element by element; and the way back gives the map again.
    #[test]
    fn elements_are_where_the_equation_says(h in 1usize..9, w in 1usize..9, c in 1usize..4, window in 1usize..6) {
        let x: Vec<f32> = (1..=2 * h * w * c).map(|i| i as f32).collect();
        let maps = Tensor::from_slice(&x, [2, h, w, c], &Device::Cpu).unwrap();
        let y = forward(&maps, window).unwrap();
        let (down, across) = (h.div_ceil(window), w.div_ceil(window));
        prop_assert_eq!(&**y.shape(), &[2 * down * across, window, window, c]);
        for (at, value) in y.to_vec::<f32>().unwrap().into_iter().enumerate() {
            let (pixel, channel) = (at / c, at % c);
            let (index, wy, wx) = (pixel / (window * window), pixel / window % window, pixel % window);
            let (row, column) = (index / across % down * window + wy, index % across * window + wx);
            let from = ((index / (down * across) * h + row) * w + column) * c + channel;
            prop_assert_eq!(value, if row < h && column < w { x[from] } else { 0.0 });
        }
        prop_assert_eq!(backward(&y, [h, w]).unwrap().to_vec::<f32>().unwrap(), x);
    }
}

#[test]
fn grids_cover_every_line() {
    for lines in [0u32, 1, 7, 8, 9, 100_000] {
        let grid = launch::grid(lines);
        assert!(grid.grid[0] * (grid.block[0] / 32) >= lines && grid.block[0].is_multiple_of(32));
    }
}

/// After pooling the windows are half as wide, and so is the map they are put together to.
#[test]
fn windows_of_another_side_are_put_together() {
    let y: Vec<f32> = (0..8).map(|i| i as f32).collect();
    let y = Tensor::from_slice(&y, [2, 2, 2, 1], &Device::Cpu).unwrap();
    assert_eq!(backward(&y, [2, 3]).unwrap().to_vec::<f32>().unwrap(), [0., 1., 4., 2., 3., 6.]);
}

#[test]
fn wrong_arguments_are_named() {
    let t = |shape: &[usize]| Var::constant(Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap());
    let cut = |shape: &[usize], window| window_partition(&Tape::no_grad(), &t(shape), window).unwrap_err().to_string();
    let joined = |shape: &[usize], size| window_unpartition(&Tape::no_grad(), &t(shape), size).unwrap_err().to_string();
    assert_eq!(cut(&[5, 4, 3], 2), "window_partition: `x` has shape [5, 4, 3], expected 4 axes");
    assert_eq!(cut(&[1, 5, 4, 3], 0), "window_partition: `window` has value 0, expected from 1 to 65535 pixels");
    assert_eq!(
        cut(&[1, 0, 4, 3], 2),
        "window_partition: `x` has shape [1, 0, 4, 3], expected sides of at least 1 pixel"
    );
    assert_eq!(
        joined(&[4, 2, 3, 5], [4, 4]),
        "window_unpartition: `y` has shape [4, 2, 3, 5], expected [windows, w, w, C], w at least 1"
    );
    assert_eq!(
        joined(&[4, 2, 2, 5], [4, 5]),
        "window_unpartition: `y` has shape [4, 2, 2, 5], expected a multiple of the 6 windows that a map of [4, 5] has"
    );
    assert_eq!(
        joined(&[4, 2, 2, 5], [0, 5]),
        "window_unpartition: `size` has value [0, 5], expected sides of at least 1 pixel"
    );
    let far = usize::MAX;
    assert!(joined(&[4, 2, 2, 5], [far, far]).contains("expected a multiple of"));
    let integers = Var::constant(Tensor::zeros([1, 2, 2, 4], DType::I32, &Device::Cpu).unwrap());
    let error = window_partition(&Tape::no_grad(), &integers, 2).unwrap_err().to_string();
    assert_eq!(error, "window_partition: `x` has dtype i32, expected a float type");
    let error = window_unpartition(&Tape::no_grad(), &integers, [2, 2]).unwrap_err().to_string();
    assert_eq!(error, "window_unpartition: `y` has dtype i32, expected a float type");
}
