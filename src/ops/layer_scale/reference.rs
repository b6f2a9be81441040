//! Plain loops, parallel over fixed blocks of rows, in whose order the gradient of the weight is summed.

use rayon::prelude::*;

use super::{Dims, Drop, OP};
use crate::device::host::simd;
use crate::dtype::{Float, num_like::Ops};
use crate::{Result, Tensor, with_float};

/// Rows per task.
const ROWS: usize = 32;

/// Factors and places of the rows of a branch.
struct Rows<'a, A> {
    sequence: Option<&'a [i32]>,
    scale: &'a [A],
    token: Option<&'a [i32]>,
    source: Option<&'a [i32]>,
}

impl<'a, A: Ops + crate::dtype::Element> Rows<'a, A> {
    fn of(drop: Option<Drop<'a>>) -> Result<Self> {
        let Some((map, scale)) = drop else {
            return Ok(Self { sequence: None, scale: &[], token: None, source: None });
        };
        let slice = |t: Option<&'a Tensor>| t.map(Tensor::as_slice::<i32>).transpose();
        let (token, source) = (slice(map.ids())?, slice(map.source())?);
        Ok(Self { sequence: slice(Some(map.sequence()))?, scale: scale.as_slice()?, token, source })
    }

    fn factor(&self, row: usize) -> A {
        self.sequence.map_or(A::ONE, |s| self.scale[s[row] as usize])
    }

    fn token(&self, row: usize) -> usize {
        self.token.map_or(row, |t| t[row] as usize)
    }

    fn row(&self, token: usize) -> Option<usize> {
        self.source.map_or(Some(token), |s| usize::try_from(s[token]).ok())
    }
}

pub(super) fn forward(
    x: &Tensor,
    branch: &Tensor,
    gamma: Option<&Tensor>,
    drop: Option<Drop>,
    Dims { cols, .. }: Dims,
    y: &mut Tensor,
) -> Result<()> {
    with_float!(OP, "x", x.dtype(), T => {
        let rows = Rows::<<T as Float>::Acc>::of(drop)?;
        let (x, branch, y) = (x.as_slice::<T>()?, branch.as_slice::<T>()?, y.as_mut_slice::<T>()?);
        let gamma = gamma.map(Tensor::as_slice::<T>).transpose()?;
        if cols == 0 {
            return Ok(());
        }
        y.par_chunks_mut(ROWS * cols).zip(x.par_chunks(ROWS * cols)).enumerate().for_each(|(block, (y, x))| {
            for (i, (y, x)) in y.chunks_exact_mut(cols).zip(x.chunks_exact(cols)).enumerate() {
                let Some(row) = rows.row(block * ROWS + i) else {
                    y.copy_from_slice(x);
                    continue;
                };
                let (branch, s) = (&branch[row * cols..][..cols], rows.factor(row));
                match gamma {
                    None => simd(#[inline(always)] || scaled(y, x, branch, #[inline(always)] |_| s)),
                    Some(g) => simd(#[inline(always)] || scaled(y, x, branch, #[inline(always)] |c| s * g[c].get())),
                }
            }
        });
        Ok(())
    })
}

/// `y = x + factor · branch`.
#[inline(always)]
fn scaled<T: Float>(y: &mut [T], x: &[T], branch: &[T], factor: impl Fn(usize) -> T::Acc) {
    for (c, ((y, x), branch)) in y.iter_mut().zip(x).zip(branch).enumerate() {
        *y = T::put(x.get() + factor(c) * branch.get());
    }
}

pub(super) fn backward(
    dy: &Tensor,
    branch: &Tensor,
    gamma: Option<&Tensor>,
    drop: Option<Drop>,
    Dims { cols, .. }: Dims,
    dbranch: &mut Tensor,
    dgamma: Option<&mut Tensor>,
) -> Result<()> {
    with_float!(OP, "dy", dy.dtype(), T => {
        type A = <T as Float>::Acc;
        let rows = Rows::<A>::of(drop)?;
        let (dy, branch, dbranch) = (dy.as_slice::<T>()?, branch.as_slice::<T>()?, dbranch.as_mut_slice::<T>()?);
        let gamma = gamma.map(Tensor::as_slice::<T>).transpose()?;
        if cols == 0 {
            return Ok(());
        }
        let blocks = dbranch.par_chunks_mut(ROWS * cols).zip(branch.par_chunks(ROWS * cols)).enumerate();
        let parts: Vec<Vec<A>> = blocks
            .map(|(block, (dbranch, branch))| {
                let mut part = vec![A::ZERO; if gamma.is_some() { cols } else { 0 }];
                for (i, (db, b)) in dbranch.chunks_exact_mut(cols).zip(branch.chunks_exact(cols)).enumerate() {
                    let row = block * ROWS + i;
                    let (dy, s) = (&dy[rows.token(row) * cols..][..cols], rows.factor(row));
                    simd(#[inline(always)] || backward_row(dy, b, gamma, s, db, &mut part));
                }
                part
            })
            .collect();
        if let Some(dgamma) = dgamma {
            let dgamma = dgamma.as_mut_slice::<A>()?;
            dgamma.fill(A::ZERO);
            for part in parts {
                dgamma.iter_mut().zip(&part).for_each(|(d, &p)| *d += p);
            }
        }
        Ok(())
    })
}

/// One row of `dbranch`, and its share of the weight's gradient.
#[inline(always)]
fn backward_row<T: Float>(dy: &[T], branch: &[T], gamma: Option<&[T]>, s: T::Acc, db: &mut [T], part: &mut [T::Acc]) {
    let Some(gamma) = gamma else {
        db.iter_mut().zip(dy).for_each(|(db, dy)| *db = T::put(s * dy.get()));
        return;
    };
    let n = db.len();
    let (dy, branch, gamma, part) = (&dy[..n], &branch[..n], &gamma[..n], &mut part[..n]);
    for c in 0..n {
        let through = s * dy[c].get();
        db[c] = T::put(through * gamma[c].get());
        part[c] += through * branch[c].get();
    }
}
