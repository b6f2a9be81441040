//! DINOv2: self-distillation with masked patches (Oquab et al. 2023, arXiv 2304.07193).

pub mod schedule;
