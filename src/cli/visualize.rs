//! `ocellus visualize mae`, `pca`, `attention` and `neighbours`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ocellus::data::augment::evaluation_crop;
use ocellus::data::{Folder, Image, Source, decode};
use ocellus::eval::Kind;
use ocellus::eval::pictures::neighbours::Named;
use ocellus::eval::pictures::{self, components};
use ocellus::recipes::mae::config::parse_size;
use ocellus::recipes::mae::{Pool, load, picture};
use ocellus::recipes::{Encoder, encoder};
use ocellus::train::Progress;
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

/// An encoder, images, and how they are shown.
#[derive(clap::Args)]
struct Shown {
    /// Weights: a run folder, a Hugging Face folder, .safetensors or .pth
    model: PathBuf,
    /// Folder of images
    images: PathBuf,
    /// Images drawn, spread over the folder
    #[arg(long, default_value_t = 8)]
    count: usize,
    /// Image side in pixels, or height x width as in 64x32: larger ones have more patches; the position table is resized
    /// [default: the weights']
    #[arg(long, value_parser = parse_size)]
    image_size: Option<[usize; 2]>,
}

impl Shown {
    /// The encoder, and the images in its size.
    fn open(&self, machine: &Machine) -> Result<(Box<dyn Encoder>, Vec<Image>)> {
        let (folder, device) = (Folder::open(&self.images)?, machine.device()?);
        let model = encoder::load(&self.model, &device, machine.dtype(&device)?, None, self.image_size)?;
        let images = pictures::spread(&folder, self.count, model.image_size())?;
        Ok((model, images.into_iter().map(|(_, image)| image).collect()))
    }
}

/// Flags of `visualize pca`.
#[derive(clap::Args)]
pub struct Pca {
    #[command(flatten)]
    shown: Shown,
    /// Picture to write
    #[arg(long, short, default_value = "components.png")]
    out: PathBuf,
    /// Where foreground and background part, from 0 (smallest) to 1 (largest value of the first component) [default: where
    /// the two sides differ most (Otsu)]
    #[arg(long)]
    threshold: Option<f64>,
    /// Part foreground and background in each image by itself: for images that have nothing in common
    #[arg(long)]
    each: bool,
}

/// Flags of `visualize attention`.
#[derive(clap::Args)]
pub struct Attention {
    #[command(flatten)]
    shown: Shown,
    /// Picture to write
    #[arg(long, short, default_value = "attention.png")]
    out: PathBuf,
}

/// Flags of `visualize neighbours`.
#[derive(clap::Args)]
pub struct Neighbours {
    /// Weights: a run folder, a Hugging Face folder, .safetensors or .pth
    model: PathBuf,
    /// Folder of images that are ranked
    train: PathBuf,
    /// Folder of queries
    images: PathBuf,
    /// Picture to write
    #[arg(long, short, default_value = "neighbours.png")]
    out: PathBuf,
    /// Queries drawn, spread over the folder
    #[arg(long, default_value_t = 8)]
    count: usize,
    /// Neighbours of each
    #[arg(long, short, default_value_t = 6)]
    k: usize,
    /// Feature: class token or mean of the patches [default: cls, for a fine-tuned file its own]
    #[arg(long, value_enum)]
    pool: Option<Pool>,
    /// Images per forward pass
    #[arg(long, default_value_t = 64)]
    batch_size: usize,
}

/// Draws components.
pub fn pca(flags: &Pca, machine: &Machine) -> Result<()> {
    let (model, images) = flags.shown.open(machine)?;
    let mut progress = Progress::new("components", images.len() as u64, 0, 1.0, "images");
    let sheet = components::sheet(model.as_ref(), &images, flags.threshold, flags.each, || progress.step(""))?;
    progress.finish();
    sheet.save_png(&flags.out)?;
    say!("image | components of its patches: {}", flags.out.display());
    Ok(())
}

/// Draws attention.
pub fn attention(flags: &Attention, machine: &Machine) -> Result<()> {
    let (model, images) = flags.shown.open(machine)?;
    let mut progress = Progress::new("attention", images.len() as u64, 0, 1.0, "images");
    let sheet = pictures::attention::sheet(model.as_ref(), &images, || progress.step(""))?;
    progress.finish();
    sheet.save_png(&flags.out)?;
    say!("image | mean of the heads | each head: {}", flags.out.display());
    Ok(())
}

/// Draws neighbours.
pub fn neighbours(flags: &Neighbours, machine: &Machine) -> Result<()> {
    let (folder, train) = (Folder::open(&flags.images)?, Arc::new(Folder::open(&flags.train)?));
    if !(1..=train.len()).contains(&flags.k) {
        return Err(Error::config("k", flags.k, format!("1 to the {} images that are ranked", train.len())));
    }
    let device = machine.device()?;
    let model = encoder::load(&flags.model, &device, machine.dtype(&device)?, flags.pool, None)?;
    let size = model.image_size();
    let queries = pictures::spread(&folder, flags.count, size)?;
    let images: Vec<Image> = queries.iter().map(|(_, image)| image.clone()).collect();
    let named = |folder: &Folder, file: &Path, label: i32, image: Image| {
        let class = usize::try_from(label).ok().and_then(|label| folder.classes().get(label)).cloned();
        let file = || file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Named { image, name: class.clone().unwrap_or_else(file), class }
    };
    let query = |(at, image)| named(&folder, folder.path(at), folder.label(at), image);
    let queries: Vec<Named> = queries.into_iter().map(query).collect();
    let bank = super::eval::features(model.as_ref(), train.clone(), flags.batch_size, Kind::Pooled)?;
    let found = pictures::neighbours::find(model.as_ref(), &images, &bank, flags.k)?;
    let load = |row: u32| {
        let file = train.root().join(&bank.files[row as usize]);
        let image = evaluation_crop(&decode::open(&file)?, size)?;
        Ok(named(&train, &file, bank.labels[row as usize], image))
    };
    pictures::neighbours::sheet(&queries, &found, load)?.save_png(&flags.out)?;
    say!("query | nearest first, with cosine similarity: {}", flags.out.display());
    Ok(())
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
    let images: Vec<Image> =
        pictures::spread(&folder, flags.count, size)?.into_iter().map(|(_, image)| image).collect();
    let pictures = picture::draw(&loaded.model, &images, flags.mask_ratio, flags.seed)?;
    picture::grid(&pictures)?.save_png(&flags.out)?;
    say!("original | masked | reconstruction | pasted: {}", flags.out.display());
    if loaded.model.norm_pix_loss {
        say!("note: {NOTE}");
    }
    Ok(())
}
