//! Sums over rows in two stages: grid of the first, arguments and grid of the second (`column_sum` in kernels/rows.cuh).

use bytemuck::{Pod, Zeroable};

use crate::device::Launch;
use crate::ops::indices::count32;
use crate::{Result, Tensor};

/// Elements of a vector at most: 16 bytes of a 16-bit type.
const VECTOR: u32 = 8;

/// First stage: a block of `warps` per sum in x, groups of 32 lanes' columns in y; kernels stride over what a narrower
/// vector leaves (`for_each_lane_column`).
pub(crate) fn lanes_grid(sums: u32, cols: u32, warps: u32) -> Launch {
    Launch { grid: [sums, cols.div_ceil(32 * VECTOR).min(65535), 1], block: [32 * warps, 1, 1], shared: 0 }
}

/// Second stage: 32 columns per block, a warp for every 8 parts, so that a thread has few loads to wait for; not measured
/// yet.
pub(crate) fn grid(parts: u32, cols: u32) -> Launch {
    Launch::linear(cols.div_ceil(32), parts.div_ceil(8).clamp(1, 32) * 32)
}

/// `struct ColumnSum`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct ColumnSum {
    part: u64,
    y: u64,
    parts: u32,
    cols: u32,
}

impl ColumnSum {
    /// `y: [cols]` from `part: [parts, cols]`, both f32.
    pub fn new(op: &'static str, part: &Tensor, y: &mut Tensor) -> Result<Self> {
        let [parts, cols] = part.dims(op, "part")?;
        let (parts, cols) = (count32(op, "part", parts)?, count32(op, "part", cols)?);
        Ok(Self { part: part.ptr(), y: y.ptr_mut(op)?, parts, cols })
    }

    /// Of this sum.
    pub fn grid(&self) -> Launch {
        grid(self.parts, self.cols)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_cover_every_column_with_whole_warps() {
        for cols in [0, 1, 31, 32, 33, 512, 513, 100_000] {
            let lanes = lanes_grid(5, cols, 8);
            assert!(lanes.grid[0] == 5 && lanes.grid[1] * 32 * VECTOR >= cols && lanes.block[0] == 256);
            for parts in [1, 8, 9, 264, 1056] {
                let grid = grid(parts, cols);
                assert!(grid.grid[0] * 32 >= cols && grid.block[0].is_multiple_of(32) && grid.block[0] <= 1024);
            }
        }
    }
}
