//! DINOv2: a student learns from the moving average of itself, by classes that nobody named (Oquab et al. 2023, arXiv
//! 2304.07193).

pub mod backbone;
pub mod block;
pub mod head;
pub mod model;
pub mod schedule;

pub use backbone::{Backbone, Crops, Layout, Sizes};
pub use block::{Block, Drops, FfnKind, Kept};
pub use head::{Head, HeadSizes};
pub use model::{LossSettings, Masks, Network, Ssl, Targets, Views};
pub use schedule::{Curve, Schedules};
