//! Grids and arguments of kernels/mask_loss.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::{Dims, OP, Outcome, Weights};
use crate::device::Launch;
use crate::ops::indices::count32;
use crate::{DType, Result, Tensor};

/// Threads of a block that goes over pixels, `THREADS` in the kernel; not measured yet.
const THREADS: u32 = 256;
/// Pixels a block has at least, and in whole steps of what it has under way: one of 16-bit masks, two of f32.
const STEP: usize = 4096;
/// Blocks of the first pass: eight for each multiprocessor of an H100, since a block adds up its sums once for each mask
/// and more of them cost more of that; not measured yet.
const BLOCKS: usize = 1056;
/// Threads of the one block that finishes: a warp for an object, in turn.
const FINISH_THREADS: u32 = 1024;
/// Numbers a block leaves of a mask, `SUMS` in the kernel.
const SUMS: usize = 6;

/// `struct MaskLossPart`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct PartArgs {
    masks: u64,
    targets: u64,
    part: u64,
    objects: u32,
    count: u32,
    pixels: u32,
    chunk: u32,
    focal: FocalArgs,
}

/// `struct Focal`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct FocalArgs {
    foreground: f32,
    background: f32,
    gamma: f32,
    pad: f32,
}

impl FocalArgs {
    fn new(alpha: f32, gamma: f32) -> Self {
        let (foreground, background) = if alpha < 0.0 { (1.0, 1.0) } else { (alpha, 1.0 - alpha) };
        Self { foreground, background, gamma, pad: 0.0 }
    }
}

/// `struct MaskLossFinish`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct FinishArgs {
    part: u64,
    ious: u64,
    scores: u64,
    total: u64,
    terms: u64,
    best: u64,
    stats: u64,
    divisor: f64,
    factors: [f32; 4],
    class: FocalArgs,
    objects: u32,
    count: u32,
    parts: u32,
    pixels: u32,
    l1: u32,
    all: u32,
}

/// `struct MaskLossBwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct BwdArgs {
    dtotal: u64,
    masks: u64,
    targets: u64,
    best: u64,
    stats: u64,
    dmasks: u64,
    objects: u32,
    count: u32,
    pixels: u32,
    chunk: u32,
    by_focal: f32,
    by_dice: f32,
    focal: FocalArgs,
}

/// `struct MaskLossScores`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct ScoresArgs {
    dtotal: u64,
    ious: u64,
    scores: u64,
    best: u64,
    stats: u64,
    dious: u64,
    dscores: u64,
    objects: u32,
    count: u32,
    by_iou: f32,
    by_class: f32,
    class: FocalArgs,
    l1: u32,
    all: u32,
}

/// Pixels of a block, a multiple of [`STEP`], and blocks of an object's masks.
pub(super) fn chunks(objects: usize, pixels: usize) -> (usize, usize) {
    let chunk = (objects * pixels).div_ceil(BLOCKS).div_ceil(STEP).max(1) * STEP;
    (chunk, pixels.div_ceil(chunk))
}

/// Parts of pixels in x, objects or masks in y; kernels stride over what is left when that is capped.
pub(super) fn grid(parts: u32, masks: u32) -> Launch {
    Launch { grid: [parts, masks.min(65535), 1], block: [THREADS, 1, 1], shared: 0 }
}

/// One warp per object.
pub(super) fn scores_grid(objects: u32) -> Launch {
    Launch::warp_per_row(objects, THREADS / 32)
}

pub(super) fn forward(
    masks: &Tensor,
    ious: &Tensor,
    scores: &Tensor,
    targets: &Tensor,
    weights: &Weights,
    divisor: f64,
    dims: Dims,
    outcome: &mut Outcome,
) -> Result<()> {
    let device = masks.device();
    let count = |n| count32(OP, "masks", n);
    let (objects, per_object, pixels) = (count(dims.objects)?, count(dims.masks)?, count(dims.pixels)?);
    let (chunk, parts) = chunks(dims.objects, dims.pixels);
    let mut part = Tensor::uninit([dims.objects, dims.masks, parts, SUMS], DType::F32, device)?;
    let args = PartArgs {
        masks: masks.ptr(),
        targets: targets.ptr(),
        part: part.ptr_mut(OP)?,
        objects,
        count: per_object,
        pixels,
        chunk: count(chunk)?,
        focal: FocalArgs::new(weights.focal_alpha, weights.focal_gamma),
    };
    let grid = grid(parts as u32, objects);
    // SAFETY: `Dims::check` fixed the lengths of masks and targets that struct MaskLossPart states; `part` has `SUMS` numbers
    // for each mask and block in x.
    unsafe { device.launch(OP, "mask_loss_fwd_part", masks.dtype(), grid, &args)? };
    let args = FinishArgs {
        part: part.ptr(),
        ious: ious.ptr(),
        scores: scores.ptr(),
        total: outcome.total.ptr_mut(OP)?,
        terms: outcome.terms.ptr_mut(OP)?,
        best: outcome.best.ptr_mut(OP)?,
        stats: outcome.stats.ptr_mut(OP)?,
        divisor,
        factors: [weights.mask, weights.dice, weights.iou, weights.class],
        class: FocalArgs::new(weights.obj_focal_alpha, weights.obj_focal_gamma),
        objects,
        count: per_object,
        parts: parts as u32,
        pixels,
        l1: weights.iou_l1.into(),
        all: weights.supervise_all_iou.into(),
    };
    // SAFETY: `check_scores` fixed the lengths of ious and scores, `forward` in mod.rs those of the results; `part` was filled
    // by the launch before on the same stream.
    unsafe { device.launch(OP, "mask_loss_fwd", masks.dtype(), Launch::linear(1, FINISH_THREADS), &args) }
}

pub(super) fn backward_masks(
    dtotal: &Tensor,
    masks: &Tensor,
    targets: &Tensor,
    best: &Tensor,
    stats: &Tensor,
    weights: &Weights,
    divisor: f64,
    dims: Dims,
    dmasks: &mut Tensor,
) -> Result<()> {
    let count = |n| count32(OP, "masks", n);
    let (chunk, parts) = chunks(dims.objects * dims.masks, dims.pixels);
    let args = BwdArgs {
        dtotal: dtotal.ptr(),
        masks: masks.ptr(),
        targets: targets.ptr(),
        best: best.ptr(),
        stats: stats.ptr(),
        dmasks: dmasks.ptr_mut(OP)?,
        objects: count(dims.objects)?,
        count: count(dims.masks)?,
        pixels: count(dims.pixels)?,
        chunk: count(chunk)?,
        by_focal: (f64::from(weights.mask) / (divisor * dims.pixels as f64)) as f32,
        by_dice: (f64::from(weights.dice) / divisor) as f32,
        focal: FocalArgs::new(weights.focal_alpha, weights.focal_gamma),
    };
    let grid = grid(parts as u32, count(dims.objects * dims.masks)?);
    // SAFETY: `Dims::check` and `check_outcome` fixed every length that struct MaskLossBwd states; dmasks is like masks.
    unsafe { masks.device().launch(OP, "mask_loss_bwd", masks.dtype(), grid, &args) }
}

pub(super) fn backward_scores(
    dtotal: &Tensor,
    ious: &Tensor,
    scores: &Tensor,
    best: &Tensor,
    stats: &Tensor,
    weights: &Weights,
    divisor: f64,
    dims: Dims,
    dious: &mut Tensor,
    dscores: &mut Tensor,
) -> Result<()> {
    let shared = if weights.supervise_all_iou { dims.masks as f64 } else { 1.0 };
    let args = ScoresArgs {
        dtotal: dtotal.ptr(),
        ious: ious.ptr(),
        scores: scores.ptr(),
        best: best.ptr(),
        stats: stats.ptr(),
        dious: dious.ptr_mut(OP)?,
        dscores: dscores.ptr_mut(OP)?,
        objects: count32(OP, "ious", dims.objects)?,
        count: count32(OP, "ious", dims.masks)?,
        by_iou: (f64::from(weights.iou) / (divisor * shared)) as f32,
        by_class: (f64::from(weights.class) / divisor) as f32,
        class: FocalArgs::new(weights.obj_focal_alpha, weights.obj_focal_gamma),
        l1: weights.iou_l1.into(),
        all: weights.supervise_all_iou.into(),
    };
    // SAFETY: `check_scores` and `check_outcome` fixed every length that struct MaskLossScores states; the results are like
    // ious and scores.
    unsafe { ious.device().launch(OP, "mask_loss_bwd_scores", ious.dtype(), scores_grid(args.objects), &args) }
}
