//! The folder of a run: config.toml, metrics.jsonl, tensorboard, checkpoints, pictures, the finished weights.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::checkpoint::run_state::{Progress, RunFolder, RunState};
use crate::checkpoint::{StateDict, atomic};
use crate::optim::AdamW;
use crate::train::Metrics;
use crate::{Error, Result};

const CONFIG: &str = "config.toml";
const CHECKPOINTS: &str = "checkpoints";

/// A run's folder.
pub struct RunDir {
    path: PathBuf,
    states: RunFolder,
    config: String,
    seed: u64,
    new: bool,
}

impl RunDir {
    /// Refuses a folder that holds a run already, or checkpoints of one.
    pub fn require_free(path: &Path) -> Result<()> {
        let checkpoints = path.join(CHECKPOINTS).read_dir().is_ok_and(|mut entries| entries.next().is_some());
        if checkpoints || path.join(CONFIG).exists() {
            let cause = "holds a run already; continue it with --resume or give another folder with --out";
            return Err(Error::Dataset { path: path.into(), cause: cause.into() });
        }
        Ok(())
    }

    /// A new run: makes the folder and writes config.toml.
    ///
    /// # Errors
    /// When the folder holds a run already.
    pub fn create<C: Serialize>(path: &Path, config: &C, seed: u64, keep: usize) -> Result<Self> {
        Self::require_free(path)?;
        let config = toml::to_string(config).map_err(|e| Error::config(CONFIG, e, "a configuration"))?;
        let states = RunFolder::open(path.join(CHECKPOINTS), keep)?;
        let run = Self { path: path.into(), states, config, seed, new: true };
        // Whole or not at all: a process killed here leaves a folder that a new run may still take.
        run.settle(atomic::write(path.join(CONFIG), |w| w.write_all(run.config.as_bytes())))?;
        Ok(run)
    }

    /// Passes `outcome` on. After an error of a new run that has neither logged nor saved anything, removes what it made in
    /// its folder, so that the same command can be given again.
    pub fn settle<T>(&self, outcome: Result<T>) -> Result<T> {
        if outcome.is_err() && self.new && self.unused() {
            // Best effort: the error to be reported is the one that ended the run.
            let _ = std::fs::remove_file(self.path.join(CONFIG));
            let _ = std::fs::remove_file(self.path.join(Metrics::FILE));
            let _ = std::fs::remove_dir_all(self.path.join(Metrics::EVENTS));
            let _ = std::fs::remove_dir(self.path.join(CHECKPOINTS));
            let _ = std::fs::remove_dir(&self.path); // only if nothing else is in it
        }
        outcome
    }

    fn unused(&self) -> bool {
        let logged = std::fs::metadata(self.path.join(Metrics::FILE)).is_ok_and(|file| file.len() > 0);
        !logged && self.states.files().is_ok_and(|files| files.is_empty())
    }

    /// The configuration of an existing run.
    pub fn read_config<C: DeserializeOwned>(path: &Path) -> Result<C> {
        let file = path.join(CONFIG);
        if !file.exists() {
            let cause = format!("holds no run: there is no {CONFIG} in it");
            return Err(Error::Dataset { path: path.into(), cause });
        }
        let text = std::fs::read_to_string(&file).map_err(Error::io(&file))?;
        toml::from_str(&text)
            .map_err(|e| Error::config(file.display().to_string(), e.message(), "a run's configuration"))
    }

    /// Opens an existing run and its newest intact state; `None` if it was stopped before the first checkpoint.
    ///
    /// Damaged checkpoints are passed over with a warning that names them.
    pub fn resume<C: Serialize>(path: &Path, config: &C, seed: u64, keep: usize) -> Result<(Self, Option<RunState>)> {
        let states = RunFolder::open(path.join(CHECKPOINTS), keep)?;
        atomic::clean(path, "")?;
        let config = toml::to_string(config).map_err(|e| Error::config(CONFIG, e, "a configuration"))?;
        let found = states.resume()?;
        let state = found.map(|found| {
            found.damaged.iter().for_each(|e| tracing::warn!("{e}; continuing from {}", found.path.display()));
            found.state
        });
        Ok((Self { path: path.into(), states, config, seed, new: false }, state))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Last part of the folder's path, for progress bars.
    pub fn name(&self) -> &str {
        self.path.file_name().and_then(|n| n.to_str()).unwrap_or("run")
    }

    /// Writes a checkpoint.
    pub fn save(&self, step: u64, model: &StateDict, optimizer: &AdamW) -> Result<()> {
        let mut tensors = StateDict::new();
        for (name, tensor) in optimizer.state()? {
            tensors.insert(name, tensor.to_device(&crate::Device::Cpu)?)?;
        }
        let progress = Progress { step, seed: self.seed, config: self.config.clone(), ..Progress::default() };
        self.states.save(&RunState { progress, model: model.clone(), optimizer: tensors })?;
        Ok(())
    }
}
