//! Masks of everything in a picture, without prompts.
//!
//! Source: `automatic_mask_generator.py`; see [`amg`](super::amg) for the parts.

use rayon::prelude::*;

use super::amg::{
    Corners, Quality, box_of, crops, near_crop_edge, point_grids, suppress, uncrop_box, uncrop_mask, uncrop_point,
};
use super::image::{ImagePredictor, ImagePrompt};
use super::model::Sam2;
use super::prompt::{Label, Points};
use super::regions::Repair;
use crate::data::augment::Normalise;
use crate::data::{BinaryMask, Image};
use crate::{Error, Result};

/// How much is looked for, and what is kept. The default is upstream's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Everything {
    /// Clicks on a side of the picture.
    pub points_per_side: usize,
    /// Clicks that are answered at once.
    pub points_per_batch: usize,
    /// Which masks are good enough.
    pub quality: Quality,
    /// Overlap of boxes from which on the poorer one goes.
    pub box_nms: f64,
    /// Layers of crops.
    pub crop_layers: u32,
    /// Share of the shorter side that crops have in common.
    pub crop_overlap: f64,
    /// Overlap of boxes of different crops from which on the one of the larger crop goes.
    pub crop_nms: f64,
    /// By how much fewer clicks a side has from one layer to the next.
    pub points_downscale: usize,
    /// Pixels from the edge of a crop within which a box counts as cut off.
    pub edge: f32,
}

impl Default for Everything {
    fn default() -> Self {
        Self {
            points_per_side: 32,
            points_per_batch: 64,
            quality: Quality::default(),
            box_nms: 0.7,
            crop_layers: 0,
            crop_overlap: 512.0 / 1500.0,
            crop_nms: 0.7,
            points_downscale: 1,
            edge: 20.0,
        }
    }
}

/// A mask of something.
#[derive(Clone, Debug)]
pub struct Found {
    /// The mask.
    pub mask: BinaryMask,
    /// Its box, both corners inside.
    pub corners: Corners,
    /// Predicted IoU.
    pub iou: f32,
    /// How little it changes with the threshold.
    pub stability: f64,
    /// The click that gave it, in pixels.
    pub point: [f32; 2],
}

/// What became of the candidates.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tried {
    /// Masks of all clicks.
    pub candidates: usize,
    /// The best predicted IoU of them.
    pub iou: Option<f32>,
    /// Those that are good enough by it.
    pub good: usize,
    /// The best stability of these; none where all are empty.
    pub stability: Option<f64>,
    /// Those that are stable enough too.
    pub stable: usize,
}

impl Everything {
    /// The masks of a picture, best first, and what became of all candidates. `step` hears of each batch of clicks: how
    /// many are done, and of how many.
    ///
    /// # Errors
    /// When the picture is empty or the settings cannot be used.
    pub fn find(&self, model: &Sam2, image: &Image, step: &mut dyn FnMut(usize, usize)) -> Result<(Vec<Found>, Tried)> {
        if self.points_per_side == 0 || self.points_per_batch == 0 {
            return Err(Error::config("points_per_side", self.points_per_side, "at least 1, and as many at once"));
        }
        let size = [image.height, image.width];
        let grids = point_grids(self.points_per_side, self.crop_layers, self.points_downscale)?;
        let crops = crops(size, self.crop_layers, self.crop_overlap)?;
        let total = crops.iter().map(|crop| grids[crop.layer as usize].len()).sum();
        let (mut all, mut areas, mut done, mut tried) = (Vec::new(), Vec::new(), 0, Tried::default());
        for crop in &crops {
            let rect = crop.rect;
            let part = image.crop(rect)?;
            let predictor = ImagePredictor::new(model, &part, &Normalise::imagenet(), Repair::image(0.0, 0, 0))?;
            let mut found = Vec::new();
            let scale = |p: &[f64; 2]| [(p[0] * rect.width as f64) as f32, (p[1] * rect.height as f64) as f32];
            let points: Vec<[f32; 2]> = grids[crop.layer as usize].iter().map(scale).collect();
            for batch in points.chunks(self.points_per_batch) {
                self.look(&predictor, batch, [rect.height, rect.width], &mut found, &mut tried)?;
                done += batch.len();
                step(done, total);
            }
            found.retain(|f| !near_crop_edge(f.corners, rect, size, self.edge));
            let boxes: Vec<Corners> = found.iter().map(|f| f.corners).collect();
            let scores: Vec<f32> = found.iter().map(|f| f.iou).collect();
            for at in suppress(&boxes, &scores, self.box_nms)? {
                let Found { mask, corners, iou, stability, point } = &found[at];
                areas.push(-((rect.width * rect.height) as f32)); // smaller crops first
                all.push(Found {
                    mask: uncrop_mask(mask, rect, size)?,
                    corners: uncrop_box(*corners, rect),
                    iou: *iou,
                    stability: *stability,
                    point: uncrop_point(*point, rect),
                });
            }
        }
        if crops.len() > 1 {
            let boxes: Vec<Corners> = all.iter().map(|f| f.corners).collect();
            let kept = suppress(&boxes, &areas, self.crop_nms)?;
            all = kept.into_iter().map(|at| all[at].clone()).collect();
        }
        Ok((all, tried))
    }

    /// The good masks of some clicks on a crop.
    fn look(
        &self,
        predictor: &ImagePredictor,
        points: &[[f32; 2]],
        [h, w]: [usize; 2],
        found: &mut Vec<Found>,
        tried: &mut Tried,
    ) -> Result<()> {
        let labels = vec![Label::Positive; points.len()];
        let prompt =
            ImagePrompt { points: Some(Points::new(points.to_vec(), labels, points.len())?), ..ImagePrompt::default() };
        let answer = predictor.small(&prompt, true)?;
        let [_, several, low, _] = answer.masks.dims("sam2", "masks")?;
        let (logits, ious) = (answer.masks.to_vec::<f32>()?, answer.ious.to_vec::<f32>()?);
        tried.candidates += ious.len();
        tried.iou = ious.iter().copied().filter(|iou| !iou.is_nan()).chain(tried.iou).reduce(f32::max);
        // Only what the model finds good is enlarged, one by one.
        let candidates: Vec<(usize, f32)> =
            ious.into_iter().enumerate().filter(|(_, iou)| self.quality.good(*iou)).collect();
        let good = candidates.into_par_iter().map(|(at, iou)| {
            let full = predictor.enlarge(&logits[at * low * low..][..low * low])?;
            let stability = self.quality.stability_of(&full);
            if !self.quality.stable(stability) {
                return Ok((stability, None));
            }
            let mask = BinaryMask::above(w, h, &full, self.quality.threshold)?;
            let one = Found { corners: box_of(&mask), mask, iou, stability, point: points[at / several] };
            Ok((stability, Some(one)))
        });
        for (stability, one) in good.collect::<Result<Vec<_>>>()? {
            tried.good += 1;
            tried.stability = [stability].into_iter().filter(|s| !s.is_nan()).chain(tried.stability).reduce(f64::max);
            tried.stable += usize::from(one.is_some());
            found.extend(one);
        }
        Ok(())
    }
}
