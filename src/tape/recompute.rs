//! Activation checkpointing: keep a block's inputs, forget its insides, compute them again in the backward sweep.

use super::{Grads, Tape, Var};
use crate::{Result, Tensor};

impl Tape {
    /// Runs `f` without recording its insides; the backward sweep runs it once more on a tape of its own.
    ///
    /// `f` must give the same value both times: pass randomness in as data. Saves the inputs only.
    pub fn recompute(&self, inputs: &[&Var], f: impl Fn(&Self, &[Var]) -> Result<Var> + 'static) -> Result<Var> {
        let [y] = self.recompute_several(inputs, move |tape, vars| Ok([f(tape, vars)?]))?;
        Ok(y)
    }

    /// [`recompute`](Self::recompute) for what has several results. One without a gradient in `f` has none here.
    pub fn recompute_several<const M: usize>(
        &self,
        inputs: &[&Var],
        f: impl Fn(&Self, &[Var]) -> Result<[Var; M]> + 'static,
    ) -> Result<[Var; M]> {
        let constants: Vec<Var> = inputs.iter().map(|x| Var::constant(x.value().clone())).collect();
        let values = f(&Self::no_grad(), &constants)?.map(|y| y.value().clone());
        let Some(nodes) = &self.nodes else { return Ok(values.map(Var::constant)) };
        let saved: Vec<Tensor> = inputs.iter().map(|x| x.value().clone()).collect();
        let slots: Vec<_> = inputs.iter().map(|x| x.slot()).collect();
        let saved_bytes = saved.iter().map(Tensor::bytes).sum();
        let backward = move |dy: [Option<Tensor>; M], grads: &mut Grads| {
            let tape = Self::new();
            let vars: Vec<Var> = saved
                .into_iter()
                .zip(&slots)
                .map(|(x, slot)| if slot.is_some() { tape.leaf(x) } else { Var::constant(x) })
                .collect();
            let y = f(&tape, &vars)?;
            // Without a slot where neither inputs nor weights are trainable.
            let seeds = y.iter().zip(dy).filter_map(|(y, dy)| Some((y.slot(), dy?))).collect();
            tape.backward_from(seeds, grads)?;
            for (var, slot) in vars.iter().zip(slots) {
                if let Some(grad) = grads.take(var) {
                    grads.add(slot, grad)?;
                }
            }
            Ok(())
        };
        // Recorded even if no input wants a gradient: the weights inside `f` may.
        Ok(self.push_several(nodes, values, "recompute", saved_bytes, backward))
    }
}
