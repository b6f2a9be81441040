//! One frame of a video: what the model says of it, given prompts or memories.

use super::bank::Bank;
use super::frames::{Now, Reads};
use super::model::{Answer, Features, Mode, Prompt, Sam2};
use super::prompt::Points;
use crate::{Result, Tape, Tensor, Var};

/// What is asked about a frame.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ask<'a> {
    /// Points, boxes among them, one prompt for each object.
    pub points: Option<&'a Points>,
    /// Masks `[O, S, S, 1]` of zeros and ones that are the answer themselves.
    pub masks: Option<&'a Tensor>,
    /// Logits `[O, S/4, S/4, 1]` of an earlier answer about the frame.
    pub previous: Option<&'a Var>,
    /// Whether the frame begins with this prompt, and looks at no memory.
    pub initial: bool,
}

impl Sam2 {
    /// Features that the decoder reads: with what the bank holds, or without.
    ///
    /// # Errors
    /// As [`recall`](Self::recall).
    pub fn seen(
        &self,
        tape: &Tape,
        features: &Features,
        bank: &Bank,
        now: Now,
        ask: Ask,
        objects: usize,
        mode: Mode,
    ) -> Result<Var> {
        if ask.initial {
            return self.without_memory(tape, features);
        }
        let memory = self.recall(tape, bank, now, mode)?;
        self.with_memory(tape, features, &memory, objects)
    }

    /// The answer about the frame `now`, whose features are those of one image.
    ///
    /// # Errors
    /// When the frame is not initial and no other has a prompt, or the prompt is for another number of objects.
    pub fn track(
        &self,
        tape: &Tape,
        features: &Features,
        bank: &Bank,
        now: Now,
        ask: Ask,
        objects: usize,
        mode: Mode,
    ) -> Result<Answer> {
        if let Some(masks) = ask.masks {
            return self.answer_with_masks(tape, features, masks, mode);
        }
        let image = self.seen(tape, features, bank, now, ask, objects, mode)?;
        let several = self.options().several(ask.initial, ask.points.map_or(0, Points::count));
        let prompt = Prompt { points: ask.points.cloned(), mask: ask.previous.cloned(), bare: false };
        self.answer(tape, &image, &features.high_res, &prompt, objects, several, mode)
    }

    /// The answer about a frame without a prompt for the objects of several banks, in one pass: of each bank, and what
    /// the frame reads of it.
    ///
    /// # Errors
    /// As [`recall_all`](Self::recall_all).
    pub fn follow(&self, tape: &Tape, features: &Features, of: &[(&Bank, &Reads)], mode: Mode) -> Result<Answer> {
        let memory = self.recall_all(tape, of, mode)?;
        let objects = memory.tokens.value().shape()[0];
        let image = self.with_memory(tape, features, &memory, objects)?;
        let several = self.options().several(false, 0);
        self.answer(tape, &image, &features.high_res, &Prompt::default(), objects, several, mode)
    }
}
