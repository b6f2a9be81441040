//! Grid and arguments of kernels/masked_gather.cu.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::{Dims, OP};
use crate::device::Launch;
use crate::ops::indices::count32;
use crate::ops::pixels::{rows_per_warp, variant};
use crate::{DType, Result, Tensor};

/// Warps per block; not measured yet.
const WARPS: u32 = 4;

/// `struct MaskedGather`: both directions; `from` is the images or dy, `to` is y or the images' gradient.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Args {
    from: u64,
    ids: u64,
    norm: u64,
    to: u64,
    rows: u32,
    keep: u32,
    channels: u32,
    height: u32,
    width: u32,
    patch: u32,
    vector: u32,
    held: u32,
    rows_per_block: u32,
    pad: u32,
}

/// A warp takes several kept patches where there are enough of them for it.
pub(super) fn grid(rows: u32) -> (Launch, u32) {
    let rows_per_block = WARPS * rows_per_warp(rows, WARPS);
    (Launch::linear(rows.div_ceil(rows_per_block), WARPS * 32), rows_per_block)
}

/// Arguments of either direction and their grid.
fn args(from: u64, ids: &Tensor, norm: Option<&Tensor>, Dims { grid, keep }: Dims, to: u64) -> Result<(Args, Launch)> {
    let rows = count32(OP, "ids_keep", grid.batch * keep)?;
    let (launch, rows_per_block) = self::grid(rows);
    let args = Args {
        from,
        ids: ids.ptr(),
        norm: norm.map_or(0, Tensor::ptr),
        to,
        rows,
        keep: count32(OP, "ids_keep", keep)?,
        channels: count32(OP, "images", grid.values())? / (grid.patch * grid.patch) as u32, // a patch fits 32 bits
        height: count32(OP, "images", grid.height)?,
        width: count32(OP, "images", grid.width)?,
        patch: grid.patch as u32, // at most 65535
        vector: grid.vector(),
        held: grid.quads().into(),
        rows_per_block,
        pad: 0,
    };
    Ok((args, launch))
}

pub(super) fn forward(images: &Tensor, ids: &Tensor, norm: Option<&Tensor>, dims: Dims, y: &mut Tensor) -> Result<()> {
    let (device, dtype) = (images.device().clone(), y.dtype());
    let kernel = variant(
        OP,
        images.dtype(),
        [
            "masked_gather_fwd_from_u8",
            "masked_gather_fwd_from_f32",
            "masked_gather_fwd_from_bf16",
            "masked_gather_fwd_from_f16",
        ],
    )?;
    let norm = norm.map(|n| n.cast(DType::F32)).transpose()?;
    let (args, grid) = args(images.ptr(), ids, norm.as_ref(), dims, y.ptr_mut(OP)?)?;
    // SAFETY: `Dims::check` fixed the extents of images, ids and norm, y is [B·K, C·p·p], all as struct MaskedGather
    // states; the kernel reads no patch whose index is out of range.
    unsafe { device.launch(OP, kernel, dtype, grid, &args) }
}

pub(super) fn backward(dy: &Tensor, ids: &Tensor, norm: Option<&Tensor>, dims: Dims, dx: &mut Tensor) -> Result<()> {
    let kernel = match dx.dtype() {
        DType::F32 => "masked_gather_bwd_to_f32",
        DType::BF16 => "masked_gather_bwd_to_bf16",
        _ => "masked_gather_bwd_to_f16", // f64 lives on the CPU only
    };
    let norm = norm.map(|n| n.cast(DType::F32)).transpose()?;
    let (args, grid) = args(dy.ptr(), ids, norm.as_ref(), dims, dx.ptr_mut(OP)?)?;
    // SAFETY: as in `forward`, with dy in the place of y and dx in that of the images; the kernel writes no patch whose
    // index is out of range.
    unsafe { dy.device().launch(OP, kernel, dy.dtype(), grid, &args) }
}
