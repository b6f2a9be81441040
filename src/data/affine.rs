//! Affine changes of 8-bit images with exactly the bytes that Pillow 13 gives (its `Image.transform` and
//! `Image.rotate`).
//!
//! Output pixel (x, y) looks at `(a·(x+1/2) + b·(y+1/2) + c, d·(x+1/2) + e·(y+1/2) + f)` of the input; where that
//! lies outside, it gets the fill colour. Neighbours beyond the border repeat the border. Results are cut, not
//! rounded. The cubic here has a = -1, unlike the resize's.

use super::image::Image;
use super::resize::Filter;

/// The six numbers a, b, c, d, e, f.
type Matrix = [f64; 6];

/// Moves each row sideways by `factor` times its height below the top.
pub fn shear_x(image: &Image, factor: f64, filter: Filter, fill: [u8; 3]) -> Image {
    transform(image, [1.0, factor, 0.0, 0.0, 1.0, 0.0], filter, fill)
}

/// Moves each column up or down by `factor` times its distance from the left.
pub fn shear_y(image: &Image, factor: f64, filter: Filter, fill: [u8; 3]) -> Image {
    transform(image, [1.0, 0.0, 0.0, factor, 1.0, 0.0], filter, fill)
}

/// Moves everything to the left by `fraction` of the width.
pub fn translate_x(image: &Image, fraction: f64, filter: Filter, fill: [u8; 3]) -> Image {
    transform(image, [1.0, 0.0, fraction * image.width as f64, 0.0, 1.0, 0.0], filter, fill)
}

/// Moves everything up by `fraction` of the height.
pub fn translate_y(image: &Image, fraction: f64, filter: Filter, fill: [u8; 3]) -> Image {
    transform(image, [1.0, 0.0, 0.0, 0.0, 1.0, fraction * image.height as f64], filter, fill)
}

/// Turns the image around its middle, counter-clockwise, by less than a quarter turn to either side.
pub fn rotate(image: &Image, degrees: f64, filter: Filter, fill: [u8; 3]) -> Image {
    if degrees == 0.0 {
        return image.clone();
    }
    let radians = -degrees.to_radians();
    let round = |v: f64| (v * 1e15).round_ties_even() / 1e15; // 15 decimals
    let (sin, cos) = (round(radians.sin()), round(radians.cos()));
    let (x, y) = (image.width as f64 / 2.0, image.height as f64 / 2.0);
    let c = cos * -x + sin * -y + x;
    let f = -sin * -x + cos * -y + y;
    transform(image, [cos, sin, c, -sin, cos, f], filter, fill)
}

/// Turns the image around its middle by `degrees`, counter-clockwise, and moves each row sideways by the tangent of `shear` degrees
/// times its height below the middle. Without a filter each pixel is one of the input's: for pictures of numbers.
pub fn turn(image: &Image, degrees: f64, shear: f64, filter: Option<Filter>, fill: [u8; 3]) -> Image {
    let (sin, cos) = (-degrees.to_radians()).sin_cos();
    let slope = shear.to_radians().tan();
    let (x, y) = (image.width as f64 / 2.0, image.height as f64 / 2.0);
    // Output to input: back along the rows, then back around.
    let (a, b, d, e) = (cos, sin + cos * slope, -sin, cos - sin * slope);
    let matrix = [a, b, x - a * x - b * y, d, e, y - d * x - e * y];
    match filter {
        Some(filter) => transform(image, matrix, filter, fill),
        None => each_pixel(image, matrix, fill, |x, y, pixel| {
            let at = row_at(image, y.floor()) + column_at(image, x.floor());
            pixel.copy_from_slice(&image.data[at..at + 3]);
        }),
    }
}

fn transform(image: &Image, matrix: Matrix, filter: Filter, fill: [u8; 3]) -> Image {
    each_pixel(image, matrix, fill, |x, y, pixel| match filter {
        Filter::Bilinear => bilinear(image, x - 0.5, y - 0.5, pixel),
        Filter::Bicubic => bicubic(image, x - 0.5, y - 0.5, pixel),
    })
}

/// Gives `read` the place in the input of each output pixel that has one.
fn each_pixel(image: &Image, [a, b, c, d, e, f]: Matrix, fill: [u8; 3], read: impl Fn(f64, f64, &mut [u8])) -> Image {
    let mut out = Image::filled(image.width, image.height, fill);
    let (width, height) = (image.width as f64, image.height as f64);
    for (y, row) in out.data.chunks_exact_mut(image.width * 3).enumerate() {
        for (x, pixel) in row.chunks_exact_mut(3).enumerate() {
            let (u, v) = (x as f64 + 0.5, y as f64 + 0.5);
            let (from_x, from_y) = (a * u + b * v + c, d * u + e * v + f);
            if (0.0..width).contains(&from_x) && (0.0..height).contains(&from_y) {
                read(from_x, from_y, pixel);
            }
        }
    }
    out
}

/// Offsets of a row and of a column, positions outside moved to the border.
fn row_at(image: &Image, y: f64) -> usize {
    (y.max(0.0) as usize).min(image.height - 1) * image.width * 3
}

fn column_at(image: &Image, x: f64) -> usize {
    (x.max(0.0) as usize).min(image.width - 1) * 3
}

fn bilinear(image: &Image, x: f64, y: f64, pixel: &mut [u8]) {
    let (left, top) = (x.floor(), y.floor());
    let (dx, dy) = (x - left, y - top);
    let (x0, x1) = (column_at(image, left), column_at(image, left + 1.0));
    let (y0, y1) = (row_at(image, top), row_at(image, top + 1.0));
    for (channel, value) in pixel.iter_mut().enumerate() {
        let at = |y: usize, x: usize| f64::from(image.data[y + x + channel]);
        let mix = |from: f64, to: f64, t: f64| from + (to - from) * t;
        *value = mix(mix(at(y0, x0), at(y0, x1), dx), mix(at(y1, x0), at(y1, x1), dx), dy) as u8;
    }
}

fn bicubic(image: &Image, x: f64, y: f64, pixel: &mut [u8]) {
    let (left, top) = (x.floor(), y.floor());
    let (dx, dy) = (x - left, y - top);
    let columns = [-1.0, 0.0, 1.0, 2.0].map(|k| column_at(image, left + k));
    let rows = [-1.0, 0.0, 1.0, 2.0].map(|k| row_at(image, top + k));
    for (channel, value) in pixel.iter_mut().enumerate() {
        let across = rows.map(|row| cubic(columns.map(|column| f64::from(image.data[row + column + channel])), dx));
        *value = cubic(across, dy).clamp(0.0, 255.0) as u8;
    }
}

/// The cubic through four neighbours at t between the middle two.
fn cubic([v1, v2, v3, v4]: [f64; 4], t: f64) -> f64 {
    let p2 = -v1 + v3;
    let p3 = 2.0 * (v1 - v2) + v3 - v4;
    let p4 = -v1 + v2 - v3 + v4;
    v2 + t * (p2 + t * (p3 + t * p4))
}
