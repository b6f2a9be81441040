//! Makes a memory of a frame from its features and a mask.
//!
//! Source: Ravi et al. 2024, arXiv 2408.00714, section 4; `sam2/modeling/memory_encoder.py`.

use crate::nn::{Builder, Conv2d, Init, LayerNorm, Linear};
use crate::ops::depthwise_conv2d::depthwise_conv2d;
use crate::ops::gelu::{Form, gelu};
use crate::ops::layer_scale::layer_scale;
use crate::ops::repeat::repeat;
use crate::ops::unfold::Window;
use crate::{Error, Param, Result, Tape, Var, module};

/// Sizes of the encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryEncoderSizes {
    /// Channels of the features.
    pub dim: usize,
    /// Channels of the memory.
    pub out_dim: usize,
    /// Pixels of the mask to a position of the features, per side.
    pub total_stride: usize,
    /// Windows of the mask's convolutions.
    pub window: Window,
    /// Blocks of the fuser.
    pub fuser_layers: usize,
    /// Window of its depthwise convolution.
    pub fuser_kernel: usize,
}

/// Convolutions that bring a mask to the features' size, each followed by norm and GELU; then one of single positions.
#[derive(Clone, Debug)]
pub struct MaskDownsampler {
    convs: Vec<Conv2d>,
    norms: Vec<LayerNorm>,
    last: Conv2d,
}
module!(MaskDownsampler { convs, norms, last });

impl MaskDownsampler {
    fn new(b: &Builder, sizes: MemoryEncoderSizes) -> Result<Self> {
        let (b, stride) = (b.pp("encoder"), sizes.window.stride);
        let count = (0..usize::BITS).find(|&n| stride.checked_pow(n).is_some_and(|s| s >= sizes.total_stride));
        let count = count.filter(|&n| stride > 1 && stride.pow(n) == sizes.total_stride).ok_or_else(|| {
            Error::config("total_stride", sizes.total_stride, format!("a power of the stride {stride}"))
        })? as usize;
        let (mut convs, mut norms, mut channels) = (Vec::new(), Vec::new(), 1);
        for i in 0..count {
            let wider = channels * stride * stride;
            convs.push(Conv2d::new(&b.pp(3 * i), channels, wider, sizes.window)?);
            norms.push(LayerNorm::new(&b.pp(3 * i + 1), wider, 1e-6)?);
            channels = wider;
        }
        Ok(Self { convs, norms, last: Conv2d::pointwise(&b.pp(3 * count), channels, sizes.dim)? })
    }

    /// `mask: [B, H, W, 1]`; `residual` is added to the result.
    fn forward(&self, tape: &Tape, mask: &Var, residual: &Var) -> Result<Var> {
        let mut x = mask.clone();
        for (conv, norm) in self.convs.iter().zip(&self.norms) {
            x = norm.forward(tape, &conv.forward(tape, &x, None)?)?;
            x = gelu(tape, &x, Form::Erf)?;
        }
        self.last.forward(tape, &x, Some(residual))
    }
}

/// `x + gamma · pwconv2(gelu(pwconv1(norm(dwconv(x)))))`.
#[derive(Clone, Debug)]
pub struct CxBlock {
    /// Depthwise.
    pub dwconv: Depthwise,
    /// After it.
    pub norm: LayerNorm,
    /// Four times as wide.
    pub pwconv1: Linear,
    /// Back.
    pub pwconv2: Linear,
    /// `[dim]`.
    pub gamma: Param,
}
module!(CxBlock { gamma, dwconv, norm, pwconv1, pwconv2 });

/// Parameters of a depthwise convolution.
#[derive(Clone, Debug)]
pub struct Depthwise {
    /// `[dim, 1, k, k]`.
    pub weight: Param,
    /// `[dim]`.
    pub bias: Param,
}
module!(Depthwise { weight, bias });

impl CxBlock {
    fn new(b: &Builder, dim: usize, kernel: usize) -> Result<Self> {
        let start = || Init::Uniform(1.0 / kernel.max(1) as f64);
        let of_dw = b.pp("dwconv");
        Ok(Self {
            dwconv: Depthwise {
                weight: of_dw.param("weight", [dim, 1, kernel, kernel], start())?,
                bias: of_dw.param("bias", [dim], start())?,
            },
            norm: LayerNorm::new(&b.pp("norm"), dim, 1e-6)?,
            pwconv1: Linear::torch(&b.pp("pwconv1"), dim, 4 * dim)?,
            pwconv2: Linear::torch(&b.pp("pwconv2"), 4 * dim, dim)?,
            gamma: b.param("gamma", [dim], Init::Values(vec![1e-6; dim]))?,
        })
    }

    fn forward(&self, tape: &Tape, x: &Var) -> Result<Var> {
        let [maps, h, w, dim] = x.value().dims("memory_encoder", "x")?;
        let y = depthwise_conv2d(tape, x, &tape.param(&self.dwconv.weight), &tape.param(&self.dwconv.bias))?;
        let y = self.pwconv1.forward(tape, &self.norm.forward(tape, &y)?, None)?;
        let y = self.pwconv2.forward(tape, &gelu(tape, &y, Form::Erf)?, None)?;
        let rows = [maps * h * w, dim];
        let sum = layer_scale(tape, &x.reshape(rows)?, &y.reshape(rows)?, Some(&tape.param(&self.gamma)), None)?;
        sum.reshape([maps, h, w, dim])
    }
}

/// The blocks that mix features and mask.
#[derive(Clone, Debug)]
pub struct Fuser {
    /// In order.
    pub layers: Vec<CxBlock>,
}
module!(Fuser { layers });

/// Features and mask, added, mixed and narrowed.
#[derive(Clone, Debug)]
pub struct MemoryEncoder {
    /// Of the mask.
    pub mask_downsampler: MaskDownsampler,
    /// Of the features.
    pub pix_feat_proj: Conv2d,
    /// Of their sum.
    pub fuser: Fuser,
    /// To the memory's channels; absent where they are the features'.
    pub out_proj: Option<Conv2d>,
}
module!(MemoryEncoder { mask_downsampler, pix_feat_proj, fuser, out_proj });

impl MemoryEncoder {
    /// An encoder below `b`.
    ///
    /// # Errors
    /// When the total stride is no power of the stride.
    pub fn new(b: &Builder, sizes: MemoryEncoderSizes) -> Result<Self> {
        let layer = |i: usize| CxBlock::new(&b.pp("fuser").pp("layers").pp(i), sizes.dim, sizes.fuser_kernel);
        let narrower = sizes.out_dim != sizes.dim;
        Ok(Self {
            mask_downsampler: MaskDownsampler::new(&b.pp("mask_downsampler"), sizes)?,
            pix_feat_proj: Conv2d::pointwise(&b.pp("pix_feat_proj"), sizes.dim, sizes.dim)?,
            fuser: Fuser { layers: (0..sizes.fuser_layers).map(layer).collect::<Result<_>>()? },
            out_proj: narrower.then(|| Conv2d::pointwise(&b.pp("out_proj"), sizes.dim, sizes.out_dim)).transpose()?,
        })
    }

    /// Features `[B, h, w, dim]`, or one map for all, and masks `[B, H, W, 1]`, already between their limits; returns
    /// `[B, h, w, out_dim]`.
    pub fn forward(&self, tape: &Tape, features: &Var, mask: &Var) -> Result<Var> {
        let mut x = self.pix_feat_proj.forward(tape, features, None)?;
        let (shape, masks) = (x.value().shape().to_vec(), mask.value().shape()[0]);
        if shape[0] != masks {
            x = repeat(tape, &x.reshape(shape[1..].to_vec())?, masks)?;
        }
        x = self.mask_downsampler.forward(tape, mask, &x)?;
        for layer in &self.fuser.layers {
            x = layer.forward(tape, &x)?;
        }
        match &self.out_proj {
            None => Ok(x),
            Some(proj) => proj.forward(tape, &x, None),
        }
    }
}
