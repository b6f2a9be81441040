//! What a run logs: one JSON object per line in metrics.jsonl, the same numbers as TensorBoard events.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::tensorboard::EventWriter;
use crate::checkpoint::atomic;
use crate::data::Image;
use crate::recipes::Numbers;
use crate::{Error, Result};

/// Both logs of a run folder.
pub struct Metrics {
    path: PathBuf,
    file: File,
    events: EventWriter,
}

impl Metrics {
    /// The JSON lines in a run's folder.
    pub const FILE: &str = "metrics.jsonl";
    /// The folder of TensorBoard events in a run's folder.
    pub const EVENTS: &str = "tensorboard";

    /// Opens the logs of a run that is at `step`; lines of later steps, left by a run that died after its last
    /// checkpoint, are dropped, so that no step is logged twice.
    pub fn open(folder: &Path, step: u64) -> Result<Self> {
        let path = folder.join(Self::FILE);
        if path.exists() {
            drop_after(&path, step)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(Error::io(&path))?;
        Ok(Self { path, file, events: EventWriter::create(&folder.join(Self::EVENTS))? })
    }

    /// Whether there is a line of a kind for a step.
    pub fn has(&self, kind: &str, step: u64) -> Result<bool> {
        let text = std::fs::read_to_string(&self.path).map_err(Error::io(&self.path))?;
        let mut lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        Ok(lines.any(|line| line["kind"] == kind && line["step"] == step))
    }

    /// Appends the numbers of one step under a kind (`train`, `eval`).
    pub fn log(&mut self, kind: &'static str, step: u64, epoch: f64, numbers: &Numbers) -> Result<()> {
        let mut line = Map::new();
        line.insert("kind".into(), json!(kind));
        line.insert("step".into(), json!(step));
        line.insert("epoch".into(), json!(epoch));
        for (name, value) in numbers {
            line.insert((*name).into(), json!(value)); // a value that is not finite becomes null
        }
        let text = format!("{}\n", Value::Object(line));
        self.file.write_all(text.as_bytes()).map_err(Error::io(&self.path))?;
        let tags: Vec<(String, f64)> = numbers.iter().map(|(n, v)| (format!("{kind}/{n}"), *v)).collect();
        self.events.scalars(step, tags.iter().map(|(n, v)| (n.as_str(), *v)))
    }

    /// Writes a picture to `path` and puts it among the TensorBoard pictures.
    pub fn picture(&mut self, step: u64, tag: &str, image: &Image, path: &Path) -> Result<()> {
        image.save_png(path)?;
        let png = std::fs::read(path).map_err(Error::io(path))?;
        self.events.image(step, tag, image.width, image.height, &png)
    }
}

fn drop_after(path: &Path, step: u64) -> Result<()> {
    let reader = BufReader::new(File::open(path).map_err(Error::io(path))?);
    let mut kept = String::new();
    for line in reader.lines() {
        let line = line.map_err(Error::io(path))?;
        // A line cut by a crash does not parse and goes too.
        let at = serde_json::from_str::<Value>(&line).ok().and_then(|v| v["step"].as_u64());
        if at.is_some_and(|at| at <= step) {
            kept.push_str(&line);
            kept.push('\n');
        }
    }
    atomic::write(path, |w| w.write_all(kept.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_run_logs_no_step_twice() {
        let folder = tempfile::tempdir().unwrap();
        let mut metrics = Metrics::open(folder.path(), 0).unwrap();
        for step in 1..=5 {
            metrics.log("train", step, 0.0, &vec![("loss", 1.0 / step as f64)]).unwrap();
        }
        drop(metrics);
        let path = folder.path().join("metrics.jsonl");
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"{\"kind\":\"train\",\"st").unwrap(); // cut by a crash
        let mut metrics = Metrics::open(folder.path(), 3).unwrap();
        metrics.log("train", 4, 0.0, &vec![("loss", 0.25)]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let steps: Vec<u64> =
            text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["step"].as_u64().unwrap()).collect();
        assert_eq!(steps, [1, 2, 3, 4]);
        assert!(metrics.has("train", 4).unwrap() && !metrics.has("train", 5).unwrap());
        assert!(!metrics.has("eval", 4).unwrap());
    }
}
