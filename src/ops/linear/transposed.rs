//! The product with a weight stored `[in, out]`: what a transposed convolution, whose patches do not overlap, is.

use super::{OP, beta};
use crate::device::gemm::{GemmSpec, Layout, gemm};
use crate::ops::same;
use crate::{Error, Result, Tape, Tensor, Var};

#[derive(Clone, Copy)]
struct Dims {
    rows: usize,
    inner: usize,
    outer: usize,
}

impl Dims {
    fn check(x: &Tensor, w: &Tensor) -> Result<Self> {
        same(OP, "w", w, x)?;
        let (rows, inner) = x.shape().rows_cols();
        if w.shape().len() < 2 || w.shape()[0] != inner {
            return Err(Error::shape(OP, "w", w.shape(), format!("[{inner}, out]")));
        }
        Ok(Self { rows, inner, outer: w.shape()[1..].iter().product() })
    }
}

/// `y = x · w` for `x: [.., in]` and `w: [in, out]`; gives `[.., out]`. Gradients: `dx = dy · wᵀ`, `dw = xᵀ · dy`
/// (added straight into the f32 gradient buffer).
///
/// `w` may have more axes, as `torch.nn.ConvTranspose2d` stores `[in, c, k, k]`: it is read as `[in, out]`, and the
/// values of the `k × k` pixels of each channel lie beside each other in the result.
///
/// dtypes: f32, bf16, f16 (f64 on the CPU), the same for both; sums are f32. Saves `x` and `w`. Deterministic for a
/// fixed device.
///
/// # Errors
/// When a shape, dtype or device does not fit.
pub fn transposed(tape: &Tape, x: &Var, w: &Var) -> Result<Var> {
    let y = transposed_forward(x.value(), w.value())?;
    let (to_x, to_w) = (x.slot(), w.slot());
    let saved = [x.value().clone(), w.value().clone()];
    Ok(tape.record(OP, y, &[x, w], saved, move |dy, [x, w], grads| {
        let Dims { rows, inner, outer } = Dims::check(&x, &w)?;
        let input = x.dtype();
        grads.write(to_w, w.shape(), w.device(), |dw, mode| {
            let output = dw.dtype();
            let layout = Layout { m: inner, n: outer, k: rows, trans_a: true, trans_b: false, input, output };
            gemm(
                &GemmSpec { layout, alpha: 1.0, beta: beta(mode) },
                x.storage(),
                dy.storage(),
                None,
                dw.storage_mut(OP)?,
            )
        })?;
        grads.write(to_x, x.shape(), x.device(), |dx, mode| {
            let output = dx.dtype();
            let layout = Layout { m: rows, n: inner, k: outer, trans_a: false, trans_b: true, input, output };
            gemm(
                &GemmSpec { layout, alpha: 1.0, beta: beta(mode) },
                dy.storage(),
                w.storage(),
                None,
                dx.storage_mut(OP)?,
            )
        })
    }))
}

/// The product alone.
///
/// # Errors
/// As [`transposed()`].
pub fn transposed_forward(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let Dims { rows, inner, outer } = Dims::check(x, w)?;
    let mut shape = x.shape().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = outer;
    }
    let dtype = x.dtype();
    let mut y = Tensor::uninit(shape, dtype, x.device())?;
    let layout = Layout { m: rows, n: outer, k: inner, trans_a: false, trans_b: false, input: dtype, output: dtype };
    let spec = GemmSpec { layout, alpha: 1.0, beta: 0.0 };
    gemm(&spec, x.storage(), w.storage(), None, y.storage_mut(OP)?)?;
    Ok(y)
}
