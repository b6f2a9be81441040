//! `ocellus eval knn`, `ocellus eval linear`, `ocellus embed`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ocellus::checkpoint::{StateDict, safetensors};
use ocellus::data::text::read_lines;
use ocellus::data::{Folder, Source};
use ocellus::eval::sweep::{self, Sweep};
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
    /// Neighbours that vote, one or more numbers: 5,20 [default: 10,20,100,200, as far as there are training images]
    #[arg(long, short, value_delimiter = ',')]
    k: Vec<usize>,
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

/// Says how many images could not be read.
pub fn warn_of(skipped: &[String]) {
    if !skipped.is_empty() {
        tracing::warn!("{} unreadable images were left out; they are named above", skipped.len());
    }
}

/// Features of all readable images of a folder.
pub fn features(model: &dyn Encoder, folder: Arc<Folder>, batch: usize, kind: Kind) -> Result<Features> {
    let steps = folder.len().div_ceil(batch.max(1)) as u64;
    let mut progress = Progress::new("features", steps, 0, batch as f64, "images");
    let features = eval::extract(model, folder, batch, kind, |_| progress.step(""))?;
    progress.finish();
    warn_of(&features.skipped);
    Ok(features)
}

/// Progress of something with several parts.
pub struct Stages {
    batch: usize,
    current: Option<(&'static str, Progress)>,
}

impl Stages {
    /// `batch`: images in a step.
    pub fn new(batch: usize) -> Self {
        Self { batch, current: None }
    }

    /// One step more of `what`, which has `total`.
    pub fn step(&mut self, what: &'static str, total: u64, loss: Option<f64>) {
        if self.current.as_ref().is_none_or(|(label, _)| *label != what) {
            self.finish();
            self.current = Some((what, Progress::new(what, total, 0, self.batch as f64, "images")));
        }
        if let Some((_, progress)) = &mut self.current {
            progress.step(&loss.map_or(String::new(), |loss| format!("loss {loss:.4}")));
        }
    }

    /// The last part is done.
    pub fn finish(&mut self) {
        if let Some((_, progress)) = self.current.take() {
            progress.finish();
        }
    }
}

/// Numbers of voters where none are given: DINOv2's, as far as there are samples.
fn usual_voters(samples: usize) -> Vec<usize> {
    let usual: Vec<usize> = [10, 20, 100, 200].into_iter().filter(|k| *k <= samples).collect();
    if usual.is_empty() { vec![samples] } else { usual }
}

/// k-nearest neighbours.
pub fn knn(flags: &Knn, machine: &Machine) -> Result<()> {
    let device = machine.device()?;
    let model = model(&flags.model, &device, machine.dtype(&device)?, flags.pool)?;
    let (train, test) = (Arc::new(Folder::labelled(&flags.train)?), Arc::new(Folder::labelled(&flags.test)?));
    classes_of(&train, &test)?;
    let ks = if flags.k.is_empty() { usual_voters(train.len()) } else { flags.k.clone() };
    eval::check_vote(&ks, flags.temperature, train.len())?; // before the time is spent
    let train = features(model.as_ref(), train, flags.batch_size, Kind::Pooled)?;
    let test = features(model.as_ref(), test, flags.batch_size, Kind::Pooled)?;
    // Unreadable images may have left fewer voters than the folder has files.
    let ks = if flags.k.is_empty() { usual_voters(train.labels.len()) } else { ks };
    for (k, result) in ks.iter().zip(eval::knn(&train, &test, &ks, flags.temperature)?) {
        say!("k-NN (k = {k}): top-1 {:.2} %, top-5 {:.2} %", 100.0 * result.top1, 100.0 * result.top5);
    }
    Ok(())
}

/// How linear layers on frozen features are trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Protocol {
    /// One head with batch norm, LARS, on the feature of --pool (He et al. 2021, appendix A.1).
    Mae,
    /// A head without batch norm for every learning rate, number of last blocks, and with or without the mean patch token, by
    /// gradient descent with momentum; the best on the test images is reported (Oquab et al. 2023).
    Dinov2,
}

/// Flags of `eval linear`.
#[derive(clap::Args)]
pub struct Linear {
    #[command(flatten)]
    probe: Probe,
    /// How it is trained, whatever the weights are of
    #[arg(long, value_enum, default_value_t = Protocol::Mae)]
    protocol: Protocol,
    /// With --protocol dinov2: learning rates per 256 images [default: 1,2,5 times 1e-5 to 1e-2, and 0.1]
    #[arg(long, value_delimiter = ',')]
    rates: Vec<f64>,
    /// With --protocol dinov2: numbers of last blocks whose class tokens a head sees [default: 1,4, at most all]
    #[arg(long, value_delimiter = ',')]
    blocks: Vec<usize>,
    /// With --protocol dinov2: whole images instead of random crops and mirrors; their features are computed once
    #[arg(long)]
    no_augment: bool,
}

impl Linear {
    /// Refuses flags of the other protocol.
    fn check(&self) -> Result<()> {
        let probe = &self.probe;
        let (others, protocol) = match self.protocol {
            Protocol::Mae => {
                let others = [("rates", !self.rates.is_empty()), ("blocks", !self.blocks.is_empty())];
                ([&others[..], &[("no_augment", self.no_augment)]].concat(), "mae")
            }
            Protocol::Dinov2 => {
                let others = vec![
                    ("optimizer", probe.optimizer.is_some()),
                    ("blr", probe.blr.is_some()),
                    ("warmup_epochs", probe.warmup_epochs.is_some()),
                    ("weight_decay", probe.weight_decay.is_some()),
                    ("pool", probe.pool.is_some()),
                ];
                (others, "dinov2")
            }
        };
        match others.iter().find(|(_, given)| *given) {
            Some((key, _)) => Err(Error::config(*key, "given", format!("not given with --protocol {protocol}"))),
            None => Ok(()),
        }
    }

    /// The sweep on an encoder of `depth` blocks.
    fn sweep(&self, depth: usize) -> Sweep {
        let mut blocks = if self.blocks.is_empty() { vec![1, 4.min(depth)] } else { self.blocks.clone() };
        blocks.dedup();
        Sweep {
            rates: if self.rates.is_empty() { sweep::RATES.to_vec() } else { self.rates.clone() },
            blocks,
            epochs: self.probe.epochs,
            batch: self.probe.batch_size,
            augment: !self.no_augment,
            seed: self.probe.seed,
            strict: self.probe.strict,
        }
    }
}

/// Linear probe.
pub fn linear(flags: &Linear, machine: &Machine) -> Result<()> {
    flags.check()?;
    match flags.protocol {
        Protocol::Mae => probe(&flags.probe, machine),
        Protocol::Dinov2 => heads(flags, machine),
    }
}

/// Many heads at once.
fn heads(flags: &Linear, machine: &Machine) -> Result<()> {
    let device = machine.device()?;
    let Probe { model: path, train, test, out, .. } = &flags.probe;
    // Heads see class tokens, which only weights that pool by them have a norm for.
    let model = model(path, &device, machine.dtype(&device)?, Some(Pool::Cls))?;
    let train = Arc::new(Folder::labelled(train)?.with_cache(1 << 30));
    let test = Arc::new(Folder::labelled(test)?);
    let sweep = flags.sweep(model.depth());
    let mut stages = Stages::new(sweep.batch(train.len()));
    let trained = sweep.run(model.as_ref(), train, test, |what, _, total, loss| stages.step(what, total, loss))?;
    stages.finish();
    if let Some(best) = sweep::best(&trained) {
        say!(
            "linear probe: top-1 {:.2} %, top-5 {:.2} %: best on the test images of {} heads: class tokens of the last {}, {} mean patch \
             token, learning rate {} per 256 images",
            100.0 * best.top1,
            100.0 * best.top5,
            trained.len(),
            best.feature.blocks,
            if best.feature.average_pool { "with" } else { "without" },
            best.rate
        );
    }
    if let Some(out) = out {
        std::fs::write(out, sweep::table(&trained)).map_err(Error::io(out))?;
        say!("heads: {}", out.display());
    }
    Ok(())
}

/// One head with batch norm.
fn probe(flags: &Probe, machine: &Machine) -> Result<()> {
    flags.check()?;
    let device = machine.device()?;
    let model = model(&flags.model, &device, machine.dtype(&device)?, flags.pool)?;
    let train = Arc::new(Folder::labelled(&flags.train)?.with_cache(1 << 30));
    let test = Arc::new(Folder::labelled(&flags.test)?);
    let mut progress = None;
    let (head, score) = eval::linear_probe(flags, model.as_ref(), train, test, |_, total, loss| {
        let make = || Progress::new("probe", total, 0, flags.batch() as f64, "images");
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
