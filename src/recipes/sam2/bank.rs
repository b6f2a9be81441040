//! The memory bank: what is kept of the frames of a video, and what a frame reads of it.

use std::collections::BTreeMap;

use super::frames::{self, Now, Reads, Rules, reads};
use super::memory_attention::Memory;
use super::model::{Mode, Sam2};
use crate::ops::concat::concat;
use crate::ops::repeat::repeat;
use crate::{Error, Result, Tape, Var};

/// What is kept of a frame, for all objects of the bank.
#[derive(Clone, Debug)]
pub struct Kept {
    /// `[O, h, w, mem_dim]`; `None` where memories are not wanted.
    pub memory: Option<Var>,
    /// `[O, C]`.
    pub obj_ptr: Var,
}

/// Kept frames.
#[derive(Clone, Debug, Default)]
pub struct Bank {
    /// Frames with prompts, in the order in which they got them.
    conditioning: Vec<(i64, Kept)>,
    tracked: BTreeMap<i64, Kept>,
}

impl Bank {
    /// Keeps a frame with a prompt. One that was tracked before is no longer among those.
    pub fn condition(&mut self, frame: i64, kept: Kept) {
        self.tracked.remove(&frame);
        match self.conditioning.iter_mut().find(|(at, _)| *at == frame) {
            Some((_, old)) => *old = kept,
            None => self.conditioning.push((frame, kept)),
        }
    }

    /// Keeps a tracked frame.
    pub fn track(&mut self, frame: i64, kept: Kept) {
        self.tracked.insert(frame, kept);
    }

    /// Frames with prompts, in the order in which they got them.
    pub fn prompted(&self) -> Vec<i64> {
        self.conditioning.iter().map(|(frame, _)| *frame).collect()
    }

    /// Whether a frame is kept as one with a prompt.
    pub fn is_prompted(&self, frame: i64) -> bool {
        self.conditioning.iter().any(|(at, _)| *at == frame)
    }

    /// Forgets tracked frames that `wanted` refuses.
    pub fn retain(&mut self, wanted: impl Fn(i64) -> bool) {
        self.tracked.retain(|frame, _| wanted(*frame));
    }

    /// Frames that are kept.
    pub fn len(&self) -> usize {
        self.conditioning.len() + self.tracked.len()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the frame `now` reads of it.
    ///
    /// # Errors
    /// When no frame has a prompt.
    pub fn reads(&self, rules: &Rules, now: Now) -> Result<Reads> {
        reads(rules, now, &self.prompted(), |frame| self.tracked.contains_key(&frame))
    }

    fn get(&self, frame: i64, bank: frames::Bank) -> Result<&Kept> {
        let kept = match bank {
            frames::Bank::Conditioning => self.conditioning.iter().find(|(at, _)| *at == frame).map(|(_, kept)| kept),
            frames::Bank::Tracked => self.tracked.get(&frame),
        };
        kept.ok_or_else(|| Error::value("sam2", "frame", frame, "one that the memory bank holds"))
    }
}

/// What a bank holds of what is read, and its places in time.
struct Found<'a> {
    maps: Vec<&'a Var>,
    /// Of the maps, in `maskmem_tpos_enc`.
    rows: Vec<usize>,
    pointers: Vec<&'a Var>,
    /// Of the pointers.
    times: Vec<f64>,
}

impl Found<'_> {
    fn counts(&self) -> [usize; 2] {
        [self.maps.len(), self.pointers.len()]
    }

    fn places(&self) -> (&[usize], &[f64]) {
        (&self.rows, &self.times)
    }

    fn objects(&self) -> usize {
        self.maps.first().or(self.pointers.first()).map_or(0, |x| x.value().shape()[0])
    }
}

impl Sam2 {
    /// How much of a bank a frame reads.
    pub fn rules(&self, mode: Mode) -> Rules {
        let options = self.options();
        let evaluates = mode == Mode::Evaluate;
        Rules {
            memories: self.sizes().num_maskmem,
            conditioning: options.max_cond_frames_in_attn,
            stride: if evaluates { options.memory_temporal_stride_for_eval } else { 1 },
            pointers: options.max_obj_ptrs_in_encoder,
            past_pointers: evaluates && options.only_obj_ptrs_in_the_past_for_eval,
        }
    }

    /// What the frame `now` attends to.
    ///
    /// # Errors
    /// When no frame has a prompt.
    pub fn recall(&self, tape: &Tape, bank: &Bank, now: Now, mode: Mode) -> Result<Memory> {
        let found = bank.reads(&self.rules(mode), now)?;
        self.recall_all(tape, &[(bank, &found)], mode)
    }

    /// What a frame attends to of several banks: their objects beside each other. Each bank has its own frames and
    /// places in time; where they are the same for all, so are the positions.
    ///
    /// # Errors
    /// When a bank lacks what is read of it, or more is read of one than of another.
    pub fn recall_all(&self, tape: &Tape, of: &[(&Bank, &Reads)], mode: Mode) -> Result<Memory> {
        let all: Vec<Found> = of.iter().map(|(bank, reads)| self.found(bank, reads, mode)).collect::<Result<_>>()?;
        let first = all.first().ok_or_else(|| Error::value("sam2", "of", "no bank", "at least one"))?;
        if let Some(other) = all.iter().find(|found| found.counts() != first.counts()) {
            let expected = format!("{:?} maps and pointers, as of the first bank", first.counts());
            return Err(Error::value("sam2", "of", format!("{:?}", other.counts()), expected));
        }
        let beside = |parts: Vec<&Var>| match parts[..] {
            [one] => Ok(one.clone()),
            _ => concat(tape, &parts, 0),
        };
        let [maps, pointers] = first.counts();
        let maps: Vec<Var> =
            (0..maps).map(|i| beside(all.iter().map(|found| found.maps[i]).collect())).collect::<Result<_>>()?;
        let pointers: Vec<Var> = (0..pointers)
            .map(|i| beside(all.iter().map(|found| found.pointers[i]).collect()))
            .collect::<Result<_>>()?;
        Ok(Memory {
            tokens: self.memory_tokens(tape, &maps, &pointers)?,
            positions: self.positions_of(tape, &all)?,
            pointer_tokens: pointers.len() * (self.sizes().hidden_dim / self.sizes().mem_dim),
        })
    }

    fn found<'a>(&self, bank: &'a Bank, reads: &Reads, mode: Mode) -> Result<Found<'a>> {
        let (rules, signed) = (self.rules(mode), self.options().use_signed_tpos_enc_to_obj_ptrs);
        let (mut maps, mut rows) = (Vec::new(), Vec::new());
        for memory in &reads.memories {
            if let Some(map) = &bank.get(memory.frame, memory.bank)?.memory {
                maps.push(map);
                rows.push(memory.row(&rules));
            }
        }
        let pointer = |at: &frames::Pointer| Ok(&bank.get(at.frame, at.bank)?.obj_ptr);
        let pointers = reads.pointers.iter().map(pointer).collect::<Result<_>>()?;
        let times = reads.pointer_positions().into_iter().map(|at| if signed { at } else { at.abs() }).collect();
        Ok(Found { maps, rows, pointers, times })
    }

    /// `[M, mem_dim]` where all are at the same places, else `[O, M, mem_dim]`.
    fn positions_of(&self, tape: &Tape, all: &[Found]) -> Result<Var> {
        let mut made: Vec<Var> = Vec::with_capacity(all.len());
        let mut alike = true;
        for (i, found) in all.iter().enumerate() {
            let known = all[..i].iter().position(|other| other.places() == found.places());
            alike &= i == 0 || known == Some(0);
            made.push(match known {
                Some(at) => made[at].clone(),
                None => self.memory_positions(tape, &found.rows, &found.times)?,
            });
        }
        if alike {
            return Ok(made.swap_remove(0));
        }
        let each = made.iter().zip(all).map(|(positions, found)| repeat(tape, positions, found.objects()));
        concat(tape, &each.collect::<Result<Vec<_>>>()?.iter().collect::<Vec<_>>(), 0)
    }
}
