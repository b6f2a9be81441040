//! Weights and training runs on disk.
//!
//! [`StateDict`] is the exchange form: names and host tensors in order, with text metadata. Everything reads into it and is
//! written from it:
//!
//! | | read | write |
//! |---|---|---|
//! | [`safetensors`] files, one or sharded | yes | yes |
//! | [`pth`] archives of PyTorch | yes, without running any code | no |
//! | [`npz`] archives of NumPy, as big_vision writes them | yes | no |
//! | Hugging Face ViTMAE folders ([`hf`]: `config.json` and weights) | yes | yes |
//! | Hugging Face SigLIP folders ([`siglip`]) | yes | yes |
//! | Hugging Face SAM-2 folders ([`sam2`]) | yes | yes |
//! | the state of a training run ([`run_state`]) | yes | yes |
//!
//! Names of MAE are those of its upstream repository; [`names`] translates the spellings of Hugging Face. Those of SigLIP
//! are translated by [`siglip`] from and to Hugging Face and big_vision, and from open_clip. [`load_into`] puts a
//! dictionary into a model's parameters. Writing is atomic everywhere: a temporary sibling, then a rename, so that a killed
//! process or a full disk leaves the old file.

mod arrange;
pub mod atomic;
pub mod dinov2;
pub mod hf;
pub mod load;
pub mod names;
pub mod npy;
pub mod npz;
pub mod pth;
pub mod run_state;
pub mod safetensors;
pub mod sam2;
pub mod siglip;
mod state_dict;
mod stored;
#[cfg(test)]
mod tests;

use std::path::Path;

pub use hf::HfConfig;
pub use load::{LoadOptions, LoadReport, load_into};
pub use names::{to_hf, to_upstream};
pub use run_state::{Progress, Resumed, RunFolder, RunState};
pub use state_dict::StateDict;

use crate::{Error, Result};

/// Reads weights from whatever `path` is: a folder of Hugging Face, a `.safetensors` file, a shard index
/// `.safetensors.index.json`, a PyTorch archive `.pth`, `.pt`, `.bin` or `.ckpt`, a NumPy archive `.npz`.
/// Names stay as they are in the file.
///
/// # Errors
/// [`Error::Io`] if it cannot be opened, [`Error::Checkpoint`] if it is none of these or is damaged.
pub fn read(path: impl AsRef<Path>) -> Result<StateDict> {
    let path = path.as_ref();
    if path.is_dir() {
        return hf::read_weights(path);
    }
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    match name.rsplit('.').next() {
        Some("json") => safetensors::read_sharded(path),
        Some("safetensors") => safetensors::read(path),
        Some("pth" | "pt" | "bin" | "ckpt") => pth::read(path),
        Some("npz") => npz::read(path),
        _ => {
            let expected = ".safetensors, .safetensors.index.json, .pth, .pt, .bin, .ckpt, .npz or a folder";
            Err(Error::checkpoint(path, format!("unknown kind of file, expected {expected}")))
        }
    }
}
