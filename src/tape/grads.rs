//! Where gradients are collected: the only code that decides between setting and adding.

use std::collections::BTreeMap;

use super::{Param, ParamId, Slot, Var};
use crate::{DType, Device, Error, Result, Shape, Tensor};

/// What a producer does with the buffer [`Grads::write`] hands it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Contents are arbitrary: overwrite (beta = 0).
    Set,
    /// Contents are a gradient already: add to it (beta = 1).
    Add,
}

/// Gradients of the sweep under way.
pub(super) struct Sweep {
    tape: u32,
    pub(super) nodes: Vec<Option<Tensor>>,
}

impl Sweep {
    pub(super) fn new(tape: u32, len: usize) -> Self {
        Self { tape, nodes: vec![None; len] }
    }
}

struct Entry {
    grad: Tensor,
    live: bool, // false: an old buffer kept for its address
}

impl Entry {
    /// The first gradient after [`Grads::clear`] is copied to where the last one was: what reads gradients by address
    /// (the tables of the optimizers, a recorded step) finds it there.
    fn add(&mut self, grad: Tensor) -> Result<()> {
        if self.live {
            return add_into(&mut self.grad, &grad);
        }
        let fits = self.grad.shape() == grad.shape() && self.grad.dtype() == grad.dtype();
        if fits && self.grad.device() == grad.device() && self.grad.storage_mut("grads").is_ok() {
            self.grad.copy_from(&grad)?;
        } else {
            self.grad = grad;
        }
        self.live = true;
        Ok(())
    }
}

/// Gradients of parameters (kept over several sweeps: that is gradient accumulation) and of leaves.
pub struct Grads {
    pub(super) sweep: Sweep,
    params: BTreeMap<ParamId, Entry>,
    leaves: BTreeMap<(u32, usize), Tensor>,
}

impl Default for Grads {
    fn default() -> Self {
        Self { sweep: Sweep::new(u32::MAX, 0), params: BTreeMap::new(), leaves: BTreeMap::new() }
    }
}

impl Grads {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a gradient: the first moves in (into the buffer kept by [`clear`](Self::clear), if there is one), later ones
    /// add in place, a constant's (`None`) is dropped.
    ///
    /// # Errors
    /// [`Error::ForeignVar`] if the slot belongs to another tape than the one being swept.
    pub fn add(&mut self, to: Option<Slot>, grad: Tensor) -> Result<()> {
        match to {
            None => Ok(()),
            Some(Slot::Node { tape, at, dtype }) => {
                let grad = grad.cast(dtype)?;
                match self.node(tape, at)? {
                    empty @ None => *empty = Some(grad),
                    Some(sum) => add_into(sum, &grad)?,
                }
                Ok(())
            }
            Some(Slot::Param(id, dtype)) => {
                let grad = grad.cast(dtype)?;
                match self.params.get_mut(&id) {
                    Some(entry) => entry.add(grad),
                    None => {
                        self.params.insert(id, Entry { grad, live: true });
                        Ok(())
                    }
                }
            }
        }
    }

    /// Hands out the buffer of a gradient, so that a product can be added to it without a temporary.
    pub fn write(
        &mut self,
        to: Option<Slot>,
        shape: &Shape,
        device: &Device,
        f: impl FnOnce(&mut Tensor, Mode) -> Result<()>,
    ) -> Result<()> {
        let fresh = |dtype: DType| Tensor::uninit(shape.clone(), dtype, device);
        match to {
            None => Ok(()),
            Some(Slot::Node { tape, at, dtype }) => {
                let slot = self.node(tape, at)?;
                match slot {
                    Some(sum) => {
                        unshare(sum)?;
                        f(sum, Mode::Add)
                    }
                    None => f(slot.insert(fresh(dtype)?), Mode::Set),
                }
            }
            Some(Slot::Param(id, dtype)) => match self.params.get_mut(&id) {
                Some(entry) => {
                    let mode = if entry.live { Mode::Add } else { Mode::Set };
                    match mode {
                        Mode::Add => unshare(&mut entry.grad)?,
                        Mode::Set if entry.grad.storage_mut("grads").is_err() => entry.grad = fresh(dtype)?,
                        Mode::Set => {}
                    }
                    f(&mut entry.grad, mode)?;
                    entry.live = true;
                    Ok(())
                }
                None => {
                    let mut grad = fresh(dtype)?;
                    f(&mut grad, Mode::Set)?;
                    self.params.insert(id, Entry { grad, live: true });
                    Ok(())
                }
            },
        }
    }

    fn node(&mut self, tape: u32, at: usize) -> Result<&mut Option<Tensor>> {
        if tape != self.sweep.tape {
            return Err(Error::ForeignVar { op: "backward" });
        }
        self.sweep.nodes.get_mut(at).ok_or(Error::ForeignVar { op: "backward" })
    }

    pub(super) fn keep_leaves(&mut self, sweep: Sweep) {
        let tape = sweep.tape;
        let left = sweep.nodes.into_iter().enumerate().filter_map(|(at, g)| g.map(|g| ((tape, at), g)));
        self.leaves.extend(left);
    }

    /// Takes the gradient of a [`leaf`](super::Tape::leaf) after the sweep; `None` if nothing reached it.
    pub fn take(&mut self, leaf: &Var) -> Option<Tensor> {
        match leaf.slot() {
            Some(Slot::Node { tape, at, .. }) => self.leaves.remove(&(tape, at)),
            _ => None,
        }
    }

    /// Gradient of a parameter, if one reached it.
    pub fn get(&self, p: &Param) -> Option<&Tensor> {
        self.params.get(&p.id()).filter(|e| e.live).map(|e| &e.grad)
    }

    /// Forgets contents but keeps buffers, so that the next step writes to the same addresses.
    pub fn clear(&mut self) {
        self.params.values_mut().for_each(|e| e.live = false);
        self.leaves.clear();
    }

    /// Fails with the names of trainable parameters that no gradient reached.
    pub fn check_complete<'a>(&self, params: impl IntoIterator<Item = &'a Param>) -> Result<()> {
        let missing: Vec<String> =
            params.into_iter().filter(|p| p.trainable && self.get(p).is_none()).map(|p| p.name().to_string()).collect();
        if missing.is_empty() { Ok(()) } else { Err(Error::MissingGradients(missing)) }
    }
}

/// A gradient may have moved in while its producer still shares it (an addition passes one tensor to both operands).
fn unshare(sum: &mut Tensor) -> Result<()> {
    if sum.storage_mut("grads").is_err() {
        *sum = sum.deep_clone()?;
    }
    Ok(())
}

fn add_into(sum: &mut Tensor, grad: &Tensor) -> Result<()> {
    unshare(sum)?;
    sum.accumulate(grad)
}
