//! What the class token attends to in the last block, head by head, over the image.

use super::{PAD, SIDE, batch};
use crate::data::planes::bilinear;
use crate::data::{Image, contact};
use crate::recipes::Encoder;
use crate::{Error, Result};

/// Black, red, yellow, white: the colour of a strength from 0 to 1.
fn heat(strength: f64) -> [f64; 3] {
    [0.0, 1.0, 2.0].map(|first| (3.0 * strength - first).clamp(0.0, 1.0))
}

/// An image, gray and dimmed, with the heat of a map `[rows, columns]` over it. The map is scaled from its smallest to its
/// largest value.
///
/// # Errors
/// A map of another size than the grid.
pub fn overlay(image: &Image, map: &[f32], grid: [usize; 2]) -> Result<Image> {
    if map.len() != grid[0] * grid[1] || map.is_empty() {
        let expected = format!("{} x {}, at least one", grid[0], grid[1]);
        return Err(Error::argument("overlay", "map", "length", map.len().to_string(), expected));
    }
    let (low, high) = map.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), v| (l.min(*v), h.max(*v)));
    let strength = |v: f32| if high > low { f64::from((v - low) / (high - low)) } else { 0.0 };
    let strengths = bilinear(map, grid, [image.height, image.width])?.into_iter().map(strength);
    let mut data = Vec::with_capacity(image.data.len());
    for (pixel, strength) in image.data.chunks_exact(3).zip(strengths) {
        let gray = pixel.iter().map(|v| f64::from(*v)).sum::<f64>() / 3.0;
        // The image stays visible where the map is weak.
        data.extend(heat(strength).map(|heat| (0.4 * gray + 0.6 * 255.0 * heat).round() as u8));
    }
    Image::new(image.width, image.height, data)
}

/// Draws a row for each image: the image, the mean of the heads, and each head. `each` is called after every image.
///
/// # Errors
/// An encoder whose attention has another size than its grid.
pub fn sheet(model: &dyn Encoder, images: &[Image], mut each: impl FnMut()) -> Result<Image> {
    let grid = model.grid();
    let len = grid[0] * grid[1];
    let (mut tiles, mut columns) = (Vec::new(), 1);
    for image in images {
        let attention = model.attention(&batch(std::slice::from_ref(image), model.device())?)?;
        let [_, heads, _] = attention.dims("attention", "attention")?;
        let maps = attention.to_vec::<f32>()?;
        let mean =
            (0..len).map(|at| maps.iter().skip(at).step_by(len).sum::<f32>() / heads as f32).collect::<Vec<f32>>();
        columns = 2 + heads;
        tiles.push(contact::enlarge(image, SIDE)?);
        for map in std::iter::once(mean.as_slice()).chain(maps.chunks_exact(len)) {
            tiles.push(overlay(&contact::enlarge(image, SIDE)?, map, grid)?);
        }
        each();
    }
    contact::grid(&tiles, columns, PAD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_strongest_patch_is_white_and_the_weakest_dark() {
        assert_eq!([0.0, 0.5, 1.0].map(heat), [[0.0; 3], [1.0, 0.5, 0.0], [1.0; 3]]);
        let image = Image::filled(4, 2, [100, 50, 0]); // gray 50
        let drawn = overlay(&image, &[0.2, 0.6], [1, 2]).unwrap();
        assert_eq!([drawn.pixel(0, 0), drawn.pixel(3, 1)], [[20; 3], [173; 3]]);
        // A quarter of the way: 3/4 of red.
        assert_eq!(drawn.pixel(1, 0), [135, 20, 20]);
        assert_eq!(overlay(&image, &[0.3; 2], [1, 2]).unwrap(), Image::filled(4, 2, [20; 3]));
        let text = overlay(&image, &[0.1], [1, 2]).unwrap_err().to_string();
        assert_eq!(text, "overlay: `map` has length 1, expected 1 x 2, at least one");
    }
}
