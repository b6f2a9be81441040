//! Patches in the colours of their principal components (Oquab et al. 2023, arXiv 2304.07193, section 7.5).
//!
//! The first component over the patches of all images separates foreground from background at a threshold, Otsu's unless one
//! is given. Which side is the foreground a component cannot say, since its sign is arbitrary: it is the side of which the
//! smaller share touches the border of its image, of equal ones the smaller, and then the upper. The first three components
//! over the foreground of all images together, each scaled from its smallest to its largest value, are red, green and blue;
//! the background is black.
//!
//! That is for images of one kind of thing. Where images have nothing in common the first component parts images rather than
//! things from what is behind them; then each image has a first component, a threshold and a side of its own.

use super::{PAD, SIDE, batch};
use crate::data::{Image, contact};
use crate::eval::pca::Pca;
use crate::recipes::Encoder;
use crate::{Device, Error, Result, Tensor};

/// Cells of the histogram in which Otsu's threshold is sought.
const CELLS: usize = 256;

/// Colours of the patches, image by image in raster order; black where they belong to the background.
///
/// `patches: [N, rows columns, dim]` f32 on the CPU. `threshold`: of the first component, 0 at its smallest value and 1 at its
/// largest. `each`: a first component for each image.
///
/// # Errors
/// A threshold that leaves no patch on one side; values that are not finite.
pub fn colours(patches: &Tensor, grid: [usize; 2], threshold: Option<f64>, each: bool) -> Result<Vec<[u8; 3]>> {
    let op = "components";
    let [images, len, dim] = patches.dims(op, "patches")?;
    if len != grid[0] * grid[1] {
        return Err(Error::shape(op, "patches", patches.shape(), format!("[.., {}, ..]", grid[0] * grid[1])));
    }
    let flat = patches.reshape([images * len, dim])?;
    let values = flat.as_slice::<f32>()?;
    let chosen = foregrounds(values, dim, if each { len } else { images * len }, grid, threshold)?;
    let kept: Vec<f32> =
        values.chunks_exact(dim).zip(&chosen).filter(|(_, kept)| **kept).flat_map(|(row, _)| row.to_vec()).collect();
    if kept.is_empty() || kept.len() == values.len() {
        let given = threshold.map_or("Otsu's".into(), |at| at.to_string());
        return Err(Error::config("threshold", given, "one that leaves patches on both sides: 0 to below 1"));
    }
    let kept = Tensor::from_slice(&kept, [kept.len() / dim, dim], &Device::Cpu)?;
    let scores = Pca::new(&kept, 3)?.scores(kept.as_slice::<f32>()?);
    let channel = |i: usize| scaled(&scores.iter().map(|s| s.get(i).copied().unwrap_or(0.0)).collect::<Vec<f64>>());
    let [red, green, blue] = [0, 1, 2].map(channel);
    let mut next = 0;
    let colour = |kept: &bool| {
        if !kept {
            return [0; 3];
        }
        next += 1;
        [&red, &green, &blue].map(|channel| (255.0 * channel[next - 1]).round() as u8)
    };
    Ok(chosen.iter().map(colour).collect())
}

/// Which of the patches `values`, `dim` wide, are foreground, of every `rows` of them by their first component.
fn foregrounds(values: &[f32], dim: usize, rows: usize, grid: [usize; 2], threshold: Option<f64>) -> Result<Vec<bool>> {
    let mut chosen = Vec::with_capacity(values.len() / dim.max(1));
    for part in values.chunks(rows * dim) {
        let pca = Pca::new(&Tensor::from_slice(part, [rows, dim], &Device::Cpu)?, 1)?;
        let first = scaled(&pca.scores(part).into_iter().map(|scores| scores[0]).collect::<Vec<f64>>());
        let at = threshold.unwrap_or_else(|| otsu(&first));
        let above: Vec<bool> = first.iter().map(|v| *v > at).collect();
        chosen.extend(foreground(&above, grid));
    }
    Ok(chosen)
}

/// Values from 0, the smallest, to 1, the largest; 1/2 where all are equal.
fn scaled(values: &[f64]) -> Vec<f64> {
    let (low, high) = values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(*v), h.max(*v)));
    values.iter().map(|v| if high > low { (v - low) / (high - low) } else { 0.5 }).collect()
}

/// The threshold of values in 0 to 1 that leaves most variance between the two sides (Otsu 1979), of equal ones the lowest.
fn otsu(values: &[f64]) -> f64 {
    let mut counts = [0usize; CELLS];
    values.iter().for_each(|v| counts[((v * CELLS as f64) as usize).min(CELLS - 1)] += 1);
    let sum = |counts: &[usize], first: usize| (first..).zip(counts).map(|(at, n)| at as f64 * *n as f64).sum::<f64>();
    let mut best = (0.0, 0.0);
    for at in 1..CELLS {
        let (low, high) = counts.split_at(at);
        let [below, above] = [low, high].map(|side| side.iter().sum::<usize>() as f64);
        if below == 0.0 || above == 0.0 {
            continue;
        }
        let between = below * above * (sum(low, 0) / below - sum(high, at) / above).powi(2);
        if between > best.0 {
            best = (between, at as f64 / CELLS as f64);
        }
    }
    best.1
}

/// Which patches are foreground, of those above a threshold and those below; see the module documentation.
fn foreground(above: &[bool], [rows, columns]: [usize; 2]) -> Vec<bool> {
    let at_border = |at: usize| {
        let (row, column) = (at % (rows * columns) / columns, at % columns);
        row == 0 || row + 1 == rows || column == 0 || column + 1 == columns
    };
    let side = |which: bool| {
        let of_side = above.iter().enumerate().filter(|(_, above)| **above == which);
        let (count, border) = of_side.fold((0, 0), |(n, b), (at, _)| (n + 1, b + usize::from(at_border(at))));
        (if count == 0 { 2.0 } else { border as f64 / count as f64 }, count) // no patch: never the foreground
    };
    let (upper, lower) = (side(true), side(false));
    let lower_is_foreground = lower.0.total_cmp(&upper.0).then(lower.1.cmp(&upper.1)).is_lt();
    above.iter().map(|above| *above != lower_is_foreground).collect()
}

/// Draws: each image beside its patches in colour, see [`colours`]. `done` is called after every image.
///
/// # Errors
/// As [`colours`].
pub fn sheet(
    model: &dyn Encoder,
    images: &[Image],
    threshold: Option<f64>,
    each: bool,
    mut done: impl FnMut(),
) -> Result<Image> {
    let ([rows, columns], dim) = (model.grid(), model.dim());
    let len = rows * columns;
    let mut patches = Vec::with_capacity(images.len() * len * dim);
    for image in images {
        let tokens = model.layers(&batch(std::slice::from_ref(image), model.device())?, 1)?.swap_remove(0);
        patches.extend_from_slice(&tokens.to_vec::<f32>()?[dim..]); // the class token comes first
        done();
    }
    let patches = Tensor::from_slice(&patches, [images.len(), len, dim], &Device::Cpu)?;
    let colours = colours(&patches, [rows, columns], threshold, each)?;
    let mut tiles = Vec::with_capacity(2 * images.len());
    for (image, colours) in images.iter().zip(colours.chunks_exact(len)) {
        let drawn = Image::new(columns, rows, colours.as_flattened().to_vec())?;
        let patch = contact::enlarge(&drawn, columns * model.patch_size())?;
        tiles.extend([image, &patch].map(|image| contact::enlarge(image, SIDE)));
    }
    contact::grid(&tiles.into_iter().collect::<Result<Vec<_>>>()?, 2, PAD)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Purpose, Stream};

    /// Two images of 4 x 4 patches: a 2 x 2 thing in the middle of each on a ground, in features of 6 values.
    fn planted(sign: f32) -> (Tensor, Vec<bool>) {
        let mut rng = Stream::new(2, Purpose::TEST, 0, 0);
        let thing = |at: usize| [5, 6, 9, 10].contains(&(at % 16));
        let mut row = |at: usize| {
            let side = if thing(at) { sign } else { -sign };
            let mut row = [0.0; 6].map(|_: f32| 0.05 * rng.normal() as f32);
            row[0] += 4.0 * side;
            if thing(at) {
                row[1 + at % 2] += 1.0; // left and right parts differ
            }
            row
        };
        let values: Vec<f32> = (0..32).flat_map(&mut row).collect();
        (Tensor::from_slice(&values, [2, 16, 6], &Device::Cpu).unwrap(), (0..32).map(thing).collect())
    }

    #[test]
    fn the_side_in_the_middle_is_the_foreground_whatever_its_sign() {
        for sign in [1.0, -1.0] {
            let (patches, things) = planted(sign);
            let found = colours(&patches, [4, 4], None, false).unwrap();
            let coloured: Vec<bool> = found.iter().map(|colour| *colour != [0; 3]).collect();
            assert_eq!(coloured, things);
            // The first component of the foreground tells its two parts apart.
            let red = |at: usize| found[at][0];
            assert!(red(5).abs_diff(red(6)) > 150 && red(5).abs_diff(red(21)) < 100, "{:?}", [5, 6, 21, 22].map(red));
        }
    }

    /// Images that differ from each other more than things do from what is behind them.
    #[test]
    fn each_image_may_have_a_foreground_of_its_own() {
        let (patches, things) = planted(1.0);
        let mut values = patches.to_vec::<f32>().unwrap();
        values.chunks_exact_mut(6).enumerate().for_each(|(at, row)| row[5] += if at < 16 { -20.0 } else { 20.0 });
        let found = |rows: usize| foregrounds(&values, 6, rows, [4, 4], None).unwrap();
        assert_eq!(found(16), things);
        assert_eq!(found(32), [[false; 16], [true; 16]].concat(), "the images are parted");
    }

    #[test]
    fn sides_that_touch_the_border_alike_go_by_their_size() {
        // Inner patch of 3 x 3 against the rest, either way round.
        let middle: Vec<bool> = (0..9).map(|at| at == 4).collect();
        assert_eq!(foreground(&middle, [3, 3]), middle);
        let around: Vec<bool> = middle.iter().map(|m| !m).collect();
        assert_eq!(foreground(&around, [3, 3]), middle);
        // One row: all patches are at the border. The smaller side, and of equal ones the upper.
        assert_eq!(foreground(&[true, true, true, false], [1, 4]), [false, false, false, true]);
        assert_eq!(foreground(&[false, true], [1, 2]), [false, true]);
    }

    #[test]
    fn the_threshold_lies_between_two_groups() {
        let values: Vec<f64> = (0..30).map(|i| if i < 20 { 0.1 } else { 0.8 }).collect();
        let at = otsu(&values);
        assert!((0.1..0.8).contains(&at), "{at}");
        assert_eq!(scaled(&[2.0, 4.0, 3.0]), [0.0, 1.0, 0.5]);
        assert_eq!(scaled(&[2.0, 2.0]), [0.5, 0.5]);
    }

    #[test]
    fn unusable_thresholds_are_named() {
        let (patches, _) = planted(1.0);
        let text = colours(&patches, [4, 4], Some(1.0), false).unwrap_err().to_string();
        assert_eq!(text, "config: `threshold` is 1, expected one that leaves patches on both sides: 0 to below 1");
        let text = colours(&patches, [4, 5], None, false).unwrap_err().to_string();
        assert_eq!(text, "components: `patches` has shape [2, 16, 6], expected [.., 20, ..]");
    }
}
