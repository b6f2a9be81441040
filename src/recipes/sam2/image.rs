//! Masks of one image from points, boxes and masks, prompt after prompt on the same features.
//!
//! Source: `sam2/sam2_image_predictor.py`.

use super::model::{Features, Mode, Prompt, Sam2};
use super::prompt::Points;
use super::regions::Repair;
use super::transforms::{self, output_masks};
use crate::data::augment::Normalise;
use crate::data::image::Image;
use crate::{DType, Error, Result, Tape, Tensor, Var};

/// Bounds of the logits that are handed back for the next prompt.
const CLAMP: f32 = 32.0;

/// The features of an image, and the size it had.
#[derive(Clone, Debug)]
pub struct ImagePredictor<'a> {
    model: &'a Sam2,
    features: Features,
    /// Features that the decoder reads, `[1, h, w, C]`.
    image: Var,
    size: [usize; 2],
    repair: Repair,
}

/// What is asked about the image.
#[derive(Clone, Debug, Default)]
pub struct ImagePrompt {
    /// Points and labels, in pixels of the image, the same number for each prompt.
    pub points: Option<Points>,
    /// Boxes `[x0, y0, x1, y1]` in pixels of the image, one for each prompt.
    pub boxes: Vec<[f32; 4]>,
    /// Logits `[prompts, S/4, S/4]` of an earlier answer.
    pub mask: Option<Tensor>,
}

/// Masks of each prompt.
#[derive(Clone, Debug)]
pub struct Prediction {
    /// Logits at the size of the image, `[prompts, M, H, W]` f32: above 0 inside.
    pub masks: Tensor,
    /// Predicted IoU of each, `[prompts, M]` f32.
    pub ious: Tensor,
    /// Logits `[prompts, M, S/4, S/4]` f32, within -32 and 32: a prompt for the next answer.
    pub low_res: Tensor,
}

/// Masks of each prompt at the decoder's size.
#[derive(Clone, Debug)]
pub struct Small {
    /// Logits `[prompts, M, S/4, S/4]` f32.
    pub masks: Tensor,
    /// Predicted IoU of each, `[prompts, M]` f32.
    pub ious: Tensor,
}

/// Planes `[3, S, S]` as the model reads them, `[1, S, S, 3]`.
///
/// # Errors
/// When device memory runs out.
pub fn pixels(model: &Sam2, planes: &[f32]) -> Result<Tensor> {
    let (side, like) = (model.sizes().image_size, model.no_obj_ptr.value());
    let each = side * side;
    if planes.len() != 3 * each {
        let expected = format!("3 x {side} x {side}");
        return Err(Error::argument("sam2", "planes", "length", planes.len().to_string(), expected));
    }
    let values: Vec<f32> = (0..each).flat_map(|t| (0..3).map(move |c| planes[c * each + t])).collect();
    let image = Tensor::from_slice(&values, [1, side, side, 3], &crate::Device::Cpu)?;
    image.cast(like.dtype())?.to_device(like.device())
}

impl<'a> ImagePredictor<'a> {
    /// Looks at an image. `repair`: what is mended in masks before they are enlarged.
    ///
    /// # Errors
    /// When the image is empty.
    pub fn new(model: &'a Sam2, image: &Image, normalise: &Normalise, repair: Repair) -> Result<Self> {
        let planes = transforms::image(image, model.sizes().image_size, normalise)?;
        let size = [image.height, image.width];
        Self::of(model, pixels(model, &planes)?, size, repair)
    }

    /// Looks at a normalised image `[1, S, S, 3]` that had `size` rows and columns.
    ///
    /// # Errors
    /// When the image has another size than the model's.
    pub fn of(model: &'a Sam2, image: Tensor, size: [usize; 2], repair: Repair) -> Result<Self> {
        let tape = Tape::no_grad();
        let features = model.encode(&tape, &Var::constant(image), &[])?;
        let image = model.without_memory(&tape, &features)?;
        Ok(Self { model, features, image, size, repair })
    }

    /// The features that the decoder reads, `[1, h, w, C]`.
    pub fn image_embedding(&self) -> &Tensor {
        self.image.value()
    }

    /// The finer features, at strides 4 and 8.
    pub fn high_res(&self) -> [&Tensor; 2] {
        [self.features.high_res[0].value(), self.features.high_res[1].value()]
    }

    /// Answers prompts; `several` masks for each, or one.
    ///
    /// # Errors
    /// When there is no prompt, or its parts are for different numbers of them.
    pub fn predict(&self, prompt: &ImagePrompt, several: bool) -> Result<Prediction> {
        let small = self.small(prompt, several)?;
        let ([count, masks, low, _], [h, w]) = (small.masks.dims("sam2", "masks")?, self.size);
        let logits = small.masks.to_vec::<f32>()?;
        let full = output_masks(logits.clone(), [low, low], [h, w], &self.repair)?;
        let clamped: Vec<f32> = logits.iter().map(|x| x.clamp(-CLAMP, CLAMP)).collect();
        let host = &crate::Device::Cpu;
        Ok(Prediction {
            masks: Tensor::from_slice(&full, [count, masks, h, w], host)?,
            ious: small.ious,
            low_res: Tensor::from_slice(&clamped, [count, masks, low, low], host)?,
        })
    }

    /// A small mask `[S/4, S/4]` at the size of the image.
    ///
    /// # Errors
    /// When it is no such mask.
    pub fn enlarge(&self, logits: &[f32]) -> Result<Vec<f32>> {
        let low = self.model.sizes().image_size / 4;
        output_masks(logits.to_vec(), [low, low], self.size, &self.repair)
    }

    /// [`predict`](Self::predict) without enlarging anything.
    ///
    /// # Errors
    /// As [`predict`](Self::predict).
    pub fn small(&self, prompt: &ImagePrompt, several: bool) -> Result<Small> {
        let (side, [h, w]) = (self.model.sizes().image_size, self.size);
        let count = prompt.points.as_ref().map(|p| p.prompts).or(Some(prompt.boxes.len()).filter(|&n| n > 0));
        let masks = prompt.mask.as_ref().map(|m| m.shape()[0]);
        let Some(count) = count.or(masks) else {
            return Err(Error::value("sam2", "prompt", "nothing", "points, boxes or a mask"));
        };
        let placed = |at: &[[f32; 2]]| transforms::points(at, Some([h, w]), side);
        let points = match &prompt.points {
            None => None,
            Some(p) => Some(Points::new(placed(&p.coords)?, p.labels.clone(), p.prompts)?),
        };
        // A box is its corners, in front of the points.
        let boxes = if prompt.boxes.is_empty() {
            None
        } else {
            let corners = Points::boxes(&prompt.boxes);
            Some(Points { coords: placed(&corners.coords)?, ..corners })
        };
        let points = match (boxes, points) {
            (Some(boxes), Some(points)) => Some(boxes.then(&points)?),
            (boxes, points) => boxes.or(points),
        };
        let low = side / 4;
        let mask = match &prompt.mask {
            None => None,
            Some(mask) => {
                let like = self.image.value();
                let mask = mask.reshape([count, low, low, 1])?.cast(like.dtype())?;
                Some(Var::constant(mask.to_device(like.device())?))
            }
        };
        let tape = Tape::no_grad();
        let prompt = Prompt { points, mask, bare: true };
        let decoded = self.model.decode(&tape, &self.image, &self.features.high_res, &prompt, count)?;
        let offered = self.model.offered(&tape, &decoded, several, Mode::Evaluate)?;
        let host = |t: &Tensor| t.cast(DType::F32)?.to_device(&crate::Device::Cpu);
        Ok(Small { masks: host(offered.masks.value())?, ious: host(offered.ious.value())? })
    }
}
