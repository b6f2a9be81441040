//! Trunk and neck: an image's features at three strides, all with the same number of channels.
//!
//! Source: Ravi et al. 2024, arXiv 2408.00714, section 4; `sam2/modeling/backbones/image_encoder.py`.

use crate::nn::hiera::{Hiera, HieraSizes};
use crate::nn::{Builder, Conv2d, Drops, PerSize};
use crate::ops::add::add;
use crate::ops::resample::{Plan, resample};
use crate::{Error, Result, Tape, Var, module};

/// A layer of the neck.
#[derive(Clone, Debug)]
pub struct Lateral {
    /// Of single positions.
    pub conv: Conv2d,
}
module!(Lateral { conv });

/// The feature pyramid: a convolution of each stage's map, and the coarser map added where `top_down` says.
#[derive(Clone, Debug)]
pub struct FpnNeck {
    /// For the coarsest map first.
    pub convs: Vec<Lateral>,
    top_down: Vec<usize>,
    plans: Vec<PerSize<Plan>>,
}
module!(FpnNeck { convs });

impl FpnNeck {
    /// From stages of `channels`, finest first, to `dim` each. A level of `top_down` passes on, and takes, what is coarser.
    ///
    /// # Errors
    /// When a parameter cannot be made.
    pub fn new(b: &Builder, channels: &[usize], dim: usize, top_down: &[usize]) -> Result<Self> {
        let conv = |(i, &inner): (usize, &usize)| {
            Ok(Lateral { conv: Conv2d::pointwise(&b.pp("convs").pp(i).pp("conv"), inner, dim)? })
        };
        Ok(Self {
            convs: channels.iter().rev().enumerate().map(conv).collect::<Result<_>>()?,
            top_down: top_down.to_vec(),
            plans: channels.iter().map(|_| PerSize::default()).collect(),
        })
    }

    /// Maps of the trunk, finest first; returns as many, `[B, H, W, dim]`.
    ///
    /// # Errors
    /// When there is not one map for each convolution, or one is not twice as large as the next.
    pub fn forward(&self, tape: &Tape, maps: &[Var]) -> Result<Vec<Var>> {
        let levels = self.convs.len();
        if maps.len() != levels {
            return Err(Error::value("fpn_neck", "maps", maps.len(), format!("{levels}")));
        }
        let mut out: Vec<Var> = Vec::new(); // coarsest first
        let mut coarser: Option<Var> = None;
        for level in (0..levels).rev() {
            let conv = &self.convs[levels - 1 - level].conv;
            let takes = coarser.as_ref().filter(|_| self.top_down.contains(&level));
            let y = match takes {
                None => conv.forward(tape, &maps[level], None)?,
                Some(coarser) => {
                    let [_, h, w, _] = coarser.value().dims("fpn_neck", "map")?;
                    let device = coarser.value().device().clone();
                    let plan =
                        self.plans[level].get(h, w, &device, || Plan::nearest([h, w], [2 * h, 2 * w], &device))?;
                    let lateral = conv.forward(tape, &maps[level], None)?;
                    add(tape, &lateral, &resample(tape, coarser, &plan)?)?
                }
            };
            coarser = Some(y.clone());
            out.push(y);
        }
        out.reverse();
        Ok(out)
    }
}

/// Trunk and neck.
#[derive(Clone, Debug)]
pub struct ImageEncoder {
    /// A map for each stage.
    pub trunk: Hiera,
    /// All with the same channels.
    pub neck: FpnNeck,
    scalp: usize,
}
module!(ImageEncoder { trunk, neck });

/// Levels of the neck between which the coarser is added to the finer.
pub const TOP_DOWN: [usize; 2] = [2, 3];

impl ImageEncoder {
    /// An encoder below `b` with `dim` channels, without the coarsest level.
    ///
    /// # Errors
    /// As [`Hiera::new`].
    pub fn new(b: &Builder, trunk: &HieraSizes, dim: usize) -> Result<Self> {
        Ok(Self {
            trunk: Hiera::new(&b.pp("trunk"), trunk)?,
            neck: FpnNeck::new(&b.pp("neck"), &trunk.channels(), dim, &TOP_DOWN)?,
            scalp: 1,
        })
    }

    /// On normalised images `[B, H, W, 3]`; returns maps at strides 4, 8 and 16.
    ///
    /// # Errors
    /// When the size of the images does not fit windows and stages.
    pub fn forward(&self, tape: &Tape, images: &Var, drops: &[Drops]) -> Result<Vec<Var>> {
        let mut maps = self.neck.forward(tape, &self.trunk.forward(tape, images, drops)?)?;
        maps.truncate(maps.len() - self.scalp.min(maps.len()));
        Ok(maps)
    }
}
