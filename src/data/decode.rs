//! JPEG, PNG and WebP files to 8-bit RGB.
//!
//! The format is read from the first bytes, not from the name: large collections contain PNG files called `.JPEG`.
//! Conversions to RGB follow what Pillow's `convert("RGB")` gives: gray is repeated, alpha is dropped without
//! blending, 16 bits keep their high byte, CMYK is taken as inverted (the convention of every writer in use).
//! Orientation tags are not applied. A JPEG that ends early is an error; one with faults inside its data is decoded
//! as far as it goes, as libjpeg does.
//!
//! Decoders see arbitrary bytes here, so a panic inside one is caught and reported like any other fault of the file.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use image::{DynamicImage, ImageDecoder, ImageFormat};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::image::Image;
use crate::{Error, Result};

/// Largest number of pixels that is decoded, 3 bytes each. A file of a few bytes can claim any size.
pub const MAX_PIXELS: usize = 100_000_000;

/// Reads and decodes a file.
pub fn open(path: impl AsRef<Path>) -> Result<Image> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    decode(&bytes, path)
}

/// Decodes the bytes of a file; `path` is used in errors only.
pub fn decode(bytes: &[u8], path: impl AsRef<Path>) -> Result<Image> {
    let decoded = catch_unwind(AssertUnwindSafe(|| decode_any(bytes)));
    decoded
        .unwrap_or_else(|_| Err("the decoder failed on it".to_owned()))
        .map_err(|cause| Error::Image { path: path.as_ref().to_path_buf(), cause })
}

/// What a decoder says: the image or why there is none.
type Decoded = std::result::Result<Image, String>;

fn decode_any(bytes: &[u8]) -> Decoded {
    if bytes.is_empty() {
        return Err("the file is empty".to_owned());
    }
    if bytes.starts_with(&[0xff, 0xd8, 0xff]) {
        return decode_jpeg(bytes);
    }
    match image::guess_format(bytes) {
        Ok(ImageFormat::Png) => decode_with(image::codecs::png::PngDecoder::with_limits(Cursor::new(bytes), limits())),
        Ok(ImageFormat::WebP) => decode_with(image::codecs::webp::WebPDecoder::new(Cursor::new(bytes))),
        _ => Err("neither JPEG, PNG nor WebP".to_owned()),
    }
}

/// Bytes that a decoder may allocate: 16 bits and 4 channels of the largest image.
fn limits() -> image::Limits {
    let mut limits = image::Limits::default();
    limits.max_alloc = Some(8 * MAX_PIXELS as u64);
    limits
}

fn check_size(width: usize, height: usize) -> std::result::Result<(), String> {
    match width.checked_mul(height) {
        Some(0) => Err(format!("it has no pixels ({width} x {height})")),
        Some(pixels) if pixels <= MAX_PIXELS => Ok(()),
        _ => Err(format!("{width} x {height} pixels, more than the limit of {MAX_PIXELS}")),
    }
}

fn decode_with<D: ImageDecoder>(decoder: image::ImageResult<D>) -> Decoded {
    let mut decoder = decoder.map_err(|e| e.to_string())?;
    let (width, height) = decoder.dimensions();
    check_size(width as usize, height as usize)?;
    decoder.set_limits(limits()).map_err(|e| e.to_string())?;
    let data = match DynamicImage::from_decoder(decoder).map_err(|e| e.to_string())? {
        DynamicImage::ImageRgb8(pixels) => pixels.into_raw(),
        DynamicImage::ImageRgba8(pixels) => pixels.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect(),
        DynamicImage::ImageLuma8(pixels) => pixels.iter().flat_map(|&v| [v; 3]).collect(),
        DynamicImage::ImageLumaA8(pixels) => pixels.chunks_exact(2).flat_map(|p| [p[0]; 3]).collect(),
        DynamicImage::ImageRgb16(pixels) => pixels.iter().map(|&v| (v >> 8) as u8).collect(),
        DynamicImage::ImageRgba16(pixels) => {
            pixels.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]].map(|v| (v >> 8) as u8)).collect()
        }
        DynamicImage::ImageLuma16(pixels) => pixels.iter().flat_map(|&v| [(v >> 8) as u8; 3]).collect(),
        DynamicImage::ImageLumaA16(pixels) => pixels.chunks_exact(2).flat_map(|p| [(p[0] >> 8) as u8; 3]).collect(),
        other => other.into_rgb8().into_raw(),
    };
    Image::new(width as usize, height as usize, data).map_err(|e| e.to_string())
}

fn decode_jpeg(bytes: &[u8]) -> Decoded {
    // Marker bytes cannot occur inside compressed data, so the last end marker stands behind the last scan.
    let last = |marker: u8| bytes.windows(2).rposition(|pair| pair == [0xff, marker]);
    if last(0xd9) <= last(0xda) {
        return Err("the JPEG data ends early".to_owned());
    }
    let options = DecoderOptions::new_fast()
        .set_max_width(u16::MAX.into())
        .set_max_height(u16::MAX.into())
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    decode_jpeg_with(bytes, options.set_strict_mode(true))
        .or_else(|_| decode_jpeg_with(bytes, options.set_strict_mode(false)))
}

fn decode_jpeg_with(bytes: &[u8], options: DecoderOptions) -> Decoded {
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(|e| e.to_string())?;
    let info = decoder.info().ok_or("it has no header")?;
    let (width, height) = (usize::from(info.width), usize::from(info.height));
    check_size(width, height)?;
    let data = decoder.decode().map_err(|e| e.to_string())?;
    Image::new(width, height, data).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use image::{ExtendedColorType, ImageEncoder};

    use super::*;
    use crate::data::fixtures::noise;

    fn file(name: &str) -> Vec<u8> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/images").join(name);
        std::fs::read(path).unwrap()
    }

    fn png(data: &[u8], colour: ExtendedColorType) -> Vec<u8> {
        let mut bytes = Vec::new();
        image::codecs::png::PngEncoder::new(&mut bytes).write_image(data, 3, 2, colour).unwrap();
        bytes
    }

    fn cause(bytes: &[u8]) -> String {
        match decode(bytes, "file") {
            Err(Error::Image { cause, .. }) => cause,
            other => panic!("{other:?}"),
        }
    }

    /// The `.expected.png` files are what Pillow 13.0.0 decodes and converts to RGB.
    #[test]
    fn files_decode_as_in_pillow() {
        // (file, largest difference of a value): lossless formats exactly; JPEG within the rounding of another inverse
        // transform and colour conversion, and of chroma upsampling where it is subsampled.
        for (name, bound) in [
            ("420.jpg", 4),
            ("444_progressive.jpg", 3),
            ("gray.jpg", 1),
            ("cmyk.jpg", 3),
            ("lossless.webp", 0),
            ("lossy.webp", 3),
            ("palette.png", 0),
        ] {
            let stem = name.split('.').next().unwrap();
            let given = decode(&file(name), name).unwrap();
            let expected = decode(&file(&format!("{stem}.expected.png")), name).unwrap();
            assert_eq!((given.width, given.height), (37, 26), "{name}");
            let worst = given.data.iter().zip(&expected.data).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(worst <= bound, "{name}: {worst}");
        }
    }

    #[test]
    fn every_png_layout_becomes_rgb() {
        let rgb = noise(3, 2);
        let gray: Vec<u8> = rgb.data.iter().step_by(3).copied().collect();
        let repeated: Vec<u8> = gray.iter().flat_map(|&v| [v; 3]).collect();
        let with_alpha = |data: &[u8], n: usize| {
            data.chunks_exact(n).flat_map(|p| p.iter().copied().chain([7])).collect::<Vec<u8>>()
        };
        let wide =
            |data: &[u8]| data.iter().flat_map(|&v| u16::from_be_bytes([v, 200]).to_ne_bytes()).collect::<Vec<u8>>();
        for (data, colour, expected) in [
            (rgb.data.clone(), ExtendedColorType::Rgb8, &rgb.data),
            (with_alpha(&rgb.data, 3), ExtendedColorType::Rgba8, &rgb.data),
            (gray.clone(), ExtendedColorType::L8, &repeated),
            (with_alpha(&gray, 1), ExtendedColorType::La8, &repeated),
            (wide(&rgb.data), ExtendedColorType::Rgb16, &rgb.data),
            (wide(&with_alpha(&rgb.data, 3)), ExtendedColorType::Rgba16, &rgb.data),
            (wide(&gray), ExtendedColorType::L16, &repeated),
            (wide(&with_alpha(&gray, 1)), ExtendedColorType::La16, &repeated),
        ] {
            let decoded = decode(&png(&data, colour), "file").unwrap();
            assert_eq!((decoded.width, decoded.height), (3, 2));
            assert_eq!(&decoded.data, expected, "{colour:?}");
        }
    }

    #[test]
    fn cut_files_are_errors_at_every_length() {
        for name in ["420.jpg", "444_progressive.jpg", "cmyk.jpg", "lossless.webp", "lossy.webp", "palette.png"] {
            let bytes = file(name);
            for len in (0..bytes.len() - 12).step_by(7) {
                cause(&bytes[..len]);
            }
        }
        assert_eq!(cause(&[]), "the file is empty");
        assert_eq!(cause(&file("420.jpg")[..300]), "the JPEG data ends early");
        assert_eq!(cause(b"This is a text."), "neither JPEG, PNG nor WebP");
    }

    #[test]
    fn damaged_files_never_panic() {
        for name in ["420.jpg", "444_progressive.jpg", "cmyk.jpg", "lossless.webp", "lossy.webp", "palette.png"] {
            let bytes = file(name);
            for at in 0..bytes.len() {
                let mut damaged = bytes.clone();
                damaged[at] ^= 0x55;
                if let Ok(image) = decode(&damaged, name) {
                    assert_eq!(image.data.len(), image.width * image.height * 3);
                }
            }
        }
    }

    #[test]
    fn sizes_beyond_the_limit_are_refused_before_memory_is_taken() {
        // The size of an 8-bit RGB PNG stands at byte 16 of the file, its checksum at byte 29.
        let mut bomb = png(&noise(3, 2).data, ExtendedColorType::Rgb8);
        bomb[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]); // 65536 x 65536
        let crc = crc32(&bomb[12..29]);
        bomb[29..33].copy_from_slice(&crc.to_be_bytes());
        assert!(cause(&bomb).contains("limit"), "{}", cause(&bomb));
        // Height and width of a JPEG follow the start-of-frame marker, its length and its depth.
        let mut bomb = file("420.jpg");
        let at = bomb.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap() + 5;
        bomb[at..at + 4].copy_from_slice(&[0xff, 0xdc, 0xff, 0xdc]);
        assert_eq!(cause(&bomb), "65500 x 65500 pixels, more than the limit of 100000000");
    }

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |crc, &b| {
            (0..8).fold(crc ^ u32::from(b), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 })
        })
    }

    #[test]
    fn missing_files_are_named() {
        let error = open("no/such/picture.png").unwrap_err();
        assert!(matches!(&error, Error::Io { path, .. } if path.ends_with("picture.png")), "{error}");
    }
}
