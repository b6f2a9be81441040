//! The model: image encoder, memory, prompts, masks.
//!
//! Source: Ravi et al. 2024, arXiv 2408.00714; `sam2/modeling/sam2_base.py`. Maps are `[B, H, W, C]`, masks `[O, M, H, W]`.

use super::config::{Options, Sizes};
use super::decoder::{Decoded, DecoderSizes, MaskDecoder, Query};
use super::image_encoder::ImageEncoder;
use super::memory_attention::{Memory, MemoryAttention, MemoryAttentionSizes};
use super::memory_encoder::{MemoryEncoder, MemoryEncoderSizes};
use super::position::sine_2d;
use super::prompt::{Points, PromptEncoder, PromptSizes};
use crate::nn::{Activation, Builder, Conv2d, Drops, Init, Linear, PerSize, Perceptron};
use crate::ops::argmax::best_row;
use crate::ops::cast::cast;
use crate::ops::concat::slice;
use crate::ops::resample::{Plan, resample};
use crate::ops::select_rows::select_rows;
use crate::ops::unfold::Window;
use crate::ops::{add::add, scale::scale};
use crate::{DType, Device, Error, Param, Result, Tape, Tensor, Var, module};

/// The logit of every pixel of an object that is not there.
pub const NO_OBJ_SCORE: f32 = -1024.0;

/// Longest wavelength of sine codes, in radians.
pub const TEMPERATURE: f64 = 10000.0;

/// Standard deviation of embeddings at the start.
const TOKEN_STD: f64 = 0.02;

/// All parts, under the names of the released checkpoints.
#[derive(Clone, Debug)]
pub struct Sam2 {
    /// Images to maps.
    pub image_encoder: ImageEncoder,
    /// Memories to features.
    pub memory_attention: MemoryAttention,
    /// Masks to memories.
    pub memory_encoder: MemoryEncoder,
    /// Prompts to tokens.
    pub sam_prompt_encoder: PromptEncoder,
    /// Tokens to masks.
    pub sam_mask_decoder: MaskDecoder,
    /// `[num_maskmem, 1, 1, mem_dim]`: time of a memory.
    pub maskmem_tpos_enc: Param,
    /// `[1, 1, C]`: added to features where there is no memory yet.
    pub no_mem_embed: Param,
    /// `[1, 1, C]`: in the checkpoints, used by nothing.
    pub no_mem_pos_enc: Param,
    /// `[1, C]`: the pointer of an object that is not there.
    pub no_obj_ptr: Param,
    /// `[1, mem_dim]`: marks memories of an object that is not there.
    pub no_obj_embed_spatial: Option<Param>,
    /// Of a mask that is given as the answer, on the way to its pointer.
    pub mask_downsample: Conv2d,
    /// Tokens to pointers.
    pub obj_ptr_proj: Perceptron,
    /// Codes of time for pointers.
    pub obj_ptr_tpos_proj: Option<Linear>,
    pub(super) sizes: Sizes,
    pub(super) options: Options,
    recompute: bool,
    upsample: PerSize<Plan>,
    shrink: PerSize<Plan>,
    feature_positions: PerSize<Tensor>,
    pub(super) memory_positions: PerSize<Tensor>,
}
module!(Sam2 {
    image_encoder,
    memory_attention,
    memory_encoder,
    sam_prompt_encoder,
    sam_mask_decoder,
    maskmem_tpos_enc,
    no_mem_embed,
    no_mem_pos_enc,
    no_obj_ptr,
    no_obj_embed_spatial,
    mask_downsample,
    obj_ptr_proj,
    obj_ptr_tpos_proj,
});

/// Features of one or more images.
#[derive(Clone, Debug)]
pub struct Features {
    /// Stride 16: `[B, h, w, C]`.
    pub image: Var,
    /// Strides 4 and 8, as the decoder takes them: `[B, 4h, 4w, C/8]`, `[B, 2h, 2w, C/4]`.
    pub high_res: [Var; 2],
}

impl Features {
    /// Those of one image.
    pub fn of(&self, tape: &Tape, image: usize) -> Result<Self> {
        let one = |x: &Var| slice(tape, x, 0, image..image + 1);
        Ok(Self { image: one(&self.image)?, high_res: [one(&self.high_res[0])?, one(&self.high_res[1])?] })
    }
}

/// What the decoder is asked about some objects of one image.
#[derive(Clone, Debug, Default)]
pub struct Prompt {
    /// Points, boxes among them.
    pub points: Option<Points>,
    /// Logits `[O, S/4, S/4, 1]`, of the last answer usually.
    pub mask: Option<Var>,
    /// No token for a prompt without points, as the released image predictor has it; else padding points stand for them.
    pub bare: bool,
}

/// The answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// All masks that were made, before one was chosen. Logits; -1024 everywhere for objects that are not there.
    pub all: Decoded,
    /// The chosen mask, `[O, 1, S/4, S/4]`.
    pub low_res_masks: Var,
    /// At the size of the input, `[O, 1, S, S]`.
    pub high_res_masks: Var,
    /// Pointers, `[O, C]`.
    pub obj_ptr: Var,
    /// Logits `[O, 1]`.
    pub object_scores: Var,
    /// Row of the chosen mask among those of all objects; `None` where each has one.
    pub chosen: Option<Tensor>,
}

/// Whether a step trains or evaluates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Masks enter memory as they are, times have the training's limits.
    Train,
    /// As the released predictors do.
    Evaluate,
}

impl Sam2 {
    /// A model below `b`.
    ///
    /// # Errors
    /// When sizes do not fit each other.
    pub fn new(b: &Builder, sizes: &Sizes, options: &Options) -> Result<Self> {
        let (dim, mem_dim, side) = (sizes.hidden_dim, sizes.mem_dim, sizes.image_size / 16);
        if sizes.image_size == 0 || !sizes.image_size.is_multiple_of(32) {
            return Err(Error::config("image_size", sizes.image_size, "a positive multiple of 32"));
        }
        if mem_dim == 0 || dim % mem_dim != 0 || dim % 8 != 0 {
            return Err(Error::config("mem_dim", mem_dim, format!("a divisor of {dim}, which is a multiple of 8")));
        }
        let (memory, decoder) = (
            MemoryAttentionSizes {
                dim,
                mem_dim,
                layers: sizes.memory_layers,
                hidden: sizes.memory_hidden,
                heads: sizes.memory_heads,
            },
            DecoderSizes {
                transformer_dim: dim,
                num_heads: sizes.decoder_heads,
                mlp_dim: sizes.decoder_mlp_dim,
                num_multimask_outputs: 3,
                iou_head_hidden_dim: sizes.iou_head_hidden_dim,
                iou_head_depth: 3,
                sigmoid_iou: options.iou_prediction_use_sigmoid,
                obj_scores_mlp: true,
            },
        );
        let encoder = MemoryEncoderSizes {
            dim,
            out_dim: mem_dim,
            total_stride: 16,
            window: Window { kernel: 3, stride: 2, padding: 1 },
            fuser_layers: 2,
            fuser_kernel: 7,
        };
        let prompts = PromptSizes {
            embed_dim: dim,
            image_embedding_size: [side, side],
            input_image_size: [sizes.image_size, sizes.image_size],
            mask_in_chans: 16,
        };
        let token = |name: &str, shape: Vec<usize>| b.param(name, shape, Init::Normal(TOKEN_STD));
        let quarter = Window { kernel: 4, stride: 4, padding: 0 };
        Ok(Self {
            image_encoder: ImageEncoder::new(&b.pp("image_encoder"), &sizes.trunk, dim)?,
            memory_attention: MemoryAttention::new(&b.pp("memory_attention"), memory)?,
            memory_encoder: MemoryEncoder::new(&b.pp("memory_encoder"), encoder)?,
            sam_prompt_encoder: PromptEncoder::new(&b.pp("sam_prompt_encoder"), prompts)?,
            sam_mask_decoder: MaskDecoder::new(&b.pp("sam_mask_decoder"), decoder)?,
            maskmem_tpos_enc: token("maskmem_tpos_enc", vec![sizes.num_maskmem, 1, 1, mem_dim])?,
            no_mem_embed: token("no_mem_embed", vec![1, 1, dim])?,
            no_mem_pos_enc: token("no_mem_pos_enc", vec![1, 1, dim])?,
            no_obj_ptr: token("no_obj_ptr", vec![1, dim])?,
            no_obj_embed_spatial: sizes
                .occlusion_embedding
                .then(|| token("no_obj_embed_spatial", vec![1, mem_dim]))
                .transpose()?,
            mask_downsample: Conv2d::new(&b.pp("mask_downsample"), 1, 1, quarter)?,
            obj_ptr_proj: Perceptron::new(&b.pp("obj_ptr_proj"), &[dim, dim, dim, dim], Activation::Relu)?,
            obj_ptr_tpos_proj: sizes
                .project_pointer_time
                .then(|| Linear::torch(&b.pp("obj_ptr_tpos_proj"), dim, mem_dim))
                .transpose()?,
            sizes: sizes.clone(),
            options: options.clone(),
            recompute: false,
            upsample: PerSize::default(),
            shrink: PerSize::default(),
            feature_positions: PerSize::default(),
            memory_positions: PerSize::default(),
        })
    }

    /// Its sizes.
    pub fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// How it is used.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Whether a tape keeps only what goes into blocks of the trunk, layers of memory attention, the decoder, the memory encoder
    /// and the losses, and they are computed again in the backward.
    pub fn set_recompute(&mut self, recompute: bool) {
        self.recompute = recompute;
        self.image_encoder.trunk.recompute = recompute;
        self.memory_attention.recompute = recompute;
    }

    /// `f(part, inputs)`, or that again in the backward.
    pub(super) fn run<P: Clone + 'static, const N: usize, const M: usize>(
        &self,
        tape: &Tape,
        part: &P,
        inputs: [&Var; N],
        f: impl Fn(&P, &Tape, &[Var]) -> Result<[Var; M]> + 'static,
    ) -> Result<[Var; M]> {
        if !self.recompute || !tape.records() {
            return f(part, tape, &inputs.map(Var::clone));
        }
        let part = part.clone();
        tape.recompute_several(&inputs, move |tape, v| f(&part, tape, v))
    }

    /// Rows, and columns, of the features at stride 16.
    pub fn side(&self) -> usize {
        self.sizes.image_size / 16
    }

    pub(super) fn device(&self) -> &Device {
        self.no_obj_ptr.value().device()
    }

    /// One number in the model's dtype, filled in on the device.
    pub(super) fn number(&self, value: f32) -> Result<Tensor> {
        Tensor::full([1], value, self.device())?.cast(self.no_obj_ptr.value().dtype())
    }

    /// A constant in the model's dtype.
    pub(super) fn constant(&self, values: &[f32], shape: impl Into<crate::Shape>) -> Result<Tensor> {
        let like = self.no_obj_ptr.value();
        Tensor::from_slice(values, shape, &Device::Cpu)?.cast(like.dtype())?.to_device(like.device())
    }

    /// Features of normalised images `[B, S, S, 3]`.
    ///
    /// # Errors
    /// When the images have another size.
    pub fn encode(&self, tape: &Tape, images: &Var, drops: &[Drops]) -> Result<Features> {
        let side = self.sizes.image_size;
        let [_, h, w, _] = images.value().dims("sam2", "images")?;
        if [h, w] != [side, side] {
            return Err(Error::shape("sam2", "images", images.value().shape(), format!("[B, {side}, {side}, 3]")));
        }
        let mut maps = self.image_encoder.forward(tape, images, drops)?.into_iter();
        let (Some(s4), Some(s8), Some(image)) = (maps.next(), maps.next(), maps.next()) else {
            return Err(Error::config("stages", self.sizes.trunk.stages.len(), "four stages"));
        };
        let decoder = &self.sam_mask_decoder;
        let high_res = [decoder.conv_s0.forward(tape, &s4, None)?, decoder.conv_s1.forward(tape, &s8, None)?];
        Ok(Features { image, high_res })
    }

    /// Features of a frame without memory: `features + no_mem_embed`.
    pub fn without_memory(&self, tape: &Tape, features: &Features) -> Result<Var> {
        add(tape, &features.image, &tape.param(&self.no_mem_embed).reshape([self.sizes.hidden_dim])?)
    }

    /// Features `[1, h, w, C]` of a frame after looking at the memory of `objects` objects: `[O, h, w, C]`.
    pub fn with_memory(&self, tape: &Tape, features: &Features, memory: &Memory, objects: usize) -> Result<Var> {
        let (side, dim) = (self.side(), self.sizes.hidden_dim);
        let x = features.image.reshape([features.image.value().shape()[0], side * side, dim])?;
        let positions = self.feature_positions.get(side, side, self.device(), || {
            self.constant(&sine_2d(dim, [side, side], TEMPERATURE)?, [side * side, dim])
        })?;
        let y = self.memory_attention.forward(tape, &x, &Var::constant(positions), memory, [side, side])?;
        y.reshape([objects, side, side, dim])
    }

    /// `[O]`: logits of objects, as [`select_rows`] takes them.
    pub(super) fn flags(&self, scores: &Var) -> Result<Tensor> {
        scores.value().cast(scores.value().dtype().accumulate())?.reshape([scores.value().numel()])
    }

    /// All masks for `objects` objects of one image, from features `[1 or O, h, w, C]` that have seen the memory, or do not need
    /// it: what the decoder says, before anything is chosen or hidden.
    ///
    /// # Errors
    /// When points or masks are those of another number of objects, or masks have another size.
    pub fn decode(
        &self,
        tape: &Tape,
        image: &Var,
        high_res: &[Var; 2],
        prompt: &Prompt,
        objects: usize,
    ) -> Result<Decoded> {
        let encoder = &self.sam_prompt_encoder;
        let none;
        let points = match &prompt.points {
            Some(points) => points,
            None => {
                none = Points::none(objects);
                &none
            }
        };
        if points.prompts != objects {
            return Err(Error::value("sam2", "points", points.prompts, format!("prompts for {objects} objects")));
        }
        let sparse = if prompt.bare && prompt.points.is_none() {
            let like = self.no_obj_ptr.value();
            Var::constant(Tensor::zeros([objects, 0, self.sizes.hidden_dim], like.dtype(), like.device())?)
        } else {
            encoder.points(tape, points, true)?
        };
        let dense = match &prompt.mask {
            Some(mask) => encoder.mask(tape, mask)?,
            None => encoder.no_mask(tape)?,
        };
        let image_pe = encoder.dense_pe()?;
        let decode = move |decoder: &MaskDecoder, tape: &Tape, v: &[Var]| {
            let (image_pe, high_res) = (&image_pe, [&v[3], &v[4]]);
            let query = Query { image: &v[0], image_pe, sparse: &v[1], dense: &v[2], high_res };
            let Decoded { masks, ious, tokens, object_scores } = decoder.forward(tape, query)?;
            Ok([masks, ious, tokens, object_scores])
        };
        let inputs = [image, &sparse, &dense, &high_res[0], &high_res[1]];
        let [masks, ious, tokens, object_scores] = self.run(tape, &self.sam_mask_decoder, inputs, decode)?;
        Ok(Decoded { masks, ious, tokens, object_scores })
    }

    /// [`decode`](Self::decode) and a choice. `several`: whether each prompt gets several masks, of which the best by predicted
    /// IoU is chosen.
    ///
    /// # Errors
    /// As [`decode`](Self::decode).
    #[expect(clippy::too_many_arguments, reason = "what upstream calls the SAM heads")]
    pub fn answer(
        &self,
        tape: &Tape,
        image: &Var,
        high_res: &[Var; 2],
        prompt: &Prompt,
        objects: usize,
        several: bool,
        mode: Mode,
    ) -> Result<Answer> {
        let decoded = self.decode(tape, image, high_res, prompt, objects)?;
        // The pointer is the chosen mask's, or always the single one's.
        let own = !several || !self.options.use_multimask_token_for_obj_ptr;
        let token = own.then(|| decoded.single(tape)).transpose()?.map(|single| single.tokens);
        let decoded = self.offered(tape, &decoded, several, mode)?;
        self.finish(tape, decoded, several, token)
    }

    /// The masks that a prompt is answered with: several, or one, which in evaluation may give way to a stabler one.
    pub fn offered(&self, tape: &Tape, decoded: &Decoded, several: bool, mode: Mode) -> Result<Decoded> {
        match self.options.stability {
            _ if several => decoded.several(tape),
            Some(limits) if mode == Mode::Evaluate => decoded.stable(tape, limits),
            _ => decoded.single(tape),
        }
    }

    /// Hides objects that are not there, chooses masks and makes pointers.
    fn finish(&self, tape: &Tape, decoded: Decoded, several: bool, token: Option<Var>) -> Result<Answer> {
        let flags = self.flags(&decoded.object_scores)?;
        let hidden = Var::constant(self.number(NO_OBJ_SCORE)?);
        let all = Decoded { masks: select_rows(tape, &flags, &decoded.masks, &hidden)?, ..decoded };
        let (best, chosen) = if several {
            let ids = best_row(all.ious.value())?;
            let best = all.pick(tape, &ids)?;
            (best, Some(ids))
        } else {
            (all.clone(), None)
        };
        let (objects, dim) = (all.object_scores.value().numel(), self.sizes.hidden_dim);
        let token = token.as_ref().unwrap_or(&best.tokens).reshape([objects, dim])?;
        let pointer = self.obj_ptr_proj.forward(tape, &token, None)?;
        let absent = tape.param(&self.no_obj_ptr).reshape([dim])?;
        Ok(Answer {
            obj_ptr: select_rows(tape, &flags, &pointer, &absent)?,
            high_res_masks: self.enlarge(tape, &best.masks)?,
            low_res_masks: best.masks,
            object_scores: all.object_scores.clone(),
            chosen,
            all,
        })
    }

    /// Masks `[O, M, S/4, S/4]` at the size of the input, `[O, M, S, S]`, in full precision.
    pub fn enlarge(&self, tape: &Tape, masks: &Var) -> Result<Var> {
        enlarged(&self.enlargement(masks)?, tape, masks)
    }

    /// How [`enlarge`](Self::enlarge) does it.
    pub(super) fn enlargement(&self, masks: &Var) -> Result<Plan> {
        let [_, _, h, w] = masks.value().dims("sam2", "masks")?;
        let (side, device) = (self.sizes.image_size, masks.value().device());
        self.upsample.get(h, w, device, || Plan::bilinear([h, w], [side, side], device))
    }

    /// Takes masks `[O, S, S, 1]` of zeros and ones as the answer.
    ///
    /// # Errors
    /// When the masks have another size.
    pub fn answer_with_masks(&self, tape: &Tape, features: &Features, masks: &Tensor, mode: Mode) -> Result<Answer> {
        let side = self.sizes.image_size;
        let [objects, h, w, one] = masks.dims("sam2", "masks")?;
        if [h, w, one] != [side, side, 1] {
            return Err(Error::shape("sam2", "masks", masks.shape(), format!("[O, {side}, {side}, 1]")));
        }
        let given = Var::constant(masks.clone());
        let offset = Var::constant(self.number(-10.0)?);
        let high_res = add(tape, &scale(tape, &given, 20.0)?, &offset)?;
        let device = masks.device().clone();
        let quarter = side / 4;
        let plan = self
            .shrink
            .get(side, side, &device, || Plan::bilinear_antialias([side, side], [quarter, quarter], &device))?;
        let low_res = resample(tape, &high_res, &plan)?.reshape([objects, 1, quarter, quarter])?;
        let mask = self.mask_downsample.forward(tape, &given, None)?;
        let prompt = Prompt { mask: Some(mask), ..Prompt::default() };
        let answer = self.answer(tape, &features.image, &features.high_res, &prompt, objects, false, mode)?;
        let pixels = masks.cast(DType::F32)?.to_vec::<f32>()?;
        let there = |o: usize| pixels[o * side * side..][..side * side].iter().any(|&x| x > 0.0);
        let scores: Vec<f32> = (0..objects).map(|o| if there(o) { 10.0 } else { -10.0 }).collect();
        let object_scores = Var::constant(self.constant(&scores, [objects, 1])?);
        let absent = tape.param(&self.no_obj_ptr).reshape([self.sizes.hidden_dim])?;
        let obj_ptr = select_rows(tape, &self.flags(&object_scores)?, &answer.obj_ptr, &absent)?;
        let ious = Var::constant(self.constant(&vec![1.0; objects], [objects, 1])?);
        let all = Decoded { masks: low_res.clone(), ious, object_scores: object_scores.clone(), ..answer.all };
        Ok(Answer {
            all,
            low_res_masks: low_res,
            high_res_masks: high_res.reshape([objects, 1, side, side])?,
            obj_ptr,
            object_scores,
            chosen: None,
        })
    }
}

/// Masks `[O, M, h, w]` by a plan, in full precision.
pub(super) fn enlarged(plan: &Plan, tape: &Tape, masks: &Var) -> Result<Var> {
    let masks = &cast(tape, masks, masks.value().dtype().accumulate())?;
    let [objects, count, h, w] = masks.value().dims("sam2", "masks")?;
    let y = resample(tape, &masks.reshape([objects * count, h, w, 1])?, plan)?;
    let [_, h, w, _] = y.value().dims("sam2", "masks")?;
    y.reshape([objects, count, h, w])
}
