//! Label maps as indexed PNG files: each pixel is an object number, shown in a colour of its own.

use std::io::Cursor;
use std::path::Path;

use super::decode::MAX_PIXELS;
use crate::{Error, Result};

/// A map of object numbers, 0 where there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelMap {
    /// Columns, W.
    pub width: usize,
    /// Rows, H.
    pub height: usize,
    /// Object of each pixel, row by row: `[H, W]`.
    pub ids: Vec<u8>,
}

impl LabelMap {
    /// Writes an indexed PNG with 8 bits per pixel.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        if self.ids.is_empty() || Some(self.ids.len()) != self.width.checked_mul(self.height) {
            let expected = format!("height {} x width {}", self.height, self.width);
            return Err(Error::argument("label_map", "ids", "length", self.ids.len().to_string(), expected));
        }
        let mut bytes = Vec::new();
        let fault = |cause: String| Error::Image { path: path.to_path_buf(), cause };
        let side = |v: usize| u32::try_from(v).map_err(|_| fault(format!("a side of {v} pixels")));
        let mut encoder = png::Encoder::new(&mut bytes, side(self.width)?, side(self.height)?);
        encoder.set_color(png::ColorType::Indexed);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.set_palette(palette());
        let mut writer = encoder.write_header().map_err(|e| fault(e.to_string()))?;
        writer.write_image_data(&self.ids).map_err(|e| fault(e.to_string()))?;
        writer.finish().map_err(|e| fault(e.to_string()))?;
        std::fs::write(path, bytes).map_err(Error::io(path))
    }

    /// Reads an indexed or gray PNG of 8 or fewer bits per pixel; the numbers are the palette's or the gray values.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let read =
            std::panic::catch_unwind(|| read(&bytes)).unwrap_or_else(|_| Err("the decoder failed on it".to_owned()));
        read.map_err(|cause| Error::Image { path: path.to_path_buf(), cause })
    }
}

fn read(bytes: &[u8]) -> std::result::Result<LabelMap, String> {
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    decoder.set_transformations(png::Transformations::IDENTITY);
    let mut reader = decoder.read_info().map_err(|e| e.to_string())?;
    let (width, height) = (reader.info().width as usize, reader.info().height as usize);
    if width.checked_mul(height).is_none_or(|pixels| pixels > MAX_PIXELS) {
        return Err(format!("{width} x {height} pixels, more than the limit of {MAX_PIXELS}"));
    }
    let (colour, depth) = reader.output_color_type();
    let bits = match (colour, depth) {
        (png::ColorType::Indexed | png::ColorType::Grayscale, png::BitDepth::One) => 1,
        (png::ColorType::Indexed | png::ColorType::Grayscale, png::BitDepth::Two) => 2,
        (png::ColorType::Indexed | png::ColorType::Grayscale, png::BitDepth::Four) => 4,
        (png::ColorType::Indexed | png::ColorType::Grayscale, png::BitDepth::Eight) => 8,
        _ => return Err(format!("{colour:?} of {depth:?} bits, expected an indexed or gray image of at most 8 bits")),
    };
    let mut packed = vec![0; reader.output_buffer_size().ok_or("it is too large")?];
    let info = reader.next_frame(&mut packed).map_err(|e| e.to_string())?;
    let mut ids = Vec::with_capacity(width * height);
    for row in packed.chunks_exact(info.line_size).take(height) {
        // Pixels are packed from the high bits on, each row from a new byte.
        let id = |x: usize| (row[x * bits / 8] >> (8 - bits - x * bits % 8)) & (u8::MAX >> (8 - bits));
        ids.extend((0..width).map(id));
    }
    Ok(LabelMap { width, height, ids })
}

/// Black for 0, then colours that differ most for neighbouring numbers: bit k of a number sets a high bit of red,
/// green or blue in turn (the map that the VOC data sets made common).
fn palette() -> Vec<u8> {
    let colour = |id: u8| {
        let fold = move |channel: u32| {
            (0..3u32)
                .filter(|k| 3 * k + channel < 8 && id >> (3 * k + channel) & 1 == 1)
                .fold(0u8, |value, k| value | 0x80 >> k)
        };
        (0..3).map(fold)
    };
    (0..=255).flat_map(colour).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_survive_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mask.png");
        let mask = LabelMap { width: 7, height: 3, ids: (0..21).map(|i| i * 12).collect() };
        mask.save(&path).unwrap();
        assert_eq!(LabelMap::open(&path).unwrap(), mask);
        let shown = crate::data::decode::open(&path).unwrap();
        assert_eq!(shown.pixel(0, 0), [0; 3]);
        assert_eq!(palette()[3..15], [128, 0, 0, 0, 128, 0, 128, 128, 0, 0, 0, 128]);
        super::super::image::save_gray_png(&path, &mask.ids, 7, 3).unwrap();
        assert_eq!(LabelMap::open(&path).unwrap(), mask);
    }

    #[test]
    fn packed_bits_are_unpacked() {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, 3, 2);
        encoder.set_color(png::ColorType::Grayscale);
        encoder.set_depth(png::BitDepth::Two);
        encoder.write_header().unwrap().write_image_data(&[0b01_10_11_00, 0b11_00_01_00]).unwrap();
        assert_eq!(read(&bytes).unwrap().ids, [1, 2, 3, 3, 0, 1]);
    }

    #[test]
    fn other_files_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("colour.png");
        crate::data::Image::filled(2, 2, [9; 3]).save_png(&path).unwrap();
        assert!(LabelMap::open(&path).unwrap_err().to_string().contains("expected an indexed or gray image"));
        std::fs::write(&path, b"text").unwrap();
        assert!(LabelMap::open(&path).is_err());
        assert!(LabelMap { width: 2, height: 2, ids: vec![0; 3] }.save(&path).is_err());
    }
}
