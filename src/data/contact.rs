//! Contact sheets: many pictures in one.

use super::image::Image;
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
        for (y, row) in image.data.chunks_exact(image.width * 3).enumerate() {
            let at = ((top + y) * width + left) * 3;
            sheet.data[at..at + row.len()].copy_from_slice(row);
        }
    }
    Ok(sheet)
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
}
