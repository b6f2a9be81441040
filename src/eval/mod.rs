//! Evaluation of frozen features: extraction, k-nearest neighbours, the linear probe; classification by text and retrieval.

mod class_names;
mod compare;
mod features;
pub mod image_text;
mod knn;
mod linear;
mod retrieval;
pub(crate) mod rows;
pub mod zero_shot;

pub use class_names::{ClassNames, templates};
pub use compare::{Compared, compare_with_random};
pub use features::{Features, Kind, extract, write, write_texts};
pub use knn::{Knn, check_vote, knn};
pub use linear::{Optimizer, Probe, linear_probe};
pub use retrieval::{Retrieval, retrieval};
