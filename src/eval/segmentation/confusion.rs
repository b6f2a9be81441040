//! How labels of pixels and predictions meet.

/// Label of pixels that do not count.
pub const IGNORED: u8 = 255;

/// Pixels by label and prediction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confusion {
    classes: usize,
    /// `[label, prediction]`.
    counts: Vec<u64>,
}

impl Confusion {
    /// Of labels and predictions below `classes`.
    pub fn new(classes: usize) -> Self {
        Self { classes, counts: vec![0; classes * classes] }
    }

    /// Counts the pixels of a map; those labelled [`IGNORED`], or beyond the classes, do not count.
    pub fn add(&mut self, labels: &[u8], predictions: &[u8]) {
        for (&label, &predicted) in labels.iter().zip(predictions) {
            let (label, predicted) = (usize::from(label), usize::from(predicted));
            if label != usize::from(IGNORED) && label < self.classes && predicted < self.classes {
                self.counts[label * self.classes + predicted] += 1;
            }
        }
    }

    /// Pixels that count.
    pub fn pixels(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Share of the pixels whose prediction is their label; 0 without pixels.
    pub fn accuracy(&self) -> f64 {
        let right: u64 = (0..self.classes).map(|c| self.counts[c * self.classes + c]).sum();
        right as f64 / (self.pixels() as f64).max(1.0)
    }

    /// Intersection over union of each class: pixels that are both labelled and predicted so, over those that are either.
    /// `None` for a class that is neither anywhere.
    pub fn ious(&self) -> Vec<Option<f64>> {
        let iou = |class: usize| {
            let labelled: u64 = self.counts[class * self.classes..(class + 1) * self.classes].iter().sum();
            let predicted: u64 = self.counts.iter().skip(class).step_by(self.classes).sum();
            let both = self.counts[class * self.classes + class];
            let either = labelled + predicted - both;
            (either > 0).then(|| both as f64 / either as f64)
        };
        (0..self.classes).map(iou).collect()
    }

    /// Mean of [`ious`](Self::ious) over the classes that occur; 0 where none does.
    pub fn mean_iou(&self) -> f64 {
        let ious: Vec<f64> = self.ious().into_iter().flatten().collect();
        ious.iter().sum::<f64>() / (ious.len() as f64).max(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unions_count_pixels_once_and_absent_classes_not_at_all() {
        let mut all = Confusion::new(4);
        // Class 0: 2 right, 1 taken for 1; class 1: 1 right; class 2: taken for 0; two ignored; class 3 nowhere.
        all.add(&[0, 0, 0, 1, 2, 255, 255], &[0, 0, 1, 1, 0, 3, 0]);
        assert_eq!(all.ious(), [Some(2.0 / 4.0), Some(1.0 / 2.0), Some(0.0), None]);
        assert_eq!((all.mean_iou(), all.accuracy(), all.pixels()), (1.0 / 3.0, 3.0 / 5.0, 5));
        // In two parts it is the same.
        let mut parts = Confusion::new(4);
        parts.add(&[0, 0, 0], &[0, 0, 1]);
        parts.add(&[1, 2, 255, 255], &[1, 0, 3, 0]);
        assert_eq!(parts, all);
    }

    #[test]
    fn nothing_is_no_division_by_zero() {
        let mut none = Confusion::new(2);
        none.add(&[255, 9], &[1, 0]);
        assert_eq!((none.mean_iou(), none.accuracy(), none.pixels()), (0.0, 0.0, 0));
    }
}
