//! Second stage of sums over rows: arguments and grid of `column_sum` in kernels/rows.cuh.

use bytemuck::{Pod, Zeroable};

use crate::device::Launch;
use crate::ops::indices::count32;
use crate::{Result, Tensor};

/// `struct ColumnSum`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
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

    /// 32 columns per block, a warp for every 8 parts: a thread has few loads to wait for.
    pub fn grid(&self) -> Launch {
        Launch::linear(self.cols.div_ceil(32), self.parts.div_ceil(8).clamp(1, 32) * 32)
    }
}
