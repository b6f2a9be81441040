//! Contact sheets of what was dropped, beside what it was a copy of.

use std::path::Path;

use super::report::{Dropped, Reason};
use crate::Result;
use crate::checkpoint::atomic;
use crate::data::{Image, contact, decode, lettering};

/// Side of an image on the sheet in pixels.
const SIDE: usize = 96;
/// Pairs in a row.
const COLUMNS: usize = 6;

/// Draws pairs, dropped image on the left, with similarity and file name: `dropped-duplicate.png` and
/// `dropped-evaluation.png`, up to `pairs` in each. Half are those of least similarity, where a threshold that is too low
/// would show; the others are spread over the rest. Returns the names of the pictures.
///
/// # Errors
/// [`crate::Error::Io`].
pub fn draw(losses: &[Dropped], pairs: usize, pool: &Path, out: &Path) -> Result<Vec<String>> {
    let mut written = Vec::new();
    for reason in [Reason::Duplicate, Reason::Evaluation] {
        let mut of: Vec<&Dropped> = losses.iter().filter(|d| d.reason == reason).collect();
        of.sort_by(|a, b| {
            a.similarity.unwrap_or(0.0).total_cmp(&b.similarity.unwrap_or(0.0)).then(a.file.cmp(&b.file))
        });
        let cells = chosen(of.len(), pairs).into_iter().map(|i| cell(of[i], pool)).collect::<Result<Vec<_>>>()?;
        let name = format!("dropped-{}.png", reason.name());
        if cells.is_empty() {
            continue;
        }
        let png = contact::grid(&cells, COLUMNS, 6)?.to_png()?;
        atomic::clean(out, &name)?;
        atomic::write(out.join(&name), |w| std::io::Write::write_all(w, &png))?;
        written.push(name);
    }
    Ok(written)
}

/// Numbers of the first half and of as many spread over the rest.
fn chosen(count: usize, pairs: usize) -> Vec<usize> {
    if count <= pairs {
        return (0..count).collect();
    }
    let first = pairs.div_ceil(2);
    let (spread, rest) = (pairs - first, count - first);
    (0..first).chain((0..spread).map(|i| first + (i + 1) * rest / spread - 1)).collect()
}

/// Two images side by side above their names.
fn cell(dropped: &Dropped, pool: &Path) -> Result<Image> {
    let mut cell = Image::filled(2 * SIDE + 2, SIDE + 2 * lettering::HEIGHT, [255; 3]);
    for (path, left) in [(&pool.join(&dropped.file), 0), (&dropped.matched_path, SIDE + 2)] {
        // Gone since it was read: the sheet leaves its place white.
        let image = decode::open(path).unwrap_or_else(|_| Image::filled(1, 1, [255; 3]));
        contact::paste(&mut cell, &contact::thumbnail(&image, SIDE)?, left, 0);
    }
    let columns = cell.width / lettering::WIDTH;
    let tail = |name: &str| name.chars().skip(name.chars().count().saturating_sub(columns)).collect::<String>();
    let similarity = dropped.similarity.map_or(String::new(), |s| format!("{s:.4}"));
    let other = if dropped.reason == Reason::Duplicate { "copy" } else { "evaluation" };
    lettering::write(&mut cell, 0, SIDE, &format!("{similarity} dropped | {other}"), [0; 3]);
    lettering::write(&mut cell, 0, SIDE + lettering::HEIGHT, &tail(&dropped.file), [90; 3]);
    Ok(cell)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_similar_and_some_of_the_rest() {
        assert_eq!(chosen(3, 4), [0, 1, 2]);
        assert_eq!(chosen(10, 4), [0, 1, 5, 9]);
        assert_eq!(chosen(10, 1), [0]);
        assert_eq!(chosen(9, 0), [0; 0]);
    }
}
