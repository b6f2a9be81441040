//! Spherical k-means (Dhillon and Modha 2001): points and centres have unit length, a point belongs to the centre of largest
//! product, a centre is the mean of its points scaled to unit length.
//!
//! It begins with points drawn without replacement. A centre without points moves to the point that is farthest from its own
//! centre, the next such centre to the next of these. Sums are f64 in the order of the points.

use super::search::{Near, Rows, Wanted};
use crate::data::{Purpose, Stream};
use crate::{Device, Error, Result};

/// Streams of random numbers that choose the first centres.
const FIRST: Purpose = Purpose(32);

/// Centres while they move: all that a run needs to go on.
#[derive(Clone, Debug, PartialEq)]
pub struct Centres {
    /// `[k, dim]`, unit length.
    pub values: Vec<f32>,
    /// Centre of each point in the last round; empty before the first.
    pub assigned: Vec<i32>,
    /// Rounds done.
    pub round: usize,
}

impl Centres {
    /// `k` of the points `[n, dim]`.
    ///
    /// # Errors
    /// When there are fewer points than centres, or no centre.
    pub fn begin(points: &[f32], dim: usize, k: usize, seed: u64) -> Result<Self> {
        let n = points.len() / dim.max(1);
        if k == 0 || k > n {
            return Err(Error::config("clusters", k, format!("1 to the {n} images that are left of the pool")));
        }
        let mut order: Vec<usize> = (0..n).collect();
        Stream::new(seed, FIRST, 0, 0).shuffle(&mut order);
        order.truncate(k);
        let values = order.iter().flat_map(|&i| &points[i * dim..][..dim]).copied().collect();
        Ok(Self { values, assigned: Vec::new(), round: 0 })
    }

    /// The centre of each point and how near it is; of equal ones the first.
    ///
    /// # Errors
    /// Those of the device.
    pub fn assign(&self, points: &[f32], dim: usize, device: &Device) -> Result<Vec<Near>> {
        let wanted = Wanted { k: 1, above: f32::NEG_INFINITY, views: 1, own: None };
        let found = Rows::new(&self.values, dim, device)?.nearest(points, &wanted)?;
        Ok(found.into_iter().flatten().collect())
    }

    /// One round: moves every centre to the mean of its points. Whether all points were where the last round had left them,
    /// so that further rounds change nothing.
    ///
    /// # Errors
    /// Those of the device.
    pub fn step(&mut self, points: &[f32], dim: usize, device: &Device) -> Result<bool> {
        let near = self.assign(points, dim, device)?;
        let assigned: Vec<i32> = near.iter().map(|near| near.index as i32).collect();
        let settled = assigned == self.assigned;
        if !settled {
            self.values = means(points, dim, self.values.len() / dim, &near);
        }
        (self.assigned, self.round) = (assigned, self.round + 1);
        Ok(settled)
    }
}

fn means(points: &[f32], dim: usize, k: usize, assigned: &[Near]) -> Vec<f32> {
    let (mut sums, mut counts) = (vec![0f64; k * dim], vec![0usize; k]);
    for (point, near) in points.chunks_exact(dim).zip(assigned) {
        let centre = near.index as usize;
        counts[centre] += 1;
        sums[centre * dim..][..dim].iter_mut().zip(point).for_each(|(sum, v)| *sum += f64::from(*v));
    }
    let mut far: Vec<usize> = (0..if counts.contains(&0) { assigned.len() } else { 0 }).collect();
    far.sort_by(|&a, &b| assigned[a].similarity.total_cmp(&assigned[b].similarity).then(a.cmp(&b)));
    let mut far = far.into_iter();
    let mut values = Vec::with_capacity(k * dim);
    for (sum, count) in sums.chunks_exact(dim).zip(counts) {
        if let Some(point) = if count == 0 { far.next() } else { None } {
            values.extend_from_slice(&points[point * dim..][..dim]);
        } else {
            let norm = sum.iter().map(|v| v * v).sum::<f64>().sqrt().max(1e-12);
            values.extend(sum.iter().map(|v| (v / norm) as f32));
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(degrees: f64) -> [f32; 2] {
        [degrees.to_radians().cos() as f32, degrees.to_radians().sin() as f32]
    }

    #[test]
    fn three_heaps_on_a_circle() {
        let points: Vec<f32> = [0.0, 2.0, 4.0, 90.0, 94.0, 200.0].iter().flat_map(|&d| at(d)).collect();
        let mut right = 0;
        for seed in 0..20 {
            let mut centres = Centres::begin(&points, 2, 3, seed).unwrap();
            let rounds = (1..20).find(|_| centres.step(&points, 2, &Device::Cpu).unwrap()).unwrap();
            assert_eq!(rounds, centres.round);
            let near = centres.assign(&points, 2, &Device::Cpu).unwrap();
            assert!(near.iter().zip(&centres.assigned).all(|(near, at)| near.index as i32 == *at));
            let [a, b, c] = [near[0].index, near[3].index, near[5].index];
            if near.iter().map(|n| n.index).collect::<Vec<_>>() != [a, a, a, b, b, c] || b == c {
                continue; // two of the first centres lay in one heap, and it stays in parts
            }
            right += 1;
            for (centre, degrees) in [(a, 2.0), (b, 92.0), (c, 200.0)] {
                let found = &centres.values[centre as usize * 2..][..2];
                assert!(found.iter().zip(at(degrees)).all(|(f, e)| (f - e).abs() < 1e-6), "{found:?} {degrees}");
            }
        }
        assert!(right >= 8, "{right} of 20");
    }

    #[test]
    fn a_centre_without_points_moves_to_the_farthest_point() {
        let points: Vec<f32> = [0.0, 10.0, 50.0].iter().flat_map(|&d| at(d)).collect();
        let values = [at(1.0), at(180.0)].concat();
        let mut centres = Centres { values, assigned: vec![], round: 0 };
        assert!(!centres.step(&points, 2, &Device::Cpu).unwrap());
        assert_eq!(centres.assigned, [0, 0, 0]);
        assert_eq!(centres.values[2..], at(50.0));
    }

    #[test]
    fn the_same_seed_gives_the_same_centres_on_any_number_of_threads() {
        let mut rng = Stream::new(3, Purpose::TEST, 0, 0);
        let mut points: Vec<f32> = (0..500 * 8).map(|_| rng.normal() as f32).collect();
        for point in points.chunks_mut(8) {
            let norm = point.iter().map(|v| v * v).sum::<f32>().sqrt();
            point.iter_mut().for_each(|v| *v /= norm);
        }
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut centres = Centres::begin(&points, 8, 17, 5).unwrap();
                while centres.round < 6 && !centres.step(&points, 8, &Device::Cpu).unwrap() {}
                centres
            })
        };
        let one = run(1);
        assert_eq!(one, run(3));
        // Nearer than at the beginning.
        let total = |c: &Centres| c.assign(&points, 8, &Device::Cpu).unwrap().iter().map(|n| n.similarity).sum::<f32>();
        assert!(total(&one) > total(&Centres::begin(&points, 8, 17, 5).unwrap()) + 10.0);
    }

    #[test]
    fn impossible_numbers_of_clusters_are_named() {
        for k in [0, 3] {
            let message = Centres::begin(&[1.0, 0.0, 0.0, 1.0], 2, k, 0).unwrap_err().to_string();
            let expected = "1 to the 2 images that are left of the pool";
            assert_eq!(message, format!("config: `clusters` is {k}, expected {expected}"));
        }
    }
}
