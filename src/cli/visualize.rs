//! `ocellus visualize mae`.

use std::path::PathBuf;

use ocellus::data::augment::evaluation_crop;
use ocellus::data::{Folder, Source};
use ocellus::recipes::mae::{load, picture};
use ocellus::{Error, Result};

use super::Machine;
use super::pretrain::NOTE;

/// Flags of `visualize mae`.
#[derive(clap::Args)]
pub struct Flags {
    /// A run folder, a Hugging Face folder, a .safetensors or an official .pth with its decoder
    model: PathBuf,
    /// Folder of images
    images: PathBuf,
    /// Picture to write
    #[arg(long, short, default_value = "reconstruction.png")]
    out: PathBuf,
    /// Images drawn, spread over the folder
    #[arg(long, default_value_t = 8)]
    count: usize,
    /// Share of the patches that is removed
    #[arg(long, default_value_t = 0.75)]
    mask_ratio: f64,
    /// Decides which patches are removed
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The weights predict normalised patches: asked of files that do not say it themselves
    #[arg(long)]
    norm_pix: Option<bool>,
}

/// Draws.
pub fn mae(flags: &Flags, machine: &Machine) -> Result<()> {
    if flags.count == 0 {
        return Err(Error::config("count", 0, "at least 1"));
    }
    let device = machine.device()?;
    let loaded = load::mae(&flags.model, &device, machine.dtype(&device)?, flags.norm_pix)?;
    loaded.require_decoder()?;
    let folder = Folder::open(&flags.images)?;
    let size = loaded.model.encoder.config.image;
    let stride = (folder.len() / flags.count.max(1)).max(1);
    let mut images = Vec::new();
    for index in (0..folder.len()).step_by(stride).take(flags.count) {
        match folder.load(index) {
            Ok(image) => images.push(evaluation_crop(&image, size)?),
            Err(e) => tracing::warn!("skipped {e}"),
        }
    }
    if images.is_empty() {
        return Err(Error::Dataset { path: flags.images.clone(), cause: "no readable image".into() });
    }
    let pictures = picture::draw(&loaded.model, &images, flags.mask_ratio, flags.seed)?;
    picture::grid(&pictures)?.save_png(&flags.out)?;
    say!("original | masked | reconstruction | pasted: {}", flags.out.display());
    if loaded.model.norm_pix_loss {
        say!("note: {NOTE}");
    }
    Ok(())
}
