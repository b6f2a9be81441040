//! One step of Adafactor with momentum over a list of tensors, in place.
//!
//! With the gradient `g`, decay `d` of the second moment and `q = (factor · g)² + eps`, a tensor in groups of rows and columns
//! keeps of each group the means of `q` alone:
//!
//! `R_i ← d R_i + (1-d) mean_j q_ij`, `C_j ← d C_j + (1-d) mean_i q_ij`, `u_ij = factor · g_ij / √(R_i / mean(R)) / √C_j`;
//!
//! others the whole of it: `v ← d v + (1-d) q`, `u = factor · g / √v`. Then `m ← (1-β) u + β m`, which is the step, and
//! `w ← w - lr · wd · w - lr · m`. With [`Hyper::round`] `m` is rounded to bf16, and so are `β` and `β m` before they are used,
//! as big_vision does it; it is held in f32 all the same.
//!
//! Source: Shazeer and Stern 2018, arXiv 1804.04235, algorithm 4, without relative steps and clipping of updates, with the
//! momentum of Zhai et al. 2022, arXiv 2106.04560, section 3.4; big_vision at 0127fb6, `optax.py`. The decay is scaled by the
//! learning rate as in torch's `AdamW`: where big_vision writes `wd`, this takes `wd / lr`.

mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases};

use crate::ops::multi_tensor::{self, Workspace};
use crate::{DType, Device, Error, Result, Tensor};

const OP: &str = "adafactor";

/// Where the groups are among the axes of a [`View`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Groups {
    /// `[groups, rows, cols]`
    First,
    /// `[rows, groups, cols]`
    Middle,
    /// `[rows, cols, groups]`
    Last,
}

/// A tensor as groups of matrices: three axes that its elements have in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Matrices.
    pub groups: usize,
    /// Rows of each.
    pub rows: usize,
    /// Columns of each.
    pub cols: usize,
    /// Order of the axes.
    pub place: Groups,
}

impl View {
    /// One matrix.
    pub fn matrix(rows: usize, cols: usize) -> Self {
        Self { groups: 1, rows, cols, place: Groups::First }
    }

    fn numel(self) -> usize {
        self.groups * self.rows * self.cols
    }

    /// Distances in memory from a group, a row and a column to the next.
    fn strides(self) -> [usize; 3] {
        match self.place {
            Groups::First => [self.rows * self.cols, self.cols, 1],
            Groups::Middle => [self.cols, self.groups * self.cols, 1],
            Groups::Last => [1, self.cols * self.groups, self.groups],
        }
    }
}

/// What is kept of the second moment, f32.
pub enum Second<'a> {
    /// All of it, as long as the weights.
    Full(&'a mut Tensor),
    /// Means of rows, `[groups, rows]`, and of columns, `[groups, cols]`.
    Factored {
        /// `R`
        rows: &'a mut Tensor,
        /// `C`
        cols: &'a mut Tensor,
        /// Which elements are a row and a column.
        view: View,
    },
}

/// One tensor and what belongs to it; `w`, `m` and `g` have the same number of elements.
pub struct Item<'a> {
    /// Weights, f32.
    pub w: &'a mut Tensor,
    /// Decayed mean of the scaled gradient, f32.
    pub m: &'a mut Tensor,
    /// Second moment.
    pub second: Second<'a>,
    /// Gradient, f32.
    pub g: &'a Tensor,
    /// Copy of the weights in a compute type, rewritten from `w`.
    pub compute: Option<&'a mut Tensor>,
    /// Factor of the learning rate.
    pub lr_scale: f64,
    /// Decay per step and learning rate; 0 for none.
    pub weight_decay: f64,
}

/// What stays the same from step to step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyper {
    /// `β`: decay of `m`.
    pub momentum: f64,
    /// Whether `m` has the digits of bf16.
    pub round: bool,
    /// The decay `d` of step `t` is `1 - t^-exponent`, from `t` = 1.
    pub exponent: f64,
    /// Largest decay.
    pub cap: f64,
    /// `eps`: added to the squares.
    pub eps: f64,
}

impl Hyper {
    /// As in arXiv 2106.04560 and for SigLIP, arXiv 2303.15343, appendix C.
    pub fn scaling_vit() -> Self {
        Self { momentum: 0.9, round: true, exponent: 0.8, cap: 0.95, eps: 1e-30 }
    }

    /// Factors of `m` and of the scaled gradient.
    fn momentum(self) -> [f64; 2] {
        let rounded = f64::from(half::bf16::from_f64(self.momentum).to_f32());
        [if self.round { rounded } else { self.momentum }, 1.0 - self.momentum]
    }
}

/// A step as [`adafactor`] reads it from device memory: `lr`, `d` and `1 - d` of step `t`, which counts from 1.
pub fn scalars(hyper: Hyper, lr: f64, t: u64) -> [f64; 3] {
    let kept = (t as f64).powf(-hyper.exponent).max(1.0 - hyper.cap);
    [lr, 1.0 - kept, kept]
}

/// Updates every item in place.
///
/// `scalars: [3]` are those of [`scalars`] on the device of the items. `norm: [2]`, as written by
/// [`grad_norm`](crate::ops::grad_norm::grad_norm), gives the factor of the gradients; where the norm in it is not finite,
/// nothing is changed.
///
/// dtypes: f32 (f64 on the CPU) for everything but the copies, which have one type of f32, bf16, f16 among them.
/// Deterministic.
///
/// # Errors
/// When operands of an item do not fit each other, or one that is written is shared. Nothing is changed then.
pub fn adafactor(
    items: &mut [Item],
    hyper: Hyper,
    scalars: &Tensor,
    norm: Option<&Tensor>,
    work: &mut Workspace,
) -> Result<()> {
    let Some(first) = items.first() else { return Ok(()) };
    let device = first.w.device().clone();
    let compute = check(items, scalars, norm, &device)?;
    match device {
        Device::Cpu => reference::adafactor(items, hyper, scalars, norm, compute),
        _ => launch::adafactor(items, hyper, scalars, norm, compute, work),
    }
}

/// The type of the copies; that of the weights if there are none.
fn check(items: &[Item], scalars: &Tensor, norm: Option<&Tensor>, device: &Device) -> Result<DType> {
    let dtype = items[0].w.dtype();
    let compute = multi_tensor::compute_type(OP, "w[0]", dtype, items.iter().find_map(|x| x.compute.as_deref()))?;
    for (i, item) in items.iter().enumerate() {
        let numel = item.w.numel();
        let check = |arg, x: &Tensor, numel| multi_tensor::check(OP, arg, i, x, numel, dtype, device);
        for (arg, x) in [("w", &*item.w), ("m", &*item.m), ("g", item.g)] {
            check(arg, x, numel)?;
        }
        match &item.second {
            Second::Full(v) => check("v", v, numel)?,
            Second::Factored { rows, cols, view } => {
                if view.numel() != numel || numel == 0 {
                    let expected = format!("{numel} elements, at least one");
                    return Err(Error::value(OP, format!("view[{i}]"), format!("{view:?}"), expected));
                }
                check("rows", rows, view.groups * view.rows)?;
                check("cols", cols, view.groups * view.cols)?;
            }
        }
        if let Some(c) = &item.compute {
            multi_tensor::check(OP, "compute", i, c, numel, compute, device)?;
        }
    }
    multi_tensor::check_vector(OP, "scalars", scalars, 3, dtype, device)?;
    norm.map_or(Ok(()), |norm| multi_tensor::check_vector(OP, "norm", norm, 2, dtype, device))?;
    Ok(compute)
}
