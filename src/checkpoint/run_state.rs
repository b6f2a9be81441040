//! The state of a training run on disk, such that a process killed at any moment leaves a folder to resume from.
//!
//! One safetensors file per saved step, `step-00001000.safetensors`, holds the tensors of the model (`model.*`) and of the
//! optimizer (`optimizer.*`), and as metadata that of the model, the [`Progress`] and a CRC-32C over all of it. Files appear by renaming, complete or
//! not at all; a file that was damaged later is recognised by its checksum, and [`RunFolder::resume`] falls back to the one
//! before. The text file `latest` names the newest file for people and scripts.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{StateDict, atomic, safetensors};
use crate::{Error, Result};

/// Version of the layout that this crate writes. Files of later versions are refused.
pub const SCHEMA: u32 = 1;
/// The folder of states in a run's folder.
pub const FOLDER: &str = "checkpoints";

const SCHEMA_KEY: &str = "ocellus.schema";
const PROGRESS_KEY: &str = "ocellus.progress";
const CHECKSUM_KEY: &str = "ocellus.crc32c";
const MODEL: &str = "model.";
const OPTIMIZER: &str = "optimizer.";
const STEM: &str = "step-";
const SUFFIX: &str = ".safetensors";
const POINTER: &str = "latest";

/// Where a run stands, apart from its tensors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Optimizer steps done.
    pub step: u64,
    /// Text of the run's configuration, from which all random numbers and, with `step`, the place in the data follow.
    pub config: String,
    /// What tells the run's data set from others.
    pub data: String,
}

/// Everything that a run continues from.
#[derive(Clone, Debug, Default)]
pub struct RunState {
    /// Where the run stands.
    pub progress: Progress,
    /// Parameters, and metadata that says how to build their model.
    pub model: StateDict,
    /// State of the optimizer.
    pub optimizer: StateDict,
}

/// A state that was found, and the files that were passed over because they are damaged.
#[derive(Debug)]
pub struct Resumed {
    /// The newest intact state.
    pub state: RunState,
    /// Its file.
    pub path: PathBuf,
    /// Newer files that could not be used, newest first; the messages name them.
    pub damaged: Vec<Error>,
}

/// CRC-32C over names, types, shapes, contents and metadata, whatever the spelling of the header.
fn checksum(dict: &StateDict) -> Result<String> {
    let mut crc = 0;
    let mut add = |bytes: &[u8]| {
        crc = crc32c::crc32c_append(crc, &(bytes.len() as u64).to_le_bytes());
        crc = crc32c::crc32c_append(crc, bytes);
    };
    for (name, tensor, bytes) in safetensors::order(dict)? {
        add(name.as_bytes());
        add(tensor.dtype().name().as_bytes());
        add(&tensor.shape().iter().flat_map(|d| (*d as u64).to_le_bytes()).collect::<Vec<_>>());
        add(bytes);
    }
    for (key, text) in dict.metadata.iter().filter(|(key, _)| *key != CHECKSUM_KEY) {
        add(key.as_bytes());
        add(text.as_bytes());
    }
    Ok(format!("{crc:08x}"))
}

impl RunState {
    /// Writes one file atomically.
    ///
    /// # Errors
    /// [`Error::Io`]; what was at `path` before then still is.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let progress = serde_json::to_string(&self.progress).map_err(|e| Error::checkpoint(path, e.to_string()))?;
        let mut dict = StateDict::new();
        dict.extend(MODEL, &self.model)?;
        dict.extend(OPTIMIZER, &self.optimizer)?;
        dict.metadata = self.model.metadata.clone();
        dict.metadata.insert(SCHEMA_KEY.into(), SCHEMA.to_string());
        dict.metadata.insert(PROGRESS_KEY.into(), progress);
        dict.metadata.insert(CHECKSUM_KEY.into(), checksum(&dict)?);
        safetensors::write(path, &dict)
    }

    /// Reads one file and checks it whole.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Checkpoint`] for damaged files and for other kinds of files.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let dict = safetensors::read(path)?;
        check_schema(path, &dict.metadata)?;
        let progress = progress(path, &dict.metadata)?;
        let (stated, found) = (dict.metadata.get(CHECKSUM_KEY), checksum(&dict)?);
        if stated != Some(&found) {
            let stated = stated.map_or("none", String::as_str);
            return Err(Error::checkpoint(path, format!("damaged: its checksum is {found}, it states {stated}")));
        }
        let (mut model, optimizer) = (dict.strip_prefix(MODEL), dict.strip_prefix(OPTIMIZER));
        model.metadata = dict.metadata;
        model.metadata.retain(|key, _| ![SCHEMA_KEY, PROGRESS_KEY, CHECKSUM_KEY].contains(&key.as_str()));
        Ok(Self { progress, model, optimizer })
    }

    /// Whether a file that was read as weights is such a state.
    pub fn is_state(file: &StateDict) -> bool {
        file.metadata.contains_key(SCHEMA_KEY)
    }
}

fn check_schema(path: &Path, metadata: &BTreeMap<String, String>) -> Result<()> {
    let schema = metadata.get(SCHEMA_KEY).ok_or_else(|| {
        Error::checkpoint(
            path,
            "not the state of a training run: to start from these weights, give them as initial weights",
        )
    })?;
    match schema.parse::<u32>() {
        Ok(1..=SCHEMA) => Ok(()),
        _ => {
            Err(Error::checkpoint(path, format!("layout version {schema}, this program knows versions up to {SCHEMA}")))
        }
    }
}

fn progress(path: &Path, metadata: &BTreeMap<String, String>) -> Result<Progress> {
    let text = metadata.get(PROGRESS_KEY).map_or("", String::as_str);
    serde_json::from_str(text)
        .map_err(|e| Error::checkpoint(path, format!("damaged: its progress is not readable: {e}")))
}

/// The folder of a run's states.
#[derive(Clone, Debug)]
pub struct RunFolder {
    path: PathBuf,
    keep: usize,
}

impl RunFolder {
    /// The folder of a run that may be under way, for reading.
    pub fn reading(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), keep: usize::MAX }
    }

    /// The folder of a run that will write here, made if it is missing; keeps the newest `keep` files (at least one).
    /// Removes what a killed process left half-written: only one process may train in a folder.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(path: impl Into<PathBuf>, keep: usize) -> Result<Self> {
        let path = path.into();
        fs::create_dir_all(&path).map_err(Error::io(&path))?;
        atomic::clean(&path, STEM)?;
        atomic::clean(&path, POINTER)?;
        Ok(Self { path, keep: keep.max(1) })
    }

    /// Steps and files in this folder, oldest first.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn files(&self) -> Result<Vec<(u64, PathBuf)>> {
        let mut files = vec![];
        for entry in fs::read_dir(&self.path).map_err(Error::io(&self.path))? {
            let path = entry.map_err(Error::io(&self.path))?.path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            let step = name.strip_prefix(STEM).and_then(|n| n.strip_suffix(SUFFIX)).and_then(|n| n.parse().ok());
            files.extend(step.map(|step| (step, path)));
        }
        files.sort();
        Ok(files)
    }

    /// Saves a state as the newest: the file, the pointer, then the removal of old files. Files of later steps, left by a run
    /// that went further before it was taken up again from here, get `.superseded` appended so that they are not resumed from.
    ///
    /// # Errors
    /// [`Error::Io`]; everything saved before is then still there.
    pub fn save(&self, state: &RunState) -> Result<PathBuf> {
        let step = state.progress.step;
        for (_, path) in self.files()?.into_iter().filter(|(s, _)| *s > step) {
            let mut aside = path.clone().into_os_string();
            aside.push(".superseded");
            fs::rename(&path, aside).map_err(Error::io(&path))?;
        }
        let name = format!("{STEM}{step:08}{SUFFIX}");
        let path = self.path.join(&name);
        state.write(&path)?;
        atomic::write(self.path.join(POINTER), |w| writeln!(w, "{name}"))?;
        self.prune()?;
        Ok(path)
    }

    fn prune(&self) -> Result<()> {
        let files = self.files()?;
        let old = &files[..files.len().saturating_sub(self.keep)];
        old.iter().try_for_each(|(_, path)| fs::remove_file(path).map_err(Error::io(path)))
    }

    /// The newest intact state, or `None` in a folder without any file. Damaged files are passed over and returned by name.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Checkpoint`] when there are files but none is intact, or when the newest is of a later version of
    /// this program.
    pub fn resume(&self) -> Result<Option<Resumed>> {
        let mut damaged = vec![];
        for (_, path) in self.files()?.into_iter().rev() {
            if let Ok(header) = safetensors::read_header(&path) {
                check_schema(&path, &header.metadata)?; // not damage: an older state would silently lose work
            }
            match RunState::read(&path) {
                Ok(state) => return Ok(Some(Resumed { state, path, damaged })),
                Err(fault) => {
                    tracing::warn!("{fault}");
                    damaged.push(fault);
                }
            }
        }
        if damaged.is_empty() {
            return Ok(None);
        }
        let causes: Vec<_> = damaged.iter().map(Error::to_string).collect();
        Err(Error::checkpoint(&self.path, format!("no intact state to resume from: {}", causes.join("; "))))
    }
}
