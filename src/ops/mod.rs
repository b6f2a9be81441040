//! The operations. One folder each: equation and gradient in `mod.rs`, plain loops in `reference.rs`, grid in
//! `launch.rs`, shapes in `case.rs`, tests in `tests.rs`, the kernel in `kernels/<op>.cu`.

pub mod adafactor;
pub mod adamw;
pub mod add;
pub mod add_layer_norm;
pub mod argmax;
pub mod assemble_tokens;
pub mod attention;
pub mod batch_norm;
mod case;
pub mod cast;
mod column_sum;
pub mod concat;
pub mod cross_entropy;
pub mod depthwise_conv2d;
pub mod ema;
pub mod embedding;
pub mod gather_rows;
pub mod gelu;
pub mod grad_norm;
mod indices;
pub mod koleo;
pub mod l2_normalize;
pub mod lars;
pub mod layer_norm;
pub mod layer_scale;
pub mod linear;
pub mod lion;
pub mod mask_loss;
pub mod masked_gather;
pub mod masked_mse;
pub mod masked_scatter;
pub mod max_pool2d;
pub mod mean_pool;
pub mod multi_tensor;
mod pairs;
pub mod patchify;
mod pixels;
pub mod prepare_tokens;
pub mod prototype_cross_entropy;
pub mod relu;
pub mod repeat;
pub mod resample;
pub mod residual;
pub mod rope;
pub mod scale;
pub mod select_rows;
pub mod sigmoid;
pub mod sigmoid_pair_loss;
pub mod sinkhorn_knopp;
pub mod softmax;
pub mod softmax_centering;
pub mod softmax_pair_loss;
pub mod swiglu;
pub mod teacher;
mod tiles;
pub mod unfold;
pub mod weight_norm;
pub mod window_partition;

pub use case::{Case, Fill, Input, Operand, Role, Run};
pub use patchify::{patchify, unpatchify};
pub use teacher::Teacher;

/// The cases of every operation at the recipes' real shapes: what the parity suite and the benches run.
pub fn cases() -> Vec<Case> {
    [
        adafactor::cases(),
        adamw::cases(),
        add::cases(),
        add_layer_norm::cases(),
        argmax::cases(),
        assemble_tokens::cases(),
        attention::cases(),
        batch_norm::cases(),
        cast::cases(),
        concat::cases(),
        cross_entropy::cases(),
        depthwise_conv2d::cases(),
        ema::cases(),
        embedding::cases(),
        gather_rows::cases(),
        gelu::cases(),
        grad_norm::cases(),
        koleo::cases(),
        l2_normalize::cases(),
        lars::cases(),
        layer_norm::cases(),
        layer_scale::cases(),
        linear::cases(),
        lion::cases(),
        mask_loss::cases(),
        masked_gather::cases(),
        masked_mse::cases(),
        masked_scatter::cases(),
        max_pool2d::cases(),
        mean_pool::cases(),
        prepare_tokens::cases(),
        prototype_cross_entropy::cases(),
        relu::cases(),
        repeat::cases(),
        resample::cases(),
        residual::cases(),
        rope::cases(),
        scale::cases(),
        select_rows::cases(),
        sigmoid::cases(),
        sigmoid_pair_loss::cases(),
        sinkhorn_knopp::cases(),
        softmax::cases(),
        softmax_centering::cases(),
        softmax_pair_loss::cases(),
        swiglu::cases(),
        unfold::cases(),
        weight_norm::cases(),
        window_partition::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

use crate::{Error, Result, Tensor};

/// Refuses an argument whose dtype or device is not that of the operation's first argument.
pub(crate) fn same(op: &'static str, arg: impl Into<String>, x: &Tensor, like: &Tensor) -> Result<()> {
    if x.dtype() != like.dtype() {
        return Err(Error::argument(op, arg, "dtype", x.dtype().name(), like.dtype().name()));
    }
    on(op, arg, x, like)
}

/// Refuses an argument that is not of a float type.
pub(crate) fn float(op: &'static str, arg: &'static str, x: &Tensor) -> Result<()> {
    if !x.dtype().is_float() {
        return Err(Error::argument(op, arg, "dtype", x.dtype().name(), "a float type"));
    }
    Ok(())
}

/// Refuses an argument on another device.
pub(crate) fn on(op: &'static str, arg: impl Into<String>, x: &Tensor, like: &Tensor) -> Result<()> {
    if x.device() != like.device() {
        return Err(Error::argument(op, arg, "device", x.device().name(), like.device().name()));
    }
    Ok(())
}

/// Refuses an argument of another shape.
pub(crate) fn shaped(op: &'static str, arg: &'static str, x: &Tensor, expected: &[usize]) -> Result<()> {
    if **x.shape() != *expected {
        return Err(Error::shape(op, arg, x.shape(), format!("{expected:?}")));
    }
    Ok(())
}

/// Refuses an argument of another dtype.
pub(crate) fn typed(op: &'static str, arg: &'static str, x: &Tensor, expected: crate::DType) -> Result<()> {
    if x.dtype() != expected {
        return Err(Error::argument(op, arg, "dtype", x.dtype().name(), expected.name()));
    }
    Ok(())
}
