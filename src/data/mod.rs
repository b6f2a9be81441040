//! Images from folders to batches, on host memory only.
//!
//! A data set ([`folder`], or images with captions: [`pairs`]) is read by a [`loader`], which decodes ([`decode`]) and transforms ([`transforms`]) in
//! parallel. All randomness comes from [`rng`] streams addressed by (seed, purpose, epoch, sample).

pub mod affine;
pub mod augment;
pub mod binary_mask;
pub mod block_masking;
pub mod blur;
pub mod clip_augment;
pub mod colour;
pub mod contact;
pub mod decode;
pub mod distance;
#[cfg(test)]
mod fixtures;
pub mod folder;
pub mod hue;
pub mod image;
pub mod label_map;
pub mod lettering;
pub mod loader;
pub mod masks;
pub mod mixup;
pub mod multi_crop;
pub mod object_bits;
pub mod pairs;
pub mod planes;
pub mod planted;
pub mod rand_augment;
pub mod random_erase;
pub mod resize;
pub mod rle;
pub mod rng;
pub mod synth;
pub mod text;
pub mod tf_resize;
pub mod transforms;
pub mod videos;

pub use binary_mask::BinaryMask;
pub use folder::{Folder, Source};
pub use image::{Image, Rect};
pub use loader::{Batch, Loader, Position};
pub use pairs::Pairs;
pub use rle::Rle;
pub use rng::{Purpose, Stream};
pub use text::Tokenizer;
