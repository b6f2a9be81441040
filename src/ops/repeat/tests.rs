use proptest::prelude::*;

use super::{case, forward, launch, repeat};
use crate::testing::{DTYPES, check, check_gradients};
use crate::{DType, Device, Error, Grads, Tape, Tensor, Var};

#[test]
fn matches_the_oracle_on_odd_shapes() {
    for (extents, times) in
        [(&[5][..], 1), (&[0], 3), (&[], 4), (&[7], 0), (&[3, 33], 2), (&[8, 8], 131), (&[2, 4, 264], 5), (&[1, 1], 67)]
    {
        check(&case(extents, times, true)).unwrap();
        check(&case(extents, times, false)).unwrap();
    }
}

#[test]
fn gradients_match_finite_differences() {
    check_gradients(&case(&[2, 5], 3, true)).unwrap();
    check_gradients(&case(&[4], 1, false)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn matches_the_oracle(n in 1usize..300, times in 1usize..40) {
        check(&case(&[n], times, false)).unwrap();
    }
}

#[test]
fn copies_are_the_values_and_the_gradient_has_their_shape() {
    let values: Vec<f32> = (0..20_011).map(|i| i as f32).collect();
    let long = Tensor::from_slice(&values, [20_011], &Device::Cpu).unwrap();
    let y = forward(&long, 3).unwrap();
    assert_eq!(**y.shape(), [3, 20_011]);
    assert_eq!(y.to_vec::<f32>().unwrap(), [&values[..]; 3].concat());
    let tape = Tape::new();
    let x = tape.leaf(Tensor::from_slice(&values[..6], [2, 3], &Device::Cpu).unwrap());
    let y = repeat(&tape, &x, 4).unwrap();
    assert_eq!(**y.value().shape(), [4, 2, 3]);
    let mut grads = Grads::new();
    tape.backward(&y, Tensor::full([4, 2, 3], 0.5f32, &Device::Cpu).unwrap(), &mut grads).unwrap();
    let dx = grads.take(&x).unwrap();
    assert_eq!((&**dx.shape(), dx.to_vec::<f32>().unwrap()), (&[2, 3][..], vec![2.0; 6]));
}

#[test]
fn grids_cover_every_element_and_fill_a_gpu() {
    for (n, times, dtype) in [0, 1, 7, 256, 1536, 1 << 20]
        .into_iter()
        .flat_map(|n| [0, 1, 5, 64, 100_000].map(|times| (n, times)))
        .flat_map(|(n, times)| DTYPES.map(|dtype| (n, times, dtype)))
    {
        let grid = launch::grid(n, times, dtype);
        assert_eq!(grid.grid[1] == 0, times == 0);
        assert!(grid.grid[1] as usize <= times && grid.grid[1] <= 528);
        assert!(grid.grid[0] as usize * grid.block[0] as usize * (16 / dtype.size()) >= n);
    }
    assert_eq!(launch::grid(1536, 64, DType::BF16).grid, [1, 64, 1]);
}

#[test]
fn wrong_arguments_are_named() {
    let x = Var::constant(Tensor::zeros([3], DType::I32, &Device::Cpu).unwrap());
    let error = repeat(&Tape::no_grad(), &x, 2).unwrap_err();
    assert!(matches!(error, Error::Argument { .. }));
    assert_eq!(error.to_string(), "repeat: `x` has dtype i32, expected a float type");
}
