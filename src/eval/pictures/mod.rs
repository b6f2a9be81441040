//! Pictures of what an encoder sees: components of its patches, attention of its class token, nearest neighbours.

pub mod attention;
pub mod components;
pub mod neighbours;

use crate::data::augment::evaluation_crop;
use crate::data::{Folder, Image, Source};
use crate::{Device, Error, Result, Tensor};

/// Side of a picture in a sheet, in pixels.
const SIDE: usize = 224;
/// White pixels around each.
const PAD: usize = 4;

/// At most `count` images, spread over a folder, and their numbers: resized and cropped to `[height, width]` as for
/// evaluation. Those that cannot be read are named and left out.
///
/// # Errors
/// A count of 0; no readable image.
pub fn spread(folder: &Folder, count: usize, size: [usize; 2]) -> Result<Vec<(usize, Image)>> {
    if count == 0 {
        return Err(Error::config("count", 0, "at least 1"));
    }
    let stride = (folder.len() / count).max(1);
    let mut images = Vec::new();
    for index in (0..folder.len()).step_by(stride).take(count) {
        match folder.load(index) {
            Ok(image) => images.push((index, evaluation_crop(&image, size)?)),
            Err(e) => tracing::warn!("skipped {e}"),
        }
    }
    if images.is_empty() {
        return Err(Error::Dataset { path: folder.root().into(), cause: "no readable image".into() });
    }
    Ok(images)
}

/// Images of one size as an encoder takes them: `[B, 3, H, W]` u8.
fn batch(images: &[Image], device: &Device) -> Result<Tensor> {
    let [height, width] = images.first().map_or([0; 2], |image| [image.height, image.width]);
    let planes: Vec<u8> = images.iter().flat_map(Image::to_planes).collect();
    Tensor::from_slice(&planes, [images.len(), 3, height, width], device)
}

/// Values of patches `[rows, columns]` at the size of an image, bilinearly.
fn upsample(values: &[f64], [rows, columns]: [usize; 2], [height, width]: [usize; 2]) -> Vec<f64> {
    // Half pixel centres: patch i covers i/rows to (i + 1)/rows of the image.
    let taps = |at: usize, length: usize, patches: usize| {
        let place = ((at as f64 + 0.5) * patches as f64 / length as f64 - 0.5).clamp(0.0, (patches - 1) as f64);
        let first = place as usize;
        (first, (first + 1).min(patches - 1), place - first as f64)
    };
    let mut out = Vec::with_capacity(height * width);
    for y in 0..height {
        let (top, bottom, down) = taps(y, height, rows);
        for x in 0..width {
            let (left, right, across) = taps(x, width, columns);
            let row = |at: usize| values[at * columns + left] * (1.0 - across) + values[at * columns + right] * across;
            out.push(row(top) * (1.0 - down) + row(bottom) * down);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_are_blended_between_their_middles() {
        let up = upsample(&[0.0, 4.0], [1, 2], [1, 8]);
        assert_eq!(up, [0.0, 0.0, 0.5, 1.5, 2.5, 3.5, 4.0, 4.0]);
        assert_eq!(upsample(&[7.0], [1, 1], [2, 3]), [7.0; 6]);
        assert_eq!(upsample(&[1.0, 2.0, 3.0, 4.0], [2, 2], [2, 2]), [1.0, 2.0, 3.0, 4.0]);
    }
}
