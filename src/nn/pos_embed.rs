//! Position tables of ViTs: the fixed sine-cosine table, and bicubic resizing to another grid.

use crate::dtype::{Float, num_like::Ops};
use crate::{Device, Error, Result, Tensor, with_float};

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

/// Resizes a table `[1, L, D]` or `[1, 1+L, D]` from grid `old` to grid `new` in f64: bicubic with a = -0.75, pixel centres at
/// halves (`align_corners` false), no antialiasing also when shrinking, borders clamped. A class row is copied. An equal grid
/// gives the same values.
///
/// # Errors
/// When the shape fits `old` neither with nor without a class row, or a grid is empty.
pub fn resize(table: &Tensor, old: Grid, new: Grid) -> Result<Tensor> {
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
            let wide = bicubic(&grid, old, new, dim);
            values.extend(wide.into_iter().map(|x| T::put(<T as Float>::Acc::of(x))));
        }
        Tensor::from_slice(&values, [1, new.0 * new.1 + class / dim.max(1), dim], &Device::Cpu)
    })
}

/// `[old.0, old.1, dim]` to `[new.0, new.1, dim]`.
fn bicubic(x: &[f64], old: Grid, new: Grid, dim: usize) -> Vec<f64> {
    let (rows, cols) = (taps(old.0, new.0), taps(old.1, new.1));
    let mut y = vec![0.0; new.0 * new.1 * dim];
    let cells = rows.iter().flat_map(|r| cols.iter().map(move |c| (r, c)));
    for (cell, (row, col)) in y.chunks_exact_mut(dim.max(1)).zip(cells) {
        for (sy, wy) in row {
            for (sx, wx) in col {
                let from = &x[(sy * old.1 + sx) * dim..][..dim];
                cell.iter_mut().zip(from).for_each(|(y, x)| *y += wy * wx * x);
            }
        }
    }
    y
}

/// For each new position four old ones with their weights.
fn taps(old: usize, new: usize) -> Vec<[(usize, f64); 4]> {
    let scale = old as f64 / new as f64;
    let of = |i: usize| {
        let centre = (i as f64 + 0.5) * scale - 0.5;
        let first = centre.floor();
        std::array::from_fn(|k| {
            let at = first + k as f64 - 1.0;
            (at.clamp(0.0, old as f64 - 1.0) as usize, kernel(centre - at))
        })
    };
    (0..new).map(of).collect()
}

/// Keys' cubic convolution kernel.
fn kernel(t: f64) -> f64 {
    const A: f64 = -0.75;
    let t = t.abs();
    match t {
        t if t <= 1.0 => ((A + 2.0) * t - (A + 3.0)) * t * t + 1.0,
        t if t < 2.0 => (((t - 5.0) * t + 8.0) * t - 4.0) * A,
        _ => 0.0,
    }
}
