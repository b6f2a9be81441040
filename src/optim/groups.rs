//! Which learning rate and weight decay a parameter has, from its name and shape.
//!
//! Names are those of the upstream checkpoints, so the rules need no table per model.

/// Factors of one parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Group {
    /// Factor of the learning rate.
    pub lr_scale: f64,
    /// Weight decay; 0 for none.
    pub weight_decay: f64,
}

/// Decay of the learning rate from the last layer to the first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerDecay {
    /// Factor from one layer to the one before it.
    pub decay: f64,
    /// Number of blocks.
    pub depth: usize,
    /// How the names of the encoder begin: `student.backbone.`; empty where the model is the encoder.
    pub root: &'static str,
}

impl LayerDecay {
    /// Number of the layer a parameter belongs to: 0 for tokens, positions and patch embedding, `i + 1` for block `i`,
    /// `depth + 1` for everything after the blocks and outside of the encoder.
    pub fn layer(&self, name: &str) -> usize {
        const FIRST: [&str; 4] = ["cls_token", "pos_embed", "mask_token", "register_tokens"];
        match name.strip_prefix(self.root) {
            Some(name) if FIRST.contains(&name) || name.starts_with("patch_embed.") => 0,
            // A block past the depth is part of what comes after.
            Some(name) => block_of(name).map_or(self.depth, |block| block.min(self.depth)) + 1,
            None => self.depth + 1,
        }
    }

    fn factor(&self, name: &str) -> f64 {
        self.decay.powi((self.depth + 1 - self.layer(name)) as i32)
    }
}

/// Rules for all parameters of a model. In patterns of names `*` stands for any text: `cls_token`, `*.bias`, `*norm*`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules {
    /// Weight decay of the parameters that have one.
    pub weight_decay: f64,
    /// Patterns of the names without decay.
    pub no_decay: Vec<&'static str>,
    /// Whether tensors of one axis decay as others do; else they never do.
    pub vectors_decay: bool,
    /// Learning rate by layer; `None` for one rate.
    pub layers: Option<LayerDecay>,
    /// Parts of the model, by patterns of their names, with a rate (times the layer's) and a decay of their own.
    pub parts: Vec<(&'static str, Group)>,
    /// Pattern of the parameters that do not learn in steps that [freeze](super::Rates::freeze_last_layer) them.
    pub last_layer: Option<&'static str>,
    /// Sub-networks whose gradients are clipped each on its own: how their names begin, and what the log calls the norm of
    /// their gradients. Parameters in none of them are clipped together. [`AdamW`](super::AdamW) only.
    pub clip_groups: Vec<(&'static str, &'static str)>,
    /// Beginnings of names (`student.`, `teacher.`): each trained parameter of the first has a fixed one of the second that
    /// follows it as a moving average, with the [momentum](super::Rates::momentum) of the step. [`AdamW`](super::AdamW)
    /// only.
    pub average: Option<(&'static str, &'static str)>,
    /// Patterns of the parameters that a step may find without a gradient, because what it computed did not need them.
    /// It leaves them out, as torch does: no update, no decay, no moments, and their bias corrections count their own
    /// steps. Any other without a gradient is an error. [`AdamW`](super::AdamW) only, and not with an average.
    pub optional: Vec<&'static str>,
}

impl Rules {
    /// Pre-training: biases and tensors of one axis do not decay; class and mask tokens do.
    pub fn pretraining(weight_decay: f64) -> Self {
        Self { weight_decay, no_decay: vec!["*.bias"], ..Self::default() }
    }

    /// Fine-tuning: tokens and position table do not decay either, and layer `i` of `depth + 1` learns at
    /// `decay^(depth + 1 - i)` of the rate of the head.
    pub fn finetuning(weight_decay: f64, layer_decay: f64, depth: usize) -> Self {
        let layers = Some(LayerDecay { decay: layer_decay, depth, root: "" });
        Self { weight_decay, no_decay: vec!["*.bias", "cls_token", "pos_embed"], layers, ..Self::default() }
    }

    /// Image-text pre-training as big_vision has it: kernels alone decay, embeddings, positions and the probe do not. The image
    /// tower has a factor of the learning rate and a decay of its own.
    pub fn image_text(weight_decay: f64, image_lr_scale: f64, image_weight_decay: f64) -> Self {
        let image = Group { lr_scale: image_lr_scale, weight_decay: image_weight_decay };
        Self {
            weight_decay,
            no_decay: vec!["*.bias", "*token_embedding.weight", "*position_embedding.weight", "*.probe"],
            parts: vec![("vision_model.*", image), ("visual_projection.*", image)],
            ..Self::default()
        }
    }

    /// Self-distillation as DINOv2 has it, of a `student.` with `backbone.`, `dino_head.` and `ibot_head.` that a `teacher.`
    /// follows: biases, norms and layer scales do not decay, everything else does, lengths of prototypes and tokens too. Layer
    /// `i` of `depth + 1` of the backbone learns at `layer_decay^(depth + 1 - i)` of the rate of the heads, the patch embedding
    /// at `patch_embed_lr` of its layer's. Source: dinov2 at b8931f7, `utils/param_groups.py`, `train/train.py`.
    pub fn self_supervised(weight_decay: f64, layer_decay: f64, depth: usize, patch_embed_lr: f64) -> Self {
        Self {
            weight_decay,
            no_decay: vec!["*.bias", "*norm*", "*gamma*"],
            vectors_decay: true,
            layers: Some(LayerDecay { decay: layer_decay, depth, root: "student.backbone." }),
            parts: vec![("*patch_embed*", Group { lr_scale: patch_embed_lr, weight_decay })],
            last_layer: Some("*last_layer*"),
            clip_groups: vec![
                ("student.backbone.", "grad_norm_backbone"),
                ("student.dino_head.", "grad_norm_dino_head"),
                ("student.ibot_head.", "grad_norm_ibot_head"),
            ],
            average: Some(("student.", "teacher.")),
            optional: vec![],
        }
    }

    /// Factors of a parameter.
    pub fn group(&self, name: &str, shape: &[usize]) -> Group {
        let vector = shape.len() <= 1 && !self.vectors_decay;
        let exempt = vector || self.no_decay.iter().any(|pattern| matches(pattern, name));
        let usual = Group { lr_scale: 1.0, weight_decay: self.weight_decay };
        let part = self.parts.iter().find(|(pattern, _)| matches(pattern, name)).map_or(usual, |(_, group)| *group);
        let layer = self.layers.map_or(1.0, |layers| layers.factor(name));
        Group { lr_scale: part.lr_scale * layer, weight_decay: if exempt { 0.0 } else { part.weight_decay } }
    }

    /// Whether a parameter is of the last layer.
    pub fn is_last_layer(&self, name: &str) -> bool {
        self.last_layer.is_some_and(|pattern| matches(pattern, name))
    }

    /// Whether a step may leave a parameter out.
    pub fn is_optional(&self, name: &str) -> bool {
        self.optional.iter().any(|pattern| matches(pattern, name))
    }

    /// Which of the groups that are clipped each on its own a parameter belongs to; the number of them if to none.
    pub(super) fn clip_group(&self, name: &str) -> usize {
        self.clip_groups.iter().position(|(start, _)| name.starts_with(start)).unwrap_or(self.clip_groups.len())
    }
}

/// `3` of `blocks.3.norm1.weight`, and of `blocks.1.3.norm1.weight`, where blocks come in chunks and keep their numbers.
fn block_of(name: &str) -> Option<usize> {
    name.strip_prefix("blocks.")?.split('.').map_while(|part| part.parse().ok()).last()
}

/// Whether a pattern covers a name.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == name };
    let ends = |tail: &str| tail.char_indices().any(|(at, _)| matches(rest, &tail[at..])) || matches(rest, "");
    name.strip_prefix(start).is_some_and(ends)
}
