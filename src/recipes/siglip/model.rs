//! Two towers and the two numbers that make logits of their similarity.

use super::{ImageTower, Sizes, TextTower};
use crate::nn::{Builder, Init};
use crate::{Param, Result, module};

/// Where the logarithm of the scale starts: a scale of 10.
pub const LOGIT_SCALE: f32 = std::f32::consts::LN_10;
/// Where the bias starts: near the logarithm of the odds of a positive in a batch of 22,000.
pub const LOGIT_BIAS: f32 = -10.0;

/// The model: the logit of image i and text j is `exp(logit_scale) · x_i · y_j + logit_bias`, with the embeddings `x` and `y`
/// of length 1.
///
/// Source: Zhai et al. 2023, arXiv 2303.15343, algorithm 1; initial values: table 4 there.
#[derive(Clone, Debug)]
pub struct Siglip {
    /// The image tower.
    pub vision: ImageTower,
    /// The text tower.
    pub text: TextTower,
    /// `[1]` in full precision: the logarithm of the scale.
    pub logit_scale: Param,
    /// `[1]` in full precision.
    pub logit_bias: Param,
}
module!(Siglip { vision, text, logit_scale, logit_bias });

impl Siglip {
    /// A model with big_vision's initial values.
    ///
    /// # Errors
    /// For sizes that no model can have.
    pub fn new(b: &Builder, sizes: &Sizes) -> Result<Self> {
        Self::starting_at(b, sizes, LOGIT_SCALE, LOGIT_BIAS)
    }

    /// With other initial values of scale (its logarithm) and bias.
    ///
    /// # Errors
    /// For sizes that no model can have.
    pub fn starting_at(b: &Builder, sizes: &Sizes, logit_scale: f32, logit_bias: f32) -> Result<Self> {
        let scalar = |name: &str, value: f32| b.full().param(name, [1], Init::Values(vec![value]));
        Ok(Self {
            vision: ImageTower::new(b, sizes)?,
            text: TextTower::new(b, sizes)?,
            logit_scale: scalar("logit_scale", logit_scale)?,
            logit_bias: scalar("logit_bias", logit_bias)?,
        })
    }

    /// Whether blocks keep only their input and compute the rest again in the backward sweep, in both towers.
    pub fn set_recompute(&mut self, recompute: bool) {
        (self.vision.recompute, self.text.recompute) = (recompute, recompute);
    }
}
