//! The backbone as an encoder of whole images.

use std::collections::VecDeque;

use super::{Backbone, Crops, Drops, Layout};
use crate::ops::gather_rows;
use crate::recipes::encoder::{self, Encoder};
use crate::recipes::mae::imagenet_norm;
use crate::{DType, Device, Result, Tape, Tensor, Var};

/// What the position table is for where it is for 518 pixels, as in the released models: they are evaluated at 224.
const USUAL: usize = 224;

impl Backbone {
    /// Rows of the class token and of the patches of every image, registers left out.
    fn without_registers(layout: &Layout) -> Vec<i32> {
        let len = layout.patches(0);
        let image = |(i, class): (usize, i32)| {
            std::iter::once(class).chain((0..len).map(move |l| layout.patch_row(0, i * len + l)))
        };
        layout.class_rows(0).enumerate().flat_map(image).collect()
    }

    /// Side in pixels of the images that features are taken of unless told otherwise.
    pub fn usual_size(&self) -> usize {
        let own = self.sizes.image_size;
        if own == 518 && USUAL.is_multiple_of(self.sizes.patch_size) { USUAL } else { own }
    }
}

/// A backbone at a size of images.
pub struct Features {
    /// The backbone.
    pub backbone: Backbone,
    /// Height and width.
    pub image_size: [usize; 2],
}

impl Features {
    /// At `image_size`, or at the usual one.
    ///
    /// # Errors
    /// When it is not a whole number of patches.
    pub fn new(backbone: Backbone, image_size: Option<[usize; 2]>) -> Result<Self> {
        let image_size = image_size.unwrap_or([backbone.usual_size(); 2]);
        backbone.sizes.grid_of(image_size)?;
        Ok(Self { backbone, image_size })
    }

    /// What the last `n` blocks give, oldest first; what the first gets counts as given by one before it.
    fn states(&self, tape: &Tape, images: &Tensor, n: usize) -> Result<Vec<Var>> {
        let (model, norm) = (&self.backbone, imagenet_norm(images.device())?);
        let images = Var::constant(images.clone());
        let crops = [Crops { images: &images, masks: None }];
        let mut states = VecDeque::from([model.embed(tape, &crops, Some(&norm))?]);
        let layout = model.layout_of(&crops)?;
        for block in &model.blocks {
            let x = block.forward(tape, &states[states.len() - 1], &layout.seqs, &Drops::default())?;
            states.push_back(x);
            states.drain(..states.len().saturating_sub(n));
        }
        Ok(states.into())
    }

    fn layout(&self, images: &Tensor) -> Result<std::sync::Arc<Layout>> {
        let [h, w] = self.image_size;
        self.backbone.layout(&[[images.shape()[0], h, w]])
    }
}

impl Encoder for Features {
    fn image_size(&self) -> [usize; 2] {
        self.image_size
    }

    fn patch_size(&self) -> usize {
        self.backbone.sizes.patch_size
    }

    fn dim(&self) -> usize {
        self.backbone.sizes.embed_dim
    }

    fn depth(&self) -> usize {
        self.backbone.blocks.len()
    }

    fn device(&self) -> &Device {
        self.backbone.cls_token.master.device()
    }

    /// The class token after the last norm.
    fn features(&self, images: &Tensor) -> Result<Tensor> {
        let tape = Tape::no_grad();
        let last = self.states(&tape, images, 1)?.swap_remove(0);
        let class = gather_rows::gather_rows(&tape, &last, self.layout(images)?.class_ids(0))?;
        self.backbone.norm.forward(&tape, &class)?.value().cast(DType::F32)
    }

    fn layers(&self, images: &Tensor, n: usize) -> Result<Vec<Tensor>> {
        encoder::check_layers(n, self.depth())?;
        let (tape, layout) = (Tape::no_grad(), self.layout(images)?);
        let rows = Backbone::without_registers(&layout);
        let rows = Tensor::from_slice(&rows, [rows.len()], images.device())?;
        let shape = [images.shape()[0], 1 + layout.patches(0), self.dim()];
        let tokens = |x: Var| {
            let x = self.backbone.norm.forward(&tape, &gather_rows::gather_rows(&tape, &x, &rows)?)?;
            x.value().cast(DType::F32)?.reshape(shape)
        };
        self.states(&tape, images, n)?.into_iter().map(tokens).collect()
    }

    fn attention(&self, images: &Tensor) -> Result<Tensor> {
        encoder::check_layers(1, self.depth())?;
        let tape = Tape::no_grad();
        let input = self.states(&tape, images, 2)?.swap_remove(0);
        let last = &self.backbone.blocks[self.depth() - 1];
        let normed = last.norm1.forward(&tape, &input)?;
        let p = last.attn.probabilities(normed.value(), &self.layout(images)?.seqs)?;
        encoder::class_attention(&p, 1 + self.backbone.sizes.registers)
    }
}
