//! Weighted k-nearest neighbours on frozen features (Wu et al. 2018, arXiv 1805.01978, section 3.4).
//!
//! Features are scaled to unit length; each of the k training samples of largest cosine similarity s votes for its class
//! with weight `exp(s / temperature)`.

use super::{Features, rows};
use crate::ops::linear;
use crate::{Device, Error, Result, Tensor};

/// Test rows compared at a time: bounds memory to `BLOCK` x training samples.
const BLOCK: usize = 256;

/// Accuracy of a vote.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Knn {
    /// Share of test samples whose first class is right.
    pub top1: f64,
    /// Share whose class is among the first five.
    pub top5: f64,
}

/// Refuses a number of voters or a temperature that no vote among `samples` can use.
pub fn check_vote(k: usize, temperature: f64, samples: usize) -> Result<()> {
    if k == 0 || k > samples {
        return Err(Error::config("k", k, format!("1 to the {samples} training samples")));
    }
    if temperature.is_nan() || temperature <= 0.0 {
        return Err(Error::config("temperature", temperature, "a number above 0"));
    }
    Ok(())
}

/// Classifies `test` by its `k` nearest neighbours in `train`.
///
/// # Errors
/// When the widths differ, labels are missing or `k` is not 1 to the number of training samples.
pub fn knn(train: &Features, test: &Features, k: usize, temperature: f64) -> Result<Knn> {
    let [n, dim] = train.values.dims("knn", "train")?;
    let [m, width] = test.values.dims("knn", "test")?;
    if width != dim {
        return Err(Error::shape("knn", "test", test.values.shape(), format!("[.., {dim}]")));
    }
    check_vote(k, temperature, n)?;
    if let Some(bad) = train.labels.iter().chain(&test.labels).find(|l| **l < 0) {
        return Err(Error::value("knn", "labels", bad, "class folders in both data sets"));
    }
    let classes = train.labels.iter().chain(&test.labels).max().map_or(0, |&l| l as usize + 1);
    let bank = rows::unit(&train.values)?;
    let queries = rows::unit(&test.values)?.to_vec::<f32>()?;
    let (mut right, mut among) = (0, 0);
    for (block, labels) in queries.chunks(BLOCK * dim).zip(test.labels.chunks(BLOCK)) {
        let block = Tensor::from_slice(block, [labels.len(), dim], &Device::Cpu)?;
        let similarity = linear::forward(&block, &bank, None, None)?; // [block, n]
        for (row, &label) in similarity.as_slice::<f32>()?.chunks_exact(n).zip(labels) {
            let ranks = vote(row, &train.labels, k, temperature, classes);
            right += usize::from(ranks.first() == Some(&(label as usize)));
            among += usize::from(ranks.iter().take(5).any(|&c| c == label as usize));
        }
    }
    Ok(Knn { top1: right as f64 / m as f64, top5: among as f64 / m as f64 })
}

/// Classes by falling votes; equal ones by number, so that the result is the same everywhere.
fn vote(similarity: &[f32], labels: &[i32], k: usize, temperature: f64, classes: usize) -> Vec<usize> {
    let mut order: Vec<u32> = (0..similarity.len() as u32).collect();
    let nearer = |a: &u32, b: &u32| similarity[*b as usize].total_cmp(&similarity[*a as usize]).then(a.cmp(b));
    order.select_nth_unstable_by(k - 1, nearer);
    let mut votes = vec![0.0; classes];
    for &i in &order[..k] {
        votes[labels[i as usize] as usize] += (f64::from(similarity[i as usize]) / temperature).exp();
    }
    let mut ranks: Vec<usize> = (0..classes).collect();
    ranks.sort_by(|&a, &b| votes[b].total_cmp(&votes[a]).then(a.cmp(&b)));
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;
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
        assert_eq!(knn(&train, &test, 2, 0.07).unwrap(), Knn { top1: 1.0, top5: 1.0 });
        // one near neighbour outweighs two far ones
        let train = features(&[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], &[0, 1, 1]);
        assert_eq!(knn(&train, &features(&[[1.0, 0.1]], &[0]), 3, 0.07).unwrap().top1, 1.0);
        assert_eq!(knn(&train, &features(&[[1.0, 0.1]], &[0]), 3, 1e6).unwrap().top1, 0.0);
    }

    #[test]
    fn unusable_settings_are_named() {
        let train = features(&[[1.0, 0.0]], &[0]);
        let test = features(&[[1.0, 0.0]], &[-1]);
        assert!(knn(&train, &train, 2, 0.07).unwrap_err().to_string().contains("`k` is 2"));
        assert!(knn(&train, &test, 1, 0.07).unwrap_err().to_string().contains("labels"));
        assert!(knn(&train, &train, 1, 0.0).unwrap_err().to_string().contains("temperature"));
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
        let score = knn(&pixels("train"), &pixels("val"), 20, 0.07).unwrap();
        // 8 classes: chance is 12.5 % with a standard deviation of 1.7 % over 400 pictures.
        assert!(score.top1 < 0.25, "{score:?}");
    }
}
