//! Loss of SAM-2's mask decoder: focal and dice losses of the best mask of each object, an error of the predicted IoUs, and
//! a cross-entropy of "the object is there".
//!
//! For the masks `x[o, m, i]` (logits over `P` pixels) of object `o`, its target `t[o, i]` in {0, 1}, `p = σ(x)`,
//! `z = (2t - 1) x` and `p_t = σ(z)`:
//!
//! ```text
//! focal[o, m] = 1/P Σ_i a(t) (1 - p_t)^γ · -ln p_t         a(1) = α, a(0) = 1 - α; 1 where α < 0
//! dice[o, m]  = 1 - (2 Σ_i p t + 1) / D = Σ_i (1 - p_t) / D     D = Σ_i p + Σ_i t + 1
//! iou[o, m]   = |u - U| or (u - U)²                        u predicted, U = Σ (x > 0 and t) / max(1, Σ (x > 0 or t))
//! best[o]     = the first argmin_m w_mask focal + w_dice dice
//! class[o]    = focal loss, with its own α and γ, of the object score and `there[o] = any(t[o])`
//! ```
//!
//! Losses are sums over objects divided by `objects`: focal and dice of the best mask and the IoU error, the mean over masks
//! or that of the best, of objects that are there; the class of all. `total = w_mask mask + w_dice dice + w_iou iou +
//! w_class class`. Of the two forms of the dice loss, which are equal as t is 0 or 1, the second has no difference of large
//! sums. The choice of the best mask and `U` have no gradient; masks that are not the best get zero.
//!
//! Source: Ravi et al. 2024, arXiv 2408.00714, section D.2.2, whose public training code takes one step of the decoder so.
//! Focal loss: Lin et al. 2017, arXiv 1708.02002, equation 5; dice: Milletari et al. 2016, arXiv 1606.04797, equation 8, not
//! squared in the denominator and with 1 added to both parts.

mod case;
mod launch;
mod reference;
#[cfg(test)]
mod tests;

pub use case::{case, cases};

use crate::ops::{float, on, same, shaped, typed};
use crate::{DType, Device, Error, Result, Tape, Tensor, Var};

const OP: &str = "mask_loss";

/// Factors of the parts and how each is computed. The default is that of upstream's public training configuration.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Weights {
    /// Factor of the focal loss.
    pub mask: f32,
    /// Factor of the dice loss.
    pub dice: f32,
    /// Factor of the error of the predicted IoUs.
    pub iou: f32,
    /// Factor of the cross-entropy of the object scores.
    pub class: f32,
    /// Share of the foreground in the focal loss, up to 1; negative: neither is weighted.
    pub focal_alpha: f32,
    /// Exponent of the focal loss, at least 0.
    pub focal_gamma: f32,
    /// Absolute error of predicted IoUs, not its square.
    pub iou_l1: bool,
    /// IoUs of all masks are learnt, not that of the best mask alone.
    pub supervise_all_iou: bool,
    /// As `focal_alpha`, of the object scores.
    pub obj_focal_alpha: f32,
    /// As `focal_gamma`, of the object scores.
    pub obj_focal_gamma: f32,
}

impl Default for Weights {
    fn default() -> Self {
        Self {
            mask: 20.0,
            dice: 1.0,
            iou: 1.0,
            class: 1.0,
            focal_alpha: 0.25,
            focal_gamma: 2.0,
            iou_l1: true,
            supervise_all_iou: true,
            obj_focal_alpha: -1.0,
            obj_focal_gamma: 0.0,
        }
    }
}

impl Weights {
    fn check(&self) -> Result<()> {
        let factors = [("mask", self.mask), ("dice", self.dice), ("iou", self.iou), ("class", self.class)];
        for (name, value) in factors {
            if !value.is_finite() {
                return Err(Error::value(OP, name, value, "a finite factor"));
            }
        }
        for (name, alpha) in [("focal_alpha", self.focal_alpha), ("obj_focal_alpha", self.obj_focal_alpha)] {
            if alpha.is_nan() || alpha > 1.0 {
                return Err(Error::value(OP, name, alpha, "at most 1"));
            }
        }
        for (name, gamma) in [("focal_gamma", self.focal_gamma), ("obj_focal_gamma", self.obj_focal_gamma)] {
            if !gamma.is_finite() || gamma < 0.0 {
                return Err(Error::value(OP, name, gamma, "at least 0"));
            }
        }
        Ok(())
    }
}

/// Extents checked once, used by reference and launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dims {
    objects: usize,
    masks: usize,
    pixels: usize,
}

impl Dims {
    fn check(masks: &Tensor, targets: &Tensor, weights: &Weights) -> Result<Self> {
        float(OP, "masks", masks)?;
        let [objects, count, pixels] = masks.dims(OP, "masks")?;
        if count == 0 || pixels == 0 {
            return Err(Error::shape(OP, "masks", masks.shape(), "at least one mask of an object and one pixel"));
        }
        shaped(OP, "targets", targets, &[objects, pixels])?;
        typed(OP, "targets", targets, DType::U8)?;
        on(OP, "targets", targets, masks)?;
        weights.check()?;
        Ok(Self { objects, masks: count, pixels })
    }

    fn check_scores(self, ious: &Tensor, scores: &Tensor, masks: &Tensor, divisor: f64) -> Result<Self> {
        shaped(OP, "ious", ious, &[self.objects, self.masks])?;
        same(OP, "ious", ious, masks)?;
        if ![&[self.objects][..], &[self.objects, 1]].contains(&&**scores.shape()) {
            return Err(Error::shape(OP, "object_scores", scores.shape(), format!("[{}]", self.objects)));
        }
        same(OP, "object_scores", scores, masks)?;
        if !(divisor.is_finite() && divisor > 0.0) {
            return Err(Error::value(OP, "objects", divisor, "a positive number"));
        }
        Ok(self)
    }

    fn check_outcome(self, dtotal: &Tensor, best: &Tensor, stats: &Tensor, like: &Tensor) -> Result<Self> {
        shaped(OP, "best", best, &[self.objects])?;
        typed(OP, "best", best, DType::I32)?;
        on(OP, "best", best, like)?;
        for (arg, t, shape) in [("dtotal", dtotal, &[1][..]), ("stats", stats, &[self.objects, self.masks, 4])] {
            shaped(OP, arg, t, shape)?;
            typed(OP, arg, t, like.dtype().accumulate())?;
            on(OP, arg, t, like)?;
        }
        Ok(self)
    }
}

/// What a forward gives.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// `[1]`, f32 (f64 for f64): the weighted sum.
    pub total: Tensor,
    /// `[4]`, likewise: mask, dice, IoU and class, each divided by the number of objects and not weighted.
    pub terms: Tensor,
    /// `[O]`, i32: each object's best mask, also of one that is not there.
    pub best: Tensor,
    /// `[O, M, 4]`, f32: `2 Σ p t + 1`, `D`, the IoU of mask and target, and `Σ t`.
    pub stats: Tensor,
}

/// Loss of one step of the decoder: the weighted total `[1]`, f32, and its parts `[4]`, f32: mask, dice, IoU and class, each
/// divided by `objects` and not weighted.
///
/// `masks: [O, M, P]` are logits, `ious: [O, M]` what the decoder thinks of them, `object_scores: [O]` or `[O, 1]` logits of
/// the object being there, `targets: [O, P]` bytes that are zero outside the object. An object whose target is empty has
/// only the class term. dtypes: f32, bf16, f16 (f64 on the CPU), the same for the three; sums are f32, of parts in fixed order,
/// so deterministic. No exponential overflows: logits of -1024, an object that was said to be absent, are as good as others.
/// Saves its inputs and 16 bytes per mask. One pass over the
/// masks; backward one pass over the best masks that writes the gradient of all.
///
/// # Errors
/// When shapes, dtypes or devices do not fit, a weight is out of its range or `objects` is not positive.
pub fn mask_loss(
    tape: &Tape,
    masks: &Var,
    ious: &Var,
    object_scores: &Var,
    targets: &Tensor,
    weights: &Weights,
    objects: f64,
) -> Result<(Var, Tensor)> {
    let (x, u, s) = (masks.value(), ious.value(), object_scores.value());
    let Outcome { total, terms, best, stats } = forward(x, u, s, targets, weights, objects)?;
    let (to_masks, to_ious, to_scores) = (masks.slot(), ious.slot(), object_scores.slot());
    let (weights, saved) = (*weights, [x.clone(), u.clone(), s.clone(), targets.clone(), best, stats]);
    let inputs = [masks, ious, object_scores];
    let total = tape.record(OP, total, &inputs, saved, move |dtotal, [x, u, s, targets, best, stats], grads| {
        if to_masks.is_some() {
            grads.add(to_masks, backward_masks(&dtotal, &x, &targets, &best, &stats, &weights, objects)?)?;
        }
        if to_ious.is_some() || to_scores.is_some() {
            let (dious, dscores) = backward_scores(&dtotal, &u, &s, &best, &stats, &weights, objects)?;
            grads.add(to_ious, dious)?;
            grads.add(to_scores, dscores)?;
        }
        Ok(())
    });
    Ok((total, terms))
}

/// Total, parts, best masks and what a backward needs.
pub fn forward(
    masks: &Tensor,
    ious: &Tensor,
    object_scores: &Tensor,
    targets: &Tensor,
    weights: &Weights,
    objects: f64,
) -> Result<Outcome> {
    let dims = Dims::check(masks, targets, weights)?.check_scores(ious, object_scores, masks, objects)?;
    let (acc, device) = (masks.dtype().accumulate(), masks.device());
    let mut outcome = Outcome {
        total: Tensor::uninit([1], acc, device)?,
        terms: Tensor::uninit([4], acc, device)?,
        best: Tensor::uninit([dims.objects], DType::I32, device)?,
        stats: Tensor::uninit([dims.objects, dims.masks, 4], acc, device)?,
    };
    match device {
        Device::Cpu => reference::forward(masks, ious, object_scores, targets, weights, objects, dims, &mut outcome)?,
        _ => launch::forward(masks, ious, object_scores, targets, weights, objects, dims, &mut outcome)?,
    }
    Ok(outcome)
}

/// Each object's best mask, `[O]` i32: the first of the smallest `w_mask focal + w_dice dice`. Without gradient.
///
/// # Errors
/// As [`mask_loss`].
pub fn best_masks(masks: &Tensor, targets: &Tensor, weights: &Weights) -> Result<Tensor> {
    let Dims { objects, masks: count, .. } = Dims::check(masks, targets, weights)?;
    let zeros = |shape: &[usize]| Tensor::zeros(shape, masks.dtype(), masks.device());
    Ok(forward(masks, &zeros(&[objects, count])?, &zeros(&[objects])?, targets, weights, 1.0)?.best)
}

/// Gradient by `masks`, in their dtype. With `q = 1 - p_t`:
/// `w_mask / P · (1 - 2t) a(t) q^γ (q - γ p_t ln p_t) + w_dice · p (1 - p) ((2 Σ p t + 1) / D² - 2t / D)`, times
/// `dtotal / objects`, of the best mask of an object that is there; zero elsewhere.
pub fn backward_masks(
    dtotal: &Tensor,
    masks: &Tensor,
    targets: &Tensor,
    best: &Tensor,
    stats: &Tensor,
    weights: &Weights,
    objects: f64,
) -> Result<Tensor> {
    let dims = Dims::check(masks, targets, weights)?.check_outcome(dtotal, best, stats, masks)?;
    let mut dmasks = Tensor::uninit_like(masks)?;
    match masks.device() {
        Device::Cpu => {
            reference::backward_masks(dtotal, masks, targets, best, stats, weights, objects, dims, &mut dmasks)?
        }
        _ => launch::backward_masks(dtotal, masks, targets, best, stats, weights, objects, dims, &mut dmasks)?,
    }
    Ok(dmasks)
}

/// Gradients by `ious` and `object_scores`, in their dtype: `sign(u - U)` or `2 (u - U)` of objects that are there, over `M`
/// or of the best mask alone, and that of the focal loss as in [`backward_masks`], each times factor, `dtotal` and
/// `1 / objects`.
pub fn backward_scores(
    dtotal: &Tensor,
    ious: &Tensor,
    object_scores: &Tensor,
    best: &Tensor,
    stats: &Tensor,
    weights: &Weights,
    objects: f64,
) -> Result<(Tensor, Tensor)> {
    float(OP, "ious", ious)?;
    weights.check()?;
    let [count, masks] = ious.dims(OP, "ious")?;
    let dims = Dims { objects: count, masks, pixels: 0 };
    let dims = dims.check_scores(ious, object_scores, ious, objects)?.check_outcome(dtotal, best, stats, ious)?;
    let (mut dious, mut dscores) = (Tensor::uninit_like(ious)?, Tensor::uninit_like(object_scores)?);
    let (u, s) = (ious, object_scores);
    match ious.device() {
        Device::Cpu => {
            reference::backward_scores(dtotal, u, s, best, stats, weights, objects, dims, &mut dious, &mut dscores)?
        }
        _ => launch::backward_scores(dtotal, u, s, best, stats, weights, objects, dims, &mut dious, &mut dscores)?,
    }
    Ok((dious, dscores))
}
