//! Sizes of the two towers.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::nn::Style;
use crate::ops::gelu::Form;
use crate::{Error, Result};

/// Sizes of one tower's transformer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tower {
    /// Width.
    pub width: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads.
    pub heads: usize,
    /// Hidden units of the MLPs.
    pub hidden: usize,
    /// Activation of the MLPs: tanh in big_vision and `transformers`; weights that were trained or tuned with timm and
    /// open_clip may want erf.
    pub gelu: Form,
}

impl Tower {
    /// Names of `transformers`, initial values of big_vision: queries, keys and values are three layers, the biases of the
    /// MLPs are N(0, 1e-6²).
    pub(super) fn style(&self) -> Style {
        Style {
            norms: ["layer_norm1", "layer_norm2"],
            attention: ["self_attn", "qkv_proj", "out_proj"],
            gelu: self.gelu,
            apart: true,
            mlp_bias: 1e-6,
            weight_std: None,
        }
    }
}

/// Sizes of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sizes {
    /// Image height and width in pixels; what is left over right of and below the whole patches is not looked at.
    pub image_size: [usize; 2],
    /// Patch side in pixels.
    pub patch_size: usize,
    /// Image channels.
    pub in_chans: usize,
    /// The image tower.
    pub vision: Tower,
    /// The text tower.
    pub text: Tower,
    /// Number of token ids.
    pub vocab_size: usize,
    /// Tokens of a text, padding included.
    pub context_len: usize,
    /// Width of the embeddings.
    pub embed_dim: usize,
    /// Whether the image tower ends in a projection to `embed_dim`; without one that is its width, as in all published models.
    pub vision_head: bool,
    /// LayerNorm eps.
    pub eps: f32,
}

/// The largest size that is taken for one.
const MOST: usize = 1 << 20;
/// The largest number of blocks that is taken for one.
const DEEPEST: usize = 1 << 10;
/// The largest number of parameters, ten times that of the largest published model: what a damaged file asks for is refused
/// before memory is.
const PARAMETERS: u128 = 20_000_000_000;

impl Sizes {
    /// Patch rows and columns.
    ///
    /// # Errors
    /// When an image holds no whole patch.
    pub fn grid(&self) -> Result<[usize; 2]> {
        let [h, w] = self.image_size;
        let patch = self.patch_size;
        if patch == 0 || h < patch || w < patch {
            return Err(Error::config(
                "image_size",
                format!("{h}x{w}"),
                format!("at least one patch of {patch} pixels"),
            ));
        }
        Ok([h / patch, w / patch])
    }

    /// Refuses sizes that no model has: counts of 0 or beyond reason, heads that do not divide the width.
    ///
    /// # Errors
    /// [`Error::Config`] naming the first.
    pub fn check(&self) -> Result<()> {
        let [rows, columns] = self.grid()?;
        let counts = [
            ("image_size", self.image_size[0].max(self.image_size[1])),
            ("in_chans", self.in_chans),
            ("vision.width", self.vision.width),
            ("vision.hidden", self.vision.hidden),
            ("text.width", self.text.width),
            ("text.hidden", self.text.hidden),
            ("vocab_size", self.vocab_size),
            ("context_len", self.context_len),
            ("embed_dim", self.embed_dim),
        ];
        if let Some((key, count)) = counts.iter().find(|(_, count)| !(1..=MOST).contains(count)) {
            return Err(Error::config(*key, count, format!("1 to {MOST}")));
        }
        let towers = [("vision.heads", "vision.depth", &self.vision), ("text.heads", "text.depth", &self.text)];
        for (heads, depth, tower) in towers {
            if tower.heads == 0 || !tower.width.is_multiple_of(tower.heads) {
                let expected = format!("a divisor of the width, {}", tower.width);
                return Err(Error::config(heads, tower.heads, expected));
            }
            if tower.depth > DEEPEST {
                return Err(Error::config(depth, tower.depth, format!("at most {DEEPEST}")));
            }
        }
        // What is left out, biases and norms, is a small part; no product of counts up to MOST overflows.
        let product = |factors: &[usize]| factors.iter().map(|&n| n as u128).product::<u128>();
        let block = |tower: &Tower| product(&[tower.width, 4 * tower.width + 2 * tower.hidden]);
        let parameters = product(&[self.vision.depth + 1]) * block(&self.vision)
            + product(&[self.text.depth]) * block(&self.text)
            + product(&[self.vision.width, self.in_chans, self.patch_size, self.patch_size])
            + product(&[self.vision.width, rows, columns])
            + product(&[self.text.width, self.vocab_size + self.context_len + self.embed_dim]);
        if parameters > PARAMETERS {
            return Err(Error::config("sizes", format!("{parameters} parameters"), format!("at most {PARAMETERS}")));
        }
        if !self.vision_head && self.embed_dim != self.vision.width {
            let expected = format!("the width of the image tower, {}, which has no projection", self.vision.width);
            return Err(Error::config("embed_dim", self.embed_dim, expected));
        }
        Ok(())
    }

    /// Shape of `count` images, `[B, C, H, W]`.
    pub fn images(&self, count: usize) -> [usize; 4] {
        [count, self.in_chans, self.image_size[0], self.image_size[1]]
    }
}

/// Named sizes: those of the papers, and small ones for small machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preset {
    name: &'static str,
    image: usize,
    patch: usize,
    vision: [usize; 4], // width, depth, heads, hidden
    text: [usize; 4],
    vocab: usize,
    len: usize,
}

const BASE: [usize; 4] = [768, 12, 12, 3072];
const LARGE: [usize; 4] = [1024, 24, 16, 4096];
const SO400M: [usize; 4] = [1152, 27, 16, 4304];
const GIANT: [usize; 4] = [1536, 40, 16, 6144];
const SMALL: [usize; 4] = [384, 12, 6, 1536];
const TINY: [usize; 4] = [192, 12, 3, 768];

/// Ids of the vocabulary of the English SigLIP.
const ENGLISH: usize = 32_000;
/// Ids of the vocabulary of SigLIP 2, by which its weights are known.
pub const VOCAB_2: usize = 256_000;

const PRESETS: [Preset; 7] = [
    Preset { name: "micro", image: 32, patch: 4, vision: [96, 6, 3, 384], text: [96, 4, 3, 384], vocab: 4096, len: 16 },
    Preset { name: "tiny", image: 224, patch: 16, vision: TINY, text: TINY, vocab: ENGLISH, len: 64 },
    Preset { name: "small", image: 224, patch: 16, vision: SMALL, text: SMALL, vocab: ENGLISH, len: 64 },
    Preset { name: "base", image: 224, patch: 16, vision: BASE, text: BASE, vocab: ENGLISH, len: 64 },
    Preset { name: "large", image: 256, patch: 16, vision: LARGE, text: LARGE, vocab: ENGLISH, len: 64 },
    Preset { name: "so400m", image: 384, patch: 14, vision: SO400M, text: SO400M, vocab: ENGLISH, len: 64 },
    Preset { name: "giant-opt", image: 256, patch: 16, vision: GIANT, text: SO400M, vocab: VOCAB_2, len: 64 },
];

impl Preset {
    /// All names, smallest first.
    pub fn names() -> Vec<&'static str> {
        PRESETS.iter().map(|p| p.name).collect()
    }

    /// Heads of a tower of this width: the same in every preset.
    pub fn heads_of_width(width: usize) -> Option<usize> {
        PRESETS.iter().flat_map(|p| [p.vision, p.text]).find(|tower| tower[0] == width).map(|tower| tower[2])
    }

    /// Sizes at the preset's own image (height, width) and patch size unless others are given. Vocabulary and length of the
    /// texts are those of the published models; a tokenizer of one's own has others.
    pub fn sizes(&self, image_size: Option<[usize; 2]>, patch_size: Option<usize>) -> Sizes {
        let tower = |[width, depth, heads, hidden]: [usize; 4]| Tower { width, depth, heads, hidden, gelu: Form::Tanh };
        Sizes {
            image_size: image_size.unwrap_or([self.image; 2]),
            patch_size: patch_size.unwrap_or(self.patch),
            in_chans: 3,
            vision: tower(self.vision),
            text: tower(self.text),
            vocab_size: self.vocab,
            context_len: self.len,
            embed_dim: self.vision[0],
            vision_head: false,
            eps: 1e-6,
        }
    }
}

impl FromStr for Preset {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self> {
        let found = PRESETS.into_iter().find(|p| p.name == name);
        found.ok_or_else(|| Error::config("preset", name, format!("one of {}", Self::names().join(", "))))
    }
}

impl Serialize for Preset {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name)
    }
}

impl<'de> Deserialize<'de> for Preset {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_beyond_reason_are_refused() {
        let base = || "base".parse::<Preset>().unwrap().sizes(None, None);
        for name in Preset::names() {
            name.parse::<Preset>().unwrap().sizes(None, None).check().unwrap();
        }
        let (vision, text) = (base().vision, base().text);
        let huge = 1_000_000_000_000_000;
        for (sizes, key) in [
            (Sizes { vision: Tower { heads: 0, depth: 0, ..vision }, ..base() }, "vision.heads"),
            (Sizes { vision: Tower { heads: 7, ..vision }, ..base() }, "vision.heads"),
            (Sizes { text: Tower { heads: 0, depth: 0, ..text }, ..base() }, "text.heads"),
            (Sizes { text: Tower { heads: 7, depth: 0, ..text }, ..base() }, "text.heads"),
            (Sizes { text: Tower { width: huge, ..text }, ..base() }, "text.width"),
            (Sizes { text: Tower { depth: huge, ..text }, ..base() }, "text.depth"),
            (Sizes { vision: Tower { depth: huge, ..vision }, ..base() }, "vision.depth"),
            (Sizes { vision: Tower { hidden: huge, ..vision }, ..base() }, "vision.hidden"),
            (Sizes { vocab_size: huge, ..base() }, "vocab_size"),
            (Sizes { context_len: huge, ..base() }, "context_len"),
            (Sizes { image_size: [usize::MAX, 224], ..base() }, "image_size"),
            (Sizes { image_size: [MOST, MOST], ..base() }, "parameters"),
            (Sizes { image_size: [MOST, MOST], patch_size: MOST, ..base() }, "parameters"),
            (Sizes { text: Tower { width: 12 << 15, hidden: MOST, ..text }, ..base() }, "parameters"),
        ] {
            let error = sizes.check().unwrap_err();
            assert!(matches!(error, Error::Config { .. }) && error.to_string().contains(key), "{key}: {error}");
        }
    }
}
