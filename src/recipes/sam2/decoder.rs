//! Masks from an image's features and prompts.
//!
//! Source: Kirillov et al. 2023, arXiv 2304.02643, appendix A; Ravi et al. 2024, arXiv 2408.00714, appendix C;
//! `sam2/modeling/sam/mask_decoder.py`.

use super::two_way::{TwoWaySizes, TwoWayTransformer};
use crate::nn::{Activation, Builder, Conv2d, ConvTranspose2d, Init, LayerNorm, Linear, Perceptron};
use crate::ops::add::add;
use crate::ops::concat::{concat, slice};
use crate::ops::gather_rows::gather_rows;
use crate::ops::gelu::{Form, gelu};
use crate::ops::linear::batched;
use crate::ops::repeat::repeat;
use crate::ops::sigmoid::sigmoid;
use crate::{DType, Param, Result, Tape, Tensor, Var, module};

/// Sizes of the decoder, under upstream's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecoderSizes {
    /// Channels.
    pub transformer_dim: usize,
    /// Heads of the transformer.
    pub num_heads: usize,
    /// Hidden units of its MLPs.
    pub mlp_dim: usize,
    /// Masks that one ambiguous prompt may mean; one more is made for prompts that are not.
    pub num_multimask_outputs: usize,
    /// Hidden units of the head that predicts IoU.
    pub iou_head_hidden_dim: usize,
    /// Layers of that head.
    pub iou_head_depth: usize,
    /// Whether IoUs are between 0 and 1 by a sigmoid.
    pub sigmoid_iou: bool,
    /// Whether the object score has hidden layers.
    pub obj_scores_mlp: bool,
}

/// The head of the object score.
#[derive(Clone, Debug)]
pub enum ScoreHead {
    /// `pred_obj_score_head.layers.*`.
    Perceptron(Perceptron),
    /// `pred_obj_score_head.weight`.
    Linear(Linear),
}

impl crate::nn::Module for ScoreHead {
    fn visit<'a>(&'a self, f: &mut dyn FnMut(&'a Param)) {
        match self {
            Self::Perceptron(head) => head.visit(f),
            Self::Linear(head) => head.visit(f),
        }
    }
    fn visit_mut<'a>(&'a mut self, f: &mut dyn FnMut(&'a mut Param)) {
        match self {
            Self::Perceptron(head) => head.visit_mut(f),
            Self::Linear(head) => head.visit_mut(f),
        }
    }
}

/// Tokens, transformer, upscaling and heads.
#[derive(Clone, Debug)]
pub struct MaskDecoder {
    /// Two-way.
    pub transformer: TwoWayTransformer,
    /// `[1, C]`.
    pub iou_token: Param,
    /// `[masks, C]`.
    pub mask_tokens: Param,
    /// `[1, C]`.
    pub obj_score_token: Param,
    /// `output_upscaling.0`: twice as large, a quarter of the channels.
    pub upscale0: ConvTranspose2d,
    /// `output_upscaling.1`.
    pub upscale_norm: LayerNorm,
    /// `output_upscaling.3`: twice as large, half the channels.
    pub upscale3: ConvTranspose2d,
    /// Of the features at stride 4.
    pub conv_s0: Conv2d,
    /// Of the features at stride 8.
    pub conv_s1: Conv2d,
    /// A weight vector for each mask.
    pub output_hypernetworks_mlps: Vec<Perceptron>,
    /// Predicted IoU of each mask.
    pub iou_prediction_head: Perceptron,
    /// Whether the object is there.
    pub pred_obj_score_head: ScoreHead,
    sizes: DecoderSizes,
}
module!(MaskDecoder {
    transformer,
    iou_token,
    mask_tokens,
    obj_score_token,
    upscale0,
    upscale_norm,
    upscale3,
    conv_s0,
    conv_s1,
    output_hypernetworks_mlps,
    iou_prediction_head,
    pred_obj_score_head,
});

/// What the decoder is asked.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// `[B, h, w, C]`, or `[1, h, w, C]` for all prompts.
    pub image: &'a Var,
    /// `[h, w, C]`.
    pub image_pe: &'a Tensor,
    /// `[B, T, C]`.
    pub sparse: &'a Var,
    /// `[B, h, w, C]`, or one row `[C]` for all positions.
    pub dense: &'a Var,
    /// Features at strides 4 and 8 after `conv_s0` and `conv_s1`: `[B, 4h, 4w, C/8]`, `[B, 2h, 2w, C/4]`, or one for all.
    pub high_res: [&'a Var; 2],
}

/// Masks of the decoder, or some of them.
#[derive(Clone, Debug)]
pub struct Decoded {
    /// Logits `[B, M, 4h, 4w]`.
    pub masks: Var,
    /// `[B, M]`.
    pub ious: Var,
    /// `[B, M, C]`: the tokens the masks were made from.
    pub tokens: Var,
    /// Logits `[B, 1]`: whether the object is there.
    pub object_scores: Var,
}

/// When a single mask gives way to the best of several.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Stability {
    /// Logits are compared with this and its negative.
    pub delta: f32,
    /// Least share of pixels that may not depend on it.
    pub thresh: f32,
}

impl MaskDecoder {
    /// A decoder below `b`.
    ///
    /// # Errors
    /// When the heads do not divide the widths.
    pub fn new(b: &Builder, sizes: DecoderSizes) -> Result<Self> {
        let dim = sizes.transformer_dim;
        let (masks, upscaling) = (sizes.num_multimask_outputs + 1, b.pp("output_upscaling"));
        let two_way = TwoWaySizes { depth: 2, dim, heads: sizes.num_heads, mlp_dim: sizes.mlp_dim, downsample: 2 };
        let token = |name: &str, rows: usize| b.pp(name).param("weight", [rows, dim], Init::Normal(1.0));
        let hyper = |i: usize| {
            let b = b.pp("output_hypernetworks_mlps").pp(i);
            Perceptron::new(&b, &[dim, dim, dim, dim / 8], Activation::Relu)
        };
        let mut iou = vec![sizes.iou_head_hidden_dim; sizes.iou_head_depth + 1];
        (iou[0], iou[sizes.iou_head_depth]) = (dim, masks);
        let score = b.pp("pred_obj_score_head");
        Ok(Self {
            transformer: TwoWayTransformer::new(&b.pp("transformer"), two_way)?,
            iou_token: token("iou_token", 1)?,
            mask_tokens: token("mask_tokens", masks)?,
            obj_score_token: token("obj_score_token", 1)?,
            upscale0: ConvTranspose2d::new(&upscaling.pp(0), dim, dim / 4, 2)?,
            upscale_norm: LayerNorm::new(&upscaling.pp(1), dim / 4, 1e-6)?,
            upscale3: ConvTranspose2d::new(&upscaling.pp(3), dim / 4, dim / 8, 2)?,
            conv_s0: Conv2d::pointwise(&b.pp("conv_s0"), dim, dim / 8)?,
            conv_s1: Conv2d::pointwise(&b.pp("conv_s1"), dim, dim / 4)?,
            output_hypernetworks_mlps: (0..masks).map(hyper).collect::<Result<_>>()?,
            iou_prediction_head: Perceptron::new(&b.pp("iou_prediction_head"), &iou, Activation::Relu)?,
            pred_obj_score_head: if sizes.obj_scores_mlp {
                ScoreHead::Perceptron(Perceptron::new(&score, &[dim, dim, dim, 1], Activation::Relu)?)
            } else {
                ScoreHead::Linear(Linear::torch(&score, dim, 1)?)
            },
            sizes,
        })
    }

    /// All masks, the one for unambiguous prompts first.
    pub fn forward(&self, tape: &Tape, query: Query) -> Result<Decoded> {
        let [batch, prompts, dim] = query.sparse.value().dims("mask_decoder", "sparse")?;
        let [_, h, w, _] = query.image.value().dims("mask_decoder", "image")?;
        let masks = self.sizes.num_multimask_outputs + 1;
        let own = [&self.obj_score_token, &self.iou_token, &self.mask_tokens].map(|p| tape.param(p));
        let own = repeat(tape, &concat(tape, &[&own[0], &own[1], &own[2]], 0)?, batch)?;
        let tokens = concat(tape, &[&own, query.sparse], 1)?;
        let all = |x: &Var| -> Result<Var> {
            let one = x.value().shape()[0] == 1 && batch != 1;
            let shape = x.value().shape()[1..].to_vec();
            if one { repeat(tape, &x.reshape(shape)?, batch) } else { Ok(x.clone()) }
        };
        let image = add(tape, &all(query.image)?, query.dense)?.reshape([batch, h * w, dim])?;
        let image_pe = Var::constant(query.image_pe.reshape([h * w, dim])?);
        let (tokens, image) = self.transformer.forward(tape, &image, &image_pe, &tokens)?;

        let up = self.upscale0.forward(tape, &image.reshape([batch, h, w, dim])?)?;
        let up = self.upscale_norm.forward(tape, &add(tape, &up, query.high_res[1])?)?;
        let up = self.upscale3.forward(tape, &gelu(tape, &up, Form::Erf)?)?;
        let up = gelu(tape, &add(tape, &up, query.high_res[0])?, Form::Erf)?;
        let up = up.reshape([batch, 16 * h * w, dim / 8])?;

        let token = |from: usize, to: usize| slice(tape, &tokens, 1, from..to);
        let mask_tokens = token(2, 2 + masks)?;
        let hyper = |(i, head): (usize, &Perceptron)| head.forward(tape, &token(2 + i, 3 + i)?, None);
        let hyper: Vec<Var> = self.output_hypernetworks_mlps.iter().enumerate().map(hyper).collect::<Result<_>>()?;
        let hyper = concat(tape, &hyper.iter().collect::<Vec<_>>(), 1)?;
        let logits = batched(tape, &hyper, &up)?.reshape([batch, masks, 4 * h, 4 * w])?;
        let mut ious = self.iou_prediction_head.forward(tape, &token(1, 2)?.reshape([batch, dim])?, None)?;
        if self.sizes.sigmoid_iou {
            ious = sigmoid(tape, &ious, 1.0, 0.0)?;
        }
        let score = token(0, 1)?.reshape([batch, dim])?;
        let object_scores = match &self.pred_obj_score_head {
            ScoreHead::Perceptron(head) => head.forward(tape, &score, None)?,
            ScoreHead::Linear(head) => head.forward(tape, &score, None)?,
        };
        debug_assert_eq!(tokens.value().shape()[1], 2 + masks + prompts);
        Ok(Decoded { masks: logits, ious, tokens: mask_tokens, object_scores })
    }
}

impl Decoded {
    /// The masks for ambiguous prompts.
    pub fn several(&self, tape: &Tape) -> Result<Self> {
        self.range(tape, 1..self.ious.value().shape()[1])
    }

    /// The mask for prompts that are not ambiguous.
    pub fn single(&self, tape: &Tape) -> Result<Self> {
        self.range(tape, 0..1)
    }

    fn range(&self, tape: &Tape, of: std::ops::Range<usize>) -> Result<Self> {
        let part = |x: &Var| slice(tape, x, 1, of.clone());
        let object_scores = self.object_scores.clone();
        Ok(Self { masks: part(&self.masks)?, ious: part(&self.ious)?, tokens: part(&self.tokens)?, object_scores })
    }

    /// Rows `ids: [B]` of all masks of all prompts, counted through; one of each prompt, say. Returns logits
    /// `[B, 1, 4h, 4w]`, IoUs `[B, 1]` and tokens `[B, 1, C]`.
    pub fn pick(&self, tape: &Tape, ids: &Tensor) -> Result<Self> {
        let [batch, masks, h, w] = self.masks.value().dims("mask_decoder", "masks")?;
        let picked = ids.numel();
        let row = |x: &Var| gather_rows(tape, &x.reshape([batch * masks, x.value().numel() / (batch * masks)])?, ids);
        let tokens = row(&self.tokens)?;
        let dim = tokens.value().shape()[1];
        Ok(Self {
            masks: row(&self.masks)?.reshape([picked, 1, h, w])?,
            ious: row(&self.ious)?.reshape([picked, 1])?,
            tokens: tokens.reshape([picked, 1, dim])?,
            object_scores: self.object_scores.clone(),
        })
    }

    /// The single mask where it is stable, else the best of the others by predicted IoU; the token is the single mask's
    /// either way. Reads the masks back.
    pub fn stable(&self, tape: &Tape, limits: Stability) -> Result<Self> {
        let [batch, masks, h, w] = self.masks.value().dims("mask_decoder", "masks")?;
        let single = self.single(tape)?;
        let logits = single.masks.value().cast(DType::F32)?.to_vec::<f32>()?;
        let ious = self.ious.value().cast(DType::F32)?.to_vec::<f32>()?;
        let ids: Vec<i32> = (0..batch)
            .map(|b| {
                let best =
                    (1..masks).fold(1, |best, m| if ious[b * masks + m] > ious[b * masks + best] { m } else { best });
                let stable = stability(&logits[b * h * w..][..h * w], limits.delta) >= limits.thresh;
                (b * masks + if stable { 0 } else { best }) as i32
            })
            .collect();
        let ids = Tensor::from_slice(&ids, [batch], self.masks.value().device())?;
        Ok(Self { tokens: single.tokens, ..self.pick(tape, &ids)? })
    }
}

/// Pixels above `delta` to those above `-delta`; 1 if there are none.
pub fn stability(logits: &[f32], delta: f32) -> f32 {
    let above = |limit: f32| logits.iter().filter(|&&x| x > limit).count() as f32;
    let union = above(-delta);
    if union > 0.0 { above(delta) / union } else { 1.0 }
}
