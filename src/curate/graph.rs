//! The graph of near-duplicates: nearest neighbours of every image of the pool and of the evaluation sets among all of them,
//! those kept that are similar enough.

use std::path::Path;

use super::config::{Config, Copies};
use super::parts::Parts;
use super::search::{Near, Rows, Wanted};
use crate::checkpoint::{StateDict, atomic, safetensors};
use crate::train::{Progress, interrupt};
use crate::{Device, Error, Result, Tensor};

/// Two images that are similar, by number: those of the pool first, then those of the evaluation sets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Edge {
    /// The one that was searched for.
    pub from: u32,
    /// The one that was found.
    pub to: u32,
    /// Cosine; of several views the largest.
    pub similarity: f32,
}

/// Edges between the images of `sets`, the pool and evaluation sets, numbered through; `None` if the user asked to stop.
///
/// # Errors
/// Those of the device; [`Error::Io`].
pub fn edges(sets: &[&Parts], config: &Config, device: &Device, folder: &Path) -> Result<Option<Vec<Edge>>> {
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let [pool, evaluation] = config.thresholds();
    let above = if sets.len() > 1 { pool.min(evaluation) } else { pool } as f32;
    let parts: Vec<(&Parts, usize)> = sets.iter().flat_map(|set| (0..set.count()).map(move |p| (*set, p))).collect();
    let file = |set: &Parts, part: usize| folder.join(format!("{}-{part:05}.safetensors", set.set.name));
    let done = parts.iter().take_while(|(set, part)| file(set, *part).exists()).count();
    let mut all = Vec::new();
    for (set, part) in &parts[..done] {
        all.extend(read(&file(set, *part))?);
    }
    if done < parts.len() {
        atomic::clean(folder, "")?;
        let mut progress = Progress::new("find copies", parts.len() as u64, done as u64, 1.0, "parts");
        let rows = whole_images(&parts, config.copies, device)?;
        let mut first: usize = parts[..done].iter().map(|(set, part)| set.len(*part)).sum();
        for (set, part) in &parts[done..] {
            if interrupt::asked() {
                return Ok(None);
            }
            let (queries, views) = set.descriptors(*part, config.copies)?;
            let wanted = Wanted { k: config.neighbours, above, views, own: Some(first) };
            let found = rows.nearest(&queries, &wanted)?;
            let of = |(near, from): (&Vec<Near>, u32)| -> Vec<Edge> {
                near.iter().map(|n| Edge { from, to: n.index, similarity: n.similarity }).collect()
            };
            let found: Vec<Edge> = found.iter().zip(first as u32..).flat_map(of).collect();
            write(&file(set, *part), &found)?;
            all.extend(found);
            first += set.len(*part);
            progress.step("");
        }
        progress.finish();
    }
    Ok(Some(all))
}

/// The first view of every image.
fn whole_images(parts: &[(&Parts, usize)], copies: Copies, device: &Device) -> Result<Rows> {
    let (mut values, mut dim) = (Vec::new(), 1);
    for (set, part) in parts {
        let (descriptors, views) = set.descriptors(*part, copies)?;
        if set.len(*part) > 0 {
            dim = descriptors.len() / (views * set.len(*part));
            values.extend(descriptors.chunks_exact(views * dim).flat_map(|image| &image[..dim]));
        }
    }
    Rows::new(&values, dim, device)
}

fn write(file: &Path, edges: &[Edge]) -> Result<()> {
    let n = edges.len();
    let pairs: Vec<i32> = edges.iter().flat_map(|e| [e.from as i32, e.to as i32]).collect();
    let similarities: Vec<f32> = edges.iter().map(|e| e.similarity).collect();
    let mut dict = StateDict::new();
    dict.insert("pairs", Tensor::from_slice(&pairs, [n, 2], &Device::Cpu)?)?;
    dict.insert("similarity", Tensor::from_slice(&similarities, [n], &Device::Cpu)?)?;
    safetensors::write(file, &dict)
}

fn read(file: &Path) -> Result<Vec<Edge>> {
    let dict = safetensors::read(file)?;
    let pairs = dict.require("pairs")?.to_vec::<i32>()?;
    let similarities = dict.require("similarity")?.to_vec::<f32>()?;
    let each = pairs.as_chunks::<2>().0.iter().zip(similarities);
    Ok(each.map(|(&[from, to], similarity)| Edge { from: from as u32, to: to as u32, similarity }).collect())
}
