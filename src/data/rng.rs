//! Random numbers addressed by counters: what a sample draws depends on (seed, purpose, epoch, index) and on
//! nothing else.
//!
//! A [`Stream`] is a ChaCha8 key stream whose 256-bit key is exactly those four numbers, so any two streams are
//! independent, no stream has to be handed from thread to thread, and a run can be resumed at any sample without
//! replaying the earlier ones. A position inside a stream is a plain number ([`Stream::position`]).
//!
//! The distributions are written out here rather than taken from a crate: their results are part of what "same
//! seed, same run" promises and must not change with a dependency.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// What a stream is used for. Streams of different purposes never share numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Purpose(pub u64);

impl Purpose {
    /// Order of the samples in an epoch; index 0.
    pub const SHUFFLE: Self = Self(1);
    /// Crops, mirrors and colour changes of one sample; index = sample.
    pub const AUGMENT: Self = Self(2);
    /// Mixing of one batch; index = step in the epoch.
    pub const MIX: Self = Self(3);
    /// Noise that orders the patches of one image; index = sample.
    pub const MASK: Self = Self(4);
    /// Initial weights; index = parameter.
    pub const INIT: Self = Self(5);
    /// Stochastic depth and dropout; index = step in the epoch.
    pub const DROP: Self = Self(6);
    /// Generated data; index = picture or clip.
    pub const SYNTH: Self = Self(7);
    /// Anything a test draws.
    pub const TEST: Self = Self(8);
    /// Which caption an image has; index = sample.
    pub const CAPTION: Self = Self(16);
    /// Blocks of patches that are hidden in the views of one batch; index = step in the epoch.
    pub const BLOCKS: Self = Self(17);
    /// Frames and objects of a clip; index = sample.
    pub const CLIP: Self = Self(18);
    /// Simulated prompts of a clip; index = step in the epoch.
    pub const CLICK: Self = Self(19);
}

/// A random number stream; see the module documentation.
#[derive(Clone, Debug)]
pub struct Stream {
    rng: ChaCha8Rng,
    /// Second value of the last pair that [`Stream::normal`] produced.
    spare: Option<f64>,
}

impl Stream {
    /// The stream of these four numbers, at its beginning.
    pub fn new(seed: u64, purpose: Purpose, epoch: u64, index: u64) -> Self {
        let mut key = [0u8; 32];
        for (bytes, word) in key.chunks_exact_mut(8).zip([seed, purpose.0, epoch, index]) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        Self { rng: ChaCha8Rng::from_seed(key), spare: None }
    }

    /// 32-bit words used so far. With the four numbers of [`Stream::new`] it is all there is to save.
    pub fn position(&self) -> u64 {
        self.rng.get_word_pos() as u64
    }

    /// Moves to a position that [`Stream::position`] gave.
    pub fn seek(&mut self, position: u64) {
        self.rng.set_word_pos(u128::from(position));
        self.spare = None;
    }

    /// 32 uniform bits.
    pub fn bits(&mut self) -> u32 {
        self.rng.next_u32()
    }

    /// Uniform in [0, 1), a multiple of 2^-24.
    pub fn unit_f32(&mut self) -> f32 {
        (self.rng.next_u32() >> 8) as f32 * (1.0 / (1u32 << 24) as f32)
    }

    /// Uniform in [0, 1), a multiple of 2^-53.
    pub fn unit(&mut self) -> f64 {
        (self.rng.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in [low, high).
    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Uniform integer in 0..n, without bias (multiplication and rejection, D. Lemire 2019, "Fast Random Integer
    /// Generation in an Interval"); 0 if n is 0.
    pub fn below(&mut self, n: usize) -> usize {
        let n = n as u64;
        let mut product = u128::from(self.rng.next_u64()) * u128::from(n);
        if (product as u64) < n {
            let threshold = n.wrapping_neg().checked_rem(n).unwrap_or(0);
            while (product as u64) < threshold {
                product = u128::from(self.rng.next_u64()) * u128::from(n);
            }
        }
        (product >> 64) as usize
    }

    /// True with probability p.
    pub fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    /// Standard normal (Box and Muller 1958). Values come in pairs; the second of a pair is kept for the next call.
    pub fn normal(&mut self) -> f64 {
        if let Some(value) = self.spare.take() {
            return value;
        }
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt(); // 1 - u lies in (0, 1]: the logarithm is finite
        let (sin, cos) = (std::f64::consts::TAU * self.unit()).sin_cos();
        self.spare = Some(radius * sin);
        radius * cos
    }

    /// Gamma with shape a > 0 and scale 1 (Marsaglia and Tsang 2000; for a < 1 through a + 1).
    pub fn gamma(&mut self, a: f64) -> f64 {
        if a < 1.0 {
            let boost = (1.0 - self.unit()).powf(1.0 / a);
            return self.gamma(a + 1.0) * boost;
        }
        let d = a - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && (1.0 - self.unit()).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v;
            }
        }
    }

    /// Beta with parameters a, b > 0.
    pub fn beta(&mut self, a: f64, b: f64) -> f64 {
        let (x, y) = (self.gamma(a), self.gamma(b));
        // Both can underflow to zero when a and b are tiny; the distribution is then all but two points.
        if x + y > 0.0 { x / (x + y) } else { f64::from(u8::from(self.chance(0.5))) }
    }

    /// One of the items, uniformly; `None` if there are none.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        items.get(self.below(items.len()))
    }

    /// Puts the items into a uniformly random order (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(index: u64) -> Stream {
        Stream::new(7, Purpose::TEST, 3, index)
    }

    #[test]
    fn equal_numbers_give_equal_streams_and_any_other_number_another() {
        let draw = |mut s: Stream| (0..4).map(|_| s.bits()).collect::<Vec<_>>();
        let base = draw(stream(0));
        assert_eq!(base, draw(stream(0)));
        for other in [
            Stream::new(8, Purpose::TEST, 3, 0),
            Stream::new(7, Purpose::MASK, 3, 0),
            Stream::new(7, Purpose::TEST, 4, 0),
            stream(1),
        ] {
            assert_ne!(base, draw(other));
        }
    }

    #[test]
    fn values_never_change_between_releases() {
        let mut s = Stream::new(1, Purpose::AUGMENT, 2, 3);
        assert_eq!([s.bits(), s.bits()], FIRST_WORDS);
    }
    const FIRST_WORDS: [u32; 2] = [1_188_757_468, 1_797_758_378];

    #[test]
    fn seek_returns_to_a_saved_position() {
        let mut s = stream(0);
        for _ in 0..37 {
            s.bits();
        }
        s.unit();
        let at = s.position();
        assert_eq!(at, 39);
        let next: Vec<_> = (0..5).map(|_| s.bits()).collect();
        let mut t = stream(0);
        t.seek(at);
        assert_eq!(next, (0..5).map(|_| t.bits()).collect::<Vec<_>>());
    }

    #[test]
    fn moments_of_the_distributions() {
        let mut s = stream(5);
        let n = 40_000;
        let mut check = |name: &str, mean: f64, var: f64, mut draw: Box<dyn FnMut(&mut Stream) -> f64>| {
            let x: Vec<f64> = (0..n).map(|_| draw(&mut s)).collect();
            let m = x.iter().sum::<f64>() / f64::from(n);
            let v = x.iter().map(|x| (x - m) * (x - m)).sum::<f64>() / f64::from(n);
            // Five standard errors of the mean; a variance estimate of these laws is within 10 % at 40 000 draws.
            assert!((m - mean).abs() < 5.0 * (var / f64::from(n)).sqrt(), "{name}: mean {m}, expected {mean}");
            assert!((v / var - 1.0).abs() < 0.1, "{name}: variance {v}, expected {var}");
        };
        check("uniform", 0.5, 1.0 / 12.0, Box::new(Stream::unit));
        check("uniform f32", 0.5, 1.0 / 12.0, Box::new(|s| f64::from(s.unit_f32())));
        check("normal", 0.0, 1.0, Box::new(Stream::normal));
        check("gamma", 2.5, 2.5, Box::new(|s| s.gamma(2.5)));
        check("gamma below 1", 0.8, 0.8, Box::new(|s| s.gamma(0.8)));
        check("beta", 0.5, 0.25 / 2.6, Box::new(|s| s.beta(0.8, 0.8)));
        check("below", 3.0, 4.0, Box::new(|s| s.below(7) as f64));
    }

    #[test]
    fn shuffle_is_a_permutation_and_below_stays_below() {
        let mut s = stream(9);
        let mut items: Vec<usize> = (0..100).collect();
        s.shuffle(&mut items);
        let mut sorted = items.clone();
        sorted.sort_unstable();
        assert_ne!(items, sorted);
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        assert_eq!(s.below(0), 0);
        assert!((0..1000).all(|_| s.below(3) < 3));
        assert!(s.pick::<u8>(&[]).is_none());
    }
}
