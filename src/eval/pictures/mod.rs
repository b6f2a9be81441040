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
