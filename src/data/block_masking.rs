//! Masks of rectangular blocks for masked-patch prediction: which patches of the global views of a batch are hidden.
//!
//! Sources: Bao et al. 2021, arXiv 2106.08254, algorithm 1 (blocks); dinov2 at b8931f7, `data/masking.py`, `data/collate.py`.

use super::rng::Stream;
use crate::{Error, Result};

const OP: &str = "block_masking";
/// Smallest area that is drawn for a block, in patches, where more are left to hide.
const MIN_AREA: f64 = 4.0;
/// Least height over width; the largest is its inverse.
const MIN_ASPECT: f64 = 0.3;
/// Blocks tried before a mask stays short of its request.
const TRIES: usize = 10;

/// Draws masks over a grid of patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockMasking {
    /// Rows and columns of patches.
    pub grid: [usize; 2],
    /// Patches a block may add at most.
    pub max_patches: usize,
}

/// Masks of a batch, and the hidden patches in their order.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockMasks {
    /// 1 for hidden patches, `[crops, N]`.
    pub masks: Vec<u8>,
    /// Places of the hidden patches among the `crops x N`, ascending.
    pub mask_indices: Vec<i32>,
    /// For each of them, 1 over the number of hidden patches of its crop.
    pub masks_weight: Vec<f32>,
    /// Number of hidden patches at most, whatever is drawn for a batch of this size: with the steps `r` of
    /// [`BlockMasking::batch`] `Σ ⌊N·rᵢ₊₁⌋` over its masked crops.
    pub upperbound: usize,
}

impl BlockMasks {
    /// The first patches that are not hidden, as many as there are fewer hidden ones than `upperbound`: with them all batches
    /// of a size have lists of one length, and no patch is in a list twice.
    pub fn padding(&self) -> impl Iterator<Item = i32> + '_ {
        let seen = self.masks.iter().enumerate().filter(|(_, m)| **m == 0).map(|(at, _)| at as i32);
        seen.take(self.upperbound - self.mask_indices.len())
    }
}

impl BlockMasking {
    /// For images of `height` x `width` in square patches. A block adds at most `⌊⌊height / 2 patch⌋·width / patch⌋` of them, about
    /// half.
    ///
    /// # Errors
    /// When an image has no whole patch.
    pub fn new([height, width]: [usize; 2], patch: usize) -> Result<Self> {
        if patch == 0 || height < patch || width < patch {
            let given = format!("{height} x {width}, patch {patch}");
            return Err(Error::value(OP, "image", given, "at least one patch of at least one pixel"));
        }
        Ok(Self { grid: [height / patch, width / patch], max_patches: height / (2 * patch) * width / patch })
    }

    /// Number of patches.
    pub fn patches(&self) -> usize {
        self.grid[0] * self.grid[1]
    }

    /// A mask with at most `request` ones, `[N]`: blocks of random area and aspect ratio at random places, until so many
    /// patches are hidden or ten tries in a row find no block that hides new ones, but not too many.
    pub fn draw(&self, request: usize, rng: &mut Stream) -> Vec<u8> {
        let mut mask = vec![0; self.patches()];
        let mut count = 0;
        while count < request {
            let most = (request - count).min(self.max_patches);
            let Some(new) = (0..TRIES).find_map(|_| self.add_block(&mut mask, most, rng)) else { break };
            count += new;
        }
        mask
    }

    /// Tries one block; how many patches it hides that were not hidden, from 1 to `most`.
    fn add_block(&self, mask: &mut [u8], most: usize, rng: &mut Stream) -> Option<usize> {
        let [rows, columns] = self.grid;
        let area = rng.uniform(MIN_AREA, most as f64); // below 4 the bounds are the other way round
        let aspect = rng.uniform(MIN_ASPECT.ln(), -MIN_ASPECT.ln()).exp();
        let side = |square: f64| square.sqrt().round_ties_even() as usize;
        let (height, width) = (side(area * aspect), side(area / aspect));
        if height >= rows || width >= columns {
            return None;
        }
        let (top, left) = (rng.below(rows - height + 1), rng.below(columns - width + 1));
        let block = |mask: &[u8]| -> usize {
            let hidden =
                |row: usize| mask[row * columns + left..][..width].iter().map(|&m| usize::from(m)).sum::<usize>();
            (top..top + height).map(hidden).sum()
        };
        let new = height * width - block(mask);
        if new == 0 || new > most {
            return None;
        }
        for row in top..top + height {
            mask[row * columns + left..][..width].fill(1);
        }
        Some(new)
    }

    /// Masks of a batch of `crops`: `⌊crops · probability⌋` of them, at random places, ask for between `ratios.0` and `ratios.1`
    /// of their patches, evenly spread over that range: with `r` of `n + 1` equal steps over it, the i-th of `n` for
    /// `⌊N · uniform(rᵢ, rᵢ₊₁)⌋`. The others hide nothing.
    ///
    /// # Errors
    /// Numbers that are no probability, no range within 0 to 1, and more patches than i32 counts.
    pub fn batch(&self, crops: usize, probability: f64, ratios: (f64, f64), rng: &mut Stream) -> Result<BlockMasks> {
        let patches = self.patches();
        if !(0.0..=1.0).contains(&probability) {
            return Err(Error::value(OP, "probability", probability, "a number from 0 to 1"));
        }
        if !(0.0 <= ratios.0 && ratios.0 <= ratios.1 && ratios.1 <= 1.0) {
            return Err(Error::value(
                OP,
                "ratios",
                format!("({}, {})", ratios.0, ratios.1),
                "0 <= lowest <= highest <= 1",
            ));
        }
        if crops.checked_mul(patches).is_none_or(|all| i32::try_from(all).is_err()) {
            let given = format!("{crops} of {patches} patches");
            return Err(Error::value(OP, "crops", given, "at most 2147483647 patches in all"));
        }
        let masked = (crops as f64 * probability) as usize;
        let bounds = linspace(ratios.0 as f32, ratios.1 as f32, masked);
        let count = |ratio: f32| (patches as f32 * ratio) as usize;
        let mut rows: Vec<Vec<u8>> = bounds
            .windows(2)
            .map(|r| {
                let request = count(r[0] + (r[1] - r[0]) * rng.unit_f32());
                self.draw(request, rng)
            })
            .collect();
        rows.resize(crops, vec![0; patches]);
        rng.shuffle(&mut rows);
        let (mut mask_indices, mut masks_weight) = (Vec::new(), Vec::new());
        for (crop, row) in rows.iter().enumerate() {
            let hidden = row.iter().enumerate().filter(|(_, m)| **m == 1).map(|(at, _)| (crop * patches + at) as i32);
            let before = mask_indices.len();
            mask_indices.extend(hidden);
            let number = mask_indices.len() - before;
            masks_weight.resize(mask_indices.len(), 1.0 / number as f32);
        }
        let upperbound = bounds.iter().skip(1).map(|&ratio| count(ratio)).sum();
        Ok(BlockMasks { masks: rows.concat(), mask_indices, masks_weight, upperbound })
    }
}

/// `steps + 1` numbers from `low` to `high`, both included exactly, in f32: each is counted from the nearer end.
fn linspace(low: f32, high: f32, steps: usize) -> Vec<f32> {
    let step = (high - low) / steps.max(1) as f32;
    let at = |i: usize| if 2 * i < steps { low + step * i as f32 } else { high - step * (steps - i) as f32 };
    (0..=steps).map(at).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::data::rng::Purpose;

    fn stream(seed: u64) -> Stream {
        Stream::new(seed, Purpose::TEST, 0, 0)
    }

    #[test]
    fn a_block_is_at_most_about_half() {
        for (image, patch, grid, most) in [(224, 14, 16, 128), (224, 16, 14, 98), (518, 14, 37, 666), (32, 4, 8, 32)] {
            let masking = BlockMasking::new([image; 2], patch).unwrap();
            assert_eq!(masking, BlockMasking { grid: [grid; 2], max_patches: most });
        }
        let error = BlockMasking::new([10, 20], 14).unwrap_err().to_string();
        let expected =
            "block_masking: `image` has value 10 x 20, patch 14, expected at least one patch of at least one pixel";
        assert_eq!(error, expected);
        assert!(BlockMasking::new([10, 20], 0).is_err());
    }

    #[test]
    fn steps_reach_both_ends() {
        assert_eq!(linspace(0.1, 0.5, 4), [0.1, 0.2, 0.3, 0.4, 0.5]);
        assert_eq!((linspace(0.1, 0.5, 0).len(), linspace(0.1, 0.5, 1)), (1, vec![0.1, 0.5]));
        assert_eq!(*linspace(0.1, 0.5, 77).last().unwrap(), 0.5);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn never_more_than_asked_for(rows in 1usize..20, columns in 1usize..20, part in 0.0f64..1.3, seed: u64) {
            let masking = BlockMasking { grid: [rows, columns], max_patches: rows * columns / 2 };
            let request = (part * masking.patches() as f64) as usize;
            let mask = masking.draw(request, &mut stream(seed));
            prop_assert_eq!(mask.len(), masking.patches());
            prop_assert!(mask.iter().map(|&m| usize::from(m)).sum::<usize>() <= request);
            prop_assert_eq!(mask, masking.draw(request, &mut stream(seed)));
        }

        #[test]
        fn a_batch_is_in_order(crops in 1usize..24, probability in 0.0f64..=1.0, low in 0.0f64..0.5, seed: u64) {
            let masking = BlockMasking::new([56, 42], 7).unwrap();
            let n = masking.patches();
            let b = masking.batch(crops, probability, (low, 0.5), &mut stream(seed)).unwrap();
            prop_assert_eq!(b.masks.len(), crops * n);
            let places: Vec<i32> = (0..crops * n).filter(|&i| b.masks[i] == 1).map(|i| i as i32).collect();
            prop_assert_eq!(&b.mask_indices, &places); // ascending, and no other
            prop_assert!(b.upperbound >= places.len());
            let counts: Vec<usize> = b.masks.chunks(n).map(|m| m.iter().filter(|m| **m == 1).count()).collect();
            let weight = |&i: &i32| 1.0 / counts[i as usize / n] as f32;
            prop_assert_eq!(&b.masks_weight, &places.iter().map(weight).collect::<Vec<_>>());
            let with_mask = counts.iter().filter(|c| **c > 0).count();
            prop_assert!(with_mask <= (crops as f64 * probability) as usize);
            prop_assert!((b.masks_weight.iter().sum::<f32>() - with_mask as f32).abs() < 1e-4);
            let padding: Vec<i32> = b.padding().collect();
            prop_assert_eq!(b.mask_indices.len() + padding.len(), b.upperbound);
            prop_assert!(padding.windows(2).all(|p| p[0] < p[1]) && padding.iter().all(|&i| b.masks[i as usize] == 0));
        }
    }

    /// Each crop that is asked hides about what its part of the range says, and all of them are asked.
    #[test]
    fn requests_are_spread_over_the_range() {
        let masking = BlockMasking::new([224, 224], 14).unwrap();
        let mut firsts = 0;
        for seed in 0..50 {
            let b = masking.batch(16, 0.5, (0.1, 0.5), &mut stream(seed)).unwrap();
            assert_eq!(b.upperbound, 38 + 51 + 64 + 76 + 89 + 102 + 115 + 128); // ⌊256·(0.1 + 0.05 i)⌋
            let mut counts: Vec<usize> = b.masks.chunks(256).map(|m| m.iter().filter(|m| **m == 1).count()).collect();
            firsts += usize::from(counts[0] > 0);
            counts.sort_unstable();
            assert_eq!(counts[..8], [0; 8]);
            for (i, &count) in counts[8..].iter().enumerate() {
                let (low, high) = (25.6 + 12.8 * i as f64, 25.6 + 12.8 * (i + 1) as f64);
                assert!(count as f64 >= low - 10.0 && count as f64 <= high, "{i}: {count}"); // at most 9 short
            }
        }
        assert!((10..40).contains(&firsts), "the first crop is masked in about half of the batches: {firsts}");
    }

    #[test]
    fn half_of_an_odd_batch_is_rounded_down() {
        let masking = BlockMasking::new([112, 112], 14).unwrap();
        for (crops, probability, expected) in [(5, 0.5, 2), (2, 0.5, 1), (1, 0.5, 0), (3, 1.0, 3), (4, 0.0, 0)] {
            let b = masking.batch(crops, probability, (0.4, 0.5), &mut stream(1)).unwrap();
            let masked = b.masks.chunks(64).filter(|m| m.contains(&1)).count();
            assert_eq!(masked, expected, "{crops} {probability}");
        }
    }

    #[test]
    fn wrong_arguments_are_named() {
        let masking = BlockMasking::new([28, 28], 14).unwrap();
        let text = |crops, p, ratios| masking.batch(crops, p, ratios, &mut stream(0)).unwrap_err().to_string();
        let expected = "block_masking: `probability` has value 1.5, expected a number from 0 to 1";
        assert_eq!(text(2, 1.5, (0.1, 0.5)), expected);
        let expected = "block_masking: `ratios` has value (0.5, 0.1), expected 0 <= lowest <= highest <= 1";
        assert_eq!(text(2, 0.5, (0.5, 0.1)), expected);
        let expected =
            "block_masking: `crops` has value 1000000000 of 4 patches, expected at most 2147483647 patches in all";
        assert_eq!(text(1_000_000_000, 0.5, (0.1, 0.5)), expected);
        assert!(masking.batch(2, f64::NAN, (0.1, 0.5), &mut stream(0)).is_err());
    }
}
