//! DINOv2: a student learns from the moving average of itself, by classes that nobody named (Oquab et al. 2023, arXiv
//! 2304.07193).

pub mod backbone;
pub mod block;
pub mod config;
pub mod features;
pub mod guard;
pub mod head;
pub mod load;
pub mod model;
pub mod preset;
pub mod schedule;
mod step;
#[cfg(test)]
mod tests;

pub use backbone::{Backbone, Crops, Layout, Sizes};
pub use block::{Block, Drops, FfnKind, Kept, Start};
pub use config::Config;
pub use features::Features;
pub use head::{Head, HeadSizes};
pub use model::{LossSettings, Masks, Network, Ssl, Targets, Views};
pub use preset::Preset;
pub use schedule::{Curve, Schedules};
pub use step::Pretrain;
