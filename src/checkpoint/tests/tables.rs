//! Position tables: the fixed formula and the resize.

use proptest::prelude::*;

use super::tensor;
use crate::nn::pos_embed::{resize, sincos_2d};
use crate::{DType, Device, Tensor};

#[test]
fn resizing_a_row_by_hand() {
    // Two columns to four: centres at -0.25, 0.25, 0.75, 1.25; the kernel at 0.25, 0.75, 1.25, 1.75 with a = -0.75.
    let w = |t: f64| {
        if t <= 1.0 { 1.25 * t.powi(3) - 2.25 * t * t + 1.0 } else { -0.75 * (t.powi(3) - 5.0 * t * t + 8.0 * t - 4.0) }
    };
    let (near, far) = (w(0.25) + w(1.25), w(0.75) + w(1.75)); // clamped borders: taps outside count for the border
    let inner = (w(0.25) + w(1.25)) as f32; // at 0.25: taps -1, 0 -> left; 1, 2 -> right
    let table = Tensor::from_slice(&[1f32, 0.0], [1, 2, 1], &Device::Cpu).unwrap();
    let given = resize(&table, (1, 2), (1, 4)).unwrap().to_vec::<f32>().unwrap();
    assert!((near + far - 1.0).abs() < 1e-15);
    let outer = (w(1.75) + w(0.75) + w(0.25)) as f32; // at -0.25: taps -2, -1, 0 -> left; 1 -> right
    for (a, b) in given.iter().zip([outer, inner, 1.0 - inner, 1.0 - outer]) {
        assert!((a - b).abs() < 1e-6, "{given:?}");
    }
}

#[test]
fn faults_are_named() {
    assert!(sincos_2d(6, 2, 2, true).unwrap_err().to_string().contains("a positive multiple of 4"));
    assert!(sincos_2d(0, 2, 2, true).is_err());
    let table = tensor(&[1, 17, 8], 0);
    for (old, new) in [((4, 5), (2, 2)), ((3, 5), (2, 2)), ((4, 4), (0, 3)), ((0, 0), (2, 2))] {
        assert!(resize(&table, old, new).is_err(), "{old:?} {new:?}");
    }
    assert!(resize(&tensor(&[2, 17, 8], 0), (4, 4), (2, 2)).is_err());
    assert!(resize(&tensor(&[17, 8], 0), (4, 4), (2, 2)).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn tables_have_their_properties(q in 1usize..6, h in 1usize..6, w in 1usize..6) {
        let dim = 4 * q;
        let table = sincos_2d(dim, h, w, true).unwrap();
        let row = |y: usize, x: usize| &table[(1 + y * w + x) * dim..][..dim];
        prop_assert!(table[..dim].iter().all(|v| *v == 0.0));
        let transposed = sincos_2d(dim, w, h, true).unwrap();
        for y in 0..h {
            for x in 0..w {
                let norm: f64 = row(y, x).iter().map(|v| f64::from(*v).powi(2)).sum();
                prop_assert!((norm - dim as f64 / 2.0).abs() < 1e-5);
                prop_assert_eq!(&row(y, x)[..dim / 2], &row(0, x)[..dim / 2]);
                prop_assert_eq!(&row(y, x)[dim / 2..], &row(y, 0)[dim / 2..]);
                let swapped = &transposed[(1 + x * h + y) * dim..][..dim];
                prop_assert_eq!(&row(y, x)[..dim / 2], &swapped[dim / 2..]);
                prop_assert_eq!(&row(y, x)[dim / 2..], &swapped[..dim / 2]);
            }
        }
        prop_assert_eq!(&sincos_2d(dim, h, w, false).unwrap()[..], &table[dim..]);
    }

    #[test]
    fn resizing_keeps_constants_and_the_class_row(
        old in (1usize..6, 1usize..6), new in (1usize..6, 1usize..6), dim in 1usize..5, class in any::<bool>(),
    ) {
        let rows = old.0 * old.1 + usize::from(class);
        let table = Tensor::full([1, rows, dim], 0.7f32, &Device::Cpu).unwrap();
        let y = resize(&table, old, new).unwrap();
        prop_assert_eq!(&y.shape()[..], &[1, new.0 * new.1 + usize::from(class), dim]);
        prop_assert!(y.to_vec::<f32>().unwrap().iter().all(|v| (v - 0.7).abs() < 1e-6));
        let x = tensor(&[1, rows, dim], 3);
        let y = resize(&x, old, new).unwrap().to_vec::<f32>().unwrap();
        let x32 = x.to_vec::<f32>().unwrap();
        if class {
            prop_assert_eq!(&y[..dim], &x32[..dim]);
        }
        if old == new {
            prop_assert_eq!(&y, &x32);
        }
        let half = resize(&x.cast(DType::BF16).unwrap(), old, new).unwrap();
        prop_assert_eq!(half.dtype(), DType::BF16);
    }
}
