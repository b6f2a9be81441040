//! Makes parameters: a path of names as in upstream checkpoints, and an initial value drawn from the name.

use rand::{Rng, RngExt};

use crate::random::{normal, stream};
use crate::{DType, Device, Param, Result, Shape, Tensor};

/// How a parameter starts.
#[derive(Clone, Debug)]
pub enum Init {
    /// All zeros.
    Zeros,
    /// All ones.
    Ones,
    /// U(-b, b) with `b = sqrt(6 / (fan_in + fan_out))` (Glorot and Bengio 2010, equation 16).
    Xavier {
        /// Inputs of the layer.
        fan_in: usize,
        /// Outputs of the layer.
        fan_out: usize,
    },
    /// U(-bound, bound).
    Uniform(f64),
    /// N(0, std²).
    Normal(f64),
    /// N(0, 1 / fan_in) by the variance, from a normal distribution cut at two of its standard deviations (LeCun et al. 1998,
    /// section 4.6, as flax draws it).
    Lecun {
        /// Inputs of the layer.
        fan_in: usize,
    },
    /// Given values.
    Values(Vec<f32>),
}

/// A place in the tree of parameter names, with what every parameter below it needs.
#[derive(Clone, Debug)]
pub struct Builder {
    device: Device,
    dtype: DType,
    seed: u64,
    path: String,
}

impl Builder {
    /// The root: parameters live on `device`, kernels read them in `dtype`, initial values depend on `seed` and name.
    pub fn new(device: &Device, dtype: DType, seed: u64) -> Self {
        Self { device: device.clone(), dtype, seed, path: String::new() }
    }

    /// One level down: `b.pp("blocks").pp(3)` is `blocks.3`.
    pub fn pp(&self, name: impl ToString) -> Self {
        Self { path: self.join(&name.to_string()), ..self.clone() }
    }

    fn join(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) }
    }

    /// Device of the parameters.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// dtype kernels read.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The same place for parameters that kernels read in full precision.
    pub fn full(&self) -> Self {
        Self { dtype: self.dtype.accumulate(), ..self.clone() }
    }

    /// A trainable parameter.
    pub fn param(&self, name: &str, shape: impl Into<Shape>, init: Init) -> Result<Param> {
        let (name, shape) = (self.join(name), shape.into());
        // The stream is the name's, so adding a layer does not change how the others start.
        let mut rng = stream(self.seed, u64::from(crc32c::crc32c(name.as_bytes())));
        let values = draw(&init, shape.numel(), &mut rng);
        let master = Tensor::from_slice(&values, shape, &Device::Cpu)?.cast(self.dtype.accumulate())?;
        Param::new(name, master.to_device(&self.device)?, self.dtype)
    }

    /// A parameter that is stored in checkpoints but never trained.
    pub fn frozen(&self, name: &str, shape: impl Into<Shape>, init: Init) -> Result<Param> {
        let mut p = self.param(name, shape, init)?;
        p.trainable = false;
        Ok(p)
    }
}

/// Standard deviation of a standard normal variable cut at -2 and 2.
const CUT_STD: f64 = 0.879_625_661_034_239_8;

fn draw(init: &Init, n: usize, rng: &mut impl Rng) -> Vec<f32> {
    let mut uniform = |bound: f64| (0..n).map(|_| (bound * (2.0 * rng.random::<f64>() - 1.0)) as f32).collect();
    match init {
        Init::Zeros => vec![0.0; n],
        Init::Ones => vec![1.0; n],
        Init::Xavier { fan_in, fan_out } => uniform((6.0 / (fan_in + fan_out) as f64).sqrt()),
        Init::Uniform(bound) => uniform(*bound),
        Init::Normal(std) => normal(rng, n).into_iter().map(|x| (x * std) as f32).collect(),
        Init::Lecun { fan_in } => {
            let std = (*fan_in as f64).powf(-0.5) / CUT_STD;
            let one = || std::iter::repeat_with(|| normal(rng, 1)[0]).find(|x| x.abs() <= 2.0).unwrap_or(0.0);
            std::iter::repeat_with(one).take(n).map(|x| (x * std) as f32).collect()
        }
        Init::Values(values) => values.clone(),
    }
}
