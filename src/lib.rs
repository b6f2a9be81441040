//! Vision pre-training recipes on hand-written CUDA kernels with their own tape-based autodiff.
//!
//! | layer | what |
//! |---|---|
//! | [`Device`], [`Tensor`] | CPU, emulated and CUDA memory; contiguous arrays of a run-time dtype |
//! | [`Tape`], [`Var`], [`Param`], [`Grads`] | reverse-mode differentiation by closures, gradients that accumulate |
//! | [`ops`] | operations: equation, reference, kernel, gradient, tests and bench under one name |
//! | [`nn`], [`optim`] | layers with upstream parameter names; AdamW, LARS, schedules |
//! | [`recipes`], [`train`], [`eval`] | models and steps; the one training loop; k-NN and linear probe |
//! | [`curate`] | near-duplicates and retrieval: which images of a pool to train on |
//! | [`data`], [`checkpoint`] | image folders to batches; safetensors, `.pth`, Hugging Face, resumable runs |
//!
//! One training step of a masked autoencoder:
//!
//! ```
//! use ocellus::data::masks::random_masking;
//! use ocellus::nn::{Builder, Module};
//! use ocellus::ops::adamw::Hyper;
//! use ocellus::optim::{AdamW, Optimizer, Rates, Rules};
//! use ocellus::recipes::mae::{Mae, MaskIds, Preset};
//! use ocellus::{DType, Device, Grads, Tape, Tensor, Var};
//!
//! # fn main() -> ocellus::Result<()> {
//! let device = Device::Cpu;
//! let sizes = "micro".parse::<Preset>()?.sizes(None, None);
//! let mut model = Mae::new(&Builder::new(&device, DType::F32, 0), &sizes, true)?;
//! let mut adamw = AdamW::new(Hyper { beta1: 0.9, beta2: 0.95, eps: 1e-8 }, Rules::pretraining(0.05));
//! let images = Var::constant(Tensor::full([2, 3, 32, 32], 0.5f32, &device)?);
//! let noise: Vec<f32> = (0..2 * 64).map(|i| (i * 37 % 64) as f32).collect();
//! let ids = MaskIds::new(&random_masking(&noise, 2, 64, 0.75)?, 2, &device)?;
//! let (tape, mut grads) = (Tape::new(), Grads::new());
//! let loss = model.loss(&tape, &images, None, &ids)?;
//! tape.backward_scaled(&loss, 1.0, &mut grads)?;
//! let stats = adamw.step(&mut model.params_mut(), &grads, &Rates::new(1e-4), None)?;
//! assert!(loss.value().item()?.is_finite() && stats.grad_norm > 0.0);
//! # Ok(())
//! # }
//! ```
#![deny(unsafe_code)]

#[doc(hidden)]
pub mod bench;
pub mod checkpoint;
pub mod curate;
pub mod data;
pub mod device;
pub mod dtype;
mod error;
pub mod eval;
mod math;
pub mod nn;
pub mod ops;
pub mod optim;
pub mod recipes;
mod shape;
pub mod tape;
mod tensor;
#[doc(hidden)]
pub mod testing;
pub mod train;

pub use device::Device;
pub use dtype::DType;
pub use error::{Error, Result};
pub use shape::Shape;
pub use tape::{Grads, Param, Tape, Var};
pub use tensor::{Tensor, random};

/// The examples of the README run with those of the documentation.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// So does the example of following objects.
#[cfg(doctest)]
#[doc = include_str!("../docs/recipes/sam2.md")]
struct Objects;
