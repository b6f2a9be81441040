//! Contact sheets: many pictures in one.

use super::image::Image;
use super::resize::{Filter, resize};
use crate::{Error, Result};

/// Pictures in rows of `columns`, each in a cell of the largest width and height, `pad` white pixels around every cell.
pub fn grid(images: &[Image], columns: usize, pad: usize) -> Result<Image> {
    if images.is_empty() || columns == 0 {
        let given = format!("{} images in {columns} columns", images.len());
        return Err(Error::value("grid", "images, columns", given, "at least one of each"));
    }
    let columns = columns.min(images.len());
    let cell_width = images.iter().map(|image| image.width).max().unwrap_or_default();
    let cell_height = images.iter().map(|image| image.height).max().unwrap_or_default();
    let rows = images.len().div_ceil(columns);
    let width = columns * (cell_width + pad) + pad;
    let height = rows * (cell_height + pad) + pad;
    let mut sheet = Image::filled(width, height, [255; 3]);
    for (i, image) in images.iter().enumerate() {
        let left = pad + (i % columns) * (cell_width + pad);
        let top = pad + (i / columns) * (cell_height + pad);
        paste(&mut sheet, image, left, top);
    }
    Ok(sheet)
}

/// Puts an image into a sheet; what would lie outside is cut off.
pub fn paste(sheet: &mut Image, image: &Image, left: usize, top: usize) {
    let columns = image.width.min(sheet.width.saturating_sub(left));
    for (row, y) in image.data.chunks_exact(image.width * 3).zip(top..sheet.height) {
        let at = (y * sheet.width + left) * 3;
        sheet.data[at..at + columns * 3].copy_from_slice(&row[..columns * 3]);
    }
}

/// Small images as large as whole pixels allow, `side` at most in width.
pub fn enlarge(image: &Image, side: usize) -> Result<Image> {
    let factor = (side / image.width.max(1)).max(1);
    let (width, height) = (image.width * factor, image.height * factor);
    let pixels = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
    Image::new(width, height, pixels.flat_map(|(x, y)| image.pixel(x / factor, y / factor)).collect())
}

/// An image in the middle of a white square: shrunk if it is larger, enlarged in whole pixels if it is smaller.
pub fn thumbnail(image: &Image, side: usize) -> Result<Image> {
    let longest = image.width.max(image.height);
    let fitted = if longest > side {
        let fit = |length: usize| (length * side / longest).max(1);
        resize(image, image.rect(), fit(image.width), fit(image.height), Filter::Bicubic)?
    } else {
        enlarge(image, side * image.width / longest.max(1))?
    };
    let mut square = Image::filled(side, side, [255; 3]);
    paste(&mut square, &fitted, (side - fitted.width) / 2, (side - fitted.height) / 2);
    Ok(square)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_lie_in_rows() {
        let dot = |v: u8| Image::filled(2, 1, [v; 3]);
        let sheet = grid(&[dot(1), dot(2), Image::filled(1, 2, [3; 3])], 2, 1).unwrap();
        assert_eq!((sheet.width, sheet.height), (7, 7));
        assert_eq!([sheet.pixel(1, 1), sheet.pixel(5, 1), sheet.pixel(1, 5)], [[1; 3], [2; 3], [3; 3]]);
        assert_eq!([sheet.pixel(0, 0), sheet.pixel(3, 1), sheet.pixel(4, 4)], [[255; 3]; 3]);
        assert_eq!(grid(&[dot(1)], 9, 0).unwrap(), dot(1));
        assert!(grid(&[], 2, 1).is_err() && grid(&[dot(1)], 0, 1).is_err());
    }

    #[test]
    fn thumbnails_are_squares() {
        let wide = thumbnail(&Image::filled(3, 1, [7; 3]), 10).unwrap();
        assert_eq!((wide.width, wide.height), (10, 10));
        assert_eq!(
            [wide.pixel(0, 3), wide.pixel(8, 5), wide.pixel(9, 4), wide.pixel(4, 6)],
            [[7; 3], [7; 3], [255; 3], [255; 3]]
        );
        let tall = thumbnail(&Image::filled(20, 400, [7; 3]), 10).unwrap();
        assert_eq!(
            [tall.pixel(4, 0), tall.pixel(4, 9), tall.pixel(3, 5), tall.pixel(5, 5)],
            [[7; 3], [7; 3], [255; 3], [255; 3]]
        );
        let mut sheet = Image::filled(2, 2, [0; 3]);
        paste(&mut sheet, &Image::filled(5, 5, [1; 3]), 1, 1);
        paste(&mut sheet, &Image::filled(5, 5, [2; 3]), 2, 0);
        assert_eq!([sheet.pixel(0, 1), sheet.pixel(1, 0), sheet.pixel(1, 1)], [[0; 3], [0; 3], [1; 3]]);
    }
}
