//! How kernels cover matrices of rows too wide for one block (kernels/prototypes.cuh): tiles of columns, parts of rows.

use bytemuck::{Pod, Zeroable};

use crate::device::Launch;
use crate::ops::indices::count32;
use crate::{DType, Result};

/// `TILE_THREADS`.
const THREADS: u32 = 256;
/// `TILE_VECTORS`.
const VECTORS: usize = 2;
/// Blocks to aim for: two for each of 132 multiprocessors; not measured yet.
const BLOCKS: usize = 264;
/// Rows of a part at least: a part costs two numbers per column, so that the parts of a narrow matrix take at most a
/// quarter of its memory in 16 bits.
const PART_ROWS: usize = 16;

/// `struct RowFactors`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct RowFactors {
    pub sums: u64,
    pub l: u64,
    pub count: u64,
    pub rows: u32,
    pub tiles: u32,
}

/// Grid over `[rows, cols]` and the count of its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tiles {
    pub rows: u32,
    pub cols: u32,
    /// Of columns.
    pub tiles: u32,
    /// Of rows; none without rows.
    pub parts: u32,
}

impl Tiles {
    /// Columns of a tile: two vectors of 16 bytes per thread, or two elements where rows are not whole vectors.
    pub fn width(cols: usize, dtype: DType) -> usize {
        let vector = 16 / dtype.size();
        THREADS as usize * VECTORS * if cols.is_multiple_of(vector) { vector } else { 1 }
    }

    /// Of `[rows, cols]` stored as `dtype`.
    pub fn new(op: &'static str, rows: usize, cols: usize, dtype: DType) -> Result<Self> {
        let tiles = cols.div_ceil(Self::width(cols, dtype));
        let parts = BLOCKS.div_ceil(tiles.max(1)).min(rows.div_ceil(PART_ROWS));
        count32(op, "logits", rows * tiles)?;
        Ok(Self {
            rows: count32(op, "logits", rows)?,
            cols: count32(op, "logits", cols)?,
            tiles: tiles as u32, // at most cols
            parts: parts as u32, // at most BLOCKS
        })
    }

    /// With at most `parts` parts of one row at least, for kernels that keep no sums per part.
    pub fn without_sums(mut self, parts: u32) -> Self {
        self.parts = self.rows.min(parts.div_ceil(self.tiles.max(1)));
        self
    }

    /// A block per tile and part.
    pub fn grid(self) -> Launch {
        Launch { grid: [self.tiles, self.parts, 1], block: [THREADS, 1, 1], shared: 0 }
    }

    /// A thread per column.
    pub fn columns(self) -> Launch {
        Launch::linear(self.cols.div_ceil(THREADS), THREADS)
    }

    /// A warp per row.
    pub fn row_warps(self) -> Launch {
        Launch::warp_per_row(self.rows, 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_every_column_and_parts_have_rows() {
        for (rows, cols) in [(0, 5), (1, 1), (1, 257), (17, 4096), (64, 131_072), (4096, 65_536), (2458, 131_071)] {
            for dtype in [DType::F32, DType::BF16, DType::F16] {
                let t = Tiles::new("test", rows, cols, dtype).unwrap();
                let width = Tiles::width(cols, dtype);
                assert!(t.tiles as usize * width >= cols && (t.tiles as usize - 1) * width < cols);
                assert!(t.parts as usize <= rows && (rows == 0) == (t.parts == 0));
                assert!(t.columns().grid[0] * THREADS >= t.cols && t.row_warps().grid[0] * 4 >= t.rows);
                // the sums of the parts: two numbers per column
                assert!(t.parts as usize * 8 <= (rows * 2).max(2 * PART_ROWS * 4) / 4 + 8, "{rows} {cols}");
                assert!(t.grid().grid[0] * t.grid().grid[1] <= (BLOCKS as u32 + t.tiles));
            }
        }
    }
}
