//! An 8-bit RGB picture in host memory, and how it is written.

use std::path::Path;

use crate::{Error, Result};

/// An 8-bit RGB image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Columns, W.
    pub width: usize,
    /// Rows, H.
    pub height: usize,
    /// Pixels, row by row, the three channels of a pixel side by side: `[H, W, 3]`.
    pub data: Vec<u8>,
}

/// A rectangle of pixels inside an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rect {
    /// First column.
    pub left: usize,
    /// First row.
    pub top: usize,
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

impl Image {
    /// An image of the given pixels, `[H, W, 3]`.
    pub fn new(width: usize, height: usize, data: Vec<u8>) -> Result<Self> {
        if width == 0 || height == 0 || Some(data.len()) != byte_len(width, height) {
            return Err(Error::argument(
                "image",
                "data",
                "length",
                data.len().to_string(),
                format!("height {height} x width {width} x 3, both at least 1"),
            ));
        }
        Ok(Self { width, height, data })
    }

    /// An image of one colour. Sides of 0 are taken as 1.
    pub fn filled(width: usize, height: usize, colour: [u8; 3]) -> Self {
        let (width, height) = (width.max(1), height.max(1));
        Self { width, height, data: colour.repeat(width * height) }
    }

    /// The rectangle that covers all of it.
    pub fn rect(&self) -> Rect {
        Rect { left: 0, top: 0, width: self.width, height: self.height }
    }

    /// The pixel at column x and row y.
    pub fn pixel(&self, x: usize, y: usize) -> [u8; 3] {
        let at = (y * self.width + x) * 3;
        [self.data[at], self.data[at + 1], self.data[at + 2]]
    }

    /// A copy of the part inside `rect`.
    pub fn crop(&self, rect: Rect) -> Result<Self> {
        rect.check_inside("crop", self)?;
        let mut data = Vec::with_capacity(rect.width * rect.height * 3);
        for y in rect.top..rect.top + rect.height {
            let from = (y * self.width + rect.left) * 3;
            data.extend_from_slice(&self.data[from..from + rect.width * 3]);
        }
        Ok(Self { width: rect.width, height: rect.height, data })
    }

    /// Left and right exchanged.
    pub fn mirrored(&self) -> Self {
        let mut data = Vec::with_capacity(self.data.len());
        for row in self.data.chunks_exact(self.width * 3) {
            for pixel in row.rchunks_exact(3) {
                data.extend_from_slice(pixel);
            }
        }
        Self { width: self.width, height: self.height, data }
    }

    /// The pixels plane by plane, `[3, H, W]`: the layout of a batch.
    pub fn to_planes(&self) -> Vec<u8> {
        let mut planes = Vec::with_capacity(self.data.len());
        for channel in 0..3 {
            planes.extend(self.data[channel..].iter().step_by(3));
        }
        planes
    }

    /// The image whose planes `[3, H, W]` are given.
    pub fn from_planes(width: usize, height: usize, planes: &[u8]) -> Result<Self> {
        let mut data = vec![0; planes.len()];
        if width * height > 0 && planes.len() == 3 * width * height {
            for (channel, plane) in planes.chunks_exact(width * height).enumerate() {
                for (pixel, &value) in data.chunks_exact_mut(3).zip(plane) {
                    pixel[channel] = value;
                }
            }
        }
        Self::new(width, height, data)
    }

    /// Bytes of a PNG file.
    pub fn to_png(&self) -> Result<Vec<u8>> {
        encode(Path::new("png"), &self.data, self.width, self.height, image::ExtendedColorType::Rgb8)
    }

    /// Writes a PNG file.
    pub fn save_png(&self, path: impl AsRef<Path>) -> Result<()> {
        save(path.as_ref(), &self.data, self.width, self.height, image::ExtendedColorType::Rgb8)
    }
}

/// Writes a one-channel 8-bit PNG: `pixels` is `[H, W]`.
pub fn save_gray_png(path: impl AsRef<Path>, pixels: &[u8], width: usize, height: usize) -> Result<()> {
    if Some(pixels.len()) != width.checked_mul(height) || pixels.is_empty() {
        return Err(Error::argument(
            "save_gray_png",
            "pixels",
            "length",
            pixels.len().to_string(),
            format!("height {height} x width {width}"),
        ));
    }
    save(path.as_ref(), pixels, width, height, image::ExtendedColorType::L8)
}

fn save(path: &Path, data: &[u8], width: usize, height: usize, colour: image::ExtendedColorType) -> Result<()> {
    std::fs::write(path, encode(path, data, width, height, colour)?).map_err(Error::io(path))
}

/// Bytes of a PNG file; `name` is used in errors only.
fn encode(name: &Path, data: &[u8], width: usize, height: usize, colour: image::ExtendedColorType) -> Result<Vec<u8>> {
    let side =
        |given: usize| u32::try_from(given).map_err(|_| Error::value("save_png", "width, height", given, "below 2^32"));
    let (width, height) = (side(width)?, side(height)?);
    let mut bytes = Vec::new();
    let encoder = image::codecs::png::PngEncoder::new(&mut bytes);
    image::ImageEncoder::write_image(encoder, data, width, height, colour)
        .map_err(|e| Error::Image { path: name.to_path_buf(), cause: e.to_string() })?;
    Ok(bytes)
}

fn byte_len(width: usize, height: usize) -> Option<usize> {
    width.checked_mul(height)?.checked_mul(3)
}

impl Rect {
    /// An error unless the rectangle has pixels and lies inside the image.
    pub fn check_inside(&self, op: &'static str, image: &Image) -> Result<()> {
        let fits = |first: usize, len: usize, side| len > 0 && first.checked_add(len).is_some_and(|end| end <= side);
        if fits(self.left, self.width, image.width) && fits(self.top, self.height, image.height) {
            return Ok(());
        }
        Err(Error::value(
            op,
            "rect",
            format!("{self:?}"),
            format!("a non-empty rectangle inside {} x {} (width x height)", image.width, image.height),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(width: usize, height: usize) -> Image {
        Image::new(width, height, (0..width * height * 3).map(|i| (i * 7 % 251) as u8).collect()).unwrap()
    }

    #[test]
    fn planes_and_mirror_are_their_own_inverses() {
        let image = numbered(5, 3);
        let planes = image.to_planes();
        assert_eq!(planes[15 + 2 * 5 + 4], image.pixel(4, 2)[1]);
        assert_eq!(Image::from_planes(5, 3, &planes).unwrap(), image);
        assert_eq!(image.mirrored().pixel(0, 1), image.pixel(4, 1));
        assert_eq!(image.mirrored().mirrored(), image);
    }

    #[test]
    fn crop_copies_the_rectangle_and_refuses_others() {
        let image = numbered(5, 4);
        let part = image.crop(Rect { left: 1, top: 2, width: 3, height: 2 }).unwrap();
        assert_eq!(part.pixel(2, 1), image.pixel(3, 3));
        for (left, top, width, height) in [(3, 0, 3, 1), (0, 4, 1, 1), (0, 0, 0, 1), (usize::MAX, 0, 2, 1)] {
            assert!(image.crop(Rect { left, top, width, height }).is_err());
        }
    }

    #[test]
    fn wrong_lengths_are_errors() {
        assert!(Image::new(2, 2, vec![0; 11]).is_err());
        assert!(Image::new(0, 2, vec![]).is_err());
        assert!(Image::new(usize::MAX, 2, vec![]).is_err());
        assert!(Image::from_planes(2, 2, &[0; 13]).is_err());
        assert!(save_gray_png("unused.png", &[0; 3], 2, 2).is_err());
    }
}
