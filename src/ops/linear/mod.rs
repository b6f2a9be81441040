//! Linear layer: a GEMM with its bias and residual folded in.
//!
//! `y = x · wᵀ + b + residual`. Gradients: `dx = dy · w`, `dw = dyᵀ · x` (added straight into the f32 gradient buffer),
//! `db = Σ_rows dy`, `d residual = dy`. Weight layout `[out, in]` as in torch's `nn.Linear`. [`transposed()`] has a
//! weight `[in, out]`, [`batched()`] one of computed values for each entry of a batch.

mod batched;
mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;
mod transposed;

pub use batched::{batched, batched_forward};
pub use case::{batched_case, case, cases, transposed_case};
pub use transposed::{transposed, transposed_forward};

use crate::device::gemm::{GemmSpec, Layout, gemm};
use crate::ops::{same, shaped};
use crate::tape::Mode;
use crate::{DType, Device, Error, Result, Tape, Tensor, Var};

const OP: &str = "linear";

/// `y = x · wᵀ (+ b) (+ residual)` for `x: [.., in]`, `w: [out, in]`, `b: [out]`, `residual: [.., out]`; gives
/// `[.., out]`.
///
/// dtypes: f32, bf16, f16 (f64 on the CPU), the same for all; sums are f32. `w` may have more axes (a convolution
/// kernel `[out, c, p, p]`): it is read as `[out, in]`. Saves `x` and `w`. Deterministic for a fixed device.
///
/// # Errors
/// When a shape, dtype or device does not fit.
pub fn linear(tape: &Tape, x: &Var, w: &Var, b: Option<&Var>, residual: Option<&Var>) -> Result<Var> {
    let y = forward(x.value(), w.value(), b.map(Var::value), residual.map(Var::value))?;
    let slot = |v: Option<&Var>| v.and_then(Var::slot);
    let (to_x, to_w, to_b, to_residual) = (x.slot(), w.slot(), slot(b), slot(residual));
    let inputs: Vec<&Var> = [Some(x), Some(w), b, residual].into_iter().flatten().collect();
    let saved = [x.value().clone(), w.value().clone()];
    Ok(tape.record(OP, y, &inputs, saved, move |dy, [x, w], grads| {
        let dims = Dims::check(&x, &w)?;
        if to_b.is_some() {
            grads.add(to_b, bias_gradient(&dy)?)?;
        }
        weight_gradient(&dy, &x, &w, dims, |f| grads.write(to_w, w.shape(), w.device(), f))?;
        if to_x.is_some() {
            grads.add(to_x, input_gradient(&dy, &w, &x, dims)?)?;
        }
        grads.add(to_residual, dy)
    }))
}

/// Factor of what a buffer of gradients holds.
fn beta(mode: Mode) -> f32 {
    if mode == Mode::Add { 1.0 } else { 0.0 }
}

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
        let outer = w.shape().first().copied().unwrap_or(0);
        if w.shape().len() < 2 || outer * inner != w.numel() {
            return Err(Error::shape(OP, "w", w.shape(), format!("[out, {inner}]")));
        }
        Ok(Self { rows, inner, outer })
    }
}

/// The product alone.
pub fn forward(x: &Tensor, w: &Tensor, b: Option<&Tensor>, residual: Option<&Tensor>) -> Result<Tensor> {
    let Dims { rows, inner, outer } = Dims::check(x, w)?;
    let mut shape = x.shape().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = outer;
    }
    if let Some(b) = b {
        shaped(OP, "b", b, &[outer])?;
        same(OP, "b", b, x)?;
    }
    let mut y = match residual {
        Some(r) => {
            shaped(OP, "residual", r, &shape)?;
            same(OP, "residual", r, x)?;
            r.deep_clone()?
        }
        None => Tensor::uninit(shape, x.dtype(), x.device())?,
    };
    let layout =
        Layout { m: rows, n: outer, k: inner, trans_a: false, trans_b: true, input: x.dtype(), output: x.dtype() };
    let spec = GemmSpec { layout, alpha: 1.0, beta: if residual.is_some() { 1.0 } else { 0.0 } };
    gemm(&spec, x.storage(), w.storage(), b.map(Tensor::storage), y.storage_mut(OP)?)?;
    Ok(y)
}

/// `x · wᵀ` stored in another type than that of `x` and `w`: `[rows, out]`. No gradient.
///
/// # Errors
/// When a shape, dtype or device does not fit, or the types cannot be combined.
pub fn product(x: &Tensor, w: &Tensor, output: DType) -> Result<Tensor> {
    let Dims { rows, inner, outer } = Dims::check(x, w)?;
    let mut y = Tensor::uninit([rows, outer], output, x.device())?;
    let layout = Layout { m: rows, n: outer, k: inner, trans_a: false, trans_b: true, input: x.dtype(), output };
    gemm(&GemmSpec { layout, alpha: 1.0, beta: 0.0 }, x.storage(), w.storage(), None, y.storage_mut(OP)?)?;
    Ok(y)
}

fn input_gradient(dy: &Tensor, w: &Tensor, x: &Tensor, Dims { rows, inner, outer }: Dims) -> Result<Tensor> {
    let mut dx = Tensor::uninit_like(x)?;
    let dtype = x.dtype();
    let layout = Layout { m: rows, n: inner, k: outer, trans_a: false, trans_b: false, input: dtype, output: dtype };
    let spec = GemmSpec { layout, alpha: 1.0, beta: 0.0 };
    gemm(&spec, dy.storage(), w.storage(), None, dx.storage_mut(OP)?)?;
    Ok(dx)
}

/// Writes or adds `dyᵀ · x` into the buffer `write` hands out, in the buffer's dtype.
fn weight_gradient(
    dy: &Tensor,
    x: &Tensor,
    w: &Tensor,
    Dims { rows, inner, outer }: Dims,
    write: impl FnOnce(&mut dyn FnMut(&mut Tensor, Mode) -> Result<()>) -> Result<()>,
) -> Result<()> {
    write(&mut |out, mode| {
        let layout = Layout {
            m: outer,
            n: inner,
            k: rows,
            trans_a: true,
            trans_b: false,
            input: w.dtype(),
            output: out.dtype(),
        };
        let spec = GemmSpec { layout, alpha: 1.0, beta: beta(mode) };
        gemm(&spec, dy.storage(), x.storage(), None, out.storage_mut(OP)?)
    })
}

/// Column sums of `dy: [.., out]` in f32 (f64 for f64): `[out]`.
pub fn bias_gradient(dy: &Tensor) -> Result<Tensor> {
    let (rows, cols) = dy.shape().rows_cols();
    let mut db = Tensor::uninit([cols], dy.dtype().accumulate(), dy.device())?;
    match dy.device() {
        Device::Cpu => reference::column_sums(dy, cols, &mut db)?,
        _ => launch::column_sums(dy, rows, cols, &mut db)?,
    }
    Ok(db)
}
