//! Reverse-mode differentiation by a tape of closures, each recorded beside the forward it belongs to.

mod grads;
mod recompute;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::mem;
use std::sync::atomic::{AtomicU32, Ordering};

pub use grads::{Grads, Mode};

use crate::dtype::{Float, num_like::Ops as _};
use crate::{DType, Error, Result, Shape, Tensor, with_float};

/// Identity of a parameter, unique in the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParamId(u32);

/// Where a gradient goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// A value computed on a tape; its gradient has the value's dtype.
    Node {
        /// Which tape.
        tape: u32,
        /// Which record.
        at: usize,
        /// dtype of the value.
        dtype: DType,
    },
    /// A trainable parameter; its gradient is f32 (f64 for f64 parameters).
    Param(ParamId, DType),
}

/// A value with a place for its gradient; a constant has none.
#[derive(Clone, Debug)]
pub struct Var {
    value: Tensor,
    slot: Option<Slot>,
}

impl Var {
    /// A value nothing is differentiated by.
    pub fn constant(value: Tensor) -> Self {
        Self { value, slot: None }
    }

    /// The value.
    pub fn value(&self) -> &Tensor {
        &self.value
    }

    /// The value, for an operation that writes over one that nobody else holds.
    pub(crate) fn value_mut(&mut self) -> &mut Tensor {
        &mut self.value
    }

    /// Where the gradient goes; `None` for a constant.
    pub fn slot(&self) -> Option<Slot> {
        self.slot
    }

    /// The same value and gradient under another shape.
    pub fn reshape(&self, shape: impl Into<crate::Shape>) -> Result<Self> {
        Ok(Self { value: self.value.reshape(shape)?, slot: self.slot })
    }
}

/// A named weight: the f32 master the optimizer updates and, in mixed precision, its rounded copy that kernels read.
#[derive(Clone, Debug)]
pub struct Param {
    id: ParamId,
    name: String,
    /// Full-precision value.
    pub master: Tensor,
    /// Copy in the compute dtype; `None` when that is the master's.
    pub compute: Option<Tensor>,
    /// Whether gradients are wanted.
    pub trainable: bool,
}

impl Param {
    /// A trainable parameter with the name it has in checkpoints, computing in `dtype`.
    pub fn new(name: impl Into<String>, master: Tensor, dtype: DType) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let compute = if dtype == master.dtype() { None } else { Some(master.cast(dtype)?) };
        let id = ParamId(NEXT.fetch_add(1, Ordering::Relaxed));
        Ok(Self { id, name: name.into(), master, compute, trainable: true })
    }

    /// Identity in [`Grads`].
    pub fn id(&self) -> ParamId {
        self.id
    }

    /// Name in checkpoints.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What kernels read.
    pub fn value(&self) -> &Tensor {
        self.compute.as_ref().unwrap_or(&self.master)
    }

    /// Replaces the value, cast to the master's dtype, and refreshes the compute copy.
    ///
    /// # Errors
    /// When the shapes differ.
    pub fn set(&mut self, value: &Tensor) -> Result<()> {
        if value.shape() != self.master.shape() {
            let expected = format!("{}", self.master.shape());
            return Err(Error::shape("param", self.name.clone(), value.shape(), expected));
        }
        let device = self.master.device().clone();
        self.master = value.to_device(&device)?.cast(self.master.dtype())?.deep_clone()?;
        if let Some(compute) = &mut self.compute {
            *compute = self.master.cast(compute.dtype())?;
        }
        Ok(())
    }
}

type Sweeper<G> = Box<dyn FnOnce(G, &mut Grads) -> Result<()>>;

enum Backward {
    /// The gradient stays where it is: of a leaf for [`Grads::take`], of a later output of several for the first.
    Keep,
    One(Sweeper<Tensor>),
    /// Takes its own gradient and those of the nodes after it, so many together.
    Several(usize, Sweeper<Vec<Option<Tensor>>>),
}

struct Node {
    op: &'static str,
    saved_bytes: usize,
    /// Of the value: a gradient that arrives through a reshaped variable gets it back.
    shape: Shape,
    backward: Backward,
}

/// Records operations; its absence ([`Tape::no_grad`]) is how gradients are switched off.
pub struct Tape {
    id: u32,
    nodes: Option<RefCell<Vec<Node>>>,
}

impl Default for Tape {
    fn default() -> Self {
        Self::new()
    }
}

impl Tape {
    /// A tape that records.
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Self { id: NEXT.fetch_add(1, Ordering::Relaxed), nodes: Some(RefCell::default()) }
    }

    /// A tape that records nothing: inference.
    pub fn no_grad() -> Self {
        Self { id: u32::MAX, nodes: None }
    }

    /// Whether operations are recorded.
    pub fn records(&self) -> bool {
        self.nodes.is_some()
    }

    /// A parameter as an operand.
    pub fn param(&self, p: &Param) -> Var {
        let wanted = self.records() && p.trainable;
        Var { value: p.value().clone(), slot: wanted.then_some(Slot::Param(p.id, p.master.dtype().accumulate())) }
    }

    /// An input whose gradient is wanted: read it with [`Grads::take`] after the sweep.
    pub fn leaf(&self, value: Tensor) -> Var {
        let Some(nodes) = &self.nodes else { return Var::constant(value) };
        self.push(nodes, value, "leaf", 0, Backward::Keep)
    }

    fn push(
        &self,
        nodes: &RefCell<Vec<Node>>,
        value: Tensor,
        op: &'static str,
        saved_bytes: usize,
        backward: Backward,
    ) -> Var {
        let mut nodes = nodes.borrow_mut();
        nodes.push(Node { op, saved_bytes, shape: value.shape().clone(), backward });
        let slot = Slot::Node { tape: self.id, at: nodes.len() - 1, dtype: value.dtype() };
        Var { value, slot: Some(slot) }
    }

    /// Puts an operation on the tape if an input wants a gradient; otherwise `saved` is dropped here and now.
    pub fn record<const N: usize>(
        &self,
        op: &'static str,
        value: Tensor,
        inputs: &[&Var],
        saved: [Tensor; N],
        backward: impl FnOnce(Tensor, [Tensor; N], &mut Grads) -> Result<()> + 'static,
    ) -> Var {
        let wanted = inputs.iter().any(|x| x.slot.is_some());
        let Some(nodes) = self.nodes.as_ref().filter(|_| wanted) else { return Var::constant(value) };
        let saved_bytes = saved.iter().map(Tensor::bytes).sum();
        let backward = Backward::One(Box::new(move |dy, grads| backward(dy, saved, grads)));
        self.push(nodes, value, op, saved_bytes, backward)
    }

    /// [`record`](Self::record) for an operation of several outputs with one backward, which gets the gradient of each
    /// that one reached: of at least one. It runs when all are complete, since what uses any was recorded later.
    pub fn record_several<const M: usize, const N: usize>(
        &self,
        op: &'static str,
        values: [Tensor; M],
        inputs: &[&Var],
        saved: [Tensor; N],
        backward: impl FnOnce([Option<Tensor>; M], [Tensor; N], &mut Grads) -> Result<()> + 'static,
    ) -> [Var; M] {
        let wanted = inputs.iter().any(|x| x.slot.is_some());
        let Some(nodes) = self.nodes.as_ref().filter(|_| wanted) else { return values.map(Var::constant) };
        let saved_bytes = saved.iter().map(Tensor::bytes).sum();
        self.push_several(nodes, values, op, saved_bytes, move |dy, grads| backward(dy, saved, grads))
    }

    fn push_several<const M: usize>(
        &self,
        nodes: &RefCell<Vec<Node>>,
        values: [Tensor; M],
        op: &'static str,
        saved_bytes: usize,
        backward: impl FnOnce([Option<Tensor>; M], &mut Grads) -> Result<()> + 'static,
    ) -> [Var; M] {
        let all = move |dy: Vec<Option<Tensor>>, grads: &mut Grads| {
            let mut dy = dy.into_iter();
            backward(std::array::from_fn(|_| dy.next().flatten()), grads)
        };
        let mut first = Some((saved_bytes, Backward::Several(M, Box::new(all))));
        values.map(|value| {
            let (saved_bytes, backward) = first.take().unwrap_or((0, Backward::Keep));
            self.push(nodes, value, op, saved_bytes, backward)
        })
    }

    /// What each recorded operation keeps for its backward, in bytes, in order of recording.
    pub fn saved(&self) -> Vec<(&'static str, usize)> {
        let nodes = self.nodes.as_ref().map(RefCell::borrow);
        nodes.map(|n| n.iter().map(|n| (n.op, n.saved_bytes)).collect()).unwrap_or_default()
    }

    /// Sweeps from `y` with the gradient `seed` of `y`; consumes the tape, so saved tensors are freed node by node.
    ///
    /// # Errors
    /// [`Error::NothingToDifferentiate`] if `y` is a constant, [`Error::ForeignVar`] if it belongs to another tape.
    pub fn backward(self, y: &Var, seed: Tensor, grads: &mut Grads) -> Result<()> {
        if y.slot.is_none() {
            return Err(Error::NothingToDifferentiate);
        }
        if seed.shape().numel() != y.value.shape().numel() {
            return Err(Error::shape("backward", "seed", seed.shape(), format!("{}", y.value.shape())));
        }
        self.backward_from(vec![(y.slot, seed)], grads)
    }

    /// [`backward`](Self::backward) from several values at once; gradients of constants are dropped.
    fn backward_from(self, seeds: Vec<(Option<Slot>, Tensor)>, grads: &mut Grads) -> Result<()> {
        let nodes = self.nodes.map(RefCell::into_inner).unwrap_or_default();
        let outer = mem::replace(&mut grads.sweep, grads::Sweep::new(self.id, nodes.len())); // recompute nests
        let result = sweep(seeds, nodes, grads);
        let inner = mem::replace(&mut grads.sweep, outer);
        grads.keep_leaves(inner);
        result
    }

    /// Sweeps from a scalar loss with seed `scale` (1 over the number of accumulated micro-batches).
    pub fn backward_scaled(self, loss: &Var, scale: f64, grads: &mut Grads) -> Result<()> {
        let dtype = loss.value.dtype();
        let seed = with_float!("backward", "loss", dtype, T => {
            Tensor::full(loss.value.shape().clone(), T::put(<T as Float>::Acc::of(scale)), loss.value.device())
        })?;
        self.backward(loss, seed, grads)
    }
}

fn sweep(seeds: Vec<(Option<Slot>, Tensor)>, nodes: Vec<Node>, grads: &mut Grads) -> Result<()> {
    seeds.into_iter().try_for_each(|(to, seed)| grads.add(to, seed))?;
    for (at, node) in nodes.into_iter().enumerate().rev() {
        if let Some(dy) = &mut grads.sweep.nodes[at] {
            *dy = dy.reshape(node.shape)?;
        }
        let mut take = |at: usize| grads.sweep.nodes[at].take();
        match node.backward {
            Backward::Keep => {}
            Backward::One(backward) => {
                if let Some(dy) = take(at) {
                    backward(dy, grads)?;
                }
            }
            Backward::Several(count, backward) => {
                let dy: Vec<_> = (at..at + count).map(take).collect();
                if dy.iter().any(Option::is_some) {
                    backward(dy, grads)?;
                }
            }
        }
    }
    Ok(())
}
