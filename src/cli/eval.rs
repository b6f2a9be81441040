//! `ocellus eval knn`, `ocellus eval linear`, `ocellus embed`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ocellus::checkpoint::{StateDict, safetensors};
use ocellus::data::text::read_lines;
use ocellus::data::{Folder, Source};
use ocellus::eval::{self, Features, Kind, Probe};
use ocellus::nn::Module;
use ocellus::recipes::mae::Pool;
use ocellus::recipes::mae::finetune::classes_of;
use ocellus::recipes::{Encoder, encoder};
use ocellus::train::Progress;
use ocellus::{DType, Device, Error, Result, recipes};

use super::Machine;
use super::siglip::{self, Inputs};

/// Flags of `eval knn`.
#[derive(clap::Args)]
pub struct Knn {
    /// Weights: a run folder, a Hugging Face folder, .safetensors or .pth
    model: PathBuf,
    /// Class folder that votes
    train: PathBuf,
    /// Class folder that is classified
    test: PathBuf,
    /// Neighbours that vote
    #[arg(long, short, default_value_t = 20)]
    k: usize,
    /// Divides similarities in the weights of the votes
    #[arg(long, default_value_t = 0.07)]
    temperature: f64,
    /// Feature: class token or mean of the patches [default: cls, for a fine-tuned file its own]
    #[arg(long, value_enum)]
    pool: Option<Pool>,
    /// Images per forward pass
    #[arg(long, default_value_t = 64)]
    batch_size: usize,
}

/// Flags of `embed`.
#[derive(clap::Args)]
pub struct Embed {
    /// Weights: a run folder, a Hugging Face folder, .safetensors or .pth
    model: PathBuf,
    /// Folder of images
    #[arg(required_unless_present = "text")]
    images: Option<PathBuf>,
    /// Embed captions with an image-text model instead: a text file, one a line
    #[arg(long, value_name = "FILE", conflicts_with = "images")]
    text: Option<PathBuf>,
    /// Folder to write: features, labels, files.txt; of captions features, texts.txt
    #[arg(long, short, default_value = "features")]
    out: PathBuf,
    /// Write features.npy and labels.npy instead of features.safetensors
    #[arg(long)]
    npy: bool,
    /// Write all tokens of an image, class token first, patches in raster order: [images, 1 + patches, width]
    #[arg(long)]
    tokens: bool,
    /// Feature: class token or mean of the patches [default: cls, for a fine-tuned file its own]
    #[arg(long, value_enum)]
    pool: Option<Pool>,
    #[command(flatten)]
    inputs: Inputs,
    /// Images or captions per forward pass
    #[arg(long, default_value_t = 64)]
    batch_size: usize,
}

fn model(path: &Path, device: &Device, dtype: DType, pool: Option<Pool>) -> Result<Box<dyn Encoder>> {
    encoder::load(path, device, dtype, pool, None)
}

fn features(model: &dyn Encoder, folder: Arc<Folder>, batch: usize, kind: Kind) -> Result<Features> {
    let steps = folder.len().div_ceil(batch.max(1)) as u64;
    let mut progress = Progress::new("features", steps, 0, batch as f64, "images");
    let features = eval::extract(model, folder, batch, kind, |_| progress.step(""))?;
    progress.finish();
    if !features.skipped.is_empty() {
        tracing::warn!("{} unreadable images were left out; they are named above", features.skipped.len());
    }
    Ok(features)
}

/// k-nearest neighbours.
pub fn knn(flags: &Knn, machine: &Machine) -> Result<()> {
    let device = machine.device()?;
    let model = model(&flags.model, &device, machine.dtype(&device)?, flags.pool)?;
    let (train, test) = (Arc::new(Folder::labelled(&flags.train)?), Arc::new(Folder::labelled(&flags.test)?));
    classes_of(&train, &test)?;
    eval::check_vote(flags.k, flags.temperature, train.len())?; // before the time is spent
    let train = features(model.as_ref(), train, flags.batch_size, Kind::Pooled)?;
    let test = features(model.as_ref(), test, flags.batch_size, Kind::Pooled)?;
    let result = eval::knn(&train, &test, flags.k, flags.temperature)?;
    say!("k-NN (k = {}): top-1 {:.2} %, top-5 {:.2} %", flags.k, 100.0 * result.top1, 100.0 * result.top5);
    Ok(())
}

/// Linear probe.
pub fn linear(flags: &Probe, machine: &Machine) -> Result<()> {
    flags.check()?;
    let device = machine.device()?;
    let model = model(&flags.model, &device, machine.dtype(&device)?, flags.pool)?;
    let train = Arc::new(Folder::labelled(&flags.train)?.with_cache(1 << 30));
    let test = Arc::new(Folder::labelled(&flags.test)?);
    let mut progress = None;
    let (head, score) = eval::linear_probe(flags, model.as_ref(), train, test, |_, total, loss| {
        let make = || Progress::new("probe", total, 0, flags.batch_size as f64, "images");
        progress.get_or_insert_with(make).step(&format!("loss {loss:.4}"));
    })?;
    say!("linear probe: top-1 {:.2} %, top-5 {:.2} %, loss {:.4}", 100.0 * score.top1, 100.0 * score.top5, score.loss);
    if let Some(out) = &flags.out {
        safetensors::write(out, &StateDict::from_params(head.params())?)?;
        say!("head: {}", out.display());
    }
    Ok(())
}

/// Feature export.
pub fn embed(flags: &Embed, machine: &Machine) -> Result<()> {
    let out = &flags.out;
    let shape = match (&flags.images, &flags.text) {
        (_, Some(text)) => {
            let texts = read_lines(text)?;
            if texts.iter().all(|line| line.trim().is_empty()) {
                return Err(Error::Dataset {
                    path: text.clone(),
                    cause: "no captions in it, expected one a line".into(),
                });
            }
            let values = siglip::embed_texts(&flags.inputs, &flags.model, flags.batch_size, &texts, machine)?;
            eval::write_texts(&values, &texts, out, flags.npy)?;
            values.shape().clone()
        }
        (Some(images), None) => {
            let folder = Arc::new(Folder::open(images)?);
            let features = if recipes::siglip::load::is_siglip(&flags.model)? {
                if flags.tokens || flags.pool.is_some() {
                    let expected = "not given: an image-text model has one embedding for an image";
                    return Err(Error::config(if flags.tokens { "tokens" } else { "pool" }, "given", expected));
                }
                siglip::embed_images(&flags.inputs, &flags.model, flags.batch_size, folder, machine)?
            } else {
                let device = machine.device()?;
                let model = model(&flags.model, &device, machine.dtype(&device)?, flags.pool)?;
                let kind = if flags.tokens { Kind::Tokens } else { Kind::Pooled };
                features(model.as_ref(), folder, flags.batch_size, kind)?
            };
            eval::write(&features, out, flags.npy)?;
            features.values.shape().clone()
        }
        (None, None) => return Err(Error::config("images", "missing", "a folder of images, or --text FILE")),
    };
    say!("features {shape} in {}", out.display());
    Ok(())
}
