//! One product per entry of a batch, both of whose operands are computed: masks from features and mask tokens.

use super::{OP, beta};
use crate::device::gemm::{GemmSpec, Layout, Offsets, gemm_part};
use crate::ops::same;
use crate::{Error, Result, Tape, Tensor, Var};

#[derive(Clone, Copy)]
struct Dims {
    batch: usize,
    n: usize,
    m: usize,
    k: usize,
}

impl Dims {
    fn check(x: &Tensor, w: &Tensor) -> Result<Self> {
        let [batch, n, k] = x.dims(OP, "x")?;
        same(OP, "w", w, x)?;
        match **w.shape() {
            [b, m, inner] if b == batch && inner == k => Ok(Self { batch, n, m, k }),
            _ => Err(Error::shape(OP, "w", w.shape(), format!("[{batch}, out, {k}]"))),
        }
    }
}

/// `y[b] = x[b] · w[b]ᵀ` for `x: [B, N, K]` and `w: [B, M, K]`; gives `[B, N, M]`. Gradients: `dx[b] = dy[b] · w[b]`,
/// `dw[b] = dy[b]ᵀ · x[b]`, each added straight to a gradient that is there.
///
/// dtypes: f32, bf16, f16 (f64 on the CPU), the same for both; sums are f32. Saves `x` and `w`. One product per entry
/// of the batch, nothing is copied. Deterministic for a fixed device.
///
/// # Errors
/// When a shape, dtype or device does not fit.
pub fn batched(tape: &Tape, x: &Var, w: &Var) -> Result<Var> {
    let y = batched_forward(x.value(), w.value())?;
    let (to_x, to_w) = (x.slot(), w.slot());
    let saved = [x.value().clone(), w.value().clone()];
    Ok(tape.record(OP, y, &[x, w], saved, move |dy, [x, w], grads| {
        let Dims { batch, n, m, k } = Dims::check(&x, &w)?;
        let input = x.dtype();
        grads.write(to_w, w.shape(), w.device(), |dw, mode| {
            let output = dw.dtype();
            let layout = Layout { m, n: k, k: n, trans_a: true, trans_b: false, input, output };
            each(batch, &GemmSpec { layout, alpha: 1.0, beta: beta(mode) }, &dy, &x, dw)
        })?;
        grads.write(to_x, x.shape(), x.device(), |dx, mode| {
            let output = dx.dtype();
            let layout = Layout { m: n, n: k, k: m, trans_a: false, trans_b: false, input, output };
            each(batch, &GemmSpec { layout, alpha: 1.0, beta: beta(mode) }, &dy, &w, dx)
        })
    }))
}

/// The products alone.
///
/// # Errors
/// As [`batched()`].
pub fn batched_forward(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let Dims { batch, n, m, k } = Dims::check(x, w)?;
    let dtype = x.dtype();
    let mut y = Tensor::uninit([batch, n, m], dtype, x.device())?;
    let layout = Layout { m: n, n: m, k, trans_a: false, trans_b: true, input: dtype, output: dtype };
    each(batch, &GemmSpec { layout, alpha: 1.0, beta: 0.0 }, x, w, &mut y)?;
    Ok(y)
}

/// The product of each entry; they follow each other without gaps in all three.
fn each(batch: usize, spec: &GemmSpec, a: &Tensor, b: &Tensor, d: &mut Tensor) -> Result<()> {
    let Layout { m, n, k, .. } = spec.layout;
    (0..batch).try_for_each(|i| {
        let at = Offsets { a: i * m * k, b: i * k * n, d: i * m * n };
        gemm_part(spec, at, a.storage(), b.storage(), d.storage_mut(OP)?)
    })
}
