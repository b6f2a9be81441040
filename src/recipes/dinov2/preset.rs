//! Named sizes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::FfnKind;
use crate::{Error, Result};

/// Named sizes: the paper's four, and small ones for small machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preset {
    pub(super) name: &'static str,
    /// Sides in pixels.
    pub(super) image: usize,
    pub(super) local: usize,
    pub(super) patch: usize,
    /// Width, depth, heads.
    pub(super) sizes: [usize; 3],
    pub(super) ffn: FfnKind,
    /// Hidden units, bottleneck and prototypes of a head.
    pub(super) head: [usize; 3],
}

/// On images of 224 pixels, with the official crops and patches.
const fn of_224(name: &'static str, sizes: [usize; 3], ffn: FfnKind, head: [usize; 3]) -> Preset {
    Preset { name, image: 224, local: 98, patch: 14, sizes, ffn, head }
}

const PRESETS: [Preset; 6] = [
    Preset {
        name: "micro",
        image: 32,
        local: 16,
        patch: 4,
        sizes: [96, 6, 3],
        ffn: FfnKind::Mlp,
        head: [256, 64, 256],
    },
    of_224("tiny", [192, 12, 3], FfnKind::Mlp, [1024, 128, 4096]),
    of_224("small", [384, 12, 6], FfnKind::Mlp, [2048, 256, 65536]),
    of_224("base", [768, 12, 12], FfnKind::Mlp, [2048, 256, 65536]),
    of_224("large", [1024, 24, 16], FfnKind::SwiGlu, [2048, 384, 131_072]),
    of_224("giant", [1536, 40, 24], FfnKind::SwiGlu, [2048, 384, 131_072]),
];

/// What a preset sets unless it is set: shares of the run, factors, rates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Usual {
    pub(super) base_lr: f64,
    pub(super) warmup: f64,
    pub(super) layer_decay: f64,
    pub(super) patch_embed_lr: f64,
    pub(super) drop_path: f64,
    pub(super) weight_decay_end: f64,
    pub(super) momentum: f64,
    pub(super) teacher_temp_warmup: f64,
    pub(super) freeze_last_layer: f64,
    /// The bottleneck of the head for patches, if it is another.
    pub(super) ibot_bottleneck: Option<usize>,
}

impl Usual {
    /// `ssl_default_config.yaml`: 100 epochs.
    const SHORT: Self = Self {
        base_lr: 4e-3,
        warmup: 0.1,
        layer_decay: 0.9,
        patch_embed_lr: 0.2,
        drop_path: 0.3,
        weight_decay_end: 0.4,
        momentum: 0.992,
        teacher_temp_warmup: 0.3,
        freeze_last_layer: 0.01,
        ibot_bottleneck: None,
    };
    /// `vitl14.yaml` and `vitg14.yaml`: 500 epochs.
    const LONG: Self = Self {
        base_lr: 2e-4,
        warmup: 0.16,
        layer_decay: 1.0,
        drop_path: 0.4,
        weight_decay_end: 0.2,
        momentum: 0.994,
        teacher_temp_warmup: 0.06,
        freeze_last_layer: 0.002,
        ibot_bottleneck: Some(256),
        ..Self::SHORT
    };
    /// Runs of some hundred updates: all layers learn at once, nothing is left out.
    const MICRO: Self =
        Self { layer_decay: 1.0, patch_embed_lr: 1.0, drop_path: 0.0, weight_decay_end: 0.04, ..Self::SHORT };
}

impl Preset {
    /// What it sets unless it is set.
    pub fn usual(&self) -> Usual {
        match self.name {
            "micro" => Usual::MICRO,
            "large" | "giant" => Usual::LONG,
            _ => Usual::SHORT,
        }
    }

    /// Whether it is one of those for small machines, whose runs are short.
    pub fn is_small(&self) -> bool {
        ["micro", "tiny"].contains(&self.name)
    }

    /// All names, smallest first.
    pub fn names() -> Vec<&'static str> {
        PRESETS.iter().map(|p| p.name).collect()
    }

    /// Heads of the preset with this width; of other widths one for 64 values.
    pub fn heads_of_width(dim: usize) -> usize {
        PRESETS.iter().find(|p| p.sizes[0] == dim).map_or((dim / 64).max(1), |p| p.sizes[2])
    }
}

impl FromStr for Preset {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self> {
        let found = PRESETS.into_iter().find(|p| p.name == name);
        found.ok_or_else(|| Error::config("preset", name, format!("one of {}", Self::names().join(", "))))
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
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

#[cfg(test)]
mod tests {
    use super::super::{Backbone, Sizes, Start};
    use super::*;
    use crate::nn::Builder;
    use crate::{DType, Device};

    /// Standard deviation of the weights of the first layer of a model `dim` wide.
    fn deviation(dim: usize, start: &Start) -> f64 {
        let sizes = Sizes {
            image_size: 8,
            patch_size: 4,
            embed_dim: dim,
            depth: 1,
            num_heads: 1,
            ffn: FfnKind::Mlp,
            hidden: 2 * dim,
            registers: 0,
            interpolate_offset: 0.1,
            interpolate_antialias: false,
        };
        let model = Backbone::new(&Builder::new(&Device::Cpu, DType::F32, 0), &sizes, start).unwrap();
        let values = model.blocks[0].attn.qkv.weight.master.to_f64().unwrap();
        (values.iter().map(|w| w * w).sum::<f64>() / values.len() as f64).sqrt()
    }

    /// Of some 28,000 values: five standard errors are 2 %.
    #[test]
    fn first_weights_are_those_asked_for() {
        let near = |a: f64, b: f64| assert!((a / b - 1.0).abs() < 0.02, "{a}, expected {b}");
        near(deviation(96, &Start::OFFICIAL), 0.02);
        near(deviation(96, &Start::SMALL), (2.0 / (96.0 + 3.0 * 96.0f64)).sqrt());
        near(deviation(96, &Start { weight_std: Some(0.1), ..Start::SMALL }), 0.1);
    }

    #[test]
    fn names_are_presets() {
        assert!(Preset::names().iter().all(|name| name.parse::<Preset>().unwrap().to_string() == *name));
        let small: Vec<_> = PRESETS.iter().filter(|p| p.is_small()).map(|p| p.name).collect();
        assert_eq!(small, ["micro", "tiny"]);
        assert!("nano".parse::<Preset>().unwrap_err().to_string().contains("micro, tiny, small"));
    }
}
