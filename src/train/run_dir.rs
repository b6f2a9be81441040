//! The folder of a run: config.toml, metrics.jsonl, tensorboard, checkpoints, pictures, the finished weights.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::checkpoint::run_state::{FOLDER as CHECKPOINTS, Progress, RunFolder, RunState};
use crate::checkpoint::{StateDict, atomic};
use crate::optim::Optimizer;
use crate::train::Metrics;
use crate::{Error, Result};

const CONFIG: &str = "config.toml";
/// Keys of config.toml that may differ when a run is continued: places, which may move, and what does not change weights.
const FREE: [&str; 19] = [
    "data",
    "images",
    "train",
    "val",
    "model",
    "teacher",
    "init",
    "init_image",
    "tokenizer",
    "knn",
    "zero_shot",
    "classes",
    "retrieval",
    "out",
    "keep",
    "save_every",
    "log_every",
    "strict",
    "recompute",
];

/// A run's folder.
pub struct RunDir {
    path: PathBuf,
    states: RunFolder,
    begun: Progress,
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
    pub fn create<C: Serialize>(path: &Path, config: &C, data: String, keep: usize) -> Result<Self> {
        Self::require_free(path)?;
        let begun = Progress { step: 0, config: text(config)?, data };
        let states = RunFolder::open(path.join(CHECKPOINTS), keep)?;
        atomic::clean(path, CONFIG)?; // of a process killed just before its run began
        let run = Self { path: path.into(), states, begun, new: true };
        // Whole or not at all: a process killed here leaves a folder that a new run may still take.
        run.settle(atomic::write(path.join(CONFIG), |w| w.write_all(run.begun.config.as_bytes())))?;
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
    ///
    /// # Errors
    /// When `config` or `data` are not those the run began with: it would not be the same run any more.
    pub fn resume<C: Serialize>(
        path: &Path,
        config: &C,
        data: String,
        keep: usize,
    ) -> Result<(Self, Option<RunState>)> {
        let states = RunFolder::open(path.join(CHECKPOINTS), keep)?;
        atomic::clean(path, "")?;
        let begun = Progress { step: 0, config: text(config)?, data };
        let found = states.resume()?;
        if let Some(found) = &found {
            same_run(path, &begun, &found.state.progress)?;
        }
        let state = found.map(|found| {
            found.damaged.iter().for_each(|e| tracing::warn!("{e}; continuing from {}", found.path.display()));
            found.state
        });
        Ok((Self { path: path.into(), states, begun, new: false }, state))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Last part of the folder's path, for progress bars.
    pub fn name(&self) -> &str {
        self.path.file_name().and_then(|n| n.to_str()).unwrap_or("run")
    }

    /// Where a picture goes; its folder is made.
    pub fn picture(&self, name: &str) -> Result<PathBuf> {
        let folder = self.path.join("pictures");
        std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        Ok(folder.join(format!("{name}.png")))
    }

    /// Writes a checkpoint.
    pub fn save(&self, step: u64, model: &StateDict, optimizer: &dyn Optimizer) -> Result<()> {
        let mut tensors = StateDict::new();
        for (name, tensor) in optimizer.state()? {
            tensors.insert(name, tensor.to_device(&crate::Device::Cpu)?)?;
        }
        let progress = Progress { step, ..self.begun.clone() };
        self.states.save(&RunState { progress, model: model.clone(), optimizer: tensors })?;
        Ok(())
    }
}

fn text<C: Serialize>(config: &C) -> Result<String> {
    toml::to_string(config).map_err(|e| Error::config(CONFIG, e, "a configuration"))
}

/// Refuses to continue what began with another configuration or other data.
fn same_run(path: &Path, now: &Progress, then: &Progress) -> Result<()> {
    let table = |text: &str| toml::from_str::<toml::Table>(text).map_err(|e| Error::checkpoint(path, e.to_string()));
    let (new, old) = (table(&now.config)?, table(&then.config)?);
    let keys: BTreeSet<&String> = new.keys().chain(old.keys()).collect();
    let show = |value: Option<&toml::Value>| value.map_or("absent".into(), toml::Value::to_string);
    for key in keys.into_iter().filter(|key| !FREE.contains(&key.as_str())) {
        let (new, old) = (new.get(key), old.get(key));
        if new != old {
            let expected = format!("{} as when {} began", show(old), path.display());
            return Err(Error::config(key, show(new), expected));
        }
    }
    if now.data != then.data {
        let cause = format!("the data set has changed since the run began: {}, expected {}", now.data, then.data);
        return Err(Error::Dataset { path: path.into(), cause });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_may_change_and_numbers_may_not() {
        let with = |config: &str| Progress { step: 0, config: config.into(), data: "3 pairs".into() };
        let then = with("data = \"a\"\nimages = \"b\"\ninit_image = \"c\"\nlr = 0.1\n");
        let run = Path::new("run");
        assert!(same_run(run, &with("data = \"d\"\nimages = \"e\"\ninit_image = \"f\"\nlr = 0.1\n"), &then).is_ok());
        let error = same_run(run, &with("data = \"a\"\nlr = 0.2\n"), &then).unwrap_err().to_string();
        assert!(error.starts_with("config: `lr`"), "{error}");
    }
}
