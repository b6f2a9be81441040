//! Segmentation of objects in images and videos from clicks, boxes and masks (Ravi et al. 2024, arXiv 2408.00714).

pub mod amg;
pub mod attention;
pub mod bank;
pub mod clicks;
pub mod clip;
pub mod config;
pub mod decoder;
pub mod everything;
pub mod frames;
mod group;
pub mod image;
pub mod image_encoder;
pub mod load;
mod memory;
pub mod memory_attention;
pub mod memory_encoder;
pub mod model;
pub mod picture;
pub mod position;
pub mod pretrain;
pub mod prompt;
pub mod regions;
mod step;
#[cfg(test)]
mod tests;
pub mod track;
pub mod transforms;
pub mod two_way;
pub mod video;

pub use config::{Options, Preset, Sizes};
pub use model::{Answer, Features, Mode, Prompt, Sam2};
pub use pretrain::Config;
pub use prompt::{Label, Points};
pub use step::{Draw, Pretrain};
pub use video::{Video, VideoOptions};
