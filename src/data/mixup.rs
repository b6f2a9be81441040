//! Mixup and CutMix of a whole batch, and the soft targets that go with them.
//!
//! Sample i is mixed with sample B-1-i. Mixup: `x_i·lam + x_(B-1-i)·(1-lam)`. CutMix: a box of the partner is put
//! in; its sides are trunc(side·sqrt(1-lam)), its middle is uniform, it is cut at the border, and lam becomes the
//! part outside the box. Targets: with K classes and smoothing s, off = s/K, on = 1 - s + off, mixed with the same
//! lam.
//!
//! Sources: Zhang et al. 2017, arXiv 1710.09412; Yun et al. 2019, arXiv 1905.04899; the batch form is that of timm.

use super::image::Rect;
use super::rng::Stream;
use crate::{Error, Result};

/// Settings of mixing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mixing {
    /// Mixup's lam is drawn from Beta(alpha, alpha); 0 switches it off.
    pub mixup_alpha: f64,
    /// The same for CutMix.
    pub cutmix_alpha: f64,
    /// Probability that a batch is mixed at all.
    pub probability: f64,
    /// Probability of CutMix where both are on.
    pub switch: f64,
    /// Label smoothing.
    pub smoothing: f64,
}

impl Default for Mixing {
    /// The fine-tuning recipe: mixup 0.8, CutMix 1.0, every batch, either with probability 1/2, smoothing 0.1.
    fn default() -> Self {
        Self { mixup_alpha: 0.8, cutmix_alpha: 1.0, probability: 1.0, switch: 0.5, smoothing: 0.1 }
    }
}

/// How one batch is mixed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mix {
    /// Share of a sample's own target, and for mixup of its own pixels.
    pub lam: f64,
    /// For CutMix the box that comes from the partner; `None` for mixup.
    pub cut: Option<Rect>,
}

impl Mix {
    /// No mixing.
    pub const NONE: Self = Self { lam: 1.0, cut: None };

    /// CutMix with a given box inside `width` x `height`; lam is the part outside it.
    pub fn cut(rect: Rect, width: usize, height: usize) -> Self {
        let lam = 1.0 - (rect.width * rect.height) as f64 / (width * height).max(1) as f64;
        Self { lam, cut: Some(rect) }
    }
}

impl Mixing {
    /// An error unless the settings can be drawn from.
    pub fn check(&self) -> Result<()> {
        for (key, given) in [("mixup", self.mixup_alpha), ("cutmix", self.cutmix_alpha)] {
            if !(0.0..=1e6).contains(&given) {
                return Err(Error::config(key, given, "0 (off) or a positive number"));
            }
        }
        let parts =
            [("mixup_prob", self.probability), ("mixup_switch_prob", self.switch), ("smoothing", self.smoothing)];
        for (key, given) in parts {
            if !(0.0..=1.0).contains(&given) {
                return Err(Error::config(key, given, "0 to 1"));
            }
        }
        Ok(())
    }

    /// Draws how a batch of images of that size is mixed.
    pub fn draw(&self, rng: &mut Stream, width: usize, height: usize) -> Mix {
        let (mixup, cutmix) = (self.mixup_alpha > 0.0, self.cutmix_alpha > 0.0);
        if !(mixup || cutmix) || !rng.chance(self.probability) {
            return Mix::NONE;
        }
        if cutmix && (!mixup || rng.chance(self.switch)) {
            let lam = rng.beta(self.cutmix_alpha, self.cutmix_alpha);
            return Mix::cut(cut_box(lam, rng.below(width), rng.below(height), width, height), width, height);
        }
        Mix { lam: rng.beta(self.mixup_alpha, self.mixup_alpha), cut: None }
    }
}

/// The box of CutMix around a middle, cut at the border.
pub fn cut_box(lam: f64, x: usize, y: usize, width: usize, height: usize) -> Rect {
    let side = |side: usize| (side as f64 * (1.0 - lam).max(0.0).sqrt()) as usize;
    let span = |middle: usize, cut: usize, side: usize| {
        let (low, high) = (middle.saturating_sub(cut / 2), (middle + cut.div_ceil(2)).min(side));
        (low.min(side), high.saturating_sub(low.min(side)))
    };
    let (left, cut_width) = span(x, side(width), width);
    let (top, cut_height) = span(y, side(height), height);
    Rect { left, top, width: cut_width, height: cut_height }
}

/// Mixes `[B, C, height, width]` in place.
pub fn mix(values: &mut [f32], batch: usize, width: usize, height: usize, how: &Mix) -> Result<()> {
    let pixels = width * height;
    if batch == 0 || pixels == 0 || !values.len().is_multiple_of(batch * pixels) {
        let expected = format!("a multiple of batch {batch} x height {height} x width {width}");
        return Err(Error::argument("mixup", "values", "length", values.len().to_string(), expected));
    }
    if let Some(rect) = how.cut {
        let inside = |first: usize, len: usize, side: usize| first.checked_add(len).is_some_and(|end| end <= side);
        if !inside(rect.left, rect.width, width) || !inside(rect.top, rect.height, height) {
            return Err(Error::value("mixup", "cut", format!("{rect:?}"), format!("inside {width} x {height}")));
        }
    } else if how.lam == 1.0 {
        return Ok(());
    }
    let sample = values.len() / batch;
    let (own, other) = (how.lam as f32, (1.0 - how.lam) as f32);
    for i in 0..batch / 2 {
        let (front, back) = values.split_at_mut((batch - 1 - i) * sample);
        let (a, b) = (&mut front[i * sample..(i + 1) * sample], &mut back[..sample]);
        match how.cut {
            None => {
                for (a, b) in a.iter_mut().zip(b) {
                    (*a, *b) = (*a * own + *b * other, *b * own + *a * other);
                }
            }
            Some(rect) => {
                let columns = rect.left..rect.left + rect.width;
                let rows = a.chunks_exact_mut(width).zip(b.chunks_exact_mut(width)).enumerate();
                for (row, (a, b)) in rows {
                    if (rect.top..rect.top + rect.height).contains(&(row % height)) {
                        a[columns.clone()].swap_with_slice(&mut b[columns.clone()]);
                    }
                }
            }
        }
    }
    // The middle sample of an odd batch is its own partner: nothing to do.
    Ok(())
}

/// Targets `[B, classes]` of a mixed batch.
pub fn soft_targets(labels: &[i32], classes: usize, smoothing: f64, lam: f64) -> Result<Vec<f32>> {
    let class = |&label: &i32| {
        let class = usize::try_from(label).ok().filter(|&class| class < classes);
        class.ok_or_else(|| {
            Error::value("soft_targets", "labels", label, format!("0 to {} (classes - 1)", classes.saturating_sub(1)))
        })
    };
    let labels = labels.iter().map(class).collect::<Result<Vec<_>>>()?;
    let off = smoothing / classes as f64;
    let on = 1.0 - smoothing + off;
    let mut targets = Vec::with_capacity(labels.len() * classes);
    for (&own, &partner) in labels.iter().zip(labels.iter().rev()) {
        let value = |hit: bool| if hit { on } else { off };
        targets.extend((0..classes).map(|k| (value(k == own) * lam + value(k == partner) * (1.0 - lam)) as f32));
    }
    Ok(targets)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::data::rng::Purpose;

    #[test]
    fn boxes_are_those_of_upstream() {
        // A box that timm 1.0.31 drew for lam 0.42 in 14 x 10 pixels, cut at the right border.
        let rect = Rect { left: 7, top: 2, width: 7, height: 7 };
        assert!((Mix::cut(rect, 14, 10).lam - 0.65).abs() < 1e-12);
        let mut middles = (0..14).flat_map(|x| (0..10).map(move |y| (x, y)));
        assert!(middles.any(|(x, y)| cut_box(0.42, x, y, 14, 10) == rect));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn identities(batch in 1usize..6, width in 1usize..9, height in 1usize..9, seed: u64, classes in 1usize..7) {
            let mut rng = Stream::new(seed, Purpose::TEST, 0, 0);
            let values: Vec<f32> = (0..batch * 3 * width * height).map(|_| rng.normal() as f32).collect();
            let labels: Vec<i32> = (0..batch).map(|_| rng.below(classes) as i32).collect();

            // lam 1 changes nothing
            let mut same = values.clone();
            mix(&mut same, batch, width, height, &Mix::NONE).unwrap();
            prop_assert_eq!(&same, &values);

            // soft targets sum to 1
            let how = Mixing::default().draw(&mut rng, width, height);
            prop_assert!((0.0..=1.0).contains(&how.lam));
            for row in soft_targets(&labels, classes, 0.1, how.lam).unwrap().chunks_exact(classes) {
                prop_assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
            }

            // CutMix: lam is the part of the pixels that stayed, and cutting twice is the identity
            let cut = Mixing { mixup_alpha: 0.0, ..Mixing::default() }.draw(&mut rng, width, height);
            let mut cut_values = values.clone();
            mix(&mut cut_values, batch, width, height, &cut).unwrap();
            if batch > 1 {
                let plane = width * height;
                let kept = cut_values[..plane].iter().zip(&values[..plane]).filter(|(a, b)| a == b).count();
                prop_assert!((kept as f64 / plane as f64 - cut.lam).abs() < 1e-9);
            }
            mix(&mut cut_values, batch, width, height, &cut).unwrap();
            prop_assert_eq!(cut_values, values);
        }
    }

    #[test]
    fn draws_switch_between_the_two() {
        let mut rng = Stream::new(0, Purpose::TEST, 0, 0);
        let draws: Vec<Mix> = (0..1000).map(|_| Mixing::default().draw(&mut rng, 32, 32)).collect();
        let cuts = draws.iter().filter(|how| how.cut.is_some()).count();
        assert!((400..600).contains(&cuts), "{cuts}"); // 500 +- 6 standard deviations
        let off = Mixing { mixup_alpha: 0.0, cutmix_alpha: 0.0, ..Mixing::default() };
        assert_eq!(off.draw(&mut rng, 8, 8), Mix::NONE);
        assert_eq!(Mixing { probability: 0.0, ..Mixing::default() }.draw(&mut rng, 8, 8), Mix::NONE);
    }

    #[test]
    fn faults_are_errors() {
        assert!(mix(&mut [0.0; 7], 2, 2, 2, &Mix::NONE).is_err());
        let outside = Mix { lam: 0.5, cut: Some(Rect { left: 1, top: 0, width: 2, height: 1 }) };
        assert!(mix(&mut [0.0; 8], 2, 2, 2, &outside).is_err());
        assert!(soft_targets(&[3], 3, 0.1, 1.0).unwrap_err().to_string().contains("0 to 2"));
        assert!(soft_targets(&[-1], 3, 0.1, 1.0).is_err());
        assert!(Mixing { smoothing: 1.5, ..Mixing::default() }.check().is_err());
        assert!(Mixing { mixup_alpha: f64::NAN, ..Mixing::default() }.check().is_err());
        assert!(Mixing::default().check().is_ok());
    }
}
