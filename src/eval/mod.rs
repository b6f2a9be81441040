//! Evaluation of frozen features: extraction, k-nearest neighbours, the linear probe.

mod compare;
mod features;
mod knn;
mod linear;

pub use compare::{Compared, compare_with_random};
pub use features::{Features, Kind, extract, write};
pub use knn::{Knn, check_vote, knn};
pub use linear::{Optimizer, Probe, linear_probe};
