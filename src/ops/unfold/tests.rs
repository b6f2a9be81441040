use proptest::prelude::*;

use super::{Window, backward, case, fold, fold_case, forward, launch, unfold};
use crate::device::Launch;
use crate::testing::{DTYPES, check, check_gradients};
use crate::{DType, Device, Tape, Tensor, Var};

const fn window(kernel: usize, stride: usize, padding: usize) -> Window {
    Window { kernel, stride, padding }
}

/// Windows that overlap, touch, leave gaps, are wider than the map, and start outside of it.
const WINDOWS: [Window; 8] = [
    window(3, 2, 1),
    window(7, 4, 3),
    window(2, 2, 0),
    window(4, 4, 0),
    window(1, 1, 0),
    window(2, 3, 1),
    window(5, 1, 3),
    window(1, 2, 2),
];

#[test]
fn matches_the_oracle_on_odd_shapes() {
    for (i, window) in WINDOWS.into_iter().enumerate() {
        for maps in [[1, 7, 5, 3], [2, 4, 9, 1], [1, 8, 6, 16 + i % 2]] {
            check(&case(maps, window)).unwrap();
            check(&fold_case(maps, window)).unwrap();
        }
    }
}

/// Rows of an odd number of entries, several of which make up whole vectors; and more vectors than a block has threads.
#[test]
fn vectors_of_several_rows_match_the_oracle() {
    for (maps, window) in [
        ([2, 5, 32, 3], window(7, 4, 3)),
        ([1, 6, 48, 1], window(3, 2, 1)),
        ([1, 5, 16, 2], window(3, 2, 1)),
        ([1, 3, 3, 264], window(3, 1, 1)),
    ] {
        check(&case(maps, window)).unwrap();
        check(&fold_case(maps, window)).unwrap();
    }
}

#[test]
fn empty_maps_give_empty_windows_and_maps() {
    for maps in [[0, 5, 4, 3], [2, 5, 4, 0]] {
        check(&case(maps, WINDOWS[0])).unwrap();
        check(&fold_case(maps, WINDOWS[0])).unwrap();
    }
    // A map without pixels inside its padding: windows of zeros.
    check(&case([2, 0, 3, 2], window(2, 1, 1))).unwrap();
    check(&fold_case([2, 0, 3, 2], window(2, 1, 1))).unwrap();
}

#[test]
fn gradients_match_finite_differences() {
    for window in WINDOWS {
        check_gradients(&case([1, 5, 4, 2], window)).unwrap();
        check_gradients(&fold_case([1, 5, 4, 2], window)).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn matches_the_oracle(
        b in 1usize..3, h in 1usize..9, w in 1usize..9, c in 1usize..12, k in 1usize..4, s in 1usize..4,
    ) {
        let window = window(k, s, k / 2);
        check(&case([b, h, w, c], window)).unwrap();
        check(&fold_case([b, h, w, c], window)).unwrap();
    }

    /// By the definition, entry by entry.
    #[test]
    fn entries_are_where_the_equation_says(
        h in 1usize..8, w in 1usize..8, c in 1usize..4, k in 1usize..5, s in 1usize..4, p in 0usize..3,
    ) {
        let window = window(k, s, p);
        let (Some(down), Some(across)) = (window.positions(h), window.positions(w)) else { return Ok(()) };
        let x: Vec<f32> = (1..=2 * h * w * c).map(|i| i as f32).collect();
        let x = Tensor::from_slice(&x, [2, h, w, c], &Device::Cpu).unwrap();
        let (cols, x) = (forward(&x, window).unwrap(), x.to_vec::<f32>().unwrap());
        prop_assert_eq!(&**cols.shape(), &[2, down, across, c * k * k]);
        for (at, entry) in cols.to_vec::<f32>().unwrap().into_iter().enumerate() {
            let (row, column) = (at / (c * k * k), at % (c * k * k));
            let (image, oy, ox) = (row / (down * across), row / across % down, row % across);
            let (channel, ky, kx) = (column / (k * k), column / k % k, column % k);
            let (y, at) = ((oy * s + ky) as isize - p as isize, (ox * s + kx) as isize - p as isize);
            let inside = (0..h as isize).contains(&y) && (0..w as isize).contains(&at);
            let expected = if inside { x[((image * h + y as usize) * w + at as usize) * c + channel] } else { 0.0 };
            prop_assert_eq!(entry, expected);
        }
    }
}

#[test]
fn grids_cover_every_row_and_line() {
    for (lines, across, values) in
        [(0, 5, 9), (1, 1, 1), (256, 256, 147), (512, 512, 9), (64, 64, 576), (3, 2, 100_000)]
    {
        for dtype in DTYPES {
            let unit = launch::Unit::of(values, across, dtype);
            let (vectors, units) = (unit.rows * values / unit.vector, across / unit.rows);
            let Launch { grid, block, .. } = launch::fwd_grid(lines, values, across, unit).unwrap();
            assert!(vectors * unit.vector == unit.rows * values && units * unit.rows == across);
            assert!(grid[0] == lines && block[0].is_multiple_of(32) && block[0] <= 256);
            assert!((grid[1] * block[0]) as usize >= vectors); // as the kernel counts them, with at least one slot
            let slots = (block[0] as usize / vectors).max(1);
            assert!(grid[1] == 1 || slots == 1);
            assert!(grid[2] as usize * slots * 8 >= units && (grid[2] as usize - 1) * slots * 8 < units);
        }
    }
    let unit = |values, across| launch::Unit::of(values, across, DType::BF16);
    let whole = |rows| launch::Unit { vector: 8, rows };
    assert_eq!([unit(576, 3), unit(36, 4), unit(147, 16)], [whole(1), whole(2), whole(8)]);
    assert_eq!(unit(147, 12), launch::Unit { vector: 1, rows: 1 });
    for (lines, length) in [(0u32, 5u32), (1, 1), (9, 255), (128, 8192), (1024, 257)] {
        let grid = launch::bwd_grid(lines, length);
        assert!(grid.grid[0] * 8 >= lines && grid.grid[1] * grid.block[0] >= length);
    }
}

/// Folding what was unfolded counts the windows over each pixel.
#[test]
fn fold_counts_the_windows_over_a_pixel() {
    let x = Tensor::full([1, 5, 5, 1], 1f32, &Device::Cpu).unwrap();
    let folded = |window| backward(&forward(&x, window).unwrap(), window, [5, 5]).unwrap().to_vec::<f32>().unwrap();
    assert_eq!(folded(window(2, 2, 0))[..10], [1., 1., 1., 1., 0., 1., 1., 1., 1., 0.]);
    assert_eq!(folded(window(3, 2, 1))[..10], [1., 2., 1., 2., 1., 2., 4., 2., 4., 2.]);
}

#[test]
fn wrong_arguments_are_named() {
    let t = |shape: &[usize]| Var::constant(Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap());
    let unfolded = |shape: &[usize], window| unfold(&Tape::no_grad(), &t(shape), window).unwrap_err().to_string();
    let folded =
        |shape: &[usize], window, size| fold(&Tape::no_grad(), &t(shape), window, size).unwrap_err().to_string();
    assert_eq!(unfolded(&[5, 4, 3], window(2, 2, 0)), "unfold: `x` has shape [5, 4, 3], expected 4 axes");
    assert_eq!(
        unfolded(&[1, 2, 5, 3], window(5, 1, 1)),
        "unfold: `x` has shape [1, 2, 5, 3], expected sides of at least 3 pixels"
    );
    assert_eq!(
        unfolded(&[1, 2, 5, 3], window(0, 1, 1)),
        "unfold: `window.kernel` has value 0, expected from 1 to 65535 pixels"
    );
    assert_eq!(
        unfolded(&[1, 2, 5, 3], window(1, 0, 1)),
        "unfold: `window.stride` has value 0, expected from 1 to 65535 pixels"
    );
    assert_eq!(
        unfolded(&[1, 2, 5, 3], window(1, 1, usize::MAX)),
        format!("unfold: `window.padding` has value {}, expected from 0 to 65535 pixels", usize::MAX)
    );
    assert_eq!(
        folded(&[1, 2, 2, 12], window(0, 2, 0), [4, 4]),
        "fold: `window.kernel` has value 0, expected from 1 to 65535 pixels"
    );
    assert_eq!(
        folded(&[1, 2, 2, 12], window(2, 2, 0), [4, 6]),
        "fold: `cols` has shape [1, 2, 2, 12], expected [B, 2, 3, multiple of 4]"
    );
    assert_eq!(
        folded(&[1, 2, 2, 13], window(2, 2, 0), [4, 4]),
        "fold: `cols` has shape [1, 2, 2, 13], expected [B, 2, 2, multiple of 4]"
    );
    assert_eq!(
        folded(&[1, 2, 2, 12], window(2, 2, 0), [1, 4]),
        "fold: `size` has value [1, 4], expected sides of at least 2 pixels"
    );
    let integers = Var::constant(Tensor::zeros([1, 2, 2, 4], DType::I32, &Device::Cpu).unwrap());
    let error = unfold(&Tape::no_grad(), &integers, window(2, 2, 0)).unwrap_err().to_string();
    assert_eq!(error, "unfold: `x` has dtype i32, expected a float type");
    let error = fold(&Tape::no_grad(), &integers, window(2, 2, 0), [4, 4]).unwrap_err().to_string();
    assert_eq!(error, "fold: `cols` has dtype i32, expected a float type");
}
