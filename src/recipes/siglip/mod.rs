//! Image-text pairs.

pub mod picture;
