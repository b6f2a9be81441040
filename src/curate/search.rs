//! Exact nearest neighbours by cosine: products of blocks of queries with tiles of rows, and the best k so far of each query.
//!
//! `s(q, r) = max over the views v of q of <q_v, r>`. Blocks and tiles have fixed sizes and equal similarities rank by number,
//! so a result depends neither on threads nor on where a search was interrupted.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use rayon::prelude::*;

use crate::ops::linear;
use crate::{Device, Error, Result, Tensor};

/// Rows compared at a time: scores of a block of queries with a tile stay below a few MB.
const TILE: usize = 4096;
/// Rows of queries, all views counted, compared at a time.
const BLOCK: usize = 320;

/// A row that was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Near {
    /// Its number.
    pub index: u32,
    /// Cosine.
    pub similarity: f32,
}

impl Eq for Near {}

impl Ord for Near {
    /// The nearer is the lesser; equal ones by number.
    fn cmp(&self, other: &Self) -> Ordering {
        other.similarity.total_cmp(&self.similarity).then(self.index.cmp(&other.index))
    }
}

impl PartialOrd for Near {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// What is searched for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Neighbours of each query.
    pub k: usize,
    /// Only those of a larger similarity.
    pub above: f32,
    /// Views of each query: rows that stand for the same image.
    pub views: usize,
    /// Where the queries are rows themselves: number of the first; none finds itself.
    pub own: Option<usize>,
}

/// Rows of unit length among which to search, on a device.
pub struct Rows {
    tiles: Vec<Tensor>,
    dim: usize,
}

impl Rows {
    /// Of `values` `[N, dim]`.
    ///
    /// # Errors
    /// When the values are no whole rows.
    pub fn new(values: &[f32], dim: usize, device: &Device) -> Result<Self> {
        check("rows", values, dim)?;
        let tile = |part: &[f32]| Tensor::from_slice(part, [part.len() / dim, dim], device);
        Ok(Self { tiles: values.chunks(TILE * dim).map(tile).collect::<Result<_>>()?, dim })
    }

    /// The nearest of each query, nearest first. `queries` is `[Q, views, dim]`, of unit length.
    ///
    /// # Errors
    /// When the queries are no whole rows.
    pub fn nearest(&self, queries: &[f32], wanted: &Wanted) -> Result<Vec<Vec<Near>>> {
        let Wanted { k, above, views, own } = *wanted;
        check("queries", queries, self.dim * views)?;
        let images = (BLOCK / views).max(1);
        let mut found = Vec::with_capacity(queries.len() / (self.dim * views));
        for block in queries.chunks(images * views * self.dim) {
            let first = found.len();
            let count = block.len() / (views * self.dim);
            let mut best: Vec<BinaryHeap<Near>> = (0..count).map(|_| BinaryHeap::with_capacity(k + 1)).collect();
            let mut before = 0; // rows of earlier tiles
            for tile in &self.tiles {
                let width = tile.shape()[0];
                let block = Tensor::from_slice(block, [count * views, self.dim], tile.device())?;
                let scores = linear::forward(&block, tile, None, None)?.to_vec::<f32>()?; // [count * views, width]
                let each = best.par_iter_mut().zip(scores.par_chunks_exact(views * width)).enumerate();
                each.for_each(|(at, (best, scores))| {
                    let own = own.map(|own| own + first + at);
                    keep(best, scores, width, before, k, above, own);
                });
                before += width;
            }
            found.extend(best.into_iter().map(BinaryHeap::into_sorted_vec));
        }
        Ok(found)
    }
}

/// Puts what one query finds in a tile, `scores` `[views, width]`, among its `k` best.
fn keep(
    best: &mut BinaryHeap<Near>,
    scores: &[f32],
    width: usize,
    before: usize,
    k: usize,
    above: f32,
    own: Option<usize>,
) {
    let (whole, others) = scores.split_at(width);
    let mut largest = whole.to_vec();
    for view in others.chunks_exact(width) {
        largest.iter_mut().zip(view).for_each(|(a, b)| *a = a.max(*b));
    }
    for (at, &similarity) in largest.iter().enumerate() {
        let near = Near { index: (before + at) as u32, similarity };
        if similarity <= above || own == Some(before + at) {
            continue;
        }
        if best.len() < k {
            best.push(near);
        } else if best.peek().is_some_and(|worst| near < *worst) {
            best.pop();
            best.push(near);
        }
    }
}

fn check(arg: &'static str, values: &[f32], width: usize) -> Result<()> {
    if width == 0 || !values.len().is_multiple_of(width) {
        let expected = format!("a multiple of {width}, which is not 0");
        return Err(Error::argument("nearest", arg, "length", values.len().to_string(), expected));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Purpose, Stream};

    /// Small whole numbers, whose products and sums are exact in any order.
    fn whole(count: usize, seed: u64) -> Vec<f32> {
        let mut rng = Stream::new(seed, Purpose::TEST, 0, 0);
        (0..count).map(|_| rng.below(9) as f32 - 4.0).collect()
    }

    /// All pairs one by one, then sorted.
    fn naive(rows: &[f32], queries: &[f32], dim: usize, wanted: &Wanted) -> Vec<Vec<Near>> {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let one = |(number, query): (usize, &[f32])| {
            let similarity =
                |row: &[f32]| query.chunks(dim).map(|view| dot(view, row)).fold(f32::NEG_INFINITY, f32::max);
            let all = rows.chunks(dim).enumerate();
            let mut all: Vec<(f32, usize)> = all.map(|(index, row)| (similarity(row), index)).collect();
            all.retain(|&(s, index)| s > wanted.above && wanted.own.map(|own| own + number) != Some(index));
            all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            all.truncate(wanted.k);
            all.into_iter().map(|(similarity, index)| Near { index: index as u32, similarity }).collect()
        };
        queries.chunks(dim * wanted.views).enumerate().map(one).collect()
    }

    #[test]
    fn the_nearest_are_those_of_a_plain_search() {
        // More rows than a tile, more queries than a block, ties in plenty.
        let (dim, rows) = (6, whole((TILE + 37) * 6, 1));
        let bank = Rows::new(&rows, dim, &Device::Cpu).unwrap();
        for (views, count, k, above, own) in
            [(1, 5, 64, f32::NEG_INFINITY, None), (1, 400, 3, 40.0, Some(TILE - 370)), (5, 70, 8, 10.0, None)]
        {
            let queries = match own {
                Some(own) => rows[own * dim..(own + count) * dim].to_vec(),
                None => whole(count * views * dim, 2),
            };
            let wanted = Wanted { k, above, views, own };
            let found = bank.nearest(&queries, &wanted).unwrap();
            assert_eq!(found, naive(&rows, &queries, dim, &wanted), "{wanted:?}");
            assert!(found.iter().any(|near| near.len() == k));
        }
    }

    #[test]
    fn few_rows_and_odd_lengths() {
        let wanted = Wanted { k: 4, above: f32::NEG_INFINITY, views: 1, own: Some(0) };
        let rows = [1.0, 0.0, 0.0, 1.0];
        let bank = Rows::new(&rows, 2, &Device::Cpu).unwrap();
        let near = |index, similarity| vec![Near { index, similarity }];
        assert_eq!(bank.nearest(&rows, &wanted).unwrap(), [near(1, 0.0), near(0, 0.0)]);
        assert_eq!(Rows::new(&[], 2, &Device::Cpu).unwrap().nearest(&rows, &wanted).unwrap(), [vec![], vec![]]);
        let message = bank.nearest(&rows[..3], &wanted).unwrap_err().to_string();
        assert_eq!(message, "nearest: `queries` has length 3, expected a multiple of 2, which is not 0");
    }
}
