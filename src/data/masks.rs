//! Random masking: which patches of an image the encoder sees, from uniform noise.
//!
//! Source: He et al. 2022, arXiv 2111.06377, section 3: patches are shuffled by sorting noise and the first ones kept.

use crate::{Error, Result};

const OP: &str = "random_masking";

/// The patches kept and removed in every image of a batch; `[B, ..]` vectors are row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Masking {
    /// Patches kept per image, `K`.
    pub keep: usize,
    /// `[B, K]`: kept patches in the order of their noise, **not** raster order.
    pub ids_keep: Vec<i32>,
    /// `[B, L-K]`: removed patches, ascending.
    pub ids_masked: Vec<i32>,
    /// `[B, L]`: rank of every patch in the order of the noise; below `K` where the patch is kept.
    pub ids_restore: Vec<i32>,
    /// `[B, L]`: 1 where the patch is removed, 0 where it is kept.
    pub mask: Vec<f32>,
}

/// How many of `len` patches stay when `ratio` of them are removed: `trunc(len · (1 - ratio))` in f64. In f32, or
/// rounded to nearest, usual ratios give other counts.
///
/// # Errors
/// When `ratio` is not in `[0, 1]`.
pub fn kept(len: usize, ratio: f64) -> Result<usize> {
    if !(0.0..=1.0).contains(&ratio) {
        return Err(Error::value(OP, "ratio", ratio, "a number from 0 to 1"));
    }
    Ok((len as f64 * (1.0 - ratio)) as usize)
}

/// Keeps, in each of `batch` images, the `kept(len, ratio)` patches of smallest noise.
///
/// `noise` is `[batch, len]`. Equal noise is ordered by the lower index, so the result depends on nothing but the
/// arguments.
///
/// # Errors
/// When `noise` has another length or holds a NaN, when `ratio` is not in `[0, 1]`, or when `len` is 0 or not an i32.
pub fn random_masking(noise: &[f32], batch: usize, len: usize, ratio: f64) -> Result<Masking> {
    if len == 0 || i32::try_from(len).is_err() {
        return Err(Error::value(OP, "len", len, "from 1 to 2147483647 patches"));
    }
    if Some(noise.len()) != batch.checked_mul(len) {
        let expected = format!("{batch} images x {len} patches");
        return Err(Error::argument(OP, "noise", "length", noise.len().to_string(), expected));
    }
    if let Some(at) = noise.iter().position(|x| x.is_nan()) {
        return Err(Error::value(OP, format!("noise[{}, {}]", at / len, at % len), "NaN", "a number"));
    }
    let keep = kept(len, ratio)?;
    let mut out = Masking {
        keep,
        ids_keep: Vec::with_capacity(batch * keep),
        ids_masked: Vec::with_capacity(batch * (len - keep)),
        ids_restore: vec![0; batch * len],
        mask: vec![0.0; batch * len],
    };
    let mut order = vec![0u64; len];
    let rows = out.ids_restore.chunks_exact_mut(len).zip(out.mask.chunks_exact_mut(len));
    for (noise, (restore, mask)) in noise.chunks_exact(len).zip(rows) {
        for (i, (key, &x)) in order.iter_mut().zip(noise).enumerate() {
            *key = u64::from(ordered(x)) << 32 | i as u64; // the index below the noise breaks ties
        }
        order.sort_unstable();
        for (rank, key) in order.iter().enumerate() {
            restore[*key as u32 as usize] = rank as i32;
        }
        out.ids_keep.extend(order[..keep].iter().map(|key| *key as u32 as i32));
        for (i, (&rank, mask)) in restore.iter().zip(mask).enumerate() {
            if rank as usize >= keep {
                *mask = 1.0;
                out.ids_masked.push(i as i32);
            }
        }
    }
    Ok(out)
}

/// Bits that sort as the numbers do; both zeros are equal.
fn ordered(x: f32) -> u32 {
    let bits = (x + 0.0).to_bits(); // -0 + 0 = 0
    if bits >> 31 == 0 { bits | 1 << 31 } else { !bits }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn counts_are_truncated_in_f64() {
        for (len, ratio, keep) in [(196, 0.75, 49), (256, 0.75, 64), (49, 0.6, 19), (100, 0.9, 9), (10, 0.8, 1)] {
            assert_eq!(kept(len, ratio).unwrap(), keep, "{len} {ratio}");
        }
        assert_eq!((kept(7, 0.0).unwrap(), kept(7, 1.0).unwrap()), (7, 0));
    }

    #[test]
    fn kept_patches_come_in_noise_order_and_ties_by_index() {
        let noise = [0.9, 0.1, 0.5, 0.1, 0.7, 0.0];
        let m = random_masking(&noise, 1, 6, 0.5).unwrap();
        assert_eq!(m.ids_keep, [5, 1, 3]);
        assert_eq!(m.ids_masked, [0, 2, 4]);
        assert_eq!(m.ids_restore, [5, 1, 3, 2, 4, 0]);
        assert_eq!(m.mask, [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]);
        let zeros = random_masking(&[0.0, -0.0, f32::NEG_INFINITY, -1.0], 1, 4, 0.0).unwrap();
        assert_eq!(zeros.ids_keep, [2, 3, 0, 1]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn ranks_are_the_inverse_permutation(batch in 1usize..5, len in 1usize..60, ratio in 0.0f64..1.0, seed: u64) {
            // Quantised, so that ties occur.
            let mut rng = crate::random::stream(seed, 0);
            let noise: Vec<f32> = crate::random::uniform(&mut rng, batch * len).iter().map(|x| (x * 32.0).floor()).collect();
            let m = random_masking(&noise, batch, len, ratio).unwrap();
            let doubled: Vec<f32> = noise.iter().map(|x| x * 2.0).collect();
            prop_assert_eq!(&m, &random_masking(&doubled, batch, len, ratio).unwrap());
            for b in 0..batch {
                let row = |v: &[i32], n: usize| v[b * n..(b + 1) * n].to_vec();
                let (keep, masked, restore) =
                    (row(&m.ids_keep, m.keep), row(&m.ids_masked, len - m.keep), row(&m.ids_restore, len));
                for (j, &i) in keep.iter().enumerate() {
                    prop_assert_eq!(restore[i as usize], j as i32);
                    prop_assert_eq!(m.mask[b * len + i as usize], 0.0);
                }
                prop_assert!(masked.windows(2).all(|w| w[0] < w[1]));
                let mut ranks = restore.clone();
                ranks.sort_unstable();
                prop_assert_eq!(ranks, (0..len as i32).collect::<Vec<_>>());
                let removed: f32 = m.mask[b * len..(b + 1) * len].iter().sum();
                prop_assert_eq!(removed as usize, len - m.keep);
            }
        }
    }

    #[test]
    fn wrong_arguments_are_named() {
        let text = |r: Result<Masking>| r.unwrap_err().to_string();
        let short = random_masking(&[0.0; 5], 2, 3, 0.5);
        assert_eq!(text(short), "random_masking: `noise` has length 5, expected 2 images x 3 patches");
        let nan = random_masking(&[0.0, 0.0, 0.0, f32::NAN], 2, 2, 0.5);
        assert_eq!(text(nan), "random_masking: `noise[1, 1]` has value NaN, expected a number");
        let ratio = random_masking(&[0.0; 4], 2, 2, 1.5);
        assert_eq!(text(ratio), "random_masking: `ratio` has value 1.5, expected a number from 0 to 1");
        assert!(random_masking(&[0.0; 4], 2, 2, f64::NAN).is_err());
        assert!(random_masking(&[], 2, 0, 0.5).is_err());
    }
}
