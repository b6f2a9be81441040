//! Masked autoencoders (He et al. 2021, arXiv 2111.06377): pre-training, fine-tuning, linear probe.

pub mod classifier;
pub mod config;
pub mod finetune;
pub mod hiera;
pub mod load;
mod model;
pub mod picture;
pub mod probe;
pub mod score;
mod step;
#[cfg(test)]
mod tests;

pub use classifier::{Classifier, Pool};
pub use config::{Config, Preset, Sizes};
pub use finetune::{Finetune, FinetuneConfig};
pub use model::{Mae, MaskIds};
pub use step::{Pretrain, imagenet_norm};
