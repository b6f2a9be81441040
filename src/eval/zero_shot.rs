//! Classification by text: images against the embeddings of prompts about each class.
//!
//! With unit rows y_p of the prompts p about class c, and `P_c` of them,
//!
//! ```text
//! m_c = 1/P_c · sum_p y_p        w_c = m_c / (1e-8 + |m_c|)        class of x = argmax_c x · w_c
//! ```
//!
//! Scale and bias of the loss play no part. Source: big_vision at 0127fb6,
//! `evaluators/proj/image_text/discriminative_classifier.py`; Radford et al. 2021, arXiv 2103.00020, section 3.1.4.

use super::rows;
use crate::data::text::canonicalize;
use crate::ops::linear;
use crate::{Device, Error, Result, Tensor};

/// Images compared at a time: bounds memory to `BLOCK` x classes.
const BLOCK: usize = 256;

/// Where the class name goes in a template.
const SLOT: &str = "{}";

/// Prompts about classes, and the class of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompts {
    /// Texts to be embedded.
    pub texts: Vec<String>,
    /// Class of each text: the number of its name.
    pub classes: Vec<i32>,
}

impl Prompts {
    /// Every template filled with every class name: classes one after the other. Names are taken up to their first comma
    /// (what follows is another name of the same class); both are [canonicalised](canonicalize).
    ///
    /// # Errors
    /// No classes, no templates, a name of which nothing is left, or a template without `{}`.
    pub fn new<S: AsRef<str>, T: AsRef<str>>(names: &[S], templates: &[T]) -> Result<Self> {
        let op = "zero_shot";
        if names.is_empty() || templates.is_empty() {
            let given = format!("{} names, {} templates", names.len(), templates.len());
            return Err(Error::value(op, "classes, templates", given, "at least one of each"));
        }
        let templates: Vec<String> = templates.iter().map(|t| canonicalize(t.as_ref(), Some(SLOT))).collect();
        if let Some(bad) = templates.iter().find(|t| !t.contains(SLOT)) {
            return Err(Error::value(op, "templates", format!("`{bad}`"), "`{}` where the class name goes"));
        }
        let mut prompts = Self { texts: Vec::new(), classes: Vec::new() };
        for (class, name) in (0..).zip(names) {
            let first = name.as_ref().split(',').next().unwrap_or_default();
            let first = canonicalize(first, None);
            if first.is_empty() {
                return Err(Error::value(
                    op,
                    "classes",
                    format!("`{}`", name.as_ref()),
                    "a name with a letter or digit",
                ));
            }
            prompts.texts.extend(templates.iter().map(|template| template.replace(SLOT, &first)));
            prompts.classes.extend(std::iter::repeat_n(class, templates.len()));
        }
        Ok(prompts)
    }
}

/// Templates for pictures of things in general, `{}` for the class name.
pub const TEMPLATES: [&str; 16] = [
    "{}",
    "a photo of a {}",
    "a photo of the {}",
    "a close-up photo of a {}",
    "a blurry photo of a {}",
    "a dark photo of the {}",
    "a bright photo of a {}",
    "a black and white photo of the {}",
    "a photo of one {} among other things",
    "a photo of many {}",
    "a {} seen from far away",
    "part of a {}",
    "a drawing of a {}",
    "a painting of the {}",
    "a toy {}",
    "this is a {}",
];

/// The weight of each class, `[classes, d]` in f32 on the CPU, from the prompts' embeddings `[P, d]` (of any length) and
/// classes `[P]`.
///
/// # Errors
/// Shapes that do not fit, no classes, a class number out of range, a class without prompts, or an embedding that is not
/// finite.
pub fn class_weights(prompts: &Tensor, class_of: &[i32], classes: usize) -> Result<Tensor> {
    let op = "zero_shot";
    let [count, dim] = prompts.dims(op, "prompts")?;
    if count != class_of.len() {
        return Err(Error::shape(op, "prompts", prompts.shape(), format!("[{}, d]", class_of.len())));
    }
    if classes == 0 {
        return Err(Error::value(op, "classes", 0, "at least 1"));
    }
    if let Some(bad) = class_of.iter().find(|c| usize::try_from(**c).is_err() || **c as usize >= classes) {
        return Err(Error::value(op, "class_of", bad, format!("0 to {}", classes - 1)));
    }
    let unit = rows::unit(prompts)?;
    let mut sums = vec![0.0f64; classes * dim];
    let mut counts = vec![0usize; classes];
    for (row, &class) in unit.as_slice::<f32>()?.chunks_exact(dim.max(1)).zip(class_of) {
        counts[class as usize] += 1;
        let sum = &mut sums[class as usize * dim..][..dim];
        sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
    }
    if let Some(class) = counts.iter().position(|n| *n == 0) {
        return Err(Error::value(op, "class_of", format!("no prompt of class {class}"), "one for each class"));
    }
    let mut weights = Vec::with_capacity(sums.len());
    for (sum, count) in sums.chunks_exact(dim.max(1)).zip(counts) {
        let mean = || sum.iter().map(|x| x / count as f64);
        let norm = 1e-8 + mean().map(|x| x * x).sum::<f64>().sqrt();
        weights.extend(mean().map(|x| (x / norm) as f32));
    }
    Tensor::from_slice(&weights, [classes, dim], &Device::Cpu)
}

/// The class of each image, by embeddings `[N, d]` and weights `[classes, d]`; of equal ones the first.
///
/// # Errors
/// Shapes that do not fit, or an embedding that is not finite.
pub fn predict(images: &Tensor, weights: &Tensor) -> Result<Vec<i32>> {
    let op = "zero_shot";
    let [count, dim] = images.dims(op, "images")?;
    let [classes, width] = weights.dims(op, "weights")?;
    if width != dim || classes == 0 {
        return Err(Error::shape(op, "weights", weights.shape(), format!("[classes, {dim}], at least one class")));
    }
    let (images, mut found) = (rows::unit(images)?, Vec::with_capacity(count));
    for block in images.as_slice::<f32>()?.chunks(BLOCK * dim.max(1)) {
        let block = Tensor::from_slice(block, [block.len() / dim.max(1), dim], &Device::Cpu)?;
        let scores = linear::forward(&block, weights, None, None)?; // [block, classes]
        found.extend(scores.as_slice::<f32>()?.chunks_exact(classes).map(|row| {
            let best = (1..classes).fold(0, |best, c| if row[c] > row[best] { c } else { best });
            best as i32
        }));
    }
    Ok(found)
}

/// Images counted and classified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Correct {
    /// Images whose predicted class is one of their labels.
    pub correct: usize,
    /// Images that count.
    pub images: usize,
}

impl Correct {
    /// Share of the images that count; 0 of none.
    pub fn accuracy(self) -> f64 {
        self.correct as f64 / self.images.max(1) as f64
    }
}

/// Counts the right ones among `predictions` `[N]`. `labels` are `[N, m]`: any of an image's m may match, -1 fills rows up;
/// an image without a label does not count, nor does one whose `mask` is false (it fills a batch up).
///
/// # Errors
/// Lengths that do not fit.
pub fn count_correct(predictions: &[i32], labels: &[i32], mask: Option<&[bool]>) -> Result<Correct> {
    let op = "zero_shot";
    let images = predictions.len();
    if images == 0 || labels.is_empty() || !labels.len().is_multiple_of(images) {
        let expected = format!("a positive multiple of the {images} predictions");
        return Err(Error::argument(op, "labels", "length", labels.len().to_string(), expected));
    }
    if let Some(mask) = mask.filter(|mask| mask.len() != images) {
        return Err(Error::argument(op, "mask", "length", mask.len().to_string(), format!("{images}")));
    }
    let mut counted = Correct::default();
    for (image, (found, row)) in predictions.iter().zip(labels.chunks_exact(labels.len() / images)).enumerate() {
        if mask.is_none_or(|mask| mask[image]) && row.iter().any(|label| *label >= 0) {
            counted.images += 1;
            counted.correct += usize::from(row.contains(found));
        }
    }
    Ok(counted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows<const N: usize>(rows: &[[f32; N]]) -> Tensor {
        Tensor::from_slice(rows.as_flattened(), [rows.len(), N], &Device::Cpu).unwrap()
    }

    #[test]
    fn prompts_are_canonical_and_class_by_class() {
        let prompts = Prompts::new(&["Tench, Tinca tinca", "great_white shark"], &["itap of the {}.", "{}"]).unwrap();
        let expected = ["itap of the tench", "tench", "itap of the great white shark", "great white shark"];
        assert_eq!(prompts.texts, expected);
        assert_eq!(prompts.classes, [0, 0, 1, 1]);
        assert_eq!(Prompts::new(&["a"], &TEMPLATES).unwrap().texts[3], "a closeup photo of a a");
    }

    #[test]
    fn weights_are_the_means_of_unit_prompts() {
        let prompts = rows(&[[2.0, 0.0], [0.0, 0.5], [0.0, 9.0]]);
        let weights = class_weights(&prompts, &[1, 1, 0], 2).unwrap();
        let half = 0.5f32.sqrt();
        for (given, expected) in weights.to_vec::<f32>().unwrap().iter().zip([0.0, 1.0, half, half]) {
            assert!((given - expected).abs() < 1e-6, "{given} {expected}");
        }
        // Prompts that cancel leave a class without direction, not NaN.
        let weights = class_weights(&rows(&[[1.0, 0.0], [-1.0, 0.0]]), &[0, 0], 1).unwrap();
        assert_eq!(weights.to_vec::<f32>().unwrap(), [0.0, 0.0]);
        assert_eq!(predict(&rows(&[[0.3, 0.1]]), &weights).unwrap(), [0]);
    }

    #[test]
    fn predictions_do_not_depend_on_blocks() {
        let image = |i| std::array::from_fn(|j| ((i * 3 + j) as f32).sin());
        let images: Vec<[f32; 3]> = (0..BLOCK + 7).map(image).collect();
        let weights = rows(&[[1.0, 0.0, 0.2], [0.0, 1.0, 0.0], [0.5, -0.5, 0.3], [-1.0, -0.2, 0.9]]);
        let all = predict(&rows(&images), &weights).unwrap();
        let one_by_one: Vec<i32> = images.iter().map(|x| predict(&rows(&[*x]), &weights).unwrap()[0]).collect();
        assert_eq!(all, one_by_one);
        assert!((0..4).all(|class| all.contains(&class)));
    }

    #[test]
    fn any_label_counts_and_masked_images_do_not() {
        let labels = [0, -1, 2, 1, -1, -1, 1, 3];
        let counted = count_correct(&[0, 1, 1, 3], &labels, None).unwrap();
        assert_eq!(counted, Correct { correct: 3, images: 3 });
        let counted = count_correct(&[0, 1, 1, 0], &labels, Some(&[true, false, true, true])).unwrap();
        assert_eq!((counted, counted.accuracy()), (Correct { correct: 1, images: 2 }, 0.5));
        assert_eq!(Correct::default().accuracy(), 0.0);
    }

    #[test]
    fn what_is_unusable_is_named() {
        let text = |e: Error| e.to_string();
        assert!(text(Prompts::new(&[""; 0], &TEMPLATES).unwrap_err()).contains("0 names, 16 templates"));
        assert!(text(Prompts::new(&["a"], &["a photo"]).unwrap_err()).contains("`a photo`"));
        assert!(text(Prompts::new(&["..."], &TEMPLATES).unwrap_err()).contains("`...`"));
        let x = rows(&[[1.0, 0.0]]);
        assert!(text(class_weights(&x, &[0], 0).unwrap_err()).contains("classes"));
        assert!(text(class_weights(&x, &[1], 1).unwrap_err()).contains("0 to 0"));
        assert!(text(class_weights(&x, &[-1], 1).unwrap_err()).contains("-1"));
        assert!(text(class_weights(&x, &[0], 2).unwrap_err()).contains("no prompt of class 1"));
        assert!(class_weights(&x, &[0, 0], 1).is_err());
        assert!(predict(&x, &rows(&[[1.0, 0.0, 0.0]])).is_err());
        assert!(text(predict(&rows(&[[f32::NAN, 0.0]]), &x).unwrap_err()).contains("NaN in row 0"));
        assert!(text(class_weights(&rows(&[[f32::INFINITY, 0.0]]), &[0], 1).unwrap_err()).contains("inf in row 0"));
        assert!(count_correct(&[0, 1], &[0, 1, 1], None).is_err());
        assert!(count_correct(&[0, 1], &[0, 1], Some(&[true])).is_err());
    }
}
