//! The numbers that change from update to update: learning rate, weight decay, momentum of the teacher, temperature of its
//! targets, and for how long the last layer rests.
//!
//! Source: dinov2 at b8931f7, `utils/utils.py` (CosineScheduler) and `train/train.py` (build_schedulers).

use std::f64::consts::PI;

use crate::optim::Rates;

/// A value per update, counted from 0: for `i < W` linear from `start` to `base`, which is reached at `i = W - 1` and stands at
/// `i = W` again, then `end + (base - end)·(1 + cos(π (i - W) / (T - W))) / 2`, and `end` from `i = T` on. The value at
/// `T - 1` is not quite `end`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Curve {
    /// At the first update of the warm-up.
    pub start: f64,
    /// At the end of the warm-up.
    pub base: f64,
    /// From the end on.
    pub end: f64,
    /// Updates of the warm-up, W.
    pub warmup: u64,
    /// Updates in all, T.
    pub total: u64,
}

impl Curve {
    /// Half a cosine without warm-up.
    pub fn cosine(base: f64, end: f64, total: u64) -> Self {
        Self { start: base, base, end, warmup: 0, total }
    }

    /// A line, and what it reached from its end on.
    pub fn line(start: f64, end: f64, total: u64) -> Self {
        Self { start, base: end, end, warmup: total, total }
    }

    /// The value at an update.
    pub fn at(&self, step: u64) -> f64 {
        let &Self { start, base, end, warmup, total } = self;
        if step >= total {
            return end;
        }
        if step < warmup {
            // A warm-up of one update is at its start.
            return start + (base - start) * (step as f64 / (warmup - 1).max(1) as f64);
        }
        let progress = (step - warmup) as f64 / (total - warmup) as f64;
        end + 0.5 * (base - end) * (1.0 + (PI * progress).cos())
    }
}

/// Learning rate of a batch of `batch` images from one stated per 1024.
pub fn scaled_lr(base: f64, batch: usize) -> f64 {
    base * (batch as f64 / 1024.0).sqrt()
}

/// All schedules of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedules {
    /// Learning rate.
    pub lr: Curve,
    /// Weight decay.
    pub weight_decay: Curve,
    /// Momentum of the teacher.
    pub momentum: Curve,
    /// Temperature of the teacher's targets.
    pub teacher_temp: Curve,
    /// Updates in which the last layer rests.
    pub freeze_last_layer: u64,
}

impl Schedules {
    /// Learning rate of the last layer.
    pub fn last_layer_lr(&self, step: u64) -> f64 {
        if self.frozen(step) { 0.0 } else { self.lr.at(step) }
    }

    /// What steers update number `step`, for [rules](crate::optim::Rules) whose weight decay is 1.
    pub fn rates(&self, step: u64) -> Rates {
        Rates {
            lr: self.lr.at(step),
            decay: self.weight_decay.at(step),
            momentum: self.momentum.at(step),
            freeze_last_layer: self.frozen(step),
        }
    }

    fn frozen(&self, step: u64) -> bool {
        step < self.freeze_last_layer.min(self.lr.total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_stands_twice_and_the_end_comes_late() {
        let lr = Curve { start: 0.0, base: 8.0, end: 2.0, warmup: 5, total: 9 };
        let values: Vec<f64> = (0..11).map(|i| lr.at(i)).collect();
        let half = 3.0 * 0.5f64.sqrt(); // 3·cos(π/4)
        let expected = [0.0, 2.0, 4.0, 6.0, 8.0, 8.0, 5.0 + half, 5.0, 5.0 - half, 2.0, 2.0];
        assert!(values.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{values:?}");
    }

    #[test]
    fn short_runs_have_no_division_by_zero() {
        let one = Curve { start: 1.0, base: 3.0, end: 0.0, warmup: 1, total: 1 };
        assert_eq!((one.at(0), one.at(1)), (1.0, 0.0));
        assert_eq!(Curve::cosine(3.0, 1.0, 0).at(0), 1.0);
        let long = Curve { start: 0.0, base: 3.0, end: 1.0, warmup: 7, total: 3 };
        assert_eq!([0, 2, 3].map(|i| long.at(i)), [0.0, 1.0, 1.0]);
        let line = Curve::line(0.04, 0.07, 4);
        assert!([0.04, 0.05, 0.06, 0.07, 0.07].iter().enumerate().all(|(i, x)| (line.at(i as u64) - x).abs() < 1e-15));
    }

    #[test]
    fn the_last_layer_rests_first_and_the_momentum_never_falls() {
        let schedules = Schedules {
            lr: Curve { start: 0.0, base: 4e-3, end: 1e-6, warmup: 10, total: 100 },
            weight_decay: Curve::cosine(0.04, 0.4, 100),
            momentum: Curve::cosine(0.992, 1.0, 100),
            teacher_temp: Curve::line(0.04, 0.07, 30),
            freeze_last_layer: 3,
        };
        assert_eq!([0, 2].map(|i| schedules.last_layer_lr(i)), [0.0, 0.0]);
        assert_eq!([3, 50, 200].map(|i| schedules.last_layer_lr(i) == schedules.lr.at(i)), [true; 3]);
        let expected = Rates {
            lr: schedules.lr.at(2),
            decay: schedules.weight_decay.at(2),
            momentum: schedules.momentum.at(2),
            freeze_last_layer: true,
        };
        assert_eq!(schedules.rates(2), expected);
        assert!(!schedules.rates(3).freeze_last_layer);
        assert!((0..120).all(|i| schedules.momentum.at(i) <= schedules.momentum.at(i + 1)));
        assert_eq!(schedules.momentum.at(100), 1.0);
        assert_eq!(scaled_lr(2e-4, 4096), 4e-4);
        // A run that ends before its last layer would have moved.
        let short = Schedules { lr: Curve { total: 2, ..schedules.lr }, ..schedules };
        assert_eq!([1, 2].map(|i| short.last_layer_lr(i)), [0.0, 1e-6]);
    }
}
