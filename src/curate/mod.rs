//! Data curation as DINOv2 describes it (Oquab et al. 2023, arXiv 2304.07193, section 3 and appendix A): of a pool of images
//! near-duplicates and copies of evaluation images are dropped, and of the rest those retrieved that are like curated ones.
//!
//! Stages: images become vectors (`parts`), vectors a graph of near-duplicates (`graph`), components of it decide what
//! stays (`decide`), features what is retrieved (`retrieve`). Each long stage leaves its parts on the disk, whole or not
//! at all, and everything random is drawn from the seed: a run that is stopped at any moment and given again ends as if it had
//! not been stopped.

mod config;
mod copies;
mod decide;
mod disjoint;
mod graph;
mod kmeans;
mod parts;
mod report;
mod retrieve;
mod score;
mod search;
mod sheet;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

pub use config::{Config, Copies, Retrieve, Settings};
pub use report::{Dropped, Neighbour, Reason, Report};
pub use score::Score;

use crate::data::{Folder, Source};
use crate::recipes::{Encoder, encoder};
use crate::train::interrupt;
use crate::{DType, Device, Error, Result, Tensor};
use config::settings;
use decide::Fate;
use parts::{Parts, Set};
use retrieve::Found;

/// Curates; `None` if the user asked to stop, and the same call goes on.
///
/// # Errors
/// Settings that cannot be used or with which `config.out` was not begun; folders without images; those of the model;
/// [`Error::Io`].
pub fn run(config: &Config, device: &Device, dtype: DType) -> Result<Option<Report>> {
    config.check()?;
    interrupt::listen();
    let open = |path: &PathBuf, name: String| Ok(Set { name, folder: Arc::new(Folder::unlabelled(path)?) });
    let pool = open(&config.pool, "pool".into())?;
    let several = |name: &str, paths: &[PathBuf]| {
        paths.iter().enumerate().map(|(i, path)| open(path, format!("{name}-{i}"))).collect::<Result<Vec<_>>>()
    };
    let (evaluation, curated) = (several("evaluation", &config.evaluation)?, several("curated", &config.curated)?);
    let model = match config.model.as_deref().filter(|_| config.needs_model()) {
        Some(path) => Some(encoder::load(path, device, dtype, None, None)?),
        None => None,
    };
    let model = model.as_deref();
    let of = |set: &Set| (set.name.clone(), set.folder.identity());
    let mut identities: Vec<_> = [&pool].into_iter().chain(&evaluation).chain(&curated).map(of).collect();
    if let Some(model) = model {
        identities.push(("model".into(), fingerprint(model)?));
    }
    let settings = settings(config, identities)?;
    if config::begin(&config.out, &settings)? {
        tracing::info!("{} was begun before and is continued", config.out.display());
    }

    let mut seconds = BTreeMap::new();
    let mut clock = Instant::now();
    let mut lap = |stage: &'static str| {
        seconds.insert(stage, clock.elapsed().as_secs_f64());
        clock = Instant::now();
    };
    let mut sets = Vec::with_capacity(1 + evaluation.len() + curated.len());
    for set in [&pool].into_iter().chain(&evaluation).chain(&curated) {
        let embeds = set.name.starts_with("evaluation") && config.copies == Copies::Pixels;
        let model = model.filter(|_| !embeds);
        let Some(parts) = parts::embed(set, model, config, &config.out.join("vectors"))? else { return Ok(None) };
        sets.push(parts);
    }
    let curated = sets.split_off(1 + evaluation.len());
    lap("embed");
    let compared: Vec<&Parts> = sets.iter().collect();
    let Some(edges) = graph::edges(&compared, config, device, &config.out.join("pairs"))? else { return Ok(None) };
    lap("find copies");
    let fates = decide::decide(&sets[0].sizes, &edges, config.thresholds());
    let left: Vec<u32> = (0..fates.len() as u32).filter(|&i| fates[i as usize] == Fate::Kept).collect();
    let found = match config.retrieve {
        Retrieve::None => None,
        _ => {
            let (features, dim) = sets[0].all_features()?;
            let points: Vec<f32> = left.iter().flat_map(|&i| &features[i as usize * dim..][..dim]).copied().collect();
            drop(features);
            let folder = config.out.join("neighbours");
            match retrieve::retrieve(&points, dim, &curated, config, device, &folder)? {
                Some(found) => Some(found),
                None => return Ok(None),
            }
        }
    };
    lap("retrieve");

    let (files, retrieved) = chosen(&sets[0], &left, found.as_ref(), &curated, config);
    let losses = losses(&sets, &fates, &files);
    let mut dropped = BTreeMap::new();
    for loss in &losses {
        *dropped.entry(loss.reason.name()).or_insert(0) += 1;
    }
    let elsewhere = sets[1..].iter().chain(&curated);
    let mut report = Report {
        settings,
        images: pool.folder.len(),
        kept: files.len(),
        dropped,
        pairs: edges.len(),
        unreadable_elsewhere: elsewhere.flat_map(|parts| parts.skipped.values().cloned()).collect(),
        missing: found.as_ref().filter(|_| config.retrieve == Retrieve::Sample).map(|found| found.missing),
        clusters: found.as_ref().filter(|_| config.retrieve == Retrieve::Cluster).map(|found| found.clusters),
        score: None,
        seconds: BTreeMap::new(),
        files,
        losses,
        retrieved,
    };
    report.score = config.truth.as_deref().map(|truth| score::score(&report, truth)).transpose()?;
    sheet::draw(&report.losses, config.sheet, &config.pool, &config.out)?;
    deliver(&report.files, config)?;
    lap("write");
    report.seconds = seconds;
    report.write(&config.out)?;
    Ok(Some(report))
}

/// What tells models apart, whatever files they lie in: a checksum of the features of a picture.
fn fingerprint(model: &dyn Encoder) -> Result<String> {
    let [height, width] = model.image_size();
    let values: Vec<u8> = (0..3 * height * width).map(|i| (i * 37 % 251) as u8).collect();
    let features = model.features(&Tensor::from_slice(&values, [1, 3, height, width], model.device())?)?.to_f64()?;
    Ok(format!("checksum of its features {:08x}", crc32c::crc32c(bytemuck::cast_slice(&features))))
}

/// Files that stay, in the order of the pool, and what was retrieved by what.
fn chosen(
    pool: &Parts,
    left: &[u32],
    found: Option<&Found>,
    curated: &[Parts],
    config: &Config,
) -> (Vec<String>, Vec<Neighbour>) {
    let file = |i: u32| pool.set.file(pool.indices[i as usize]);
    let Some(found) = found else { return (left.iter().map(|&i| file(i)).collect(), Vec::new()) };
    let neighbour = |r: &retrieve::Retrieved| {
        let set = &curated[r.set];
        let by = match config.retrieve {
            Retrieve::Cluster => format!("cluster {}", r.by),
            _ => set.set.file(set.indices[r.by as usize]),
        };
        let folder = set.set.folder.root().display().to_string();
        Neighbour { file: file(left[r.image as usize]), set: folder, by, similarity: r.similarity }
    };
    let mut images: Vec<u32> = found.retrieved.iter().map(|r| left[r.image as usize]).collect();
    images.sort_unstable();
    images.dedup(); // several curated folders may want the same image
    (images.into_iter().map(file).collect(), found.retrieved.iter().map(neighbour).collect())
}

/// What is dropped and why, in the order of the pool's files. `sets` are the pool and the evaluation sets.
fn losses(sets: &[Parts], fates: &[Fate], kept: &[String]) -> Vec<Dropped> {
    let pool = &sets[0];
    let place = |mut number: u32| {
        let at = |set: &Parts, number: u32| {
            let index = set.indices[number as usize];
            (set.set.file(index), set.set.folder.path(index as usize).to_path_buf())
        };
        for set in sets {
            match number.checked_sub(set.indices.len() as u32) {
                None => return at(set, number),
                Some(rest) => number = rest,
            }
        }
        Default::default()
    };
    let kept: std::collections::HashSet<&str> = kept.iter().map(String::as_str).collect();
    let mut all: BTreeMap<u32, Dropped> = BTreeMap::new();
    for (&index, fate) in pool.indices.iter().zip(fates) {
        let file = pool.set.file(index);
        let (reason, near) = match *fate {
            Fate::Duplicate(of, similarity) => (Reason::Duplicate, Some((of, similarity))),
            Fate::Evaluation(of, similarity) => (Reason::Evaluation, Some((of, similarity))),
            Fate::Kept if kept.contains(file.as_str()) => continue,
            Fate::Kept => (Reason::NotRetrieved, None),
        };
        let (matched, matched_path) = near.map(|(of, _)| place(of)).unwrap_or_default();
        all.insert(index, Dropped { file, reason, matched, matched_path, similarity: near.map(|n| n.1) });
    }
    for (&index, cause) in &pool.skipped {
        let (file, matched) = (pool.set.file(index), cause.replace(['\t', '\n'], " "));
        let dropped =
            Dropped { file, reason: Reason::Unreadable, matched, matched_path: PathBuf::new(), similarity: None };
        all.insert(index, dropped);
    }
    all.into_values().collect()
}

/// Makes the folder of links or copies that was asked for. What is there already stays.
fn deliver(files: &[String], config: &Config) -> Result<()> {
    let Some(folder) = config.link.as_ref().or(config.copy.as_ref()) else { return Ok(()) };
    for file in files {
        let (from, to) = (config.pool.join(file), folder.join(file));
        if let Some(above) = to.parent() {
            std::fs::create_dir_all(above).map_err(Error::io(above))?;
        }
        if to.symlink_metadata().is_ok() {
            continue;
        }
        if config.link.is_some() {
            link(&std::path::absolute(&from).map_err(Error::io(&from))?, &to)?;
        } else {
            let bytes = std::fs::read(&from).map_err(Error::io(&from))?;
            crate::checkpoint::atomic::write(&to, |w| std::io::Write::write_all(w, &bytes))?;
        }
    }
    Ok(())
}

#[cfg(unix)]
fn link(from: &Path, to: &Path) -> Result<()> {
    std::os::unix::fs::symlink(from, to).map_err(Error::io(to))
}

#[cfg(not(unix))]
fn link(_: &Path, to: &Path) -> Result<()> {
    Err(Error::config("link", to.display(), "--copy: links to files are for Unix"))
}
