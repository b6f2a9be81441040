//! Which learning rate and weight decay a parameter has, from its name and shape.
//!
//! Names are those of the upstream checkpoints, so the rules need no table per model.

use std::str::FromStr;

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
}

/// Rules for all parameters of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// Weight decay of the parameters that have one.
    pub weight_decay: f64,
    /// Names without decay, with at most one `*` for any text: `cls_token`, `*.bias`. Tensors of one axis never decay.
    pub no_decay: Vec<&'static str>,
    /// Learning rate by layer; `None` for one rate.
    pub layers: Option<LayerDecay>,
    /// Parts of the model, by the beginning of their names, with a rate (times the layer's) and a decay of their own.
    pub parts: Vec<(&'static str, Group)>,
}

impl Rules {
    /// Pre-training: biases and tensors of one axis do not decay; class and mask tokens do.
    pub fn pretraining(weight_decay: f64) -> Self {
        Self { weight_decay, no_decay: vec!["*.bias"], layers: None, parts: vec![] }
    }

    /// Fine-tuning: tokens and position table do not decay either, and layer `i` of `depth + 1` learns at
    /// `decay^(depth + 1 - i)` of the rate of the head.
    pub fn finetuning(weight_decay: f64, layer_decay: f64, depth: usize) -> Self {
        let layers = Some(LayerDecay { decay: layer_decay, depth });
        Self { weight_decay, no_decay: vec!["*.bias", "cls_token", "pos_embed"], layers, parts: vec![] }
    }

    /// Image-text pre-training as big_vision has it: kernels alone decay, embeddings, positions and the probe do not. The image
    /// tower has a factor of the learning rate and a decay of its own.
    pub fn image_text(weight_decay: f64, image_lr_scale: f64, image_weight_decay: f64) -> Self {
        let image = Group { lr_scale: image_lr_scale, weight_decay: image_weight_decay };
        Self {
            weight_decay,
            no_decay: vec!["*.bias", "*token_embedding.weight", "*position_embedding.weight", "*.probe"],
            layers: None,
            parts: vec![("vision_model.", image), ("visual_projection.", image)],
        }
    }

    /// Factors of a parameter.
    pub fn group(&self, name: &str, shape: &[usize]) -> Group {
        let exempt = shape.len() <= 1 || self.no_decay.iter().any(|pattern| matches(pattern, name));
        let usual = Group { lr_scale: 1.0, weight_decay: self.weight_decay };
        let part = self.parts.iter().find(|(start, _)| name.starts_with(start)).map_or(usual, |(_, group)| *group);
        let layer = self.layers.map_or(1.0, |l| l.decay.powi((l.depth + 1 - layer_of(name, l.depth)) as i32));
        Group { lr_scale: part.lr_scale * layer, weight_decay: if exempt { 0.0 } else { part.weight_decay } }
    }
}

/// Number of the layer a parameter belongs to: 0 for tokens, positions and patch embedding, `i + 1` for block `i`,
/// `depth + 1` for everything after the blocks.
pub fn layer_of(name: &str, depth: usize) -> usize {
    if matches!(name, "cls_token" | "pos_embed") || name.starts_with("patch_embed.") {
        return 0;
    }
    // A block past the depth is part of what comes after.
    block_of(name).map_or(depth, |block| block.min(depth)) + 1
}

/// `3` of `blocks.3.norm1.weight`.
fn block_of(name: &str) -> Option<usize> {
    let (number, _) = name.strip_prefix("blocks.")?.split_once('.')?;
    usize::from_str(number).ok()
}

/// Whether a pattern with at most one `*` covers a name.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, end)) => name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end),
    }
}
