//! Which frames of a video the memory attention reads: integers only.
//!
//! At frame `now` it reads conditioning frames, those with prompts, all under the temporal slot 0; then the `memories -
//! 1` slots of frames just passed, the oldest first; and the object pointers of the former, then of the frames just
//! passed, the newest first. What is not there is left out, nothing is padded. Backwards, "passed" means later in the
//! video.
//!
//! Source: sam2 at 2b90b9f, `sam2_base.py` and `sam2_utils.py`.

use crate::{Error, Result};

const OP: &str = "frames";

/// How much is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Temporal slots, `num_maskmem`: one for conditioning frames, the others for frames just passed.
    pub memories: usize,
    /// Conditioning frames at most, `max_cond_frames_in_attn`; `None` for all.
    pub conditioning: Option<usize>,
    /// Step between the slots but the newest, `memory_temporal_stride_for_eval`.
    pub stride: usize,
    /// Pointers at most, `max_obj_ptrs_in_encoder`.
    pub pointers: usize,
    /// Whether pointers of conditioning frames still to come are left out, `only_obj_ptrs_in_the_past_for_eval`.
    pub past_pointers: bool,
}

/// Where the tracking is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// The frame.
    pub frame: i64,
    /// Frames of the video; `None` while they are still coming in.
    pub video: Option<usize>,
    /// Whether time runs backwards.
    pub reverse: bool,
}

impl Now {
    /// The frame `steps` ago.
    fn passed(self, steps: i64) -> i64 {
        if self.reverse { self.frame + steps } else { self.frame - steps }
    }

    /// Whether the video has this frame.
    fn has(self, frame: i64) -> bool {
        frame >= 0 && self.video.is_none_or(|frames| (frame as u64) < frames as u64)
    }
}

/// Where a frame's output is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bank {
    /// Among those with prompts.
    Conditioning,
    /// Among those tracked.
    Tracked,
}

/// A memory map to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Its frame.
    pub frame: i64,
    /// Where it is.
    pub bank: Bank,
    /// Temporal slot `t_pos`: 0 for conditioning frames, `memories - 1` for the frame before.
    pub slot: usize,
}

impl Memory {
    /// Row of the temporal table `maskmem_tpos_enc` that is added to its positions.
    pub fn row(self, rules: &Rules) -> usize {
        rules.memories - self.slot - 1
    }
}

/// An object pointer to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pointer {
    /// Its frame.
    pub frame: i64,
    /// Where it is.
    pub bank: Bank,
    /// How long ago it is; negative for one that is still to come. Models whose pointers know no direction take it
    /// without the sign.
    pub ago: i64,
}

/// All that is read at a frame, in the order of the memory's tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reads {
    /// Maps.
    pub memories: Vec<Memory>,
    /// Pointers.
    pub pointers: Vec<Pointer>,
    /// Most pointers that a video of this length has: the smaller of its frames and [`Rules::pointers`].
    pub limit: usize,
}

impl Reads {
    /// Position of each pointer for its sine code: `ago / (limit - 1)`. In a video of one frame all are 0.
    pub fn pointer_positions(&self) -> Vec<f64> {
        let range = self.limit.saturating_sub(1).max(1) as f64;
        self.pointers.iter().map(|p| p.ago as f64 / range).collect()
    }
}

/// The conditioning frames that are read at `frame`: all of them, in the order given, unless there are more than
/// `limit`. Else the last before `frame`, the first not before it, then the nearest others; of equally near ones those
/// given first.
///
/// # Errors
/// When frames must be left out and the limit is below 2.
pub fn conditioning(frame: i64, given: &[i64], limit: Option<usize>) -> Result<Vec<i64>> {
    let Some(limit) = limit.filter(|limit| given.len() > *limit) else { return Ok(given.to_vec()) };
    if limit < 2 {
        return Err(Error::value(OP, "conditioning", limit, "at least 2, one on each side"));
    }
    let before = given.iter().copied().filter(|t| *t < frame).max();
    let after = given.iter().copied().filter(|t| *t >= frame).min();
    let mut selected: Vec<i64> = before.into_iter().chain(after).collect();
    let mut others: Vec<i64> = given.iter().copied().filter(|t| !selected.contains(t)).collect();
    others.sort_by_key(|t| t.abs_diff(frame));
    selected.extend(others.into_iter().take(limit - selected.len()));
    Ok(selected)
}

/// The frame of temporal slot `slot`, from 1 to `memories - 1`; it may lie outside the video. The last slot is the
/// frame just passed; at a stride r the others are multiples of r, the newest of them at least two frames ago.
pub fn slot_frame(now: Now, slot: usize, rules: &Rules) -> i64 {
    let (ago, stride) = (rules.memories as i64 - slot as i64, rules.stride.max(1) as i64);
    if ago <= 1 {
        return now.passed(ago);
    }
    let steps = (ago - 2) * stride;
    let two = now.passed(2);
    match now.reverse {
        false => two.div_euclid(stride) * stride - steps,
        true => -(-two).div_euclid(stride) * stride + steps,
    }
}

/// All that is read at `now` when the frames `given` have prompts, in the order in which they got them, and those for
/// which `tracked` holds were tracked. A conditioning frame over the limit still counts as one just passed.
///
/// # Errors
/// No conditioning frame, a stride of 0, or a limit that [`conditioning`] refuses.
pub fn reads(rules: &Rules, now: Now, given: &[i64], tracked: impl Fn(i64) -> bool) -> Result<Reads> {
    if given.is_empty() {
        return Err(Error::argument(OP, "given", "length", "0", "at least one frame with a prompt"));
    }
    if rules.stride == 0 {
        return Err(Error::value(OP, "stride", 0, "at least 1"));
    }
    let limit = now.video.map_or(rules.pointers, |frames| frames.min(rules.pointers));
    if rules.memories == 0 {
        return Ok(Reads { memories: vec![], pointers: vec![], limit });
    }
    let selected = conditioning(now.frame, given, rules.conditioning)?;
    let passed = |frame: i64| {
        let left_out = || given.contains(&frame) && !selected.contains(&frame);
        let bank = tracked(frame).then_some(Bank::Tracked);
        bank.or_else(|| left_out().then_some(Bank::Conditioning)).filter(|_| now.has(frame))
    };
    let bank = Bank::Conditioning;
    let mut memories: Vec<Memory> = selected.iter().map(|&frame| Memory { frame, bank, slot: 0 }).collect();
    memories.extend((1..rules.memories).filter_map(|slot| {
        let frame = slot_frame(now, slot, rules);
        Some(Memory { frame, bank: passed(frame)?, slot })
    }));
    let ago = |frame: i64| if now.reverse { frame - now.frame } else { now.frame - frame };
    let mut pointers: Vec<Pointer> = selected
        .iter()
        .map(|&frame| Pointer { frame, bank, ago: ago(frame) })
        .filter(|pointer| !rules.past_pointers || pointer.ago >= 0)
        .collect();
    let recent = (1..limit as i64).map(|steps| (steps, now.passed(steps))).take_while(|(_, frame)| now.has(*frame));
    pointers.extend(recent.filter_map(|(ago, frame)| Some(Pointer { frame, bank: passed(frame)?, ago })));
    Ok(Reads { memories, pointers, limit })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules { memories: 7, conditioning: None, stride: 1, pointers: 16, past_pointers: true };

    fn at(frame: i64, reverse: bool) -> Now {
        Now { frame, video: Some(40), reverse }
    }

    fn frames(reads: &Reads) -> Vec<(i64, usize)> {
        reads.memories.iter().map(|m| (m.frame, m.slot)).collect()
    }

    #[test]
    fn a_long_video_reads_the_prompt_and_six_frames() {
        let reads = reads(&RULES, at(20, false), &[0], |t| t > 0 && t < 20).unwrap();
        assert_eq!(frames(&reads), [(0, 0), (14, 1), (15, 2), (16, 3), (17, 4), (18, 5), (19, 6)]);
        assert_eq!(reads.memories.iter().map(|m| m.row(&RULES)).collect::<Vec<_>>(), [6, 5, 4, 3, 2, 1, 0]);
        let ago: Vec<(i64, i64)> = reads.pointers.iter().map(|p| (p.frame, p.ago)).collect();
        assert_eq!(ago[..3], [(0, 20), (19, 1), (18, 2)]);
        assert_eq!((ago.len(), ago[15], reads.limit), (16, (5, 15), 16));
        assert_eq!(reads.pointer_positions()[..2], [20.0 / 15.0, 1.0 / 15.0]);
    }

    #[test]
    fn the_edges_of_the_video_end_both_lists() {
        let early = reads(&RULES, Now { video: Some(8), ..at(2, false) }, &[0], |_| true).unwrap();
        assert_eq!(frames(&early), [(0, 0), (0, 5), (1, 6)]);
        assert_eq!(early.limit, 8);
        let back = reads(&RULES, Now { video: Some(8), ..at(6, true) }, &[7], |_| true).unwrap();
        assert_eq!(frames(&back), [(7, 0), (7, 6)]);
        assert_eq!(back.pointers.iter().map(|p| p.ago).collect::<Vec<_>>(), [1, 1]);
        let single = reads(&RULES, Now { video: Some(1), ..at(0, false) }, &[0], |_| false).unwrap();
        assert_eq!(single.pointer_positions(), [0.0]);
        let coming = reads(&RULES, Now { video: None, ..at(99, false) }, &[0], |t| t >= 98).unwrap();
        assert_eq!((frames(&coming), coming.limit), (vec![(0, 0), (98, 6)], 16));
    }

    #[test]
    fn prompts_still_to_come_are_read_but_for_their_pointers() {
        let given = [3, 9];
        let both = reads(&RULES, at(5, false), &given, |_| false).unwrap();
        assert_eq!(frames(&both), [(3, 0), (9, 0)]);
        assert_eq!(both.pointers, [Pointer { frame: 3, bank: Bank::Conditioning, ago: 2 }]);
        let all = reads(&Rules { past_pointers: false, ..RULES }, at(5, false), &given, |_| false).unwrap();
        assert_eq!(all.pointers.iter().map(|p| p.ago).collect::<Vec<_>>(), [2, -4]);
        let back = reads(&RULES, at(5, true), &given, |_| false).unwrap();
        assert_eq!(back.pointers, [Pointer { frame: 9, bank: Bank::Conditioning, ago: 4 }]);
    }

    #[test]
    fn a_prompt_over_the_limit_fills_an_ordinary_slot() {
        let rules = Rules { conditioning: Some(2), ..RULES };
        let reads = reads(&rules, at(10, false), &[0, 8, 9, 30], |t| t == 7).unwrap();
        assert_eq!(frames(&reads), [(9, 0), (30, 0), (7, 4), (8, 5)]);
        assert_eq!(reads.memories[3].bank, Bank::Conditioning);
        assert_eq!(
            reads.pointers.iter().map(|p| (p.frame, p.ago)).collect::<Vec<_>>(),
            [(9, 1), (8, 2), (7, 3), (0, 10)]
        );
        // Equally near: the one given first.
        assert_eq!(conditioning(10, &[30, 12, 8, 9, 11], Some(3)).unwrap(), [9, 11, 12]);
        assert_eq!(conditioning(10, &[10, 12, 8], Some(2)).unwrap(), [8, 10]);
        assert!(conditioning(10, &[10, 12], Some(1)).is_err());
        assert_eq!(conditioning(10, &[10], Some(1)).unwrap(), [10]);
    }

    #[test]
    fn backwards_is_forwards_in_the_reversed_video() {
        let last = 36; // a multiple of the strides, which count from the first frame
        let tracked = |t: i64| t % 5 != 1;
        for (stride, limit) in [(1, None), (2, Some(2)), (3, Some(3)), (4, None)] {
            let rules = Rules { stride, conditioning: limit, past_pointers: stride % 2 == 0, ..RULES };
            for frame in 0..=last {
                let given: Vec<i64> = [4, 17, 18, 31].into_iter().filter(|t| *t != frame).collect();
                let mirrored: Vec<i64> = given.iter().map(|t| last - t).collect();
                let video = Some(last as usize + 1);
                let mut forward = reads(&rules, Now { frame, video, reverse: false }, &given, tracked).unwrap();
                let turned = Now { frame: last - frame, video, reverse: true };
                let mut back = reads(&rules, turned, &mirrored, |t| tracked(last - t)).unwrap();
                back.memories.iter_mut().for_each(|m| m.frame = last - m.frame);
                back.pointers.iter_mut().for_each(|p| p.frame = last - p.frame);
                for reads in [&mut forward, &mut back] {
                    // With a limit, the nearest before and after exchange their places.
                    reads.memories.sort_by_key(|m| (m.slot, m.frame));
                    reads.pointers.sort_by_key(|p| (p.ago, p.frame));
                    let ordinary = reads.memories.iter().filter(|m| m.slot > 0).count();
                    assert!(ordinary < rules.memories && reads.memories.iter().all(|m| (0..=last).contains(&m.frame)));
                    assert!(reads.pointers.iter().all(|p| (0..=last).contains(&p.frame)));
                }
                assert_eq!(forward, back, "frame {frame}, stride {stride}");
            }
        }
    }

    #[test]
    fn unusable_rules_are_errors() {
        assert!(reads(&RULES, at(1, false), &[], |_| true).is_err());
        assert!(reads(&Rules { stride: 0, ..RULES }, at(1, false), &[0], |_| true).is_err());
        let none = reads(&Rules { memories: 0, ..RULES }, at(1, false), &[0], |_| true).unwrap();
        assert!(none.memories.is_empty() && none.pointers.is_empty());
    }
}
