//! Disjoint rectangles of one row-major matrix, each to be written by another thread.

use std::marker::PhantomData;
use std::ptr::NonNull;

/// A rectangle of a row-major matrix that nobody else can reach; its rows are handed out one at a time.
///
/// `[tokens, heads · dim]` written by one task per head is the case slices cannot express: a task's rows are not
/// contiguous.
pub struct Window<'a, T> {
    first: NonNull<T>,
    stride: usize, // elements from row to row
    rows: usize,
    cols: usize,
    matrix: PhantomData<&'a mut [T]>,
}

// SAFETY: a window is a unique borrow of its elements (see `grid`), as `&mut [T]` is, which is Send for such `T`.
unsafe impl<T: Send> Send for Window<'_, T> {}

impl<'a, T> Window<'a, T> {
    /// The whole of a matrix with `cols` columns.
    ///
    /// # Panics
    /// When `matrix` is not a whole number of rows.
    pub fn new(matrix: &'a mut [T], cols: usize) -> Self {
        let rows = matrix.len().checked_div(cols).unwrap_or(0);
        assert_eq!(rows * cols, matrix.len(), "a matrix of whole rows");
        Self { first: NonNull::from(matrix).cast(), stride: cols, rows, cols, matrix: PhantomData }
    }

    /// Cuts into bands of `heights` rows, each into blocks of `widths` columns; band after band.
    ///
    /// # Panics
    /// When they reach beyond the window.
    pub fn grid(self, heights: &[usize], widths: &[usize]) -> Vec<Self> {
        self.check(heights, widths);
        let tile = |(row, height)| offsets(widths).map(move |(col, width)| (row, col, height, width));
        // SAFETY: `check` keeps every tile inside, and running offsets in both directions keep them apart.
        offsets(heights).flat_map(tile).map(|(r, c, h, w)| unsafe { self.tile(r, c, h, w) }).collect()
    }

    /// The tiles of [`Window::grid`], column block after column block.
    ///
    /// # Panics
    /// When they reach beyond the window.
    pub fn grid_by_columns(self, heights: &[usize], widths: &[usize]) -> Vec<Self> {
        self.check(heights, widths);
        let tile = |(col, width)| offsets(heights).map(move |(row, height)| (row, col, height, width));
        // SAFETY: as in `grid`.
        offsets(widths).flat_map(tile).map(|(r, c, h, w)| unsafe { self.tile(r, c, h, w) }).collect()
    }

    fn check(&self, heights: &[usize], widths: &[usize]) {
        assert!(heights.iter().sum::<usize>() <= self.rows, "bands reach beyond the window");
        assert!(widths.iter().sum::<usize>() <= self.cols, "blocks reach beyond the window");
    }

    /// # Safety
    /// The tile lies inside, and no other one made from this window meets it; `self` is not used afterwards.
    unsafe fn tile(&self, row: usize, col: usize, rows: usize, cols: usize) -> Self {
        // An empty tile at the end of a matrix has no first element: it keeps the window's.
        let offset = if rows == 0 || cols == 0 { 0 } else { row * self.stride + col };
        // SAFETY: the offset is that of an element inside the window, by the caller's promise.
        Self { first: unsafe { self.first.add(offset) }, stride: self.stride, rows, cols, matrix: PhantomData }
    }

    /// Row `i` of the window.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn row(&mut self, i: usize) -> &mut [T] {
        assert!(i < self.rows, "row {i} of {}", self.rows);
        // SAFETY: row i and its `cols` elements lie inside the window, whose elements only `&mut self` reaches.
        unsafe { std::slice::from_raw_parts_mut(self.first.as_ptr().add(i * self.stride), self.cols) }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }
}

/// Each length with the sum of those before it.
fn offsets(lengths: &[usize]) -> impl Iterator<Item = (usize, usize)> {
    lengths.iter().scan(0, |at, &length| {
        let start = *at;
        *at += length;
        Some((start, length))
    })
}

#[cfg(test)]
mod tests {
    use super::Window;

    #[test]
    fn tiles_cover_the_matrix_in_both_orders() {
        for by_columns in [false, true] {
            let mut matrix = vec![0; 5 * 6];
            let whole = Window::new(&mut matrix, 6);
            let (heights, widths) = ([2, 0, 3], [1, 5]);
            let tiles =
                if by_columns { whole.grid_by_columns(&heights, &widths) } else { whole.grid(&heights, &widths) };
            for (n, mut tile) in tiles.into_iter().enumerate() {
                (0..tile.rows()).for_each(|i| tile.row(i).iter_mut().for_each(|x| *x = *x * 10 + n));
            }
            let [a, b, c, d] = if by_columns { [0, 3, 2, 5] } else { [0, 1, 4, 5] };
            let (top, bottom) = ([a, b, b, b, b, b], [c, d, d, d, d, d]);
            assert_eq!(matrix, [top, top, bottom, bottom, bottom].concat());
        }
    }

    #[test]
    #[should_panic(expected = "beyond")]
    fn a_tile_outside_is_refused() {
        Window::new(&mut [0; 6], 3).grid(&[2], &[2, 2]);
    }

    #[test]
    #[should_panic(expected = "row 2 of 2")]
    fn a_row_outside_is_refused() {
        Window::new(&mut [0; 6], 3).row(2);
    }
}
