use proptest::prelude::*;

use super::{case, depthwise_conv2d, forward, launch};
use crate::ops::Role;
use crate::testing::{check, check_gradients};
use crate::{DType, Device, Tape, Tensor, Var};

#[test]
fn matches_the_oracle_on_odd_shapes() {
    for (maps, kernel) in [
        ([1, 1, 1, 1], 1),
        ([2, 5, 3, 3], 3),
        ([1, 9, 13, 8], 7),
        ([2, 4, 6, 33], 5),
        ([1, 2, 3, 264], 7),
        ([1, 17, 2, 4], 9),
        ([0, 4, 4, 3], 3),
        ([2, 0, 4, 8], 3),
        ([2, 4, 0, 8], 3),
        ([2, 4, 4, 0], 3),
    ] {
        check(&case(maps, kernel)).unwrap();
    }
}

#[test]
fn gradients_match_finite_differences() {
    check_gradients(&case([2, 4, 3, 3], 3)).unwrap();
    check_gradients(&case([1, 3, 9, 2], 7)).unwrap();
    check_gradients(&case([1, 2, 2, 3], 1)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn matches_the_oracle(b in 1usize..3, h in 1usize..12, w in 1usize..12, c in 1usize..40, r in 0usize..4) {
        check(&case([b, h, w, c], 2 * r + 1)).unwrap();
    }
}

#[test]
fn grids_cover_every_pixel_and_tap() {
    for (batch, height, width) in [(0, 5, 5), (1, 1, 1), (2, 8, 4), (3, 9, 5), (3, 64, 64)] {
        let grid = launch::fwd_grid(batch, height, width, 33).unwrap();
        assert_eq!(grid.grid[0] as usize, batch * height.div_ceil(8) * width.div_ceil(4));
        assert_eq!(grid.block[0], 8 * 32);
    }
    for lines in [0, 1, 64, 132, 133, 192, 100_000] {
        let (parts, per_part) = launch::split(lines);
        assert!(parts * per_part >= lines && (1..=132).contains(&parts));
        assert!(lines == 0 || (parts - 1) * per_part < lines, "{lines}: a part without lines");
    }
    for kernel in [1, 3, 5, 7, 9, 31] {
        let grid = launch::bwd_grid(5, 256, kernel);
        let warps = grid.block[0] / 32;
        assert!(grid.grid[0] == 5 && (1..=8).contains(&warps));
        assert!((grid.grid[2] * warps) as usize >= kernel * kernel.div_ceil(4));
    }
    let grid = launch::bwd_grid(5, 256, 7);
    assert_eq!((grid.grid[2], grid.block[0]), (2, 7 * 32)); // 14 groups of taps, no idle warp
}

/// Gradients that nobody wants are not computed, and the others are what they were.
#[test]
fn some_gradients_alone() {
    for constant in ["x", "w", "b"] {
        let mut case = case([1, 5, 6, 8], 3).constants(|input| input.name == constant);
        case.id = format!("{} without {constant}", case.id);
        assert_eq!(case.inputs.iter().filter(|input| input.role == Role::Constant).count(), 1);
        check(&case).unwrap();
    }
}

/// A kernel with a single one moves the map; the window is not turned.
#[test]
fn a_kernel_of_one_tap_moves_the_map() {
    let x: Vec<f32> = (1..=6).map(|i| i as f32).collect();
    let x = Tensor::from_slice(&x, [1, 2, 3, 1], &Device::Cpu).unwrap();
    let b = Tensor::from_slice(&[0.5f32], [1], &Device::Cpu).unwrap();
    let moved = |tap: usize| {
        let w: Vec<f32> = (0..9).map(|i| if i == tap { 1.0 } else { 0.0 }).collect();
        let w = Tensor::from_slice(&w, [1, 1, 3, 3], &Device::Cpu).unwrap();
        forward(&x, &w, &b).unwrap().to_vec::<f32>().unwrap()
    };
    assert_eq!(moved(4), [1.5, 2.5, 3.5, 4.5, 5.5, 6.5]);
    assert_eq!(moved(5), [2.5, 3.5, 0.5, 5.5, 6.5, 0.5]); // from the right
    assert_eq!(moved(1), [0.5, 0.5, 0.5, 1.5, 2.5, 3.5]); // from above
}

#[test]
fn wrong_arguments_are_named() {
    let t = |shape: &[usize], dtype| Var::constant(Tensor::zeros(shape, dtype, &Device::Cpu).unwrap());
    let error = |x: &[usize], w: &[usize], b: &[usize]| {
        let [x, w, b] = [x, w, b].map(|shape| t(shape, DType::F32));
        depthwise_conv2d(&Tape::no_grad(), &x, &w, &b).unwrap_err().to_string()
    };
    assert_eq!(error(&[4, 4, 3], &[3, 1, 3, 3], &[3]), "depthwise_conv2d: `x` has shape [4, 4, 3], expected 4 axes");
    for w in [[3, 1, 4, 4], [3, 3, 3, 3], [4, 1, 3, 3], [3, 1, 5, 3]] {
        assert_eq!(
            error(&[1, 4, 4, 3], &w, &[3]),
            format!("depthwise_conv2d: `w` has shape {w:?}, expected [3, 1, k, k], k odd and below 65536")
        );
    }
    assert_eq!(error(&[1, 4, 4, 3], &[3, 1, 3, 3], &[4]), "depthwise_conv2d: `b` has shape [4], expected [3]");
    let x = t(&[1, 4, 4, 3], DType::F32);
    let (w, b) = (t(&[3, 1, 3, 3], DType::BF16), t(&[3], DType::F32));
    let error = depthwise_conv2d(&Tape::no_grad(), &x, &w, &b).unwrap_err().to_string();
    assert_eq!(error, "depthwise_conv2d: `w` has dtype bf16, expected f32");
}
