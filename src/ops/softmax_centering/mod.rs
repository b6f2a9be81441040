//! Centred softmax of teacher logits, and the centre that follows their mean.
//!
//! `t = softmax((z - c) / T)`, kept as `exp(z / T + a + l)` with `a = -c / T` and `l_b = -ln Σ_k exp(z_bk / T + a_k)`. The
//! centre moves late: the mean `m` of the logits of a step enters it before the next, `c ← 0.9 c + 0.1 m`, so that the
//! exchange of means between processes has a whole step's time.
//!
//! On a GPU factors and mean come from one read of the logits.
//!
//! Source: Caron et al. 2021, arXiv 2104.14294, section 3.1, equation 4; the late update is that of the code of DINOv2.

mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases, counted_case};

use crate::ops::ema::{self, ema};
use crate::ops::multi_tensor::Workspace;
use crate::ops::teacher::{Across, Reduce, Teacher, check, check_count};
use crate::ops::{on, shaped, typed};
use crate::{DType, Device, Error, Param, Result, Tensor};

const OP: &str = "softmax_centering";

/// Share of the centre that stays, in recipes.
pub const MOMENTUM: f64 = 0.9;

/// Teacher probabilities of `logits: [rows, K]` with the centre `centre: [K]` at temperature `temp: [1]`, and the mean
/// `[K]` of the logits over the rows; of no rows it is the centre, which then stays where it is. The batch is the first
/// `count` rows, see [`Teacher`], all without.
///
/// dtypes of `logits`: f32, bf16, f16 (f64 on the CPU), all else f32. No gradient. Deterministic.
///
/// # Errors
/// When shapes or dtypes do not fit, there is no prototype, or host memory holds a count of more rows than there are.
pub fn softmax_centering(
    logits: &Tensor,
    temp: &Tensor,
    centre: &Tensor,
    count: Option<&Tensor>,
) -> Result<(Teacher, Tensor)> {
    let [rows, cols] = check(OP, logits, temp)?;
    check_count(OP, count, rows, logits)?;
    let (acc, device) = (logits.dtype().accumulate(), logits.device());
    shaped(OP, "centre", centre, &[cols])?;
    typed(OP, "centre", centre, acc)?;
    on(OP, "centre", centre, logits)?;
    let mut out = Outputs {
        prototypes: Tensor::uninit([cols], acc, device)?,
        rows: Tensor::uninit([rows], acc, device)?,
        mean: Tensor::uninit([cols], acc, device)?,
    };
    match device {
        Device::Cpu => reference::forward(logits, temp, centre, count, &mut out)?,
        _ => launch::forward(logits, temp, centre, count, &mut out)?,
    }
    Ok((Teacher::new(logits.clone(), temp.clone(), out.prototypes, out.rows)?, out.mean))
}

/// What a call writes.
struct Outputs {
    prototypes: Tensor,
    rows: Tensor,
    mean: Tensor,
}

/// A centre and the mean that has not reached it yet: parameters that are saved with a model and never trained.
pub struct Centering {
    /// `<name>.center`, `[K]`.
    pub center: Param,
    /// `<name>.pending`, `[K]`: the mean of the logits of the last step.
    pub pending: Param,
    /// Momentum and the rest, as `ema` reads them.
    scalars: Tensor,
    work: Workspace,
}

impl Centering {
    /// From a centre `[K]`, zeros at first, f32 (f64 for f64 logits).
    ///
    /// # Errors
    /// When the centre is not a vector of that type or the momentum not in `[0, 1]`.
    pub fn new(name: &str, centre: &Tensor, momentum: f64) -> Result<Self> {
        let [_] = centre.dims(OP, "centre")?;
        typed(OP, "centre", centre, centre.dtype().accumulate())?;
        if !(0.0..=1.0).contains(&momentum) {
            return Err(Error::value(OP, "momentum", momentum, "0 to 1"));
        }
        let scalars = Tensor::from_slice(&ema::scalars(momentum), [2], &Device::Cpu)?.cast(centre.dtype())?;
        // Before the first step nothing is pending: the centre itself moves it nowhere.
        let frozen = |what: &str| {
            let mut p = Param::new(format!("{name}.{what}"), centre.deep_clone()?, centre.dtype())?;
            p.trainable = false;
            Ok::<_, Error>(p)
        };
        let scalars = scalars.to_device(centre.device())?;
        Ok(Self { center: frozen("center")?, pending: frozen("pending")?, scalars, work: Workspace::new() })
    }

    /// Moves the centre towards the mean of the last step, if it has not moved yet.
    pub fn update(&mut self) -> Result<()> {
        let Self { center: Param { master: centre, .. }, pending: Param { master: pending, .. }, .. } = self;
        own(centre)?;
        own(pending)?;
        let item = ema::Item { teacher: centre, student: pending, compute: None };
        ema(&mut [item], &self.scalars, &mut self.work)?;
        pending.copy_from(centre)
    }

    /// [`update`](Self::update), then [`softmax_centering`] with the centre. The logits' mean waits
    /// for the next step, averaged over processes by `across` with [`Reduce::Mean`] if there are any: each process
    /// counts as much as the next, whatever its rows.
    pub fn teacher(
        &mut self,
        logits: &Tensor,
        temp: &Tensor,
        count: Option<&Tensor>,
        across: Option<&mut Across<'_>>,
    ) -> Result<Teacher> {
        self.update()?;
        let (teacher, mut mean) = softmax_centering(logits, temp, &self.center.master, count)?;
        if let Some(across) = across {
            across(Reduce::Mean, &mut mean)?;
        }
        self.pending.master.copy_from(&mean)?;
        Ok(teacher)
    }
}

/// Copies what others hold, so that it can be written and theirs stays as it is.
fn own(t: &mut Tensor) -> Result<()> {
    if t.is_shared() {
        t.device().refuse_recording("copies a shared centre before it moves it")?; // a replay would undo the move
        *t = t.deep_clone()?;
    }
    Ok(())
}

/// Bytes that [`softmax_centering`] holds at most beside its arguments, its result (4 bytes per row, 8
/// per prototype) included; on other devices than the CPU also 4 per prototype for each part of the rows and 8 for each
/// row and tile of columns, as in [`sinkhorn_knopp`](super::sinkhorn_knopp::workspace_bytes).
pub fn workspace_bytes(rows: usize, cols: usize, dtype: DType, device: &Device) -> Result<usize> {
    let held = dtype.accumulate().size() * (2 * cols + rows);
    Ok(held + if *device == Device::Cpu { 0 } else { launch::bytes(rows, cols, dtype)? })
}
