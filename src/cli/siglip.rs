//! `ocellus eval zero-shot`, `ocellus visualize siglip`; `ocellus eval retrieval` and `ocellus embed` with an image-text model.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ocellus::data::text::Tokenizer;
use ocellus::data::transforms::Interpolation;
use ocellus::data::{Folder, Pairs, Source, pairs};
use ocellus::eval::image_text::{self, Embedder};
use ocellus::eval::{self, ClassNames, Features, zero_shot};
use ocellus::recipes::siglip::{Siglip, Sizes, load};
use ocellus::train::Progress;
use ocellus::{Error, Result, Tensor};

use super::Machine;
use super::eval::warn_of;

/// Largest number of pairs in a picture, which shows their square.
const DRAWN: usize = 256;

/// Weights of an image-text model and how it is used.
#[derive(clap::Args)]
pub struct Model {
    /// Weights: a run folder, a Hugging Face folder, .safetensors, .npz or .pth
    model: PathBuf,
    #[command(flatten)]
    inputs: Inputs,
    /// Images or captions per forward pass
    #[arg(long, default_value_t = 64)]
    batch_size: usize,
}

/// How texts and images go into an image-text model.
#[derive(clap::Args)]
pub struct Inputs {
    /// Tokenizer, .model or tokenizer.json [default: the one beside the weights]
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// How images are resized: Pillow's bicubic, or TensorFlow's bilinear as big_vision [default: bicubic]
    #[arg(long, value_enum)]
    interpolation: Option<Interpolation>,
}

/// Flags of `eval zero-shot`.
#[derive(clap::Args)]
pub struct ZeroShot {
    #[command(flatten)]
    model: Model,
    /// Class folder of images
    images: PathBuf,
    /// Class names: lines of `folder<TAB>name`, of folders' names, or one for each folder in order; more are further
    /// candidates [default: the folders' names]
    #[arg(long, value_name = "FILE")]
    classes: Option<PathBuf>,
    /// Prompts, one a line with {} for the class name [default: 16 about photos and pictures]
    #[arg(long, value_name = "FILE")]
    templates: Option<PathBuf>,
    /// Resize to 1/0.875 of the model's side and take the middle, as big_vision on ImageNet
    #[arg(long)]
    crop: bool,
}

/// Where pairs are and how they are read.
#[derive(clap::Args)]
pub struct PairsFlags {
    /// Image-text pairs: tar shards, .tsv, .csv, .jsonl, COCO captions .json, a folder
    pairs: PathBuf,
    #[command(flatten)]
    columns: pairs::Columns,
}

/// Flags of `visualize siglip`.
#[derive(clap::Args)]
pub struct Visualize {
    #[command(flatten)]
    model: Model,
    #[command(flatten)]
    pairs: PairsFlags,
    /// Folder to write: similarity.png, captions.png, images.png
    #[arg(long, short, default_value = "pictures")]
    out: PathBuf,
    /// Pairs drawn, spread over the data set: at most 256, as each is drawn with each
    #[arg(long, default_value_t = 8)]
    count: usize,
    /// Captions shown for an image, and images for a caption
    #[arg(long, default_value_t = 5)]
    top: usize,
}

/// A model and its tokenizer, ready for use.
struct Loaded {
    model: Siglip,
    sizes: Sizes,
    tokenizer: Tokenizer,
}

impl Inputs {
    fn load(&self, model: &Path, machine: &Machine) -> Result<Loaded> {
        let device = machine.device()?;
        let (loaded, sizes) = load::model(model, &device, machine.dtype(&device)?, None)?;
        let tokenizer = image_text::tokenizer(model, self.tokenizer.as_deref(), &sizes)?;
        Ok(Loaded { model: loaded, sizes, tokenizer })
    }

    fn embedder<'a>(&self, loaded: &'a Loaded, batch: usize) -> Result<Embedder<'a>> {
        if batch == 0 {
            return Err(Error::config("batch_size", 0, "at least 1"));
        }
        let Loaded { model, sizes, tokenizer } = loaded;
        let interpolation = self.interpolation.unwrap_or(Interpolation::Bicubic);
        Ok(Embedder { model, sizes, tokenizer, interpolation, crop: false, batch })
    }
}

impl Model {
    /// The weights.
    pub fn path(&self) -> &Path {
        &self.model
    }

    /// What an encoder of images has no use for, and whether it is given.
    pub fn of_texts(&self) -> [(&'static str, bool); 2] {
        [("tokenizer", self.inputs.tokenizer.is_some()), ("interpolation", self.inputs.interpolation.is_some())]
    }

    /// Images or captions per forward pass.
    pub fn batch_size(&self) -> usize {
        self.batch_size
    }
}

impl PairsFlags {
    /// These pairs with these columns.
    pub fn new(pairs: &Path, columns: &pairs::Columns) -> Self {
        Self { pairs: pairs.into(), columns: columns.clone() }
    }

    fn open(&self) -> Result<Pairs> {
        let pairs = Pairs::open(&self.pairs, &pairs::Options { columns: self.columns.clone(), strict: false })?;
        if pairs.skipped().count > 0 {
            tracing::warn!("{} pairs were left out; they are named above", pairs.skipped().count);
        }
        Ok(pairs)
    }
}

/// Zero-shot classification.
pub fn zero_shot(flags: &ZeroShot, machine: &Machine) -> Result<()> {
    let folder = Arc::new(Folder::labelled(&flags.images)?);
    let names = ClassNames::new(&folder, flags.classes.as_deref())?;
    let templates = match &flags.templates {
        Some(path) => eval::templates(path)?,
        None => zero_shot::TEMPLATES.map(str::to_owned).to_vec(),
    };
    let loaded = flags.model.inputs.load(&flags.model.model, machine)?;
    let embedder = flags.model.inputs.embedder(&loaded, flags.model.batch_size)?;
    let batch = flags.model.batch_size;
    let steps = (names.names.len() * templates.len()).div_ceil(batch) + folder.len().div_ceil(batch);
    let mut progress = Progress::new("zero-shot", steps as u64, 0, batch as f64, "prompts and images");
    let embedder = Embedder { crop: flags.crop, ..embedder };
    let result = embedder.zero_shot(folder, &names, &templates, || progress.step(""))?;
    progress.finish();
    warn_of(&result.skipped);
    say!(
        "zero-shot: top-1 {:.2} % of {} images, {} classes, {} templates",
        100.0 * result.correct.accuracy(),
        result.correct.images,
        result.classes,
        templates.len()
    );
    Ok(())
}

/// Retrieval in both directions.
pub fn retrieval(model: &Model, pairs: &PairsFlags, machine: &Machine) -> Result<()> {
    let pairs = Arc::new(pairs.open()?);
    let loaded = model.inputs.load(&model.model, machine)?;
    let embedder = model.inputs.embedder(&loaded, model.batch_size)?;
    let batch = model.batch_size;
    let mut progress = Progress::new("retrieval", pairs.len().div_ceil(batch) as u64, 0, batch as f64, "images");
    let ks = [1, 5, 10];
    let result = embedder.retrieval(pairs, &ks, || progress.step(""))?;
    progress.finish();
    warn_of(&result.skipped);
    say!("{} images, {} captions", result.images, result.captions);
    for (direction, shares) in
        [("image to text", &result.found.image_to_text), ("text to image", &result.found.text_to_image)]
    {
        let shares: Vec<String> =
            ks.iter().zip(shares).map(|(k, r)| format!("recall@{k} {:.2} %", 100.0 * r)).collect();
        say!("{direction}: {}", shares.join(", "));
    }
    Ok(())
}

/// Embeddings of captions.
pub fn embed_texts(inputs: &Inputs, model: &Path, batch: usize, texts: &[String], machine: &Machine) -> Result<Tensor> {
    let loaded = inputs.load(model, machine)?;
    let embedder = inputs.embedder(&loaded, batch)?;
    let mut progress = Progress::new("captions", texts.len().div_ceil(batch) as u64, 0, batch as f64, "captions");
    let values = embedder.texts(texts, |_| progress.step(""))?;
    progress.finish();
    Ok(values)
}

/// Embeddings of images.
pub fn embed_images(
    inputs: &Inputs,
    model: &Path,
    batch: usize,
    folder: Arc<Folder>,
    machine: &Machine,
) -> Result<Features> {
    let loaded = inputs.load(model, machine)?;
    let embedder = inputs.embedder(&loaded, batch)?;
    let mut progress = Progress::new("features", folder.len().div_ceil(batch) as u64, 0, batch as f64, "images");
    let root = folder.root().to_path_buf();
    let (features, _) = embedder.images(folder, &root, |_| progress.step(""))?;
    progress.finish();
    warn_of(&features.skipped);
    Ok(features)
}

/// Draws.
pub fn visualize(flags: &Visualize, machine: &Machine) -> Result<()> {
    if !(1..=DRAWN).contains(&flags.count) {
        return Err(Error::config("count", flags.count, format!("1 to {DRAWN}")));
    }
    let pairs = flags.pairs.open()?;
    let loaded = flags.model.inputs.load(&flags.model.model, machine)?;
    let embedder = flags.model.inputs.embedder(&loaded, flags.model.batch_size)?;
    let stride = (pairs.len() / flags.count).max(1);
    let (mut images, mut captions) = (Vec::new(), Vec::new());
    for index in (0..pairs.len()).step_by(stride).take(flags.count) {
        match pairs.load(index).and_then(|image| Ok((image, pairs.captions(index)?.swap_remove(0)))) {
            Ok((image, caption)) => {
                images.push(image.as_ref().clone());
                captions.push(caption);
            }
            Err(e) => tracing::warn!("skipped {e}"),
        }
    }
    if images.is_empty() {
        return Err(Error::Dataset { path: flags.pairs.pairs.clone(), cause: "no readable pair".into() });
    }
    let image_of = (0..images.len()).collect();
    let matches = embedder.matches(images, captions, image_of)?;
    std::fs::create_dir_all(&flags.out).map_err(Error::io(&flags.out))?;
    for (name, picture) in [
        ("similarity.png", matches.similarity()?),
        ("captions.png", matches.nearest_captions(flags.top)?),
        ("images.png", matches.nearest_images(flags.top)?),
    ] {
        picture.save_png(flags.out.join(name))?;
    }
    say!(
        "similarity.png, captions.png (nearest of each image), images.png (nearest of each caption): {}",
        flags.out.display()
    );
    Ok(())
}
