//! Sigmoid language-image pre-training (Zhai et al. 2023, arXiv 2303.15343): an image tower and a text tower whose
//! embeddings are compared pair by pair.

pub mod config;
pub mod factor;
pub mod flags;
mod head;
mod image;
pub mod init;
pub mod load;
mod model;
pub mod picture;
mod shapes;
pub(crate) mod step;
#[cfg(test)]
mod tests;
mod text;

pub use config::{Preset, Sizes, Tower, VOCAB_2};
pub use flags::Config;
pub use head::{MapHead, Queries};
pub use image::ImageTower;
pub use model::{LOGIT_BIAS, LOGIT_SCALE, Siglip};
pub use shapes::Shapes;
pub use step::{Pretrain, freeze, freeze_marked, norm};
pub use text::{TextTower, TokenIds};
