//! What a curation found, as files and as lines.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::path::Path;

use serde::Serialize;

use super::config::Settings;
use super::score::Score;
use crate::checkpoint::atomic;
use crate::{Error, Result};

/// Why an image was dropped, as dropped.tsv says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Another image of the pool is a copy of it and stays.
    Duplicate,
    /// It is a copy of an evaluation image, or of an image that is.
    Evaluation,
    /// It is not like the curated images.
    NotRetrieved,
    /// It could not be read.
    Unreadable,
}

impl Reason {
    /// As files name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Duplicate => "duplicate",
            Self::Evaluation => "evaluation",
            Self::NotRetrieved => "not retrieved",
            Self::Unreadable => "unreadable",
        }
    }
}

/// An image that was dropped.
#[derive(Clone, Debug, PartialEq)]
pub struct Dropped {
    /// File, below the pool's folder.
    pub file: String,
    /// Why.
    pub reason: Reason,
    /// The image it was found to be a copy of, below its folder, or what the decoder said.
    pub matched: String,
    /// Where that image's file is.
    pub matched_path: std::path::PathBuf,
    /// Cosine to it.
    pub similarity: Option<f32>,
}

/// An image that was retrieved: a line of retrieved.tsv.
#[derive(Clone, Debug, PartialEq)]
pub struct Neighbour {
    /// File, below the pool's folder.
    pub file: String,
    /// Curated folder.
    pub set: String,
    /// Curated image, below its folder, or number of the cluster.
    pub by: String,
    /// Cosine.
    pub similarity: f32,
}

/// Result of a curation; as report.json without the lists, which are files of their own.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// All that decided it.
    pub settings: Settings,
    /// Images in the pool's folder.
    pub images: usize,
    /// Images that stay.
    pub kept: usize,
    /// Images that do not, by reason.
    pub dropped: BTreeMap<&'static str, usize>,
    /// Pairs of near-duplicates that were looked at.
    pub pairs: usize,
    /// Unreadable curated and evaluation images.
    pub unreadable_elsewhere: Vec<String>,
    /// Images that curated images asked for and did not get: too many ask for the same ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<usize>,
    /// Clusters that images were taken from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clusters: Option<usize>,
    /// Beside the truth about a planted pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<Score>,
    /// Seconds of each stage, of the process that finished it.
    pub seconds: BTreeMap<&'static str, f64>,
    /// Files that stay, below the pool's folder.
    #[serde(skip)]
    pub files: Vec<String>,
    /// The others.
    #[serde(skip)]
    pub losses: Vec<Dropped>,
    /// What was retrieved.
    #[serde(skip)]
    pub retrieved: Vec<Neighbour>,
}

impl Report {
    /// Writes report.json, kept.txt, dropped.tsv (file, reason, matched file, similarity) and, after a retrieval,
    /// retrieved.tsv (file, curated folder, curated image or cluster, similarity).
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, out: &Path) -> Result<()> {
        let save = |name: &str, text: &str| {
            atomic::clean(out, name)?;
            atomic::write(out.join(name), |w| std::io::Write::write_all(w, text.as_bytes()))
        };
        let lines =
            |lines: &mut dyn Iterator<Item = String>| lines.fold(String::new(), |text, line| text + &line + "\n");
        save("kept.txt", &lines(&mut self.files.iter().cloned()))?;
        let number = |s: Option<f32>| s.map_or(String::new(), |s| format!("{s:.4}"));
        let dropped = |d: &Dropped| format!("{}\t{}\t{}\t{}", d.file, d.reason.name(), d.matched, number(d.similarity));
        save("dropped.tsv", &lines(&mut self.losses.iter().map(dropped)))?;
        if self.missing.is_some() || self.clusters.is_some() {
            let of = |n: &Neighbour| format!("{}\t{}\t{}\t{:.4}", n.file, n.set, n.by, n.similarity);
            save("retrieved.tsv", &lines(&mut self.retrieved.iter().map(of)))?;
        }
        let text = serde_json::to_string_pretty(self).map_err(|e| Error::Training(format!("report.json: {e}")))?;
        save("report.json", &(text + "\n"))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = format!("kept {} of {} images", self.kept, self.images);
        for (reason, count) in &self.dropped {
            write!(text, "; {reason}: {count}")?;
        }
        if let Some(clusters) = self.clusters {
            write!(text, "\n{clusters} clusters hold enough curated images")?;
        }
        if let Some(missing) = self.missing.filter(|missing| *missing > 0) {
            write!(
                text,
                "\n{missing} images are missing to --k for each curated image: others were nearer to the same ones"
            )?;
        }
        if let Some(score) = &self.score {
            write!(text, "\n{score}")?;
        }
        f.write_str(&text)
    }
}
