//! One shape of one operation, as data: the parity tests, the gradient tests and the benches all run it.

use std::sync::Arc;

use super::multi_tensor::{Scalars, Workspace};
use crate::{DType, Grads, Param, Result, Shape, Tape, Tensor, Var};

/// How an input is filled. `Normal` and `Uniform` are in the storage dtype under test, `Acc` in its arithmetic type.
#[derive(Clone, Debug)]
pub enum Fill {
    /// `mean + std · N(0, 1)` in the storage dtype.
    Normal(f64, f64),
    /// Uniform in `[low, high)` in the storage dtype.
    Uniform(f64, f64),
    /// As `Normal` in f32 (f64 for the oracle): masters, statistics, optimizer state.
    AccNormal(f64, f64),
    /// As `Uniform` in f32 (f64 for the oracle).
    AccUniform(f64, f64),
    /// Given values in f32 (f64 for the oracle).
    Acc(Vec<f64>),
    /// Indices and offsets.
    I32(Vec<i32>),
    /// Random bytes.
    U8,
    /// Given bytes, which repeat where the operand is longer.
    Bytes(Vec<u8>),
}

/// One operand of a [`Case`].
#[derive(Clone, Debug)]
pub struct Input {
    /// Argument name in the operation's signature.
    pub name: &'static str,
    /// Extents.
    pub shape: Shape,
    /// Contents.
    pub fill: Fill,
    /// What it is to the tape.
    pub role: Role,
}

/// What an operand is to the tape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// No gradient is wanted.
    Constant,
    /// A computed value: its gradient has the storage dtype.
    Leaf,
    /// A weight: its gradient is f32 whatever the storage dtype.
    Param,
}

/// An input with its values.
#[derive(Debug)]
pub enum Operand {
    /// See [`Role::Constant`].
    Constant(Tensor),
    /// See [`Role::Leaf`].
    Leaf(Tensor),
    /// See [`Role::Param`].
    Param(Param),
}

impl Operand {
    /// As a variable of a tape.
    pub fn on(&self, tape: &Tape) -> Var {
        match self {
            Self::Constant(t) => Var::constant(t.clone()),
            Self::Leaf(t) => tape.leaf(t.clone()),
            Self::Param(p) => tape.param(p),
        }
    }

    /// The gradient that reached `var`, which [`on`](Self::on) gave.
    pub fn gradient(&self, var: &Var, grads: &mut Grads) -> Option<Tensor> {
        match self {
            Self::Constant(_) => None,
            Self::Leaf(_) => grads.take(var),
            Self::Param(p) => grads.get(p).cloned(),
        }
    }
}

impl Input {
    /// A standard normal value with a gradient.
    pub fn normal(name: &'static str, shape: impl Into<Shape>) -> Self {
        Self { name, shape: shape.into(), fill: Fill::Normal(0.0, 1.0), role: Role::Leaf }
    }

    /// A standard normal weight.
    pub fn param(name: &'static str, shape: impl Into<Shape>) -> Self {
        Self { role: Role::Param, ..Self::normal(name, shape) }
    }

    /// An operand without gradient.
    pub fn constant(name: &'static str, shape: impl Into<Shape>, fill: Fill) -> Self {
        Self { name, shape: shape.into(), fill, role: Role::Constant }
    }

    /// The same operand filled otherwise.
    pub fn filled(self, fill: Fill) -> Self {
        Self { fill, ..self }
    }

    /// The operand with these values.
    pub fn operand(&self, values: Tensor) -> Result<Operand> {
        Ok(match self.role {
            Role::Constant => Operand::Constant(values),
            Role::Leaf => Operand::Leaf(values),
            Role::Param => {
                let (master, dtype) = (values.cast(values.dtype().accumulate())?, values.dtype());
                Operand::Param(Param::new(self.name, master, dtype)?)
            }
        })
    }
}

/// An operation on the operands of a case.
pub type Run = dyn Fn(&Tape, &[Var]) -> Result<Vec<Var>> + Send + Sync;

/// Takes operands and gives what runs an operation on them again and again, in place.
pub type InPlace = dyn Fn(Vec<Tensor>) -> Result<Box<dyn FnMut() -> Result<()>>> + Send + Sync;

/// One shape of one operation.
pub struct Case {
    /// Name of the operation: the folder, the kernel stem, the bench group.
    pub op: &'static str,
    /// Shape as text, e.g. `12800x1024`.
    pub id: String,
    /// Operands, in the order `run` takes them.
    pub inputs: Vec<Input>,
    /// The operation; several outputs are allowed, those without a slot are compared but not differentiated.
    pub run: Box<Run>,
    /// The same made of simpler operations, where they can be put together to it: the baseline of a fused kernel.
    pub composed: Option<Box<Run>>,
    /// For an operation that changes its operands: `run` works on copies of them, which nobody wants to time.
    pub in_place: Option<Box<InPlace>>,
    /// Bytes a perfect forward moves (each input read once, each output written once), for a storage dtype.
    pub bytes: Box<dyn Fn(DType) -> u64 + Send + Sync>,
    /// Floating-point operations of the forward; 0 for memory-bound operations.
    pub flops: u64,
    /// Terms of the longest sum, forward or backward; 1 without sums. What a plain loop may be off grows with it.
    pub terms: usize,
    /// Roundings to the storage dtype between an input and a result, the result's own included.
    pub stored: usize,
    /// Outputs, by number, that do not depend on an input, by name.
    pub independent: Vec<(usize, &'static str)>,
}

impl Case {
    /// A case without traffic figures: for tests.
    pub fn new(
        op: &'static str,
        id: impl Into<String>,
        inputs: Vec<Input>,
        run: impl Fn(&Tape, &[Var]) -> Result<Vec<Var>> + Send + Sync + 'static,
    ) -> Self {
        Self {
            op,
            id: id.into(),
            inputs,
            run: Box::new(run),
            composed: None,
            in_place: None,
            bytes: Box::new(|_| 0),
            flops: 0,
            terms: 1,
            stored: 1,
            independent: vec![],
        }
    }

    /// A case of an operation that changes its operands, the first `fixed` apart: `f` gets those, the others, the numbers
    /// of a step on their device, and a workspace.
    pub fn changing(
        op: &'static str,
        id: impl Into<String>,
        inputs: Vec<Input>,
        fixed: usize,
        step: impl Into<Vec<f64>>,
        f: impl Fn(&[Tensor], &mut [Tensor], &Tensor, &mut Workspace) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        let (f, step) = (Arc::new(f), step.into());
        let numbers = move |like: &Tensor| Scalars::new().set(&step, like.dtype(), like.device()).cloned();
        let (once, numbers_once) = (f.clone(), numbers.clone());
        let run = move |_: &Tape, vars: &[Var]| {
            let Some(first) = vars.first() else { return Ok(vec![]) };
            let values: Vec<Tensor> = vars.iter().map(|v| v.value().clone()).collect();
            let mut held = values[fixed..].iter().map(Tensor::deep_clone).collect::<Result<Vec<_>>>()?;
            once(&values[..fixed], &mut held, &numbers_once(first.value())?, &mut Workspace::new())?;
            Ok(held.into_iter().map(Var::constant).collect())
        };
        let in_place = move |mut operands: Vec<Tensor>| -> Result<Box<dyn FnMut() -> Result<()>>> {
            let mut held = operands.split_off(fixed);
            let Some(first) = operands.iter().chain(&held).next() else { return Ok(Box::new(|| Ok(()))) };
            let (step, f, mut work) = (numbers(first)?, f.clone(), Workspace::new());
            Ok(Box::new(move || f(&operands, &mut held, &step, &mut work)))
        };
        Self { in_place: Some(Box::new(in_place)), ..Self::new(op, id, inputs, run) }
    }

    /// With the same result made of simpler operations.
    pub fn composed(mut self, run: impl Fn(&Tape, &[Var]) -> Result<Vec<Var>> + Send + Sync + 'static) -> Self {
        self.composed = Some(Box::new(run));
        self
    }

    /// With the terms of the longest sum.
    pub fn terms(self, terms: usize) -> Self {
        Self { terms: terms.max(1), ..self }
    }

    /// With roundings to the storage dtype before the result's own.
    pub fn stored(self, stored: usize) -> Self {
        Self { stored, ..self }
    }

    /// With an output that an input does not reach.
    pub fn independent(mut self, output: usize, input: &'static str) -> Self {
        self.independent.push((output, input));
        self
    }

    /// Without gradients by the inputs that `constant` picks.
    pub fn constants(mut self, constant: impl Fn(&Input) -> bool) -> Self {
        self.inputs.iter_mut().filter(|input| constant(input)).for_each(|input| input.role = Role::Constant);
        self
    }

    /// With the bytes of a perfect forward.
    pub fn bytes(mut self, bytes: impl Fn(DType) -> u64 + Send + Sync + 'static) -> Self {
        self.bytes = Box::new(bytes);
        self
    }

    /// With the floating-point operations of the forward.
    pub fn flops(mut self, flops: u64) -> Self {
        self.flops = flops;
        self
    }
}
