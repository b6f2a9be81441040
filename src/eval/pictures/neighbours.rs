//! Images and their nearest neighbours with cosine similarities.

use super::{PAD, batch};
use crate::data::lettering::{self, HEIGHT, WIDTH};
use crate::data::{Image, contact};
use crate::eval::{Features, Neighbours, neighbours};
use crate::recipes::Encoder;
use crate::{Device, Error, Result, Tensor};

/// Images in a forward pass.
const BLOCK: usize = 16;

/// Side of an image in the sheet, in pixels.
const SIDE: usize = 128;
/// Lines of text below it.
const LINES: usize = 2;
const INK: [u8; 3] = [40; 3];
/// Of a neighbour of another class than the query.
const OTHER: [u8; 3] = [190, 30, 30];

/// An image and its name.
#[derive(Clone, Debug)]
pub struct Named {
    /// What is shown.
    pub image: Image,
    /// What is written below it.
    pub name: String,
    /// Its class, if it has one.
    pub class: Option<String>,
}

/// The `k` rows of `bank` nearest to each image.
///
/// # Errors
/// Images of another size than the encoder's, a bank of another, or a `k` beyond it.
pub fn find(model: &dyn Encoder, images: &[Image], bank: &Features, k: usize) -> Result<Neighbours> {
    let mut values = Vec::with_capacity(images.len() * model.dim());
    for block in images.chunks(BLOCK) {
        values.extend(model.features(&batch(block, model.device())?)?.to_vec::<f32>()?);
    }
    let values = Tensor::from_slice(&values, [images.len(), model.dim()], &Device::Cpu)?;
    neighbours(&bank.values, &values, k)
}

/// An image with lines of text below it.
fn cell(named: &Named, above: &str, colour: [u8; 3]) -> Result<Image> {
    let mut cell = Image::filled(SIDE, SIDE + LINES * HEIGHT, [255; 3]);
    contact::paste(&mut cell, &contact::thumbnail(&named.image, SIDE)?, 0, 0);
    let shown = lettering::wrap(&named.name, SIDE / WIDTH, 1);
    for (line, text) in std::iter::once(above).chain(shown.first().map(String::as_str)).enumerate() {
        lettering::write(&mut cell, 0, SIDE + line * HEIGHT, text, colour);
    }
    Ok(cell)
}

/// Draws a row for each query: the query, then its neighbours, nearest first. `load` gives a row of the bank.
///
/// # Errors
/// As many queries as `found` has rows are expected; what `load` says.
pub fn sheet(queries: &[Named], found: &Neighbours, load: impl Fn(u32) -> Result<Named>) -> Result<Image> {
    if queries.len() * found.k != found.indices.len() {
        let expected = format!("{} rows of neighbours", queries.len());
        return Err(Error::argument("neighbours", "found", "length", found.indices.len().to_string(), expected));
    }
    let mut tiles = Vec::with_capacity(queries.len() * (found.k + 1));
    let rows = found.indices.chunks(found.k.max(1)).zip(found.similarity.chunks(found.k.max(1)));
    for (query, (indices, similarity)) in queries.iter().zip(rows) {
        tiles.push(cell(query, "query", INK)?);
        for (&index, similarity) in indices.iter().zip(similarity) {
            let neighbour = load(index)?;
            let differs = neighbour.class.as_ref().zip(query.class.as_ref()).is_some_and(|(a, b)| a != b);
            let colour = if differs { OTHER } else { INK };
            tiles.push(cell(&neighbour, &format!("{similarity:.3}"), colour)?);
        }
    }
    contact::grid(&tiles, found.k + 1, PAD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_stand_beside_their_query() {
        let named = |v: u8, class: u32| {
            let class = format!("class {class}");
            Named { image: Image::filled(8, 8, [v; 3]), name: class.clone(), class: Some(class) }
        };
        let found = Neighbours { k: 2, indices: vec![3, 1, 0, 2], similarity: vec![0.9, 0.5, 1.0, -0.25] };
        let queries = [named(10, 0), named(20, 1)];
        let sheet = sheet(&queries, &found, |i| Ok(named(100 + i as u8, i % 2))).unwrap();
        let (wide, high) = (SIDE + PAD, SIDE + LINES * HEIGHT + PAD);
        assert_eq!((sheet.width, sheet.height), (3 * wide + PAD, 2 * high + PAD));
        let middle =
            |column: usize, row: usize| sheet.pixel(PAD + column * wide + SIDE / 2, PAD + row * high + SIDE / 2)[0];
        assert_eq!(
            [[0, 1, 2].map(|c| middle(c, 0)), [0, 1, 2].map(|c| middle(c, 1))],
            [[10, 103, 101], [20, 100, 102]]
        );
        // Similarities in red where the classes differ: the neighbours of 0 are of class 1, those of 1 of class 0.
        let red = |column: usize, row: usize| {
            let (left, top) = (PAD + column * wide, PAD + row * high + SIDE);
            let ink = |i: usize| sheet.pixel(left + i % SIDE, top + i / SIDE);
            (0..SIDE * HEIGHT).map(ink).any(|p| p[0] > 150 && p[1] < 100)
        };
        assert_eq!([red(0, 0), red(1, 0), red(2, 0), red(1, 1)], [false, true, true, true]);
        let text = super::sheet(&queries[..1], &found, |_| Ok(named(0, 0))).unwrap_err().to_string();
        assert_eq!(text, "neighbours: `found` has length 4, expected 1 rows of neighbours");
    }
}
