//! Memories: made of a frame and its masks, and laid out for the frame that reads them.

use super::memory_encoder::MemoryEncoder;
use super::model::{Features, Mode, Sam2, TEMPERATURE};
use super::position::{sine_1d, sine_2d};
use crate::ops::cast::cast;
use crate::ops::concat::{concat, slice};
use crate::ops::embedding::{Lookup, embedding};
use crate::ops::select_rows::select_rows;
use crate::ops::sigmoid::sigmoid;
use crate::ops::{add::add, scale::scale};
use crate::{Error, Result, Tape, Tensor, Var};

impl Sam2 {
    /// The memory of a frame: `[O, h, w, mem_dim]`, from features without memory and masks `[O, 1, S, S]`. `prompted`:
    /// whether the masks come from a prompt, which may be taken as 0 or 1 in evaluation.
    pub fn remember(
        &self,
        tape: &Tape,
        features: &Features,
        masks: &Var,
        scores: &Var,
        prompted: bool,
        mode: Mode,
    ) -> Result<Var> {
        let [objects, _, h, w] = masks.value().dims("sam2", "masks")?;
        let (factor, bias) = (self.options.sigmoid_scale_for_mem_enc, self.options.sigmoid_bias_for_mem_enc);
        let binarize = self.options.binarize_mask_from_pts_for_mem_enc && prompted && mode == Mode::Evaluate;
        let mask = if binarize {
            let outside = self.number(bias)?;
            let flags = masks.value().cast(masks.value().dtype().accumulate())?.reshape([objects * h * w])?;
            let ones = Tensor::full([objects * h * w, 1], 1f32, masks.value().device())?;
            let inside = scale(tape, &Var::constant(ones.cast(outside.dtype())?), factor + bias)?;
            select_rows(tape, &flags, &inside, &Var::constant(outside))?
        } else {
            sigmoid(tape, masks, factor, bias)?
        };
        let mask = cast(tape, &mask.reshape([objects, h, w, 1])?, features.image.value().dtype())?;
        let encode = |encoder: &MemoryEncoder, tape: &Tape, v: &[Var]| Ok([encoder.forward(tape, &v[0], &v[1])?]);
        let [memory] = self.run(tape, &self.memory_encoder, [&features.image, &mask], encode)?;
        let Some(mark) = &self.no_obj_embed_spatial else { return Ok(memory) };
        let marked = add(tape, &memory, &tape.param(mark).reshape([self.sizes.mem_dim])?)?;
        select_rows(tape, &self.flags(scores)?, &memory, &marked)
    }

    /// What a frame attends to, `[O, M, mem_dim]`: maps `[O, h, w, mem_dim]`, then pointers `[O, C]`.
    ///
    /// # Errors
    /// When there is neither a map nor a pointer.
    pub fn memory_tokens(&self, tape: &Tape, maps: &[Var], pointers: &[Var]) -> Result<Var> {
        let (rows, mem_dim) = (self.side() * self.side(), self.sizes.mem_dim);
        let pieces = self.sizes.hidden_dim / mem_dim;
        let tokens = |all: &[Var], each: usize| -> Result<Vec<Var>> {
            all.iter().map(|x| x.reshape([x.value().shape()[0], each, mem_dim])).collect()
        };
        let all = [tokens(maps, rows)?, tokens(pointers, pieces)?].concat();
        if all.is_empty() {
            return Err(Error::value("sam2", "memory", "nothing", "at least one memory of a frame"));
        }
        concat(tape, &all.iter().collect::<Vec<_>>(), 1)
    }

    /// Positions of [`memory_tokens`](Self::memory_tokens), `[M, mem_dim]`: of maps by their rows of
    /// `maskmem_tpos_enc`, of pointers by their places in time.
    ///
    /// # Errors
    /// When there is neither a map nor a pointer, or no such row.
    pub fn memory_positions(&self, tape: &Tape, rows: &[usize], times: &[f64]) -> Result<Var> {
        let (side, mem_dim) = (self.side(), self.sizes.mem_dim);
        let sine = self.memory_positions.get(side, side, self.device(), || {
            self.constant(&sine_2d(mem_dim, [side, side], TEMPERATURE)?, [side * side, mem_dim])
        })?;
        let sine = Var::constant(sine);
        let table = tape.param(&self.maskmem_tpos_enc).reshape([self.sizes.num_maskmem, mem_dim])?;
        let mut positions = Vec::with_capacity(rows.len() + 1);
        for &row in rows {
            let time = slice(tape, &table, 0, row..row + 1)?.reshape([mem_dim])?;
            positions.push(add(tape, &sine, &time)?);
        }
        if !times.is_empty() {
            positions.push(self.pointer_positions(tape, times)?);
        }
        concat(tape, &positions.iter().collect::<Vec<_>>(), 0)
    }

    /// `[pointers · pieces, mem_dim]`.
    fn pointer_positions(&self, tape: &Tape, times: &[f64]) -> Result<Var> {
        let (dim, mem_dim, count) = (self.sizes.hidden_dim, self.sizes.mem_dim, times.len());
        let pieces = dim / mem_dim;
        if !self.options.add_tpos_enc_to_obj_ptrs {
            return Ok(Var::constant(self.constant(&vec![0.0; count * pieces * mem_dim], [count * pieces, mem_dim])?));
        }
        let each = match &self.obj_ptr_tpos_proj {
            None => Var::constant(self.constant(&sine_1d(times, mem_dim, TEMPERATURE)?, [count, mem_dim])?),
            Some(proj) => {
                let code = Var::constant(self.constant(&sine_1d(times, dim, TEMPERATURE)?, [count, dim])?);
                proj.forward(tape, &code, None)?
            }
        };
        let ids: Vec<i32> = (0..count * pieces).map(|i| (i / pieces) as i32).collect();
        embedding(tape, &each, &Lookup::new(&ids, count, self.device())?, None)
    }
}
