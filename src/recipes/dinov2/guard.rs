//! Whether a run still learns: what the teacher tells images apart by, how prototypes are used, how features spread; and the
//! verdict that it has collapsed.

use std::collections::BTreeSet;

use super::model::Found;
use crate::ops::Teacher;
use crate::recipes::Numbers;
use crate::{Device, Error, Result, Tensor};

/// Shares of the teacher's logarithm of the number of prototypes, shares of rows, and of features.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Health {
    /// Mean entropy of the targets over `ln K`: 1 for targets that favour no prototype.
    pub entropy: f64,
    /// Entropy of the mean target less mean entropy of the targets, in nats: what a target says about which image it is of.
    /// 0 where all images have the same target, be it spread over all prototypes or on one.
    pub information: f64,
    /// Prototypes that are the first of some row, over the rows or the prototypes, whichever are less.
    pub usage: f64,
    /// `sqrt(1 - |mean|²)` of the class tokens at length 1: 0 where all are the same, 1 where they point everywhere.
    pub spread: f64,
    /// Directions in which the class tokens differ: the exponential of the entropy of the eigenvalues of their covariance.
    pub rank: f64,
}

impl Health {
    /// Of a step.
    ///
    /// # Errors
    /// When values cannot be read back.
    pub fn of(found: &Found) -> Result<Self> {
        let (entropy, information, usage) = targets(&found.classes)?;
        let (spread, rank) = features(&found.features)?;
        Ok(Self { entropy, information, usage, spread, rank })
    }

    /// For the log.
    pub fn numbers(&self) -> Numbers {
        vec![
            ("teacher_entropy", self.entropy),
            ("teacher_information", self.information),
            ("prototype_usage", self.usage),
            ("feature_spread", self.spread),
            ("feature_rank", self.rank),
        ]
    }
}

/// Entropy, information and usage of targets, a row at a time: no second matrix of rows and prototypes.
fn targets(teacher: &Teacher) -> Result<(f64, f64, f64)> {
    let host = |t: &Tensor| t.to_device(&Device::Cpu);
    let temp = teacher.temp().item()?;
    let (a, l) = (host(teacher.prototypes())?.to_f64()?, host(teacher.rows())?.to_f64()?);
    let logits = host(teacher.logits())?.to_f64()?;
    let (k, rows) = (a.len(), l.len());
    let (mut mean, mut entropy, mut first) = (vec![0.0; k], 0.0, BTreeSet::new());
    for (z, l) in logits.chunks_exact(k.max(1)).zip(&l) {
        let (mut largest, mut at) = (f64::NEG_INFINITY, 0);
        for ((i, (z, a)), mean) in z.iter().zip(&a).enumerate().zip(&mut mean) {
            let log = z / temp + a + l;
            let p = log.exp();
            if p > 0.0 {
                entropy -= p * log;
            }
            *mean += p / rows as f64;
            if log > largest {
                (largest, at) = (log, i);
            }
        }
        first.insert(at);
    }
    let entropy = entropy / rows.max(1) as f64;
    let together: f64 = mean.iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum();
    let most = (k as f64).ln().max(f64::MIN_POSITIVE);
    Ok((entropy / most, (together - entropy).max(0.0), first.len() as f64 / rows.min(k).max(1) as f64))
}

/// Spread and rank of features `[rows, dim]`. The eigenvalues are those of the matrix of products, as many as rows: of their
/// sum and the sum of their squares follows the rank of order 2, `(Σ λ)² / Σ λ²`.
fn features(x: &Tensor) -> Result<(f64, f64)> {
    let (values, dim) = (x.to_f64()?, x.shape()[1]);
    let mut rows: Vec<Vec<f64>> = values.chunks_exact(dim.max(1)).map(<[f64]>::to_vec).collect();
    let mut mean = vec![0.0; dim];
    let count = rows.len().max(1) as f64;
    for row in &mut rows {
        let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-12);
        row.iter_mut().zip(&mut mean).for_each(|(x, mean)| {
            *x /= norm;
            *mean += *x / count;
        });
    }
    let spread = (1.0 - mean.iter().map(|x| x * x).sum::<f64>()).max(0.0).sqrt();
    rows.iter_mut().for_each(|row| row.iter_mut().zip(&mean).for_each(|(x, mean)| *x -= mean));
    let (mut trace, mut squares) = (0.0, 0.0);
    for (i, a) in rows.iter().enumerate() {
        for (j, b) in rows.iter().enumerate() {
            let product: f64 = a.iter().zip(b).map(|(a, b)| a * b).sum();
            squares += product * product;
            trace += if i == j { product } else { 0.0 };
        }
    }
    Ok((spread, if squares > 0.0 { trace * trace / squares } else { 0.0 }))
}

/// Least information in nats that targets of a run that learns have.
const INFORMATION: f64 = 0.01;
/// Least spread of its features.
const SPREAD: f64 = 0.02;
/// Images below which targets cannot say much.
const IMAGES: usize = 4;

/// Watches the health of a run.
#[derive(Clone, Debug)]
pub struct Guard {
    /// Updates before the first verdict: at the start all features are nearly the same.
    pub grace: u64,
    /// Looks in a row that have to be bad.
    pub patience: u32,
    bad: u32,
}

impl Guard {
    /// Before the first update.
    pub fn new(grace: u64, patience: u32) -> Self {
        Self { grace, patience, bad: 0 }
    }

    /// Whether the last look was good: a state that is not is not worth keeping over one that was.
    pub fn healthy(&self) -> bool {
        self.bad == 0
    }

    /// Looks at update number `step`, of `images` images.
    ///
    /// # Errors
    /// [`Error::Training`] when the run has collapsed: what is seen, and what to try.
    pub fn look(&mut self, step: u64, images: usize, health: &Health) -> Result<()> {
        let finding = if step < self.grace || images < 2 { None } else { diagnosis(images, health) };
        let Some((seen, hint)) = finding else {
            self.bad = 0;
            return Ok(());
        };
        self.bad += 1;
        if self.bad < self.patience {
            tracing::warn!("step {step}: {seen}; look {} of {} before the run is stopped", self.bad, self.patience);
            return Ok(());
        }
        Err(Error::Training(format!(
            "step {step}: the run has collapsed: {seen}, in {} looks in a row. {hint}. No checkpoint \
             has been written since the first of them",
            self.bad
        )))
    }
}

/// What is wrong and what to try.
fn diagnosis(images: usize, health: &Health) -> Option<(String, &'static str)> {
    let Health { entropy, information, spread, .. } = *health;
    if images >= IMAGES && information < INFORMATION {
        let seen = format!(
            "the teacher's targets are the same for every image (they tell {information:.4} nats about which it is; their \
             entropy is {:.1} % of that of an even spread)",
            100.0 * entropy
        );
        let hint = if entropy > 0.95 {
            "All prototypes are equally likely: lower the teacher's temperature, raise its momentum, lower the learning \
             rate, or take fewer prototypes"
        } else {
            "The same few prototypes have all images: use --targets sinkhorn or centering, and raise the teacher's momentum"
        };
        return Some((seen, hint));
    }
    (spread < SPREAD).then(|| {
        let seen = format!("the class tokens of all images are the same (spread {spread:.4} of 1)");
        (seen, "Use --koleo-weight 0.1, a lower learning rate, a longer warm-up, or larger and more varied batches")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    fn teacher(logits: &[f32], k: usize) -> Teacher {
        let rows = logits.len() / k;
        let t = |v: &[f32], shape: &[usize]| Tensor::from_slice(v, shape.to_vec(), &Device::Cpu).unwrap();
        let sums: Vec<f32> = logits.chunks(k).map(|z| -z.iter().map(|z| z.exp()).sum::<f32>().ln()).collect();
        Teacher::new(t(logits, &[rows, k]), t(&[1.0], &[1]), t(&vec![0.0; k], &[k]), t(&sums, &[rows])).unwrap()
    }

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-5
    }

    #[test]
    fn targets_that_say_nothing_and_targets_that_say_all() {
        let (entropy, information, usage) = targets(&teacher(&[0.0; 12], 3)).unwrap();
        assert!(near(entropy, 1.0) && near(information, 0.0) && near(usage, 1.0 / 3.0));
        let one = [50.0, 0.0, 0.0].repeat(4);
        let (entropy, information, _) = targets(&teacher(&one, 3)).unwrap();
        assert!(near(entropy, 0.0) && near(information, 0.0));
        let apart = [50.0, 0.0, 0.0, 0.0, 50.0, 0.0, 0.0, 0.0, 50.0];
        let (entropy, information, usage) = targets(&teacher(&apart, 3)).unwrap();
        assert!(near(entropy, 0.0) && near(information, 3f64.ln()) && near(usage, 1.0));
    }

    #[test]
    fn features_spread_in_directions() {
        let x = |v: &[f32]| Tensor::from_slice(v, [v.len() / 2, 2], &Device::Cpu).unwrap();
        let (spread, rank) = features(&x(&[1.0, 2.0, 2.0, 4.0])).unwrap();
        assert!(spread < 1e-3 && rank.is_finite());
        let (spread, rank) = features(&x(&[1.0, 0.0, -3.0, 0.0])).unwrap();
        assert!(near(spread, 1.0) && near(rank, 1.0));
        let (_, rank) = features(&x(&[1.0, 0.0, -3.0, 0.0, 0.0, 1.0, 0.0, -2.0])).unwrap();
        assert!(near(rank, 2.0));
        let zeros = Tensor::zeros([3, 2], DType::F32, &Device::Cpu).unwrap();
        assert_eq!(features(&zeros).unwrap(), (1.0, 0.0));
    }

    const GOOD: Health = Health { entropy: 0.5, information: 1.0, usage: 0.5, spread: 0.5, rank: 5.0 };

    #[test]
    fn a_collapse_is_stopped_after_some_looks_and_named() {
        let flat = Health { entropy: 0.999, information: 0.0, ..GOOD };
        let one = Health { entropy: 0.01, information: 0.0, ..GOOD };
        let same = Health { spread: 0.001, ..GOOD };
        let cases =
            [(flat, "equally likely"), (one, "The same few prototypes have all"), (same, "class tokens of all images")];
        for (health, expected) in cases {
            let mut guard = Guard::new(10, 3);
            guard.look(9, 8, &health).unwrap();
            assert!(guard.healthy(), "in the grace");
            guard.look(10, 8, &health).unwrap();
            assert!(!guard.healthy());
            guard.look(20, 8, &GOOD).unwrap();
            assert!(guard.healthy(), "a good look forgives");
            guard.look(30, 8, &health).unwrap();
            guard.look(40, 8, &health).unwrap();
            let error = guard.look(50, 8, &health).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("step 50: the run has collapsed"), "{error}");
        }
    }

    /// Of one image nothing can be told apart.
    #[test]
    fn a_batch_of_one_image_is_not_judged() {
        let mut guard = Guard::new(0, 1);
        let dead = Health { information: 0.0, spread: 0.0, ..GOOD };
        guard.look(100, 1, &dead).unwrap();
        guard.look(100, 2, &Health { information: 0.0, ..GOOD }).unwrap();
        assert!(guard.look(100, 2, &dead).is_err());
    }
}
