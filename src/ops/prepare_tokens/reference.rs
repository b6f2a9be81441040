//! Plain loops: forward parallel over images, gradients over the rows of the table, images summed in order.

use rayon::prelude::*;

use super::{Dims, Gradients, OP, Part, Tokens};
use crate::device::host::simd;
use crate::dtype::{Float, num_like::Ops};
use crate::{Result, Tensor, with_float};

pub(super) fn forward(part: &Part, tokens: Tokens, dims: Dims, y: &mut Tensor) -> Result<()> {
    let Dims { len, registers, cols, first, .. } = dims;
    let like = part.patches.value();
    with_float!(OP, "patches", like.dtype(), T => {
        let (patches, pos) = (like.as_slice::<T>()?, part.pos_embed.value().as_slice::<T>()?);
        let (cls, mask) = (tokens.cls.as_slice::<T>()?, tokens.mask.as_slice::<T>()?);
        let extra = tokens.registers.map_or(Ok(&[][..]), Tensor::as_slice::<T>)?;
        let masks = part.masks.map(Tensor::as_slice::<i32>).transpose()?;
        let y = &mut y.as_mut_slice::<T>()?[first * cols..][..dims.rows() * cols];
        if cols == 0 {
            return Ok(());
        }
        y.par_chunks_mut(dims.tokens() * cols).enumerate().for_each(|(b, y)| {
            let (head, rest) = y.split_at_mut((1 + registers) * cols);
            add(cls, &pos[..cols], &mut head[..cols]);
            head[cols..].copy_from_slice(extra);
            for (l, (y, pos)) in rest.chunks_exact_mut(cols).zip(pos[cols..].chunks_exact(cols)).enumerate() {
                let hidden = masks.is_some_and(|m| m[b * len + l] != 0);
                add(if hidden { mask } else { &patches[(b * len + l) * cols..][..cols] }, pos, y);
            }
        });
        Ok(())
    })
}

fn add<T: Float>(a: &[T], b: &[T], y: &mut [T]) {
    simd(
        #[inline(always)]
        || {
            for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
                *y = T::put(a.get() + b.get());
            }
        },
    );
}

pub(super) fn backward(dy: &Tensor, masks: Option<&Tensor>, dims: Dims, g: &mut Gradients) -> Result<()> {
    let Dims { len, registers, cols, first, .. } = dims;
    with_float!(OP, "dy", dy.dtype(), T => {
        type A = <T as Float>::Acc;
        let dy = &dy.as_slice::<T>()?[first * cols..][..dims.rows() * cols];
        let masks = masks.map(Tensor::as_slice::<i32>).transpose()?;
        let hidden = |b: usize, l: usize| masks.is_some_and(|m| m[b * len + l] != 0);
        if cols == 0 {
            return Ok(());
        }
        let (image, patch) = (dims.tokens() * cols, 1 + registers);
        if let Some(dpatches) = &mut g.patches {
            let dpatches = dpatches.as_mut_slice::<T>()?.par_chunks_mut(len * cols).zip(dy.par_chunks(image));
            dpatches.enumerate().for_each(|(b, (dx, dy))| {
                dx.copy_from_slice(&dy[patch * cols..]);
                let rows = dx.chunks_exact_mut(cols).enumerate().filter(|(l, _)| hidden(b, *l));
                rows.for_each(|(_, row)| row.fill(T::put(A::ZERO)));
            });
        }
        // `to` has a row of sums for token rows from `from` on; `counts` says which images do.
        let sums = |to: Option<&mut Tensor>, row: &(dyn Fn(usize) -> usize + Sync), counts: &(dyn Fn(usize, usize) -> bool + Sync)| {
            let Some(to) = to else { return Ok(()) };
            to.as_mut_slice::<A>()?.par_chunks_mut(cols).enumerate().for_each(|(t, sum)| {
                sum.fill(A::ZERO);
                for (_, dy) in dy.chunks_exact(image).enumerate().filter(|(b, _)| counts(*b, t)) {
                    let dy = &dy[row(t) * cols..][..cols];
                    simd(#[inline(always)] || {
                        for (s, x) in sum.iter_mut().zip(dy) {
                            *s += x.get();
                        }
                    });
                }
            });
            Ok::<(), crate::Error>(())
        };
        let all = |_: usize, _: usize| true;
        sums(g.cls.as_mut(), &|_| 0, &all)?;
        sums(g.registers.as_mut(), &|t| 1 + t, &all)?;
        sums(g.pos.as_mut(), &|t| if t == 0 { 0 } else { registers + t }, &all)?;
        sums(g.mask.as_mut(), &|t| patch + t, &hidden)
    })
}
