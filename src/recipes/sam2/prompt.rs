//! Points, boxes and masks as tokens and maps.
//!
//! Source: Kirillov et al. 2023, arXiv 2304.02643, appendix A; `sam2/modeling/sam/prompt_encoder.py`.

use std::sync::{Arc, Mutex, PoisonError};

use super::position::{fourier, fourier_grid};
use crate::nn::{Builder, Conv2d, Init, LayerNorm};
use crate::ops::concat::concat;
use crate::ops::embedding::{Lookup, embedding};
use crate::ops::gelu::{Form, gelu};
use crate::ops::unfold::Window;
use crate::{Device, Error, Param, Result, Tape, Tensor, Var, module};

/// What a point of a prompt means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Label {
    /// Not part of the object (0).
    Negative,
    /// Part of the object (1).
    Positive,
    /// The top left corner of a box (2).
    TopLeft,
    /// The bottom right corner of a box (3).
    BottomRight,
    /// No point: fills up (-1).
    Padding,
    /// No token at all: its embedding is zero (-10, Hugging Face).
    Ignored,
}

impl Label {
    /// From the number that the upstream code uses.
    ///
    /// # Errors
    /// Another number.
    pub fn new(number: i64) -> Result<Self> {
        Ok(match number {
            0 => Self::Negative,
            1 => Self::Positive,
            2 => Self::TopLeft,
            3 => Self::BottomRight,
            -1 => Self::Padding,
            -10 => Self::Ignored,
            _ => return Err(Error::value("prompt_encoder", "label", number, "0, 1, 2, 3, -1 or -10")),
        })
    }

    /// Row of the table of embeddings.
    fn row(self) -> i32 {
        match self {
            Self::Negative => 0,
            Self::Positive => 1,
            Self::TopLeft => 2,
            Self::BottomRight => 3,
            Self::Padding => 4,
            Self::Ignored => 5,
        }
    }
}

/// Points of so many prompts, the same number for each, in pixels of the model's input.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Points {
    /// x and y, prompt after prompt.
    pub coords: Vec<[f32; 2]>,
    /// One for each point.
    pub labels: Vec<Label>,
    /// Prompts.
    pub prompts: usize,
}

impl Points {
    /// Points of `prompts` prompts.
    ///
    /// # Errors
    /// When there are other numbers of coordinates and labels, or they cannot be shared out.
    pub fn new(coords: Vec<[f32; 2]>, labels: Vec<Label>, prompts: usize) -> Result<Self> {
        if coords.len() != labels.len() || prompts == 0 || !coords.len().is_multiple_of(prompts) {
            let expected = format!("{} labels, the same number of points for each of {prompts} prompts", coords.len());
            return Err(Error::value("prompt_encoder", "labels", labels.len(), expected));
        }
        Ok(Self { coords, labels, prompts })
    }

    /// What stands for "no prompt": one padding point each.
    pub fn none(prompts: usize) -> Self {
        Self { coords: vec![[0.0; 2]; prompts], labels: vec![Label::Padding; prompts], prompts }
    }

    /// Boxes `[x0, y0, x1, y1]` as two points each.
    pub fn boxes(boxes: &[[f32; 4]]) -> Self {
        let coords = boxes.iter().flat_map(|b| [[b[0], b[1]], [b[2], b[3]]]).collect();
        let labels = boxes.iter().flat_map(|_| [Label::TopLeft, Label::BottomRight]).collect();
        Self { coords, labels, prompts: boxes.len() }
    }

    /// Points of each prompt.
    pub fn count(&self) -> usize {
        self.coords.len() / self.prompts.max(1)
    }

    /// These points and, after them, `more` for each prompt.
    ///
    /// # Errors
    /// When `more` is of another number of prompts.
    pub fn then(&self, more: &Self) -> Result<Self> {
        for points in [self, more] {
            Self::new(points.coords.clone(), points.labels.clone(), points.prompts)?;
        }
        if self.prompts != more.prompts {
            let expected = format!("{} prompts, as before", self.prompts);
            return Err(Error::value("prompt_encoder", "points", more.prompts, expected));
        }
        let (a, b) = (self.count(), more.count());
        let mut all = Self { prompts: self.prompts, ..Self::default() };
        for p in 0..self.prompts {
            all.coords.extend_from_slice(&self.coords[p * a..][..a]);
            all.coords.extend_from_slice(&more.coords[p * b..][..b]);
            all.labels.extend_from_slice(&self.labels[p * a..][..a]);
            all.labels.extend_from_slice(&more.labels[p * b..][..b]);
        }
        Ok(all)
    }
}

/// Parameters named `<name>.weight`.
fn embedding_param(b: &Builder, name: &str, dim: usize) -> Result<Param> {
    b.pp(name).param("weight", [1, dim], Init::Normal(1.0))
}

/// The random frequencies of coordinates.
#[derive(Clone, Debug)]
pub struct PositionEmbeddingRandom {
    /// `[2, C / 2]`, a buffer: never trained.
    pub positional_encoding_gaussian_matrix: Param,
}
module!(PositionEmbeddingRandom { positional_encoding_gaussian_matrix });

/// Convolutions that bring a mask prompt to the size of the features.
#[derive(Clone, Debug)]
pub struct MaskDownscaling {
    conv0: Conv2d,
    norm1: LayerNorm,
    conv3: Conv2d,
    norm4: LayerNorm,
    conv6: Conv2d,
}
module!(MaskDownscaling { conv0, norm1, conv3, norm4, conv6 });

/// Sizes of the encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromptSizes {
    /// Channels.
    pub embed_dim: usize,
    /// Rows and columns of the image's features.
    pub image_embedding_size: [usize; 2],
    /// Rows and columns of the model's input.
    pub input_image_size: [usize; 2],
    /// Channels of the last but one layer of mask prompts.
    pub mask_in_chans: usize,
}

/// What follows from the random frequencies.
#[derive(Clone, Debug)]
struct Codes {
    /// The matrix they were made of.
    of: Tensor,
    host: Arc<Vec<f32>>,
    dense: Tensor,
}

/// Embeddings of prompts.
#[derive(Clone, Debug)]
pub struct PromptEncoder {
    /// Of coordinates.
    pub pe_layer: PositionEmbeddingRandom,
    /// For the labels 0 to 3.
    pub point_embeddings: Vec<Param>,
    /// In place of a padding point.
    pub not_a_point_embed: Param,
    /// Of mask prompts.
    pub mask_downscaling: MaskDownscaling,
    /// At each position without a mask prompt.
    pub no_mask_embed: Param,
    sizes: PromptSizes,
    codes: Arc<Mutex<Option<Codes>>>,
}
module!(PromptEncoder { pe_layer, point_embeddings, not_a_point_embed, mask_downscaling, no_mask_embed });

impl PromptEncoder {
    /// An encoder below `b`.
    ///
    /// # Errors
    /// When a parameter cannot be made.
    pub fn new(b: &Builder, sizes: PromptSizes) -> Result<Self> {
        let PromptSizes { embed_dim: dim, mask_in_chans: chans, .. } = sizes;
        let (halving, masks) = (Window { kernel: 2, stride: 2, padding: 0 }, b.pp("mask_downscaling"));
        let matrix = b.pp("pe_layer").full();
        let matrix = matrix.frozen("positional_encoding_gaussian_matrix", [2, dim / 2], Init::Normal(1.0))?;
        let point = |i: usize| embedding_param(&b.pp("point_embeddings"), &i.to_string(), dim);
        Ok(Self {
            pe_layer: PositionEmbeddingRandom { positional_encoding_gaussian_matrix: matrix },
            point_embeddings: (0..4).map(point).collect::<Result<_>>()?,
            not_a_point_embed: embedding_param(b, "not_a_point_embed", dim)?,
            mask_downscaling: MaskDownscaling {
                conv0: Conv2d::new(&masks.pp(0), 1, chans / 4, halving)?,
                norm1: LayerNorm::new(&masks.pp(1), chans / 4, 1e-6)?,
                conv3: Conv2d::new(&masks.pp(3), chans / 4, chans, halving)?,
                norm4: LayerNorm::new(&masks.pp(4), chans, 1e-6)?,
                conv6: Conv2d::pointwise(&masks.pp(6), chans, dim)?,
            },
            no_mask_embed: embedding_param(b, "no_mask_embed", dim)?,
            sizes,
            codes: Arc::default(),
        })
    }

    /// Rows and columns of a mask prompt.
    pub fn mask_input_size(&self) -> [usize; 2] {
        self.sizes.image_embedding_size.map(|n| 4 * n)
    }

    /// The matrix on the host, and the codes of the features' positions: made anew when the matrix is another one.
    fn codes(&self) -> Result<(Arc<Vec<f32>>, Tensor)> {
        let matrix = &self.pe_layer.positional_encoding_gaussian_matrix.master;
        let mut held = self.codes.lock().unwrap_or_else(PoisonError::into_inner);
        // The tensor that is held keeps its memory, so that no other can have its address.
        if let Some(Codes { of, host, dense }) = &*held
            && of.ptr() == matrix.ptr()
            && of.device() == matrix.device()
        {
            return Ok((host.clone(), dense.clone()));
        }
        let host = Arc::new(matrix.to_vec::<f32>()?);
        let [h, w] = self.sizes.image_embedding_size;
        let dense = self.placed(&fourier_grid([h, w], &host)?, [h, w, self.sizes.embed_dim])?;
        *held = Some(Codes { of: matrix.clone(), host: host.clone(), dense: dense.clone() });
        Ok((host, dense))
    }

    /// dtype and device of what the encoder makes.
    fn placed(&self, values: &[f32], shape: impl Into<crate::Shape>) -> Result<Tensor> {
        let like = self.no_mask_embed.value();
        Tensor::from_slice(values, shape, &Device::Cpu)?.cast(like.dtype())?.to_device(like.device())
    }

    /// Codes of the centres of the features' positions: `[h, w, C]`.
    ///
    /// # Errors
    /// When device memory runs out.
    pub fn dense_pe(&self) -> Result<Tensor> {
        Ok(self.codes()?.1)
    }

    /// One token for each point: `[prompts, points, C]`. `pad` appends a padding point to each prompt, as upstream does when
    /// boxes are not given as boxes.
    ///
    /// # Errors
    /// When there are no prompts.
    pub fn points(&self, tape: &Tape, points: &Points, pad: bool) -> Result<Var> {
        let padded;
        let points = if pad {
            padded = points.then(&Points::none(points.prompts))?;
            &padded
        } else {
            points
        };
        let ([h, w], dim) = (self.sizes.input_image_size, self.sizes.embed_dim);
        let unit = |at: f32, size: usize| (f64::from(at) + 0.5) / size as f64;
        let unit: Vec<[f64; 2]> = points.coords.iter().map(|&[x, y]| [unit(x, w), unit(y, h)]).collect();
        let mut code = fourier(&unit, &self.codes()?.0)?;
        for (row, label) in code.chunks_exact_mut(dim).zip(&points.labels) {
            if matches!(label, Label::Padding | Label::Ignored) {
                row.fill(0.0);
            }
        }
        let zero = Var::constant(self.placed(&vec![0.0; dim], [1, dim])?);
        let mut rows: Vec<Var> = self.point_embeddings.iter().map(|p| tape.param(p)).collect();
        rows.extend([tape.param(&self.not_a_point_embed), zero]);
        let table = concat(tape, &rows.iter().collect::<Vec<_>>(), 0)?;
        let ids: Vec<i32> = points.labels.iter().map(|label| label.row()).collect();
        let lookup = Lookup::new(&ids, 6, table.value().device())?;
        let code = Var::constant(self.placed(&code, [ids.len(), dim])?);
        embedding(tape, &table, &lookup, Some(&code))?.reshape([points.prompts, points.count(), dim])
    }

    /// A mask prompt, logits `[B, 4h, 4w, 1]`, as a map `[B, h, w, C]`.
    ///
    /// # Errors
    /// When the mask has another size.
    pub fn mask(&self, tape: &Tape, mask: &Var) -> Result<Var> {
        let [_, rows, cols, _] = mask.value().dims("prompt_encoder", "mask")?;
        if [rows, cols] != self.mask_input_size() {
            let [h, w] = self.mask_input_size();
            let expected = format!("[B, {h}, {w}, 1]");
            return Err(Error::shape("prompt_encoder", "mask", mask.value().shape(), expected));
        }
        let m = &self.mask_downscaling;
        let mut x = mask.clone();
        for (conv, norm) in [(&m.conv0, &m.norm1), (&m.conv3, &m.norm4)] {
            x = norm.forward(tape, &conv.forward(tape, &x, None)?)?;
            x = gelu(tape, &x, Form::Erf)?;
        }
        m.conv6.forward(tape, &x, None)
    }

    /// What stands at every position without a mask prompt: `[C]`.
    pub fn no_mask(&self, tape: &Tape) -> Result<Var> {
        tape.param(&self.no_mask_embed).reshape([self.sizes.embed_dim])
    }
}
