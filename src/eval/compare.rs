//! Whether pre-training was worth it: k-NN accuracy of the features against those of random weights.

use std::path::Path;
use std::sync::Arc;

use super::{Kind, Knn, extract, knn};
use crate::data::Folder;
use crate::nn::Builder;
use crate::recipes::Encoder;
use crate::recipes::mae::{Classifier, Pool, load};
use crate::{DType, Device, Result};

/// Accuracies on the same images.
#[derive(Clone, Copy, Debug)]
pub struct Compared {
    /// Of the trained weights.
    pub pretrained: Knn,
    /// Of the same model before training.
    pub random: Knn,
}

/// k-NN (k = 20, temperature 0.07) of the class token of the weights at `model`, and of random weights of the same sizes.
pub fn compare_with_random(
    model: &Path,
    train: &Path,
    test: &Path,
    device: &Device,
    dtype: DType,
    seed: u64,
) -> Result<Compared> {
    let builder = Builder::new(device, dtype, seed);
    let (pretrained, sizes) = load::classifier(model, &builder, 1, Some(Pool::Cls), None)?;
    let random = Classifier::new(&builder, &sizes, 1, Pool::Cls)?;
    compare(&pretrained, &random, train, test)
}

/// The same of two encoders.
pub fn compare(pretrained: &dyn Encoder, random: &dyn Encoder, train: &Path, test: &Path) -> Result<Compared> {
    let (train, test) = (Arc::new(Folder::labelled(train)?), Arc::new(Folder::labelled(test)?));
    let accuracy = |model: &dyn Encoder| {
        let bank = extract(model, train.clone(), 64, Kind::Pooled, |_| {})?;
        let queries = extract(model, test.clone(), 64, Kind::Pooled, |_| {})?;
        Ok(knn(&bank, &queries, &[20.min(bank.labels.len())], 0.07)?.swap_remove(0))
    };
    Ok(Compared { pretrained: accuracy(pretrained)?, random: accuracy(random)? })
}
