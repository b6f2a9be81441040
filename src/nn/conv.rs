//! Convolutions of maps `[B, H, W, C]` as matrix products, and small perceptrons, under the names and initial values of torch.

use super::{Builder, Init, Linear};
use crate::ops::gelu::{Form, gelu};
use crate::ops::unfold::{Window, fold, unfold};
use crate::ops::{add, linear, relu};
use crate::{Error, Param, Result, Tape, Var, module};

/// U(-1/√fan_in, 1/√fan_in): what torch gives weight and bias of linear layers and convolutions (Kaiming-uniform with a = √5).
fn torch(fan_in: usize) -> Init {
    Init::Uniform((fan_in.max(1) as f64).powf(-0.5))
}

impl Linear {
    /// With the initial values of torch's `nn.Linear`.
    pub fn torch(b: &Builder, inner: usize, outer: usize) -> Result<Self> {
        Self::with(b, inner, outer, torch(inner), torch(inner))
    }
}

/// Convolution with square windows.
#[derive(Clone, Debug)]
pub struct Conv2d {
    /// `[out, in, k, k]`.
    pub weight: Param,
    /// `[out]`.
    pub bias: Param,
    window: Window,
}
module!(Conv2d { weight, bias });

impl Conv2d {
    /// From `inner` to `outer` channels.
    pub fn new(b: &Builder, inner: usize, outer: usize, window: Window) -> Result<Self> {
        let fan_in = inner * window.kernel * window.kernel;
        let weight = b.param("weight", [outer, inner, window.kernel, window.kernel], torch(fan_in))?;
        Ok(Self { weight, bias: b.param("bias", [outer], torch(fan_in))?, window })
    }

    /// Windows of one position: a linear layer of each.
    pub fn pointwise(b: &Builder, inner: usize, outer: usize) -> Result<Self> {
        Self::new(b, inner, outer, Window { kernel: 1, stride: 1, padding: 0 })
    }

    /// On `x: [B, H, W, in]`; `residual`, of the shape of the result, is added inside the product.
    pub fn forward(&self, tape: &Tape, x: &Var, residual: Option<&Var>) -> Result<Var> {
        let (weight, bias) = (tape.param(&self.weight), tape.param(&self.bias));
        if self.window == (Window { kernel: 1, stride: 1, padding: 0 }) {
            return linear::linear(tape, x, &weight, Some(&bias), residual);
        }
        linear::linear(tape, &unfold(tape, x, self.window)?, &weight, Some(&bias), residual)
    }
}

/// Transposed convolution whose windows do not overlap: each position becomes `k x k`.
#[derive(Clone, Debug)]
pub struct ConvTranspose2d {
    /// `[in, out, k, k]`.
    pub weight: Param,
    /// `[out]`.
    pub bias: Param,
    kernel: usize,
}
module!(ConvTranspose2d { weight, bias });

impl ConvTranspose2d {
    /// From `inner` to `outer` channels, `kernel` times as many positions on each side.
    pub fn new(b: &Builder, inner: usize, outer: usize, kernel: usize) -> Result<Self> {
        let fan = outer * kernel * kernel; // torch counts the second axis of the weight as inputs here, too
        let weight = b.param("weight", [inner, outer, kernel, kernel], torch(fan))?;
        Ok(Self { weight, bias: b.param("bias", [outer], torch(fan))?, kernel })
    }

    /// On `x: [B, H, W, in]`; returns `[B, kH, kW, out]`.
    pub fn forward(&self, tape: &Tape, x: &Var) -> Result<Var> {
        let [_, h, w, _] = x.value().dims("conv_transpose2d", "x")?;
        let columns = linear::transposed(tape, x, &tape.param(&self.weight))?;
        let window = Window { kernel: self.kernel, stride: self.kernel, padding: 0 };
        let y = fold(tape, &columns, window, [h * self.kernel, w * self.kernel])?;
        add::add(tape, &y, &tape.param(&self.bias))
    }
}

/// What stands between the layers of a [`Perceptron`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// max(x, 0).
    Relu,
    /// x Φ(x).
    Gelu,
}

/// Linear layers `layers.0`, `layers.1`, .. with an activation between them.
#[derive(Clone, Debug)]
pub struct Perceptron {
    /// In order.
    pub layers: Vec<Linear>,
    activation: Activation,
}
module!(Perceptron { layers });

impl Perceptron {
    /// With these widths: of the input, of each hidden layer, of the output.
    pub fn new(b: &Builder, widths: &[usize], activation: Activation) -> Result<Self> {
        if widths.len() < 2 {
            return Err(Error::config("widths", format!("{widths:?}"), "those of an input and an output"));
        }
        let layer = |(i, w): (usize, &[usize])| Linear::torch(&b.pp("layers").pp(i), w[0], w[1]);
        let layers = widths.windows(2).enumerate().map(layer).collect::<Result<_>>()?;
        Ok(Self { layers, activation })
    }

    /// On `x: [.., in]`; `residual: [.., out]` is added to the result.
    pub fn forward(&self, tape: &Tape, x: &Var, residual: Option<&Var>) -> Result<Var> {
        let mut x = x.clone();
        for (i, layer) in self.layers.iter().enumerate() {
            if i + 1 == self.layers.len() {
                return layer.forward(tape, &x, residual);
            }
            let y = layer.forward(tape, &x, None)?;
            x = match self.activation {
                Activation::Relu => relu::relu(tape, &y)?,
                Activation::Gelu => gelu(tape, &y, Form::Erf)?,
            };
        }
        Ok(x)
    }
}
