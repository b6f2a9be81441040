//! Images of different shapes in one batch: the second model's NaFlex.

use super::head::Queries;
use crate::nn::Sequences;
use crate::nn::pos_embed::{Grid, Read, Resample, weights};
use crate::ops::embedding::{Lookup, embedding};
use crate::ops::residual::residual;
use crate::{Device, Error, Result, Tape, Tensor, Var};

/// The patch grids of images whose patches follow each other, image after image, without padding: what a mask hides is not
/// there. Positions are those of the tower's table, resampled to each grid (bilinear with antialiasing).
///
/// Source: Tschannen et al. 2025, arXiv 2502.14786, section 2.4.2; the resampling is that of `transformers`.
#[derive(Clone, Debug)]
pub struct Shapes {
    pub(super) seqs: Sequences,
    pub(super) queries: Queries,
    /// A row of the table and a factor for each patch, as many times as the patch that is read from most has sources.
    sources: Vec<(Lookup, Tensor)>,
}

impl Shapes {
    /// `grids`: patch rows and columns of each image; `table`: those of the tower's positions.
    ///
    /// # Errors
    /// When a grid is empty.
    pub fn new(grids: &[Grid], table: Grid, device: &Device) -> Result<Self> {
        let empty = |grid: &Grid| grid.0 * grid.1 == 0;
        if let Some(grid) = grids.iter().chain([&table]).find(|grid| empty(grid)) {
            return Err(Error::value("shapes", "grids", format!("{grid:?}"), "at least one row and one column"));
        }
        let mut starts = vec![0i32];
        let mut reads = vec![];
        for &grid in grids {
            reads.extend(weights(table, grid, Resample::BilinearAntialias).into_iter().map(merged));
            starts.push(reads.len() as i32);
        }
        let most = reads.iter().map(Vec::len).max().unwrap_or(0);
        let source = |k: usize| {
            let of = |read: &Read| read.get(k).copied().unwrap_or((0, 0.0));
            let ids: Vec<i32> = reads.iter().map(|read| of(read).0 as i32).collect();
            let factors: Vec<f32> = reads.iter().map(|read| of(read).1 as f32).collect();
            let factors = Tensor::from_slice(&factors, [factors.len()], device)?;
            Ok((Lookup::new(&ids, table.0 * table.1, device)?, factors))
        };
        Ok(Self {
            seqs: Sequences {
                cu_seqlens: Tensor::from_slice(&starts, [starts.len()], device)?,
                max: grids.iter().map(|grid| grid.0 * grid.1).max().unwrap_or(0),
            },
            queries: Queries::new(grids.len(), device)?,
            sources: (0..most).map(source).collect::<Result<_>>()?,
        })
    }

    /// Adds the positions to `x: [patches, width]`.
    pub(super) fn add_positions(&self, tape: &Tape, table: &Var, mut x: Var) -> Result<Var> {
        for (lookup, factors) in &self.sources {
            let factors = factors.cast(x.value().dtype().accumulate())?;
            x = residual(tape, &x, &embedding(tape, table, lookup, None)?, Some(&factors))?;
        }
        Ok(x)
    }
}

/// One entry for each source, without those that add nothing.
fn merged(read: Read) -> Read {
    let mut out = Read::new();
    for (at, weight) in read {
        match out.iter_mut().find(|(other, _)| *other == at) {
            Some((_, sum)) => *sum += weight,
            None => out.push((at, weight)),
        }
    }
    out.retain(|(_, weight)| *weight != 0.0);
    out
}
