//! Plain loops, parallel over chunks of a mask's pixels, whose sums are added in order.

use rayon::prelude::*;

use super::{Dims, OP, Outcome, Weights};
use crate::device::host::{CHUNK, simd};
use crate::dtype::{Float, num_like::Ops};
use crate::{Result, Tensor, with_float};

/// Partial sums of a chunk: their order is fixed, and the compiler can use vectors.
const LANES: usize = 16;

/// A logit beside its target. Nothing in it overflows, whatever the logit.
#[derive(Clone, Copy)]
struct Logit<A> {
    /// `-ln p_t`
    cost: A,
    /// `-ln (1 - p_t)`
    other: A,
    /// `p_t`
    right: A,
    /// `1 - p_t`
    wrong: A,
}

impl<A: Ops> Logit<A> {
    #[inline(always)]
    fn new(x: A, target: bool) -> Self {
        let z = if target { x } else { -x };
        let e = (-z.abs()).exp();
        let (tail, inverse) = (e.ln_1p(), A::ONE / (A::ONE + e));
        let (near, far) = (inverse, e * inverse);
        let (right, wrong) = if z < A::ZERO { (far, near) } else { (near, far) };
        Self { cost: (-z).max(A::ZERO) + tail, other: z.max(A::ZERO) + tail, right, wrong }
    }
}

/// A focal loss.
#[derive(Clone, Copy)]
struct Focal<A> {
    foreground: A,
    background: A,
    gamma: A,
}

impl<A: Ops> Focal<A> {
    fn new(alpha: f32, gamma: f32) -> Self {
        let alpha = A::of(alpha.into());
        let (foreground, background) = if alpha < A::ZERO { (A::ONE, A::ONE) } else { (alpha, A::ONE - alpha) };
        Self { foreground, background, gamma: A::of(gamma.into()) }
    }

    #[inline(always)]
    fn share(&self, target: bool) -> A {
        if target { self.foreground } else { self.background }
    }

    /// `(1 - p_t)^γ`
    #[inline(always)]
    fn power(&self, logit: Logit<A>) -> A {
        if self.gamma == A::of(2.0) {
            logit.wrong * logit.wrong
        } else if self.gamma == A::ZERO {
            A::ONE
        } else {
            (-self.gamma * logit.other).exp()
        }
    }

    #[inline(always)]
    fn loss(&self, logit: Logit<A>, target: bool) -> A {
        self.share(target) * self.power(logit) * logit.cost
    }

    /// By the logit itself.
    #[inline(always)]
    fn slope(&self, logit: Logit<A>, target: bool) -> A {
        let slope = self.share(target) * self.power(logit) * (logit.wrong + self.gamma * logit.right * logit.cost);
        if target { -slope } else { slope }
    }
}

/// Sums over pixels of one mask.
#[derive(Clone, Copy)]
struct Sums<A> {
    focal: A,
    /// Σ (1 - p_t)
    wrong: A,
    /// Σ p
    mask: A,
    /// Σ t
    target: A,
    /// Pixels of mask and target, and of the mask.
    both: A,
    inside: A,
}

impl<A: Ops> Sums<A> {
    const ZERO: Self =
        Self { focal: A::ZERO, wrong: A::ZERO, mask: A::ZERO, target: A::ZERO, both: A::ZERO, inside: A::ZERO };

    #[inline(always)]
    fn take(&mut self, x: A, target: bool, focal: Focal<A>) {
        let logit = Logit::new(x, target);
        let count = |yes: bool| if yes { A::ONE } else { A::ZERO };
        self.focal += focal.loss(logit, target);
        self.wrong += logit.wrong;
        self.mask += if target { logit.right } else { logit.wrong };
        self.target += count(target);
        self.both += count(target & (x > A::ZERO));
        self.inside += count(x > A::ZERO);
    }

    fn add(&mut self, o: &Self) {
        self.focal += o.focal;
        self.wrong += o.wrong;
        self.mask += o.mask;
        self.target += o.target;
        self.both += o.both;
        self.inside += o.inside;
    }
}

#[inline(always)]
fn sums<T: Float>(x: &[T], t: &[u8], focal: Focal<T::Acc>) -> Sums<T::Acc> {
    let mut lanes = [Sums::ZERO; LANES];
    for (x, t) in x.chunks(LANES).zip(t.chunks(LANES)) {
        for ((lane, x), &t) in lanes.iter_mut().zip(x).zip(t) {
            lane.take(x.get(), t != 0, focal);
        }
    }
    let mut total = Sums::ZERO;
    lanes.iter().for_each(|lane| total.add(lane));
    total
}

pub(super) fn forward(
    masks: &Tensor,
    ious: &Tensor,
    scores: &Tensor,
    targets: &Tensor,
    weights: &Weights,
    divisor: f64,
    Dims { masks: count, pixels, .. }: Dims,
    outcome: &mut Outcome,
) -> Result<()> {
    let Outcome { total, terms, best, stats } = outcome;
    with_float!(OP, "masks", masks.dtype(), T => {
        type A = <T as Float>::Acc;
        let (x, t) = (masks.as_slice::<T>()?, targets.as_slice::<u8>()?);
        let (ious, scores) = (ious.as_slice::<T>()?, scores.as_slice::<T>()?);
        let (best, stats) = (best.as_mut_slice::<i32>()?, stats.as_mut_slice::<A>()?);
        let focal = Focal::<A>::new(weights.focal_alpha, weights.focal_gamma);
        let class = Focal::<A>::new(weights.obj_focal_alpha, weights.obj_focal_gamma);
        let of_mask = |(mask, x): (usize, &[T])| {
            let t = &t[mask / count * pixels..][..pixels];
            let chunks = x.par_chunks(CHUNK).zip(t.par_chunks(CHUNK));
            let parts: Vec<_> = chunks.map(|(x, t)| simd(#[inline(always)] || sums(x, t, focal))).collect();
            let mut total = Sums::ZERO;
            parts.iter().for_each(|part| total.add(part));
            total
        };
        let all: Vec<Sums<A>> = x.par_chunks_exact(pixels).enumerate().map(of_mask).collect();
        let [factor_mask, factor_dice] = [weights.mask, weights.dice].map(|w| A::of(w.into()));
        let mut sum = [A::ZERO; 4];
        for (o, masks) in all.chunks_exact(count).enumerate() {
            let mut chosen = (0, A::ZERO, A::ZERO);
            let (mut errors, mut error_of_best) = (A::ZERO, A::ZERO);
            for (m, (s, stats)) in masks.iter().zip(stats[4 * o * count..].chunks_exact_mut(4)).enumerate() {
                let whole = s.mask + s.target + A::ONE;
                let (f, d) = (s.focal / A::of(pixels as f64), s.wrong / whole);
                let iou = s.both / (s.inside + s.target - s.both).max(A::ONE);
                stats.copy_from_slice(&[whole - s.wrong, whole, iou, s.target]);
                let off = ious[o * count + m].get() - iou;
                let error = if weights.iou_l1 { off.abs() } else { off * off };
                errors += error;
                let (loss, least) =
                    (factor_mask * f + factor_dice * d, factor_mask * chosen.1 + factor_dice * chosen.2);
                // A NaN is best: it is seen.
                let unseen = loss.f64().is_nan() && !least.f64().is_nan();
                if m == 0 || loss < least || unseen {
                    chosen = (m, f, d);
                    error_of_best = error;
                }
            }
            best[o] = chosen.0 as i32;
            let there = masks[0].target > A::ZERO;
            if there {
                sum[0] += chosen.1;
                sum[1] += chosen.2;
                sum[2] += if weights.supervise_all_iou { errors / A::of(count as f64) } else { error_of_best };
            }
            sum[3] += class.loss(Logit::new(scores[o].get(), there), there);
        }
        let divisor = A::of(divisor);
        let (total, terms) = (total.as_mut_slice::<A>()?, terms.as_mut_slice::<A>()?);
        total[0] = A::ZERO;
        let factors = [weights.mask, weights.dice, weights.iou, weights.class];
        for ((term, sum), factor) in terms.iter_mut().zip(sum).zip(factors) {
            *term = sum / divisor;
            total[0] += A::of(factor.into()) * *term;
        }
        Ok(())
    })
}

pub(super) fn backward_masks(
    dtotal: &Tensor,
    masks: &Tensor,
    targets: &Tensor,
    best: &Tensor,
    stats: &Tensor,
    weights: &Weights,
    divisor: f64,
    Dims { masks: count, pixels, .. }: Dims,
    dmasks: &mut Tensor,
) -> Result<()> {
    with_float!(OP, "masks", masks.dtype(), T => {
        type A = <T as Float>::Acc;
        let (x, t, dx) = (masks.as_slice::<T>()?, targets.as_slice::<u8>()?, dmasks.as_mut_slice::<T>()?);
        let (best, stats) = (best.as_slice::<i32>()?, stats.as_slice::<A>()?);
        let focal = Focal::<A>::new(weights.focal_alpha, weights.focal_gamma);
        let scale = dtotal.as_slice::<A>()?[0] / A::of(divisor);
        let by_focal = scale * A::of(weights.mask.into()) / A::of(pixels as f64);
        let by_dice = scale * A::of(weights.dice.into());
        dx.par_chunks_exact_mut(pixels).zip(x.par_chunks_exact(pixels)).enumerate().for_each(|(mask, (dx, x))| {
            let (o, m) = (mask / count, mask % count);
            let stats = &stats[4 * mask..][..4];
            if best[o] != m as i32 || stats[3] == A::ZERO {
                return dx.fill(T::put(A::ZERO));
            }
            let outside = by_dice * stats[0] / (stats[1] * stats[1]);
            let inside = outside - by_dice * A::of(2.0) / stats[1];
            let t = &t[o * pixels..][..pixels];
            let chunks = dx.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).zip(t.par_chunks(CHUNK));
            chunks.for_each(|((dx, x), t)| simd(#[inline(always)] || {
                for ((dx, x), &t) in dx.iter_mut().zip(x).zip(t) {
                    let (target, logit) = (t != 0, Logit::new(x.get(), t != 0));
                    let dice = if target { inside } else { outside };
                    *dx = T::put(by_focal * focal.slope(logit, target) + dice * logit.right * logit.wrong);
                }
            }));
        });
        Ok(())
    })
}

pub(super) fn backward_scores(
    dtotal: &Tensor,
    ious: &Tensor,
    scores: &Tensor,
    best: &Tensor,
    stats: &Tensor,
    weights: &Weights,
    divisor: f64,
    Dims { objects, masks: count, .. }: Dims,
    dious: &mut Tensor,
    dscores: &mut Tensor,
) -> Result<()> {
    with_float!(OP, "ious", ious.dtype(), T => {
        type A = <T as Float>::Acc;
        let (ious, scores) = (ious.as_slice::<T>()?, scores.as_slice::<T>()?);
        let (best, stats) = (best.as_slice::<i32>()?, stats.as_slice::<A>()?);
        let (dious, dscores) = (dious.as_mut_slice::<T>()?, dscores.as_mut_slice::<T>()?);
        let class = Focal::<A>::new(weights.obj_focal_alpha, weights.obj_focal_gamma);
        let scale = dtotal.as_slice::<A>()?[0] / A::of(divisor);
        let by_class = scale * A::of(weights.class.into());
        let shared = if weights.supervise_all_iou { A::of(count as f64) } else { A::ONE };
        let by_iou = scale * A::of(weights.iou.into()) / shared;
        for o in 0..objects {
            let there = stats[4 * o * count + 3] > A::ZERO;
            for m in 0..count {
                let off = ious[o * count + m].get() - stats[4 * (o * count + m) + 2];
                let slope = match weights.iou_l1 {
                    true if off > A::ZERO => A::ONE,
                    true if off < A::ZERO => -A::ONE,
                    true => A::ZERO,
                    false => off + off,
                };
                let taken = there && (weights.supervise_all_iou || best[o] == m as i32);
                dious[o * count + m] = T::put(if taken { by_iou * slope } else { A::ZERO });
            }
            dscores[o] = T::put(by_class * class.slope(Logit::new(scores[o].get(), there), there));
        }
        Ok(())
    })
}
