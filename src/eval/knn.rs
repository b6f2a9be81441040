//! Weighted k-nearest neighbours on frozen features (Wu et al. 2018, arXiv 1805.01978, section 3.4).
//!
//! Features are scaled to unit length. The nearest `max(k)` training samples of a test sample vote for their classes with
//! the softmax of their cosine similarities over a temperature; a smaller k counts the first of the same votes, which are
//! not made to sum to 1 again. Source: dinov2 at b8931f7, `eval/knn.py`. The scale of the votes does not change a
//! prediction, so each k predicts what it would alone.

use rayon::prelude::*;

use super::{Features, rows};
use crate::{Error, Result, Tensor};

/// Accuracy of a vote.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Knn {
    /// Share of test samples whose first class is right.
    pub top1: f64,
    /// Share whose class is among the first five.
    pub top5: f64,
}

/// The nearest rows of a bank.
#[derive(Clone, Debug, PartialEq)]
pub struct Neighbours {
    /// Neighbours of each query.
    pub k: usize,
    /// Their rows, nearest first, equally near ones by number: `[queries, k]`.
    pub indices: Vec<u32>,
    /// Their cosine similarities: `[queries, k]`.
    pub similarity: Vec<f32>,
}

/// Refuses numbers of voters or a temperature that no vote among `samples` can use.
pub fn check_vote(ks: &[usize], temperature: f64, samples: usize) -> Result<()> {
    if ks.is_empty() {
        return Err(Error::config("k", "no number", "at least one"));
    }
    if let Some(k) = ks.iter().find(|k| **k == 0 || **k > samples) {
        return Err(Error::config("k", k, format!("1 to the {samples} training samples")));
    }
    if temperature.is_nan() || temperature <= 0.0 {
        return Err(Error::config("temperature", temperature, "a number above 0"));
    }
    Ok(())
}

/// The `k` rows of `bank: [N, d]` that are nearest to each row of `queries: [M, d]` by cosine similarity.
///
/// # Errors
/// When the widths differ, `k` is not 1 to N, or a value is not finite.
pub fn neighbours(bank: &Tensor, queries: &Tensor, k: usize) -> Result<Neighbours> {
    let op = "neighbours";
    let [n, dim] = bank.dims(op, "bank")?;
    let [m, width] = queries.dims(op, "queries")?;
    if width != dim {
        return Err(Error::shape(op, "queries", queries.shape(), format!("[.., {dim}]")));
    }
    if k == 0 || k > n {
        return Err(Error::value(op, "k", k, format!("1 to the {n} rows of the bank")));
    }
    let bank = rows::unit(bank)?;
    let queries = rows::unit(queries)?;
    let mut found = Neighbours { k, indices: Vec::with_capacity(m * k), similarity: Vec::with_capacity(m * k) };
    rows::products(&queries, &bank, |block| {
        let nearest: Vec<Vec<u32>> = block.par_chunks_exact(n).map(|row| first(row, k)).collect();
        for (row, nearest) in block.chunks_exact(n).zip(nearest) {
            found.similarity.extend(nearest.iter().map(|&i| row[i as usize]));
            found.indices.extend(nearest);
        }
    })?;
    Ok(found)
}

/// Numbers of the `k` largest values, largest first, equal ones by number.
fn first(similarity: &[f32], k: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..similarity.len() as u32).collect();
    let nearer = |a: &u32, b: &u32| similarity[*b as usize].total_cmp(&similarity[*a as usize]).then(a.cmp(b));
    order.select_nth_unstable_by(k - 1, nearer);
    order.truncate(k);
    order.sort_unstable_by(nearer);
    order
}

/// Votes for each class, for each of `ks`, of the neighbours of one query: their `similarity`, nearest first, and their
/// `labels`.
pub fn votes(similarity: &[f32], labels: &[i32], ks: &[usize], temperature: f64, classes: usize) -> Vec<Vec<f64>> {
    let largest = similarity.first().map_or(0.0, |s| f64::from(*s));
    let weights: Vec<f64> = similarity.iter().map(|s| ((f64::from(*s) - largest) / temperature).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let of = |&k: &usize| {
        let mut votes = vec![0.0; classes];
        weights.iter().zip(labels).take(k).for_each(|(weight, &label)| votes[label as usize] += weight / sum);
        votes
    };
    ks.iter().map(of).collect()
}

/// Classifies `test` by its nearest neighbours in `train`, as many as each of `ks` says.
///
/// # Errors
/// When the widths differ, labels are missing or a k is not 1 to the number of training samples.
pub fn knn(train: &Features, test: &Features, ks: &[usize], temperature: f64) -> Result<Vec<Knn>> {
    check_vote(ks, temperature, train.labels.len())?;
    if let Some(bad) = train.labels.iter().chain(&test.labels).find(|l| **l < 0) {
        return Err(Error::value("knn", "labels", bad, "class folders in both data sets"));
    }
    let classes = train.labels.iter().chain(&test.labels).max().map_or(0, |&l| l as usize + 1);
    let most = ks.iter().copied().max().unwrap_or_default();
    let found = neighbours(&train.values, &test.values, most)?;
    let mut hits = vec![[0usize; 2]; ks.len()];
    let rows = found.similarity.chunks_exact(most).zip(found.indices.chunks_exact(most));
    for ((similarity, indices), &label) in rows.zip(&test.labels) {
        let labels: Vec<i32> = indices.iter().map(|&i| train.labels[i as usize]).collect();
        for (hits, votes) in hits.iter_mut().zip(votes(similarity, &labels, ks, temperature, classes)) {
            let rank = rank(&votes, label as usize);
            *hits = [hits[0] + usize::from(rank == 0), hits[1] + usize::from(rank < 5)];
        }
    }
    let share = |hits: usize| hits as f64 / test.labels.len() as f64;
    Ok(hits.into_iter().map(|[first, among]| Knn { top1: share(first), top5: share(among) }).collect())
}

/// How many classes come before that of the label: by falling votes; equal ones by number, so that the result is the same
/// everywhere.
fn rank(votes: &[f64], label: usize) -> usize {
    let before = |&(class, vote): &(usize, &f64)| *vote > votes[label] || (*vote == votes[label] && class < label);
    votes.iter().enumerate().filter(before).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;
    use crate::data::augment::Normalise;
    use crate::data::{Folder, Source, synth};

    fn features(rows: &[[f32; 2]], labels: &[i32]) -> Features {
        let values = Tensor::from_slice(rows.as_flattened(), [rows.len(), 2], &Device::Cpu).unwrap();
        Features { values, labels: labels.to_vec(), files: vec![], skipped: vec![] }
    }

    #[test]
    fn neighbours_vote_by_angle_and_weight() {
        let train = features(&[[1.0, 0.0], [10.0, 1.0], [0.0, 1.0], [0.1, 1.0]], &[0, 0, 1, 1]);
        let test = features(&[[0.2, 0.0], [0.0, 7.0]], &[0, 1]);
        assert_eq!(knn(&train, &test, &[2], 0.07).unwrap(), [Knn { top1: 1.0, top5: 1.0 }]);
        // one near neighbour outweighs two far ones
        let train = features(&[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], &[0, 1, 1]);
        let found = |temperature: f64| knn(&train, &features(&[[1.0, 0.1]], &[0]), &[1, 3], temperature).unwrap();
        assert_eq!(found(0.07).iter().map(|k| k.top1).collect::<Vec<_>>(), [1.0, 1.0]);
        assert_eq!(found(1e6).iter().map(|k| k.top1).collect::<Vec<_>>(), [1.0, 0.0]);
    }

    /// Similarities 1, 0.8 and 0.6 at temperature 0.2 weigh e^0, e^-1 and e^-2.
    #[test]
    fn a_smaller_k_counts_the_first_of_the_same_votes() {
        let e = std::f64::consts::E;
        let sum = 1.0 + 1.0 / e + 1.0 / (e * e);
        let found = votes(&[1.0, 0.8, 0.6], &[2, 0, 2], &[3, 1, 2], 0.2, 4);
        let expected = [
            [1.0 / e, 0.0, 1.0 + 1.0 / (e * e), 0.0], // all of them: together 1
            [0.0, 0.0, 1.0, 0.0],
            [1.0 / e, 0.0, 1.0, 0.0],
        ];
        for (found, expected) in found.iter().flatten().zip(expected.as_flattened()) {
            assert!((found - expected / sum).abs() < 1e-7, "{found} {expected}");
        }
        assert!((found[0].iter().sum::<f64>() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn votes_are_shares_and_the_nearest_alone_decides_for_one() {
        use crate::data::{Purpose, Stream};
        for (seed, [n, m, dim, classes]) in (0..).zip([[7, 3, 2, 2], [40, 300, 5, 6], [300, 11, 3, 1]]) {
            let mut rng = Stream::new(seed, Purpose::TEST, 0, 0);
            let mut draw = |rows: usize| {
                let values: Vec<f32> = (0..rows * dim).map(|_| rng.normal() as f32).collect();
                let labels = (0..rows).map(|_| rng.below(classes) as i32).collect();
                let values = Tensor::from_slice(&values, [rows, dim], &Device::Cpu).unwrap();
                Features { values, labels, files: vec![], skipped: vec![] }
            };
            let (train, test) = (draw(n), draw(m));
            let found = neighbours(&train.values, &test.values, 7).unwrap();
            let mut right = 0;
            for (row, similarity) in found.similarity.chunks(7).enumerate() {
                let labels: Vec<i32> =
                    found.indices[row * 7..][..7].iter().map(|&i| train.labels[i as usize]).collect();
                let [one, three, all] =
                    [0, 1, 2].map(|at| votes(similarity, &labels, &[1, 3, 7], 0.07, classes)[at].clone());
                assert!(similarity.is_sorted_by(|a, b| a >= b));
                assert!((all.iter().sum::<f64>() - 1.0).abs() < 1e-12);
                assert!(one.iter().zip(&three).zip(&all).all(|((a, b), c)| a <= b && b <= c));
                assert!(one.iter().enumerate().all(|(class, vote)| (*vote > 0.0) == (class as i32 == labels[0])));
                right += usize::from(labels[0] == test.labels[row]);
            }
            let scores = knn(&train, &test, &[7, 1], 0.07).unwrap();
            assert_eq!(scores[1].top1, right as f64 / m as f64);
            assert_eq!(scores[0], knn(&train, &test, &[7], 0.07).unwrap()[0]);
        }
    }

    #[test]
    fn equally_near_rows_come_by_number_and_lengths_play_no_part() {
        let [bank, queries] = [[[0.0, 2.0], [3.0, 0.0], [0.0, 5.0], [4.0, 3.0]], [[0.0, 1.0]; 4]]
            .map(|rows| features(&rows, &[0; 4]).values);
        let found = neighbours(&bank, &queries, 3).unwrap();
        assert_eq!((&found.indices[..3], &found.similarity[..3]), (&[0, 2, 3][..], &[1.0, 1.0, 0.6][..]));
        let longer: Vec<f32> = bank.as_slice::<f32>().unwrap().iter().map(|v| v * 4.0).collect();
        assert_eq!(
            neighbours(&Tensor::from_slice(&longer, [4, 2], &Device::Cpu).unwrap(), &queries, 3).unwrap(),
            found
        );
        let error = |k: usize| neighbours(&bank, &queries, k).unwrap_err().to_string();
        assert_eq!(error(5), "neighbours: `k` has value 5, expected 1 to the 4 rows of the bank");
    }

    #[test]
    fn unusable_settings_are_named() {
        let train = features(&[[1.0, 0.0]], &[0]);
        let test = features(&[[1.0, 0.0]], &[-1]);
        let text =
            |test: &Features, ks: &[usize], temperature| knn(&train, test, ks, temperature).unwrap_err().to_string();
        assert_eq!(text(&train, &[1, 2], 0.07), "config: `k` is 2, expected 1 to the 1 training samples");
        assert_eq!(text(&train, &[], 0.07), "config: `k` is no number, expected at least one");
        assert!(text(&test, &[1], 0.07).contains("labels"));
        assert!(text(&train, &[1], 0.0).contains("temperature"));
    }

    /// Neighbours in raw pixels say little about the class of generated pictures, so features that score well have learnt
    /// more than colours and places.
    #[test]
    fn raw_pixels_of_generated_pictures_are_poor_features() {
        let place = tempfile::tempdir().unwrap();
        let config = synth::Config { train: 800, val: 400, size: 32, ..synth::Config::default() };
        synth::generate(&config, place.path().join("data"), &|_| {}).unwrap();
        let pixels = |part: &str| {
            let folder = Folder::labelled(place.path().join("data").join(part)).unwrap();
            let images: Vec<_> = (0..folder.len()).map(|i| folder.load(i).unwrap()).collect();
            let values: Vec<f32> = images.iter().flat_map(|image| Normalise::imagenet().apply(image)).collect();
            let values =
                Tensor::from_slice(&values, [images.len(), values.len() / images.len()], &Device::Cpu).unwrap();
            Features {
                values,
                labels: (0..folder.len()).map(|i| folder.label(i)).collect(),
                files: vec![],
                skipped: vec![],
            }
        };
        let score = knn(&pixels("train"), &pixels("val"), &[20], 0.07).unwrap()[0];
        // 8 classes: chance is 12.5 % with a standard deviation of 1.7 % over 400 pictures.
        assert!(score.top1 < 0.25, "{score:?}");
    }
}
