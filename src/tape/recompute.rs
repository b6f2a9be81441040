//! Activation checkpointing: keep a block's inputs, forget its insides, compute them again in the backward sweep.

use super::{Backward, Grads, Tape, Var};
use crate::{Error, Result, Tensor};

impl Tape {
    /// Runs `f` without recording its insides; the backward sweep runs it once more on a tape of its own.
    ///
    /// `f` must give the same value both times: pass randomness in as data. Saves the inputs only.
    pub fn recompute(&self, inputs: &[&Var], f: impl Fn(&Tape, &[Var]) -> Result<Var> + 'static) -> Result<Var> {
        let constants: Vec<Var> = inputs.iter().map(|x| Var::constant(x.value().clone())).collect();
        let value = f(&Tape::no_grad(), &constants)?.value().clone();
        let Some(nodes) = &self.nodes else { return Ok(Var::constant(value)) };
        let saved: Vec<Tensor> = inputs.iter().map(|x| x.value().clone()).collect();
        let slots: Vec<_> = inputs.iter().map(|x| x.slot()).collect();
        let saved_bytes = saved.iter().map(Tensor::bytes).sum();
        let backward = move |dy: Tensor, grads: &mut Grads| {
            let tape = Tape::new();
            let vars: Vec<Var> = saved
                .into_iter()
                .zip(&slots)
                .map(|(x, slot)| if slot.is_some() { tape.leaf(x) } else { Var::constant(x) })
                .collect();
            let y = f(&tape, &vars)?;
            match tape.backward(&y, dy, grads) {
                Err(Error::NothingToDifferentiate) => return Ok(()), // neither inputs nor weights are trainable
                other => other?,
            }
            for (var, slot) in vars.iter().zip(slots) {
                if let Some(grad) = grads.take(var) {
                    grads.add(slot, grad)?;
                }
            }
            Ok(())
        };
        // Recorded even if no input wants a gradient: the weights inside `f` may.
        let backward = Backward::One(Box::new(backward));
        Ok(self.push(nodes, value, "recompute", saved_bytes, backward))
    }
}
