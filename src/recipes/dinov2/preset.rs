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

const PRESETS: [Preset; 6] = [
    Preset {
        name: "micro",
        image: 32,
        local: 16,
        patch: 4,
        sizes: [96, 6, 3],
        ffn: FfnKind::Mlp,
        head: [256, 64, 512],
    },
    Preset {
        name: "tiny",
        image: 224,
        local: 98,
        patch: 14,
        sizes: [192, 12, 3],
        ffn: FfnKind::Mlp,
        head: [1024, 128, 4096],
    },
    Preset {
        name: "small",
        image: 224,
        local: 98,
        patch: 14,
        sizes: [384, 12, 6],
        ffn: FfnKind::Mlp,
        head: [2048, 256, 65536],
    },
    Preset {
        name: "base",
        image: 224,
        local: 98,
        patch: 14,
        sizes: [768, 12, 12],
        ffn: FfnKind::Mlp,
        head: [2048, 256, 65536],
    },
    Preset {
        name: "large",
        image: 224,
        local: 98,
        patch: 14,
        sizes: [1024, 24, 16],
        ffn: FfnKind::SwiGlu,
        head: [2048, 384, 131_072],
    },
    Preset {
        name: "giant",
        image: 224,
        local: 98,
        patch: 14,
        sizes: [1536, 40, 24],
        ffn: FfnKind::SwiGlu,
        head: [2048, 384, 131_072],
    },
];

impl Preset {
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
