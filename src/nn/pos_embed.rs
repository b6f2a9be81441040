//! Position tables of ViTs: the fixed sine-cosine table, and resizing to another grid in the ways of the upstream recipes.

use crate::device::gemm::{GemmSpec, Layout, gemm};
use crate::dtype::{Float, num_like::Ops};
use crate::{DType, Device, Error, Param, Result, Tape, Tensor, Var, with_float};

/// A grid of patches: rows, columns.
pub type Grid = (usize, usize);

/// The fixed table of MAE, `[hg·wg (+1), dim]` row-major, computed in f64.
///
/// With q = dim/4 and w_j = 10000^(-j/q), the row of the patch in grid row gy and column gx is
/// `[sin(gx·w_j) | cos(gx·w_j) | sin(gy·w_j) | cos(gy·w_j)]`: the **column first**, blocks not interleaved. Upstream's variable
/// names say the opposite; published weights depend on this order. `class_row` puts a row of zeros in front for the class token.
///
/// # Errors
/// When `dim` is not a positive multiple of 4.
pub fn sincos_2d(dim: usize, hg: usize, wg: usize, class_row: bool) -> Result<Vec<f32>> {
    if dim == 0 || !dim.is_multiple_of(4) {
        return Err(Error::value("sincos_2d", "dim", dim, "a positive multiple of 4"));
    }
    let q = dim / 4;
    let rates: Vec<f64> = (0..q).map(|j| 1.0 / 10000f64.powf(j as f64 / q as f64)).collect();
    let mut table = Vec::with_capacity((hg * wg + 1) * dim);
    if class_row {
        table.resize(dim, 0.0);
    }
    for gy in 0..hg {
        for gx in 0..wg {
            for at in [gx as f64, gy as f64] {
                table.extend(rates.iter().map(|w| (at * w).sin() as f32));
                table.extend(rates.iter().map(|w| (at * w).cos() as f32));
            }
        }
    }
    Ok(table)
}

/// How a table is read between its positions. Each of the upstream recipes has its own way; weights that were moved to another
/// resolution in one of them belong to it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Resample {
    /// Bicubic with a = -0.75, pixel centres at halves, no antialiasing also when shrinking: MAE, Hugging Face.
    #[default]
    Bicubic,
    /// Bilinear, pixel centres at halves, no antialiasing: open_clip's loader.
    Bilinear,
    /// Bilinear, pixel centres at halves, the kernel stretched when shrinking: SigLIP 2 for any grid (NaFlex).
    BilinearAntialias,
    /// DINOv2's: bicubic at the scale `(new + offset) / old`. With an offset of 0.1, which its weights without registers were
    /// trained with, grids are not read symmetrically. `antialias` (those with registers, offset 0): a = -0.5, the kernel
    /// stretched when shrinking, cut at the border and normalised; else as [`Bicubic`](Self::Bicubic).
    Scaled {
        /// Added to the number of new positions.
        offset: f64,
        /// Whether the kernel is stretched.
        antialias: bool,
    },
    /// Bilinear between corners: the first and last position of a side stay what they are. big_vision (`scipy.ndimage.zoom`
    /// of order 1).
    Corners,
}

/// Resizes a table by [`Resample::Bicubic`]; see [`resample`].
///
/// # Errors
/// As [`resample`].
pub fn resize(table: &Tensor, old: Grid, new: Grid) -> Result<Tensor> {
    resample(table, old, new, Resample::Bicubic)
}

/// Resizes a table `[1, L, D]` or `[1, 1+L, D]` from grid `old` to grid `new` in f64; borders are clamped. A class row is
/// copied. An equal grid gives the same values.
///
/// # Errors
/// When the shape fits `old` neither with nor without a class row, or a grid is empty.
pub fn resample(table: &Tensor, old: Grid, new: Grid, how: Resample) -> Result<Tensor> {
    let [one, rows, dim] = table.dims("resize", "table")?;
    let patches = old.0 * old.1;
    if one != 1 || rows < patches || rows > patches + 1 || patches == 0 {
        let expected = format!("[1, {patches}, D] or [1, {}, D] for a grid of {} x {}", patches + 1, old.0, old.1);
        return Err(Error::shape("resize", "table", table.shape(), expected));
    }
    if new.0 * new.1 == 0 {
        return Err(Error::value("resize", "new", format!("{new:?}"), "at least one row and one column"));
    }
    let class = (rows - patches) * dim;
    with_float!("resize", "table", table.dtype(), T => {
        let source = table.to_vec::<T>()?;
        let mut values = source[..class].to_vec();
        if old == new {
            values = source;
        } else {
            let grid: Vec<f64> = source[class..].iter().map(|x| x.get().f64()).collect();
            let wide = separable(&grid, old, new, dim, how);
            values.extend(wide.into_iter().map(|x| T::put(<T as Float>::Acc::of(x))));
        }
        Tensor::from_slice(&values, [1, new.0 * new.1 + class / dim.max(1), dim], &Device::Cpu)
    })
}

/// `[old.0, old.1, dim]` to `[new.0, new.1, dim]`.
fn separable(x: &[f64], old: Grid, new: Grid, dim: usize, how: Resample) -> Vec<f64> {
    let mut y = vec![0.0; new.0 * new.1 * dim];
    for (cell, read) in y.chunks_exact_mut(dim.max(1)).zip(weights(old, new, how)) {
        for (at, weight) in read {
            cell.iter_mut().zip(&x[at * dim..][..dim]).for_each(|(y, x)| *y += weight * x);
        }
    }
    y
}

/// Old positions that a new one is read from, with their weights. One may occur several times, at a border.
pub type Read = Vec<(usize, f64)>;

/// For each position of grid `new`, row by row, the positions of grid `old` that it is read from.
pub fn weights(old: Grid, new: Grid, how: Resample) -> Vec<Read> {
    let (rows, cols) = (taps(old.0, new.0, how), taps(old.1, new.1, how));
    let cell = |(row, col): (&Read, &Read)| {
        row.iter().flat_map(|&(y, a)| col.iter().map(move |&(x, b)| (y * old.1 + x, a * b))).collect()
    };
    rows.iter().flat_map(|row| cols.iter().map(move |col| (row, col))).map(cell).collect()
}

/// [`weights`] as a matrix `[new.0 · new.1 + 1, old.0 · old.1 + 1]` that keeps a class row in front.
///
/// # Errors
/// More entries than memory holds.
pub fn matrix(old: Grid, new: Grid, how: Resample, dtype: DType, device: &Device) -> Result<Tensor> {
    let (rows, cols) = (new.0 * new.1 + 1, old.0 * old.1 + 1);
    let mut values = vec![0f64; rows * cols];
    values[0] = 1.0;
    for (row, read) in values[cols..].chunks_exact_mut(cols).zip(weights(old, new, how)) {
        read.into_iter().for_each(|(at, weight)| row[1 + at] += weight);
    }
    let narrow = |x: &f64| *x as f32;
    match dtype {
        DType::F64 => Tensor::from_slice(&values, [rows, cols], device),
        _ => Tensor::from_slice(&values.iter().map(narrow).collect::<Vec<_>>(), [rows, cols], device),
    }
}

/// `matrix · table` for a table `[1, L, D]`, in full precision and stored in `dtype`; the gradient goes back to the table's
/// through the transposed matrix, in f32 (f64 for f64). `matrix: [N, L]` is in the type of the table's master.
///
/// # Errors
/// When shapes or types do not fit.
pub fn resampled(tape: &Tape, table: &Param, matrix: &Tensor, dtype: DType) -> Result<Var> {
    let [one, len, _] = table.master.dims(RESAMPLED, "table")?;
    let [_, cols] = matrix.dims(RESAMPLED, "matrix")?;
    if one != 1 || cols != len {
        return Err(Error::shape(RESAMPLED, "matrix", matrix.shape(), format!("[N, {len}]")));
    }
    let parameter = tape.param(table);
    let (to, y) = (parameter.slot(), product(matrix, false, &table.master)?.cast(dtype)?);
    if matrix.dtype() != table.master.dtype() {
        return Err(Error::argument(RESAMPLED, "matrix", "dtype", matrix.dtype().name(), table.master.dtype().name()));
    }
    Ok(tape.record(RESAMPLED, y, &[&parameter], [matrix.clone()], move |dy, [matrix], grads| {
        grads.add(to, product(&matrix, true, &dy.cast(matrix.dtype())?)?)
    }))
}

const RESAMPLED: &str = "resampled";

/// `a · b`, or `aᵀ · b`, for `a: [N, L]` and a table `b`, as a table.
fn product(a: &Tensor, trans_a: bool, b: &Tensor) -> Result<Tensor> {
    let ([rows, cols], [_, _, n]) = (a.dims(RESAMPLED, "matrix")?, b.dims::<3>(RESAMPLED, "table")?);
    let (m, k) = if trans_a { (cols, rows) } else { (rows, cols) };
    let mut d = Tensor::uninit([1, m, n], a.dtype(), a.device())?;
    let layout = Layout { m, n, k, trans_a, trans_b: false, input: a.dtype(), output: a.dtype() };
    gemm(&GemmSpec { layout, alpha: 1.0, beta: 0.0 }, a.storage(), b.storage(), None, d.storage_mut(RESAMPLED)?)?;
    Ok(d)
}

/// For each new position the old ones with their weights.
fn taps(old: usize, new: usize, how: Resample) -> Vec<Read> {
    let offset = if let Resample::Scaled { offset, .. } = how { offset } else { 0.0 };
    let scale = old as f64 / (new as f64 + offset);
    let corners = if new > 1 { (old - 1) as f64 / (new - 1) as f64 } else { 0.0 };
    let inside = |at: f64| at.clamp(0.0, old as f64 - 1.0);
    let of = |i: usize| {
        let half = (i as f64 + 0.5) * scale - 0.5;
        let around = |centre: f64, before: i32, after: i32, weight: fn(f64) -> f64| {
            (-before..=after)
                .map(|k| centre.floor() + f64::from(k))
                .map(|at| (inside(at) as usize, weight(centre - at)))
                .collect::<Vec<_>>()
        };
        match how {
            Resample::Bicubic | Resample::Scaled { antialias: false, .. } => around(half, 1, 2, kernel::<-75>),
            Resample::Scaled { antialias: true, .. } => {
                let stretch = scale.max(1.0);
                let edge = |at: f64| (at.max(0.0) as usize).min(old);
                let (first, past) = (edge(half + 1.0 - 2.0 * stretch), edge(half + 1.0 + 2.0 * stretch));
                let weights = (first..past).map(|at| (at, kernel::<-50>((at as f64 - half) / stretch)));
                let sum: f64 = weights.clone().map(|(_, w)| w).sum();
                weights.map(|(at, w)| (at, w / sum)).collect()
            }
            Resample::Bilinear => around(half, 0, 1, triangle),
            Resample::Corners => around(inside(i as f64 * corners), 0, 1, triangle),
            Resample::BilinearAntialias => {
                let stretch = scale.max(1.0);
                let (first, last) =
                    (inside((half - stretch).ceil()) as usize, inside((half + stretch).floor()) as usize);
                let weights = (first..=last).map(|at| (at, triangle((at as f64 - half) / stretch)));
                let sum: f64 = weights.clone().map(|(_, w)| w).sum();
                weights.map(|(at, w)| (at, w / sum)).collect()
            }
        }
    };
    (0..new).map(of).collect()
}

/// Linear interpolation.
fn triangle(t: f64) -> f64 {
    (1.0 - t.abs()).max(0.0)
}

/// Keys' cubic convolution kernel with its parameter in hundredths.
fn kernel<const A: i32>(t: f64) -> f64 {
    let (t, a) = (t.abs(), f64::from(A) / 100.0);
    match t {
        t if t <= 1.0 => ((a + 2.0) * t - (a + 3.0)) * t * t + 1.0,
        t if t < 2.0 => (((t - 5.0) * t + 8.0) * t - 4.0) * a,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Resample; 6] = [
        Resample::Bicubic,
        Resample::Bilinear,
        Resample::BilinearAntialias,
        Resample::Scaled { offset: 0.1, antialias: false },
        Resample::Scaled { offset: 0.0, antialias: true },
        Resample::Corners,
    ];

    fn resampled(values: &[f64], old: Grid, new: Grid, how: Resample) -> Vec<f64> {
        let table = Tensor::from_slice(values, [1, values.len(), 1], &Device::Cpu).unwrap();
        resample(&table, old, new, how).unwrap().to_f64().unwrap()
    }

    #[test]
    fn a_row_read_in_each_way() {
        let row = |how, new| resampled(&[0.0, 8.0, 0.0, 0.0], (1, 4), (1, new), how);
        assert_eq!(row(Resample::Bilinear, 2), [4.0, 0.0]);
        // Centre 1/2, reach 2: weights 3/4, 3/4, 1/4 over their sum 7/4; and 2.5 mirrored.
        let close =
            |given: Vec<f64>, expected: [f64; 2]| given.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(close(row(Resample::BilinearAntialias, 2), [24.0 / 7.0, 8.0 / 7.0]));
        assert_eq!(row(Resample::Corners, 2), [0.0, 0.0]);
        assert_eq!(row(Resample::Corners, 7), [0.0, 4.0, 8.0, 4.0, 0.0, 0.0, 0.0]);
        assert_eq!(row(Resample::Corners, 1), [0.0]);
        assert_eq!(row(Resample::Bilinear, 8), [0.0, 2.0, 6.0, 6.0, 2.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn constants_and_equal_grids_stay() {
        let numbered: Vec<f64> = (0..15).map(|i| f64::from(i * i % 11)).collect();
        for how in ALL {
            assert_eq!(resampled(&numbered, (3, 5), (3, 5), how), numbered);
            for new in [(1, 1), (2, 7), (9, 4)] {
                let out = resampled(&[2.5; 15], (3, 5), new, how);
                assert!(out.len() == new.0 * new.1 && out.iter().all(|v| (v - 2.5).abs() < 1e-12), "{how:?} {out:?}");
            }
        }
    }
}
