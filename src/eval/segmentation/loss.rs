//! Logits of patches against labels of pixels.
//!
//! The logits of an image `[rows columns, classes]` are blended bilinearly at every pixel of its label map, however large;
//! the loss is the mean cross-entropy over all labelled pixels of a batch. The blended logits exist for a row of pixels at a
//! time only: they would be hundreds of times those of the patches. The blend is linear, so the gradient of a pixel goes to
//! its four patches by the same shares. On the host, image by image in parallel.

use rayon::prelude::*;

use super::confusion::IGNORED;
use crate::data::label_map::LabelMap;
use crate::data::planes::taps;
use crate::{Error, Result, Tensor};

/// Loss of a batch and its gradient by the logits.
pub struct Loss {
    /// Mean over the labelled pixels.
    pub value: f64,
    /// `[B L, classes]` f32 on the device of the logits.
    pub gradient: Tensor,
}

/// Mean cross-entropy of `logits: [B L, classes]` f32 over the labelled pixels of `maps`, one for each image; `None` where no
/// pixel is labelled.
///
/// # Errors
/// Logits that are not those of whole images, or a label beyond the classes.
pub fn loss(logits: &Tensor, grid: [usize; 2], maps: &[LabelMap]) -> Result<Option<Loss>> {
    let op = "segmentation";
    let [rows, classes] = logits.dims(op, "logits")?;
    let len = grid[0] * grid[1];
    if rows != len * maps.len() {
        return Err(Error::shape(op, "logits", logits.shape(), format!("[{} x {len}, ..]", maps.len())));
    }
    let beyond = |id: &&u8| **id != IGNORED && usize::from(**id) >= classes;
    if let Some(id) = maps.iter().flat_map(|map| &map.ids).find(beyond) {
        return Err(Error::value(op, "labels", id, format!("below {classes}, or {IGNORED} for none")));
    }
    let values = logits.to_vec::<f32>()?;
    let images = values.par_chunks_exact(len * classes).zip(maps);
    let parts: Vec<(f64, u64, Vec<f32>)> = images.map(|(logits, map)| image(logits, grid, map, classes)).collect();
    let pixels: u64 = parts.iter().map(|(_, pixels, _)| pixels).sum();
    if pixels == 0 {
        return Ok(None);
    }
    let share = 1.0 / pixels as f32;
    let gradient: Vec<f32> = parts.iter().flat_map(|(_, _, gradient)| gradient).map(|g| g * share).collect();
    let value = parts.iter().map(|(sum, ..)| sum).sum::<f64>() / pixels as f64;
    Ok(Some(Loss { value, gradient: Tensor::from_slice(&gradient, [rows, classes], logits.device())? }))
}

/// Sum of the cross-entropies of an image, its labelled pixels, and the gradient of the sum.
fn image(logits: &[f32], grid: [usize; 2], map: &LabelMap, classes: usize) -> (f64, u64, Vec<f32>) {
    let (mut sum, mut pixels, mut gradient) = (0.0, 0, vec![0.0; logits.len()]);
    let width = grid[1] * classes;
    each_row(logits, grid, [map.height, map.width], classes, |row, blended, at: Row<'_>| {
        let labels = &map.ids[row * map.width..(row + 1) * map.width];
        let mut back = vec![0.0; width]; // by the logits blended between two rows of patches
        for ((logits, &label), &(left, right, share)) in blended.chunks_exact_mut(classes).zip(labels).zip(at.across) {
            if label == IGNORED {
                continue;
            }
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let own = logits[usize::from(label)];
            let mut total = 0.0;
            for x in logits.iter_mut() {
                *x = (*x - max).exp();
                total += *x;
            }
            sum += f64::from(max + total.ln() - own);
            pixels += 1;
            for (class, p) in logits.iter().enumerate() {
                let d = p / total - f32::from(u8::from(class == usize::from(label)));
                back[left * classes + class] += (1.0 - share) * d;
                back[right * classes + class] += share * d;
            }
        }
        for (patches, share) in [(at.top, 1.0 - at.down), (at.bottom, at.down)] {
            gradient[patches * width..(patches + 1) * width].iter_mut().zip(&back).for_each(|(g, b)| *g += share * b);
        }
    });
    (sum, pixels, gradient)
}

/// Where a row of pixels lies between rows of patches, and its pixels between columns.
struct Row<'a> {
    top: usize,
    bottom: usize,
    down: f32,
    across: &'a [(usize, usize, f32)],
}

/// Calls `each` with the number of every row of pixels and its blended logits `[width, classes]`.
fn each_row(
    logits: &[f32],
    [rows, columns]: [usize; 2],
    [height, width]: [usize; 2],
    classes: usize,
    mut each: impl FnMut(usize, &mut [f32], Row<'_>),
) {
    let across = taps(width, columns);
    let (mut between, mut blended) = (vec![0.0; columns * classes], vec![0.0; width * classes]);
    for (row, (top, bottom, down)) in taps(height, rows).into_iter().enumerate() {
        let of = |patches: usize| &logits[patches * columns * classes..(patches + 1) * columns * classes];
        for (b, (t, u)) in between.iter_mut().zip(of(top).iter().zip(of(bottom))) {
            *b = t * (1.0 - down) + u * down;
        }
        for (pixel, &(left, right, share)) in blended.chunks_exact_mut(classes).zip(&across) {
            let of = |patch: usize| &between[patch * classes..(patch + 1) * classes];
            for (x, (l, r)) in pixel.iter_mut().zip(of(left).iter().zip(of(right))) {
                *x = l * (1.0 - share) + r * share;
            }
        }
        each(row, &mut blended, Row { top, bottom, down, across: &across });
    }
}

/// The class of the largest blended logit at every pixel of an image `[height, width]`; of equal ones the first.
pub fn predict(logits: &[f32], grid: [usize; 2], size: [usize; 2], classes: usize) -> Vec<u8> {
    let mut labels = Vec::with_capacity(size[0] * size[1]);
    each_row(logits, grid, size, classes, |_, blended, _| {
        let largest =
            |pixel: &[f32]| (1..classes).fold(0, |best, c| if pixel[c] > pixel[best] { c } else { best }) as u8;
        labels.extend(blended.chunks_exact(classes).map(largest));
    });
    labels
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;
    use crate::data::{Purpose, Stream};

    fn map(width: usize, ids: &[u8]) -> LabelMap {
        LabelMap { width, height: ids.len() / width, ids: ids.to_vec() }
    }

    fn tensor(values: &[f32], classes: usize) -> Tensor {
        Tensor::from_slice(values, [values.len() / classes, classes], &Device::Cpu).unwrap()
    }

    #[test]
    fn one_pixel_for_each_patch_is_plain_cross_entropy() {
        // Two patches, two classes, pixels of the same size: labels 0 and 1, logits (0, ln 3) and (0, 0).
        let logits = tensor(&[0.0, 3f32.ln(), 0.0, 0.0], 2);
        let found = loss(&logits, [1, 2], &[map(2, &[0, 1])]).unwrap().unwrap();
        assert!((found.value - (4f64.ln() + 2f64.ln()) / 2.0).abs() < 1e-6);
        let expected = [-0.75 / 2.0, 0.75 / 2.0, 0.5 / 2.0, -0.5 / 2.0];
        let gradient = found.gradient.to_vec::<f32>().unwrap();
        assert!(gradient.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{gradient:?}");
        // An ignored pixel leaves the others' mean.
        let found = loss(&logits, [1, 2], &[map(2, &[255, 1])]).unwrap().unwrap();
        assert!((found.value - 2f64.ln()).abs() < 1e-6);
        assert_eq!(found.gradient.to_vec::<f32>().unwrap(), [0.0, 0.0, 0.5, -0.5]);
        assert!(loss(&logits, [1, 2], &[map(2, &[255, 255])]).unwrap().is_none());
    }

    #[test]
    fn the_gradient_is_that_of_the_loss() {
        let (grid, classes) = ([2, 3], 3);
        let mut rng = Stream::new(0, Purpose::TEST, 0, 0);
        let mut values: Vec<f32> = (0..2 * 6 * classes).map(|_| rng.normal() as f32).collect();
        let maps = [7usize, 4].map(|width| {
            let label = |_| [0, 1, 2, 255][rng.below(4)];
            map(width, &(0..width * 5).map(label).collect::<Vec<_>>())
        });
        let of = |values: &[f32]| loss(&tensor(values, classes), grid, &maps).unwrap().unwrap();
        let gradient = of(&values).gradient.to_vec::<f32>().unwrap();
        for (at, expected) in gradient.iter().enumerate() {
            let held = values[at];
            let mut moved = |by: f32| {
                values[at] = held + by;
                of(&values).value
            };
            let slope = (moved(1e-2) - moved(-1e-2)) / 2e-2;
            values[at] = held;
            assert!((slope - f64::from(*expected)).abs() < 2e-4, "{at}: {slope} {expected}");
        }
        // Every pixel's gradient sums to 0 over the classes.
        assert!(gradient.chunks(classes).all(|g| g.iter().sum::<f32>().abs() < 1e-6));
    }

    #[test]
    fn predictions_change_where_blended_logits_cross() {
        // Class 1 by 3 at the left patch, class 0 by 1 at the right: they cross three quarters of the way.
        let logits = [0.0, 3.0, 1.0, 0.0];
        assert_eq!(predict(&logits, [1, 2], [1, 8], 2), [1, 1, 1, 1, 1, 0, 0, 0]);
        assert_eq!(predict(&[0.0, 0.0], [1, 1], [1, 1], 2), [0]);
    }

    #[test]
    fn unusable_labels_are_named() {
        let logits = tensor(&[0.0; 4], 2);
        let text = |maps: &[LabelMap]| loss(&logits, [1, 2], maps).err().unwrap().to_string();
        assert_eq!(text(&[map(2, &[0, 7])]), "segmentation: `labels` has value 7, expected below 2, or 255 for none");
        assert_eq!(text(&[]), "segmentation: `logits` has shape [2, 2], expected [0 x 2, ..]");
    }
}
