//! Arguments of kernels/add_layer_norm.cu; grids are LayerNorm's.
#![allow(unsafe_code)]

use bytemuck::{Pod, Zeroable};

use super::OP;
use crate::ops::indices::count32;
use crate::ops::layer_norm::{
    self, Dims,
    launch::{self, Variants, fwd_grid, variant},
};
use crate::{Result, Tensor};

const FWD: Variants = [
    "add_layer_norm_fwd",
    "add_layer_norm_fwd_x2",
    "add_layer_norm_fwd_x4",
    "add_layer_norm_fwd_x6",
    "add_layer_norm_fwd_x8",
];
const BWD: Variants = [
    "add_layer_norm_bwd",
    "add_layer_norm_bwd_x2",
    "add_layer_norm_bwd_x4",
    "add_layer_norm_bwd_x6",
    "add_layer_norm_bwd_x8",
];

/// `struct AddLayerNormFwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct FwdArgs {
    x: u64,
    r: u64,
    w: u64,
    b: u64,
    sum: u64,
    y: u64,
    stats: u64,
    rows: u32,
    cols: u32,
    eps: f32,
    pad: u32,
}

/// `struct AddLayerNormBwd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct BwdArgs {
    norm: launch::BwdArgs,
    dsum: u64,
}

pub(super) fn forward(
    x: &Tensor,
    r: &Tensor,
    w: &Tensor,
    b: &Tensor,
    eps: f32,
    Dims { rows, cols }: Dims,
    sum: &mut Tensor,
    y: &mut Tensor,
    stats: &mut Tensor,
) -> Result<()> {
    let args = FwdArgs {
        x: x.ptr(),
        r: r.ptr(),
        w: w.ptr(),
        b: b.ptr(),
        sum: sum.ptr_mut(OP)?,
        y: y.ptr_mut(OP)?,
        stats: stats.ptr_mut(OP)?,
        rows: count32(OP, "x", rows)?,
        cols: count32(OP, "x", cols)?,
        eps,
        pad: 0,
    };
    // SAFETY: `forward` in mod.rs checked r, w and b against x as struct AddLayerNormFwd states and made the outputs.
    unsafe { x.device().launch(OP, variant(FWD, cols, x.dtype()).0, x.dtype(), fwd_grid(args.rows), &args) }
}

pub(super) fn backward(
    dsum: Option<&Tensor>,
    dy: &Tensor,
    sum: &Tensor,
    w: &Tensor,
    stats: &Tensor,
    dims: Dims,
    dx: &mut Tensor,
    dw: &mut Tensor,
    db: &mut Tensor,
) -> Result<()> {
    let Some(dsum) = dsum else {
        // SAFETY: `backward` in mod.rs checked dy and stats against the sum and made the outputs.
        return unsafe {
            launch::backward_by(layer_norm::OP, launch::BWD, |norm| norm, dy, sum, w, stats, dims, dx, dw, db)
        };
    };
    let wrap = |norm| BwdArgs { norm, dsum: dsum.ptr() };
    // SAFETY: as above, and that dsum is like dy.
    unsafe { launch::backward_by(OP, BWD, wrap, dy, sum, w, stats, dims, dx, dw, db) }
}
