//! Evaluation of frozen features: extraction, k-nearest neighbours, linear probes of images and of pixels, retrieval, pictures;
//! classification by text.

mod class_names;
mod compare;
mod features;
#[cfg(test)]
mod fixtures;
pub mod image_text;
pub mod instances;
mod knn;
mod linear;
pub mod pca;
pub mod pictures;
mod retrieval;
pub(crate) mod rows;
pub mod segmentation;
pub mod sweep;
pub mod video_masks;
pub mod video_objects;
pub mod zero_shot;

pub use class_names::{ClassNames, templates};
pub use compare::{Compared, compare, compare_with_random};
pub use features::{Features, Kind, extract, write, write_texts};
pub use knn::{Knn, Neighbours, check_vote, knn, neighbours, votes};
pub use linear::{Optimizer, Probe, linear_probe};
pub use retrieval::{Retrieval, retrieval};
