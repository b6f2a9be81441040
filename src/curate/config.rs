//! Every knob with its default: flags, help and what a continued run is compared with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::checkpoint::atomic;
use crate::{Error, Result};

const FILE: &str = "settings.json";
/// Settings that may differ when a run is continued: places, which may move, and what does not change the choice.
const FREE: [&str; 10] = ["pool", "out", "model", "curated", "evaluation", "link", "copy", "truth", "sheet", "strict"];

/// What near-duplicates are found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Copies {
    /// A descriptor of small pictures; no model.
    Pixels,
    /// Features of the model.
    Model,
}

impl Copies {
    /// Similarities above which images count as copies: within the pool, of evaluation images. Measured on a planted pool
    /// (docs/curation.md), pixels with room on both sides; every model has its own.
    pub fn thresholds(self) -> [f64; 2] {
        match self {
            Self::Pixels => [0.95, 0.93],
            Self::Model => [0.9999, 0.9998],
        }
    }
}

/// How neighbours of curated images are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Retrieve {
    /// Not at all: keep all that is no copy.
    None,
    /// The nearest of each curated image.
    Sample,
    /// Images of the clusters that curated images lie in.
    Cluster,
}

/// What to curate, and how.
#[derive(Clone, Debug, Serialize, clap::Args)]
pub struct Config {
    /// Folder of images to choose from
    pub pool: PathBuf,
    /// Folder to write; the same command continues what it holds
    #[arg(long, short, default_value = "curated")]
    pub out: PathBuf,
    /// Encoder of the features, for --retrieve and --copies model: a run folder, a Hugging Face folder, .safetensors or .pth
    #[arg(long)]
    pub model: Option<PathBuf>,
    /// Folder of curated images, whose neighbours are wanted; may be given several times
    #[arg(long, value_name = "FOLDER")]
    pub curated: Vec<PathBuf>,
    /// Folder of evaluation images, whose copies are not wanted; may be given several times
    #[arg(long, value_name = "FOLDER")]
    pub evaluation: Vec<PathBuf>,
    /// What near-duplicates are found by
    #[arg(long, value_enum, default_value = "pixels")]
    pub copies: Copies,
    /// Cosine above which images of the pool are copies of one another [default: 0.95, with --copies model 0.9999]
    #[arg(long)]
    pub dedup_threshold: Option<f64>,
    /// Cosine above which an image of the pool is a copy of an evaluation image [default: 0.93, with --copies model 0.9998]
    #[arg(long)]
    pub evaluation_threshold: Option<f64>,
    /// Nearest neighbours of each image that are looked at
    #[arg(long, default_value_t = 64)]
    pub neighbours: usize,
    /// How neighbours of the curated images are chosen
    #[arg(long, value_enum, default_value = "none")]
    pub retrieve: Retrieve,
    /// sample: images for each curated image
    #[arg(short, long, default_value_t = 4)]
    pub k: usize,
    /// cluster: number of clusters of the pool [default: one for 50 images]
    #[arg(long)]
    pub clusters: Option<usize>,
    /// cluster: rounds of k-means at most
    #[arg(long, default_value_t = 20)]
    pub rounds: usize,
    /// cluster: a cluster counts if it holds more curated images than this
    #[arg(long, default_value_t = 3)]
    pub cluster_min: usize,
    /// cluster: images of one cluster at most
    #[arg(long, default_value_t = 10_000)]
    pub per_cluster: usize,
    /// cluster: images for one curated folder at most
    #[arg(long, default_value_t = 1_000_000)]
    pub cap: usize,
    /// Decides where k-means begins
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Images per forward pass
    #[arg(long, default_value_t = 64)]
    pub batch_size: usize,
    /// Images between two saves
    #[arg(long, default_value_t = 1024)]
    pub save_every: usize,
    /// End at the first unreadable image instead of leaving it out
    #[arg(long)]
    pub strict: bool,
    /// Pairs in a contact sheet of what was dropped; 0 for none
    #[arg(long, default_value_t = 48)]
    pub sheet: usize,
    /// Make a folder of links to the kept images
    #[arg(long, value_name = "FOLDER", conflicts_with = "copy")]
    pub link: Option<PathBuf>,
    /// Make a folder of copies of the kept images
    #[arg(long, value_name = "FOLDER")]
    pub copy: Option<PathBuf>,
    /// Compare the result with what `data planted` wrote of its pool
    #[arg(long, value_name = "FILE")]
    pub truth: Option<PathBuf>,
}

impl Config {
    /// An error that names the first setting that cannot be used.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn check(&self) -> Result<()> {
        for (key, given) in
            [("dedup_threshold", self.dedup_threshold), ("evaluation_threshold", self.evaluation_threshold)]
        {
            if let Some(bad) = given.filter(|t| !(*t > 0.0 && *t < 1.0)) {
                return Err(Error::config(key, bad, "a number between 0 and 1"));
            }
        }
        let positive = [
            ("neighbours", self.neighbours),
            ("k", self.k),
            ("clusters", self.clusters.unwrap_or(1)),
            ("rounds", self.rounds),
            ("per_cluster", self.per_cluster),
            ("cap", self.cap),
            ("batch_size", self.batch_size),
            ("save_every", self.save_every),
        ];
        if let Some((key, _)) = positive.into_iter().find(|(_, given)| *given == 0) {
            return Err(Error::config(key, 0, "at least 1"));
        }
        if self.retrieve != Retrieve::None && self.curated.is_empty() {
            return Err(Error::config("curated", "missing", "a folder of images whose neighbours are to be retrieved"));
        }
        if self.retrieve == Retrieve::None && !self.curated.is_empty() {
            return Err(Error::config("retrieve", "none", "sample or cluster: curated images are for retrieval alone"));
        }
        if self.needs_model() && self.model.is_none() {
            return Err(Error::config("model", "missing", "the encoder of the features"));
        }
        Ok(())
    }

    /// Whether features are wanted.
    pub fn needs_model(&self) -> bool {
        self.copies == Copies::Model || self.retrieve != Retrieve::None
    }

    /// Thresholds in use: within the pool, of evaluation images.
    pub fn thresholds(&self) -> [f64; 2] {
        let [pool, evaluation] = self.copies.thresholds();
        [self.dedup_threshold.unwrap_or(pool), self.evaluation_threshold.unwrap_or(evaluation)]
    }
}

/// Settings that decide the result, as text by name, with what tells data and model apart.
pub type Settings = BTreeMap<String, String>;

/// Those of a configuration; `identities` says what the folders and the model hold.
///
/// # Errors
/// When a setting cannot be written down.
pub fn settings(config: &Config, identities: Vec<(String, String)>) -> Result<Settings> {
    let value = serde_json::to_value(config).map_err(|e| Error::Training(format!("settings: {e}")))?;
    let mut all: Settings = value.as_object().into_iter().flatten().map(|(k, v)| (k.clone(), v.to_string())).collect();
    all.retain(|key, _| !FREE.contains(&key.as_str()));
    let [pool, evaluation] = config.thresholds();
    all.insert("dedup_threshold".into(), pool.to_string());
    all.insert("evaluation_threshold".into(), evaluation.to_string());
    all.extend(identities);
    Ok(all)
}

/// Begins in a folder, or goes on in one that was begun with the same settings; returns whether it goes on.
///
/// # Errors
/// When it was begun with others; [`Error::Io`].
pub fn begin(out: &Path, settings: &Settings) -> Result<bool> {
    std::fs::create_dir_all(out).map_err(Error::io(out))?;
    let path = out.join(FILE);
    if !path.exists() {
        if std::fs::read_dir(out)
            .map_err(Error::io(out))?
            .flatten()
            .any(|e| !e.file_name().as_encoded_bytes().starts_with(b"."))
        {
            let cause = "is not empty and holds no curation; give another folder with --out";
            return Err(Error::Dataset { path: out.into(), cause: cause.into() });
        }
        let text = serde_json::to_string_pretty(settings).map_err(|e| Error::Training(format!("settings: {e}")))?;
        atomic::clean(out, FILE)?;
        atomic::write(&path, |w| std::io::Write::write_all(w, text.as_bytes()))?;
        return Ok(false);
    }
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    let begun: Settings = serde_json::from_str(&text)
        .map_err(|e| Error::Dataset { path: path.clone(), cause: format!("not the settings of a curation: {e}") })?;
    let none = String::from("nothing");
    for key in settings.keys().chain(begun.keys()) {
        let (given, expected) = (settings.get(key).unwrap_or(&none), begun.get(key).unwrap_or(&none));
        if given != expected {
            let expected = format!("{expected}, with which {} was begun; or another folder with --out", out.display());
            return Err(Error::config(key, given, expected));
        }
    }
    Ok(true)
}
