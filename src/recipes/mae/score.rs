//! How well a classifier does on labelled images.

use std::sync::Arc;

use crate::data::loader::Options;
use crate::data::{Batch, Folder, Loader, transforms};
use crate::{Error, Result, Tensor};

/// Accuracy and loss on every readable image of a folder.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// Share of images whose largest logit is that of the label; of equal ones the first counts.
    pub top1: f64,
    /// Share whose label is among the five largest logits.
    pub top5: f64,
    /// Mean cross-entropy, without smoothing.
    pub loss: f64,
}

/// Scores what `logits: [B, classes]` says of batches of images of `size`, resized and cropped as for evaluation.
///
/// # Errors
/// When no image is readable.
pub fn score(
    folder: Arc<Folder>,
    size: [usize; 2],
    batch: usize,
    mut logits: impl FnMut(&Batch<u8>) -> Result<Tensor>,
) -> Result<Score> {
    let root = folder.root().to_path_buf();
    let (mut first, mut among, mut loss, mut seen) = (0, 0, 0.0, 0);
    for batch in Loader::new(folder, transforms::evaluate(size)?, Options::evaluation(batch))? {
        let batch = batch?;
        if batch.labels.is_empty() {
            continue; // every image of the batch was unreadable
        }
        let logits = logits(&batch)?;
        let [_, classes] = logits.dims("score", "logits")?;
        for (row, &label) in logits.to_f64()?.chunks_exact(classes).zip(&batch.labels) {
            let label = label as usize;
            let rank = rank(row, label);
            first += usize::from(rank == 0);
            among += usize::from(rank < 5);
            let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            loss += max + row.iter().map(|x| (x - max).exp()).sum::<f64>().ln() - row[label];
        }
        seen += batch.labels.len();
    }
    if seen == 0 {
        return Err(Error::Dataset { path: root, cause: "no readable image".into() });
    }
    let n = seen as f64;
    Ok(Score { top1: first as f64 / n, top5: among as f64 / n, loss: loss / n })
}

/// How many logits come before that of the label.
fn rank(row: &[f64], label: usize) -> usize {
    let before = |&(i, x): &(usize, &f64)| x.total_cmp(&row[label]).then(label.cmp(&i)).is_gt();
    row.iter().enumerate().filter(before).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_equal_logits_the_first_is_before() {
        let row = [1.0, 3.0, 3.0, -2.0];
        assert_eq!([0, 1, 2, 3].map(|label| rank(&row, label)), [2, 0, 1, 3]);
    }
}
