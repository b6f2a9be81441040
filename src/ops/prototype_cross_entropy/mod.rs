//! Cross-entropy between student logits and a [`Teacher`]; neither the probabilities of the teacher nor the log-softmax of
//! the student are ever stored.
//!
//! `loss = 1/N Σ_r w_r H_r`, `H_r = -Σ_k t_rk log softmax(s_r / τ)_k = S_r lse_r - Σ_k t_rk s_rk / τ`, where `t_r` is the sum
//! over the teacher rows that student row `r` is compared with, `S_r = Σ_k t_rk`, and `lse_r` is the logarithm of
//! `Σ_k exp(s_rk / τ)`; all of it relative to the row's largest logit, so that an offset of a row costs no digits. The
//! gradient is `ds_rk = dloss · w_r / (N τ) · (S_r softmax(s_r / τ)_k - t_rk)`; `t` is made again for it. A sum over pairs
//! of crops is linear in `t`, so a local crop is one row against the sum of its two teachers.
//!
//! Sums along a row are f32, over rows f64. DINO and iBOT in these terms, for `B` images, `G` global and `L` local crops:
//!
//! | term | rows | teachers of a row | `w` | `N` |
//! |---|---|---|---|---|
//! | DINO, local | `L·B` | all `G` global crops of the image | 1 | `B (G (G-1) + G L)` |
//! | DINO, global | `G·B` | the other global crops of the image | 1 | the same |
//! | iBOT | masked patches | the same patch | 1 / masked patches of its image | `G·B` |
//!
//! Source: Caron et al. 2021, arXiv 2104.14294, equation 3; Zhou et al. 2022, arXiv 2111.07832, equation 2.

mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases};

use crate::ops::teacher::Teacher;
use crate::ops::{float, on, shaped, typed};
use crate::{DType, Device, Error, Result, Tape, Tensor, Var};

const OP: &str = "prototype_cross_entropy";

/// Which rows of the teacher each student row is compared with.
#[derive(Clone, Copy, Debug)]
pub enum Pairing<'a> {
    /// Row `r` with row `r`.
    Same,
    /// `[rows, n]` i32: row `r` with each of its `n` entries; -1 is none.
    Rows(&'a Tensor),
}

/// Extents checked once, used by reference and launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dims {
    rows: usize,
    cols: usize,
    teachers: usize,
    /// Teachers of a row at most.
    group: usize,
    /// `τ`
    temp: f64,
    /// `N`
    normaliser: f64,
}

impl Dims {
    fn check(
        student: &Tensor,
        temp: f64,
        teacher: &Teacher,
        pairing: Pairing<'_>,
        weights: &Tensor,
        normaliser: f64,
    ) -> Result<Self> {
        float(OP, "student", student)?;
        let [rows, cols] = student.dims(OP, "student")?;
        let [teachers, k] = teacher.logits.dims(OP, "teacher")?;
        let acc = student.dtype().accumulate();
        if k != cols {
            return Err(Error::shape(OP, "teacher", teacher.logits.shape(), format!("[_, {cols}]")));
        }
        if teacher.logits.dtype().accumulate() != acc {
            let expected = if acc == DType::F64 { "f64" } else { "f32, bf16 or f16" };
            return Err(Error::argument(OP, "teacher", "dtype", teacher.logits.dtype().name(), expected));
        }
        on(OP, "teacher", &teacher.logits, student)?;
        shaped(OP, "weights", weights, &[rows])?;
        typed(OP, "weights", weights, acc)?;
        on(OP, "weights", weights, student)?;
        for (arg, value) in [("student_temp", temp), ("normaliser", normaliser)] {
            if !(value > 0.0 && value.is_finite()) {
                return Err(Error::value(OP, arg, value, "a positive number"));
            }
        }
        let group = match pairing {
            Pairing::Same if teachers != rows => {
                return Err(Error::shape(OP, "teacher", teacher.logits.shape(), format!("[{rows}, {cols}]")));
            }
            Pairing::Same => 1,
            Pairing::Rows(pairs) => check_pairs(pairs, rows, teachers, student)?,
        };
        Ok(Self { rows, cols, teachers, group, temp, normaliser })
    }
}

/// Teachers of a row at most.
fn check_pairs(pairs: &Tensor, rows: usize, teachers: usize, student: &Tensor) -> Result<usize> {
    let [n, group] = pairs.dims(OP, "pairing")?;
    if n != rows {
        return Err(Error::shape(OP, "pairing", pairs.shape(), format!("[{rows}, _]")));
    }
    typed(OP, "pairing", pairs, DType::I32)?;
    on(OP, "pairing", pairs, student)?;
    if pairs.device().is_host() {
        let wrong = |of: i32| of < -1 || of >= 0 && of as usize >= teachers;
        if let Some(at) = pairs.as_slice::<i32>()?.iter().position(|&of| wrong(of)) {
            let arg = format!("pairing[{}, {}]", at / group, at % group);
            return Err(Error::value(OP, arg, pairs.as_slice::<i32>()?[at], format!("-1 to {}", teachers as i64 - 1)));
        }
    }
    Ok(group)
}

/// The loss `[1]`, f32 (f64 for f64), of `student: [rows, K]` at temperature `student_temp`; `weights: [rows]`, f32.
///
/// dtypes of `student` and of the teacher's logits: f32, bf16, f16, each its own (f64 with f64 on the CPU). Saves the
/// student's and the teacher's logits, which are there anyway, the weights and 16 bytes per row. The gradient takes the
/// place of the student's logits where nobody else holds them: drop the variable before the sweep. Nothing is
/// differentiated by the teacher or the weights. Rows of weight 0 are not read and get a gradient of 0: a buffer may be
/// longer than its content. Deterministic. A pairing out of range is an error on host devices and makes loss and
/// gradient NaN on a GPU, which is not asked.
///
/// # Errors
/// When shapes, dtypes or devices do not fit or a temperature or the normaliser is not positive.
pub fn prototype_cross_entropy(
    tape: &Tape,
    student: &Var,
    student_temp: f64,
    teacher: &Teacher,
    pairing: Pairing<'_>,
    weights: &Tensor,
    normaliser: f64,
) -> Result<Var> {
    let (loss, stats) = forward(student.value(), student_temp, teacher, pairing, weights, normaliser)?;
    let to_student = student.slot();
    let pairs = match pairing {
        Pairing::Same => None,
        Pairing::Rows(pairs) => Some(pairs.clone()),
    };
    let t = teacher.clone();
    let saved = [student.value().clone(), weights.clone(), stats, t.logits, t.temp, t.prototypes, t.rows];
    Ok(tape.record(OP, loss, &[student], saved, move |dloss, saved, grads| {
        let [student, weights, stats, logits, temp, prototypes, rows] = saved;
        let teacher = Teacher { logits, temp, prototypes, rows };
        let pairing = pairs.as_ref().map_or(Pairing::Same, Pairing::Rows);
        grads.add(to_student, backward(&dloss, student, student_temp, &teacher, pairing, &weights, normaliser, &stats)?)
    }))
}

/// The loss `[1]` and for each row the largest logit, `ln Σ_k exp((s - largest) / τ)`, `S` and `H`: `[rows, 4]`.
pub fn forward(
    student: &Tensor,
    student_temp: f64,
    teacher: &Teacher,
    pairing: Pairing<'_>,
    weights: &Tensor,
    normaliser: f64,
) -> Result<(Tensor, Tensor)> {
    let dims = Dims::check(student, student_temp, teacher, pairing, weights, normaliser)?;
    let (acc, device) = (student.dtype().accumulate(), student.device());
    let mut loss = Tensor::uninit([1], acc, device)?;
    let mut stats = Tensor::uninit([dims.rows, 4], acc, device)?;
    match device {
        Device::Cpu => reference::forward(student, teacher, pairing, weights, dims, &mut loss, &mut stats)?,
        _ => {
            let tiles = launch::tiles(dims.rows, dims.cols, student.dtype())?;
            launch::forward(student, teacher, pairing, weights, dims, tiles, &mut loss, &mut stats)?;
        }
    }
    Ok((loss, stats))
}

/// Gradient by `student`, in its dtype and, if nobody else holds it, in its place.
pub fn backward(
    dloss: &Tensor,
    mut student: Tensor,
    student_temp: f64,
    teacher: &Teacher,
    pairing: Pairing<'_>,
    weights: &Tensor,
    normaliser: f64,
    stats: &Tensor,
) -> Result<Tensor> {
    let dims = Dims::check(&student, student_temp, teacher, pairing, weights, normaliser)?;
    for (arg, t, shape) in [("dloss", dloss, &[1][..]), ("stats", stats, &[dims.rows, 4])] {
        shaped(OP, arg, t, shape)?;
        typed(OP, arg, t, student.dtype().accumulate())?;
        on(OP, arg, t, &student)?;
    }
    let owned = student.storage_mut(OP).is_ok();
    match student.device() {
        Device::Cpu => {
            let mut ds = if owned { student } else { student.deep_clone()? };
            reference::backward(dloss, teacher, pairing, weights, stats, dims, &mut ds)?;
            Ok(ds)
        }
        _ => {
            let source = student.ptr();
            let mut ds = if owned { student } else { Tensor::uninit_like(&student)? };
            let tiles = launch::tiles(dims.rows, dims.cols, ds.dtype())?;
            launch::backward(dloss, source, teacher, pairing, weights, stats, dims, tiles, &mut ds)?;
            Ok(ds)
        }
    }
}

/// Bytes that [`forward`] holds at most beside its arguments, its results (4 and 16 bytes per row) included; on other
/// devices than the CPU also 16 for each row and tile of columns (4096 of 16 bits, 2048 of 32). [`backward`] holds none.
pub fn workspace_bytes(rows: usize, cols: usize, dtype: DType, device: &Device) -> Result<usize> {
    let held = dtype.accumulate().size() * (1 + 4 * rows);
    Ok(held + if *device == Device::Cpu { 0 } else { launch::bytes(rows, cols, dtype)? })
}
