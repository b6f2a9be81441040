//! The memory bank: what is kept of the frames of a video, and what a frame reads of it.

use std::collections::BTreeMap;

use super::frames::{self, Now, Rules, reads};
use super::memory_attention::Memory;
use super::model::{Mode, Sam2};
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

    fn get(&self, frame: i64, bank: frames::Bank) -> Option<&Kept> {
        match bank {
            frames::Bank::Conditioning => self.conditioning.iter().find(|(at, _)| *at == frame).map(|(_, kept)| kept),
            frames::Bank::Tracked => self.tracked.get(&frame),
        }
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
        let rules = self.rules(mode);
        let found = reads(&rules, now, &bank.prompted(), |frame| bank.tracked.contains_key(&frame))?;
        let kept = |frame: i64, of: frames::Bank| {
            bank.get(frame, of).ok_or_else(|| Error::value("sam2", "frame", frame, "one that the memory bank holds"))
        };
        let mut maps = Vec::new();
        for memory in &found.memories {
            if let Some(map) = &kept(memory.frame, memory.bank)?.memory {
                maps.push((map.clone(), memory.row(&rules)));
            }
        }
        let signed = self.options().use_signed_tpos_enc_to_obj_ptrs;
        let mut pointers = Vec::new();
        for (pointer, at) in found.pointers.iter().zip(found.pointer_positions()) {
            let at = if signed { at } else { at.abs() };
            pointers.push((at, kept(pointer.frame, pointer.bank)?.obj_ptr.clone()));
        }
        self.memory(tape, &maps, &pointers)
    }
}
