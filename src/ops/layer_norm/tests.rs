use proptest::prelude::*;

use super::{backward, case, forward, launch, layer_norm};
use crate::testing::{check, check_gradients};
use crate::{DType, Device, Error, Tape, Tensor, Var};

#[test]
fn matches_the_oracle_on_odd_shapes() {
    for (rows, cols) in [(0, 7), (1, 5), (1, 31), (3, 32), (5, 33), (7, 257), (67, 8), (130, 100)] {
        check(&case(rows, cols)).unwrap();
    }
}

/// Every number of vectors that a lane may hold, full and with a rest, and rows longer than that.
#[test]
fn rows_in_registers_match_the_oracle() {
    for (rows, cols) in [(9, 64), (3, 264), (17, 520), (2, 776), (1, 1024), (2, 1160), (1, 1544)] {
        check(&case(rows, cols)).unwrap();
    }
    check(&case(50, 256)).unwrap(); // several parts, and rows of a warp
}

/// Without dx, whose true value cancels to (nearly) 0 there, and rstd magnifies what rounding leaves.
#[test]
fn few_columns_match_the_oracle() {
    for (rows, cols) in [(1, 1), (3, 1), (5, 2), (4, 3), (33, 4)] {
        check(&case(rows, cols).constants(|input| input.name == "x")).unwrap();
    }
}

#[test]
fn gradients_match_finite_differences() {
    for (rows, cols) in [(1, 2), (4, 7), (3, 33)] {
        check_gradients(&case(rows, cols)).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn matches_the_oracle(rows in 1usize..90, cols in 5usize..300) {
        check(&case(rows, cols)).unwrap();
    }
}

#[test]
fn a_kernel_holds_the_whole_row() {
    let names = ["any", "2", "4", "6", "8"];
    for cols in 1..2200 {
        for dtype in [DType::F32, DType::BF16] {
            let lane = 16 / dtype.size();
            match launch::variant(names, cols, dtype) {
                (name, true) => {
                    let vectors: usize = name.parse().unwrap();
                    assert!(cols % lane == 0 && vectors * 32 * lane >= cols && (vectors < 8 || dtype == DType::F32));
                    assert!(vectors == 2 || (vectors - 2) * 32 * lane < cols, "the least of them");
                }
                (name, false) => assert!(name == "any" && (cols % lane != 0 || cols > 1024)),
            }
        }
    }
}

#[test]
fn grids_cover_every_row() {
    for rows in [0, 1, 3, 4, 5, 31, 4224, 4225, 100_000] {
        let grid = launch::fwd_grid(rows as u32);
        assert!(grid.grid[0] as usize * (grid.block[0] / 32) as usize >= rows);
        let (parts, per_part) = launch::split(rows);
        assert!(parts * per_part >= rows && parts <= 264);
        assert!(rows == 0 || (parts - 1) * per_part < rows, "no empty part");
    }
}

#[test]
fn a_large_mean_keeps_its_digits() {
    let x: Vec<f32> = (0..768).map(|i| 1000.0 + (i as f32 * 0.7).sin()).collect();
    let v = |t: &[f32], s: &[usize]| Var::constant(Tensor::from_slice(t, s, &Device::Cpu).unwrap());
    let y = layer_norm(&Tape::no_grad(), &v(&x, &[1, 768]), &v(&[1.0; 768], &[768]), &v(&[0.0; 768], &[768]), 1e-6);
    let y = y.unwrap().value().to_f64().unwrap();
    let var = y.iter().map(|v| v * v).sum::<f64>() / 768.0;
    assert!((var - 1.0).abs() < 1e-3, "variance {var}");
}

#[test]
fn wrong_arguments_are_named() {
    let t = |s: &[usize]| Var::constant(Tensor::zeros(s, DType::F32, &Device::Cpu).unwrap());
    let error = layer_norm(&Tape::no_grad(), &t(&[3, 7]), &t(&[21]), &t(&[7]), 1e-6).unwrap_err();
    assert!(matches!(error, Error::Argument { .. }));
    assert_eq!(error.to_string(), "layer_norm: `w` has shape [21], expected [7]");
}

#[test]
fn a_backward_refuses_what_its_forward_did_not_make() {
    let t = |s: &[usize], dtype| Tensor::zeros(s, dtype, &Device::Cpu).unwrap();
    let x = t(&[3, 7], DType::BF16);
    let w = t(&[7], DType::BF16);
    let (_, stats) = forward(&x, &w, &w, 1e-6).unwrap();
    let message = |w: &Tensor, stats: &Tensor| backward(&x, &x, w, stats).unwrap_err().to_string();
    assert_eq!(message(&t(&[5], DType::BF16), &stats), "layer_norm: `w` has shape [5], expected [7]");
    assert_eq!(message(&t(&[7], DType::F32), &stats), "layer_norm: `w` has dtype f32, expected bf16");
    assert_eq!(message(&w, &t(&[2, 2], DType::F32)), "layer_norm: `stats` has shape [2, 2], expected [3, 2]");
    assert_eq!(message(&w, &t(&[3, 2], DType::BF16)), "layer_norm: `stats` has dtype bf16, expected f32");
}
