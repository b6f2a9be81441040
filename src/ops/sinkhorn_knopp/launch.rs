//! Grids and arguments of kernels/sinkhorn_knopp.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::{Dims, Factors, OP, Steps};
use crate::ops::teacher::{Across, Reduce};
use crate::ops::tiles::{RowFactors, Tiles};
use crate::{DType, Result, Tensor};

/// Bytes of a group of rows: two of them, the one that is summed and the one before it, stay in a second-level cache of
/// 40 MB. All rows make one group where they fit. Not measured yet.
const GROUP_BYTES: usize = 16 << 20;

/// `struct SinkhornKnoppFirst`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct FirstArgs {
    logits: u64,
    temp: u64,
    part_max: u64,
    part: u64,
    count: u64,
    rows: u32,
    cols: u32,
}

/// `struct SinkhornKnoppMax`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct MaxArgs {
    part: u64,
    max: u64,
    parts: u32,
    cols: u32,
}

/// `struct SinkhornKnoppPrototypes`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct PrototypesArgs {
    part: u64,
    part_max: u64,
    mass: u64,
    a: u64,
    parts: u32,
    cols: u32,
}

/// `struct SinkhornKnoppStep`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct StepArgs {
    logits: u64,
    temp: u64,
    a: u64,
    sums: u64,
    part: u64,
    count: u64,
    sum: [u32; 2],
    weigh: [u32; 2],
    cols: u32,
    add: u32,
}

/// Rows of a group.
pub(super) fn group(cols: usize, dtype: DType) -> u32 {
    (GROUP_BYTES / (cols * dtype.size())).max(16) as u32
}

/// What the launches of a step work on: rows to sum and rows to weigh, a group behind.
pub(super) fn schedule(rows: u32, group: u32) -> impl Iterator<Item = [[u32; 2]; 2]> {
    let groups = rows.div_ceil(group);
    let rows_of = move |g: u32| [g * group, ((g + 1) * group).min(rows)];
    (0..=groups).map(move |g| {
        let sum = if g < groups { rows_of(g) } else { [rows; 2] };
        [sum, if g > 0 { rows_of(g - 1) } else { [0; 2] }]
    })
}

/// Bytes of the sums of parts and tiles.
pub(super) fn bytes(rows: usize, cols: usize, dtype: DType) -> Result<usize> {
    let t = Tiles::new(OP, rows, cols, dtype)?;
    Ok(8 * (t.parts as usize * cols + rows * t.tiles as usize))
}

pub(super) struct Kernels<'a> {
    logits: &'a Tensor,
    temp: &'a Tensor,
    count: Option<&'a Tensor>,
    pub(super) tiles: Tiles,
    /// Rows of a group.
    pub(super) group: u32,
    /// `[parts, K]`: maxima of the parts in the first step, then not read.
    part_max: Tensor,
    /// `[parts, K]`: masses.
    part: Tensor,
    /// `[rows, tiles, 2]`
    sums: Tensor,
}

impl<'a> Kernels<'a> {
    pub fn new(logits: &'a Tensor, temp: &'a Tensor, count: Option<&'a Tensor>, dims: Dims) -> Result<Self> {
        let tiles = Tiles::new(OP, dims.rows, dims.cols, logits.dtype())?;
        let device = logits.device();
        let part = || Tensor::uninit([tiles.parts as usize, dims.cols], DType::F32, device);
        Ok(Self {
            logits,
            temp,
            count,
            tiles,
            group: group(dims.cols, logits.dtype()),
            part_max: part()?,
            part: part()?,
            sums: Tensor::uninit([dims.rows, tiles.tiles as usize, 2], DType::F32, device)?,
        })
    }

    /// `kernel` over the prototypes; `maxima`: the parts are those of the first step.
    fn columns(&self, kernel: &'static str, f: &mut Factors, maxima: bool) -> Result<()> {
        let args = PrototypesArgs {
            part: self.part.ptr(),
            part_max: if maxima { self.part_max.ptr() } else { 0 },
            mass: f.mass.ptr_mut(OP)?,
            a: f.prototypes.ptr_mut(OP)?,
            parts: self.tiles.parts,
            cols: self.tiles.cols,
        };
        // SAFETY: part and part_max are [parts, cols], mass and a [cols]; launches before on the same stream filled what
        // `kernel` reads.
        unsafe { self.logits.device().launch(OP, kernel, DType::F32, self.tiles.columns(), &args) }
    }

    /// One launch of a step.
    fn step(&mut self, a: &Tensor, [sum, weigh]: [[u32; 2]; 2], add: bool) -> Result<()> {
        let args = StepArgs {
            logits: self.logits.ptr(),
            temp: self.temp.ptr(),
            a: a.ptr(),
            sums: self.sums.ptr_mut(OP)?,
            part: self.part.ptr_mut(OP)?,
            count: self.count.map_or(0, Tensor::ptr),
            sum,
            weigh,
            cols: self.tiles.cols,
            add: add.into(),
        };
        // SAFETY: logits, temp, count and a have the extents that `super::solve` checked or made, sums and part those of
        // `new`; `schedule` stays below the rows and weighs none that an earlier launch has not summed.
        unsafe { self.logits.device().launch(OP, "sinkhorn_knopp_step", self.logits.dtype(), self.tiles.grid(), &args) }
    }
}

impl Steps for Kernels<'_> {
    fn start(&mut self, f: &mut Factors, across: &mut Across<'_>) -> Result<()> {
        let (device, t) = (self.logits.device(), self.tiles);
        let args = FirstArgs {
            logits: self.logits.ptr(),
            temp: self.temp.ptr(),
            part_max: self.part_max.ptr_mut(OP)?,
            part: self.part.ptr_mut(OP)?,
            count: self.count.map_or(0, Tensor::ptr),
            rows: t.rows,
            cols: t.cols,
        };
        // SAFETY: logits [rows, cols], temp [1] and count [1] were checked; part and part_max are [parts, cols].
        unsafe { device.launch(OP, "sinkhorn_knopp_first", self.logits.dtype(), t.grid(), &args)? };
        let args = MaxArgs { part: self.part_max.ptr(), max: f.mass.ptr_mut(OP)?, parts: t.parts, cols: t.cols };
        // SAFETY: the launch before filled the parts; mass is [cols].
        unsafe { device.launch(OP, "sinkhorn_knopp_max", DType::F32, t.columns(), &args)? };
        across(Reduce::Max, &mut f.mass)?;
        self.columns("sinkhorn_knopp_start", f, false)
    }

    fn first_masses(&mut self, f: &mut Factors) -> Result<()> {
        self.columns("sinkhorn_knopp_masses", f, true)
    }

    fn masses(&mut self, f: &mut Factors) -> Result<()> {
        for (at, rows) in schedule(self.tiles.rows, self.group).enumerate() {
            self.step(&f.prototypes, rows, at > 1)?;
        }
        self.columns("sinkhorn_knopp_masses", f, false)
    }

    fn rows(&mut self, f: &mut Factors) -> Result<()> {
        let t = self.tiles;
        self.step(&f.prototypes, [[0, t.rows], [0; 2]], false)?;
        let args = RowFactors {
            sums: self.sums.ptr(),
            l: f.rows.ptr_mut(OP)?,
            count: self.count.map_or(0, Tensor::ptr),
            rows: t.rows,
            tiles: t.tiles,
        };
        // SAFETY: the launch before filled the sums [rows, tiles, 2] of the rows that count; l is [rows].
        unsafe { self.logits.device().launch(OP, "sinkhorn_knopp_rows", DType::F32, t.row_warps(), &args) }
    }

    fn prototypes(&mut self, f: &mut Factors) -> Result<()> {
        self.columns("sinkhorn_knopp_prototypes", f, false)
    }
}
