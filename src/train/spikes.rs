//! Notices a loss far above those before it.

use std::collections::VecDeque;

/// Losses of so many steps are looked back on.
const WINDOW: usize = 64;
/// Of fewer steps nothing is said.
const ENOUGH: usize = 16;
/// A loss is a spike from so many times the median on.
const FACTOR: f64 = 3.0;

/// The losses of the last steps. A run that is continued begins with none: they change what is said, not what is done.
#[derive(Default)]
pub(super) struct Spikes(VecDeque<f64>);

impl Spikes {
    /// Takes in a loss; the median of those before it if it is far above that.
    pub fn look(&mut self, loss: f64) -> Option<f64> {
        let mut sorted: Vec<f64> = self.0.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        let median = sorted.get(sorted.len() / 2).copied().filter(|_| sorted.len() >= ENOUGH);
        if self.0.len() == WINDOW {
            self.0.pop_front();
        }
        self.0.push_back(loss);
        median.filter(|median| loss > FACTOR * median && *median > 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spike_is_far_above_the_median_and_only_then_one() {
        let mut spikes = Spikes::default();
        assert_eq!(spikes.look(100.0), None, "nothing to compare with");
        for i in 1..ENOUGH {
            assert_eq!(spikes.look(10.0 + i as f64 / 10.0), None);
        }
        let mut median = spikes.look(40.0).unwrap();
        assert!((10.0..11.6).contains(&median), "{median}");
        assert_eq!(spikes.look(2.9 * median), None);
        median = spikes.look(3.1 * median).unwrap();
        assert!((10.0..11.6).contains(&median), "single spikes do not move it");
        let seen = (0..WINDOW).filter(|_| spikes.look(40.0).is_some()).count();
        assert!((1..WINDOW * 2 / 3).contains(&seen), "a loss that stays is no spike: {seen}");
        assert_eq!(spikes.0.len(), WINDOW);
    }
}
