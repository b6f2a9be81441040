//! One shape of one operation, as data: the parity tests, the gradient tests and the benches all run it.

use crate::{DType, Result, Shape, Tape, Var};

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
    /// Whether the operation differentiates by it.
    pub grad: bool,
}

impl Input {
    /// A standard normal operand with a gradient.
    pub fn normal(name: &'static str, shape: impl Into<Shape>) -> Self {
        Self { name, shape: shape.into(), fill: Fill::Normal(0.0, 1.0), grad: true }
    }

    /// An operand without gradient.
    pub fn constant(name: &'static str, shape: impl Into<Shape>, fill: Fill) -> Self {
        Self { name, shape: shape.into(), fill, grad: false }
    }

    /// The same operand filled otherwise.
    pub fn filled(self, fill: Fill) -> Self {
        Self { fill, ..self }
    }
}

type Run = dyn Fn(&Tape, &[Var]) -> Result<Vec<Var>> + Send + Sync;

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
    /// Bytes a perfect forward moves (each input read once, each output written once), for a storage dtype.
    pub bytes: Box<dyn Fn(DType) -> u64 + Send + Sync>,
    /// Floating-point operations of the forward; 0 for memory-bound operations.
    pub flops: u64,
}

impl Case {
    /// A case without traffic figures: for tests.
    pub fn new(
        op: &'static str,
        id: impl Into<String>,
        inputs: Vec<Input>,
        run: impl Fn(&Tape, &[Var]) -> Result<Vec<Var>> + Send + Sync + 'static,
    ) -> Self {
        Self { op, id: id.into(), inputs, run: Box::new(run), bytes: Box::new(|_| 0), flops: 0 }
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
