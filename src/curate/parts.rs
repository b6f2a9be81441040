//! Images as vectors, in parts on the disk: what a run that was killed does not compute again.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;

use super::config::{Config, Copies};
use super::copies::{self, THUMBNAIL, VIEWS};
use crate::checkpoint::{StateDict, atomic, safetensors};
use crate::data::loader::{Options, Position, Unreadable};
use crate::data::{Folder, Image, Loader, Source, Stream, transforms};
use crate::eval::rows;
use crate::recipes::Encoder;
use crate::train::{Progress, interrupt};
use crate::{Device, Error, Result, Tensor};

/// A folder of images under a name of its own.
#[derive(Clone)]
pub struct Set {
    /// `pool`, `curated-0`, `evaluation-0`, ...
    pub name: String,
    /// The images.
    pub folder: Arc<Folder>,
}

impl Set {
    /// Name of an image's file below the folder.
    pub fn file(&self, index: u32) -> String {
        let path = self.folder.path(index as usize);
        path.strip_prefix(self.folder.root()).unwrap_or(path).display().to_string()
    }
}

/// The readable images of a set as vectors, on the disk.
pub struct Parts {
    /// The set.
    pub set: Set,
    files: Vec<PathBuf>,
    lengths: Vec<usize>,
    /// Number in the folder of each readable image.
    pub indices: Vec<u32>,
    /// Width and height of each.
    pub sizes: Vec<[u32; 2]>,
    /// Numbers of images that could not be read, with the cause.
    pub skipped: BTreeMap<u32, String>,
}

impl Parts {
    /// Number of parts.
    pub fn count(&self) -> usize {
        self.files.len()
    }

    /// Readable images of a part.
    pub fn len(&self, part: usize) -> usize {
        self.lengths[part]
    }

    /// What copies of the images of a part are found by, unit length, and how many views of an image there are:
    /// `[n, views, dim]`, the whole image first.
    pub fn descriptors(&self, part: usize, copies: Copies) -> Result<(Vec<f32>, usize)> {
        match copies {
            Copies::Model => Ok((self.features(part)?.0, 1)),
            Copies::Pixels => {
                let dict = safetensors::read(&self.files[part])?;
                let thumbnails = dict.require("thumbnails")?.as_slice::<u8>()?;
                let each = thumbnails.par_chunks_exact(THUMBNAIL).flat_map_iter(copies::descriptor);
                Ok((each.collect(), VIEWS))
            }
        }
    }

    /// Features of a part at unit length `[n, dim]`, and `dim`.
    pub fn features(&self, part: usize) -> Result<(Vec<f32>, usize)> {
        let dict = safetensors::read(&self.files[part])?;
        let features = dict.require("features")?;
        Ok((rows::unit(features)?.to_vec()?, features.shape()[1]))
    }

    /// Features of all images.
    pub fn all_features(&self) -> Result<(Vec<f32>, usize)> {
        let (mut all, mut dim) = (Vec::new(), 0);
        for part in 0..self.count() {
            let (features, width) = self.features(part)?;
            all.extend(features);
            dim = width;
        }
        Ok((all, dim))
    }
}

/// Computes the parts of a set that are missing in `folder`; `None` if the user asked to stop.
///
/// # Errors
/// [`Error::Dataset`] when no image can be read, with `strict` when one cannot; those of the model.
pub fn embed(set: &Set, model: Option<&dyn Encoder>, config: &Config, folder: &Path) -> Result<Option<Parts>> {
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    atomic::clean(folder, &set.name)?;
    let batches = config.save_every.div_ceil(config.batch_size);
    let images = batches * config.batch_size;
    let count = set.folder.len().div_ceil(images);
    let files: Vec<PathBuf> =
        (0..count).map(|part| folder.join(format!("{}-{part:05}.safetensors", set.name))).collect();
    let first = files.iter().position(|file| !file.exists()).unwrap_or(count);
    if first < count {
        let options = Options {
            start: Position { epoch: 0, step: (first * batches) as u64 },
            unreadable: if config.strict { Unreadable::Fail } else { Unreadable::Omit },
            ..Options::evaluation(config.batch_size)
        };
        let pixels = config.copies == Copies::Pixels && !set.name.starts_with("curated");
        let mut loader = Loader::new(set.folder.clone(), pack(model.map(Encoder::image_size), pixels)?, options)?;
        let total = set.folder.len().div_ceil(config.batch_size) as u64;
        let label = format!("embed {}", set.name);
        let mut progress = Progress::new(&label, total, (first * batches) as u64, config.batch_size as f64, "images");
        for (part, file) in files.iter().enumerate().skip(first) {
            let numbers = (part * images) as u32..set.folder.len().min((part + 1) * images) as u32;
            let mut open = Open::default();
            for _ in 0..(numbers.len()).div_ceil(config.batch_size) {
                if interrupt::asked() {
                    return Ok(None);
                }
                let Some(batch) = loader.next().transpose()? else { break };
                open.add(&batch.images, &batch.indices, model, pixels)?;
                progress.step("");
            }
            let failures: BTreeMap<PathBuf, String> = loader.failures().into_iter().collect();
            open.write(file, set, numbers, &failures, model.map(Encoder::dim), pixels)?;
        }
        progress.finish();
    }
    let parts = read(set, files)?;
    if parts.indices.is_empty() {
        return Err(Error::Dataset { path: set.folder.root().into(), cause: "no readable image".into() });
    }
    Ok(Some(parts))
}

/// Bytes that one image becomes: what the model sees, views, width and height.
fn pack(
    size: Option<[usize; 2]>,
    pixels: bool,
) -> Result<impl Fn(&Image, &mut Stream) -> Result<Vec<u8>> + Send + Sync + 'static> {
    let evaluate = size.map(transforms::evaluate).transpose()?;
    Ok(move |image: &Image, rng: &mut Stream| {
        let mut bytes = evaluate.as_ref().map(|evaluate| evaluate(image, rng)).transpose()?.unwrap_or_default();
        if pixels {
            bytes.extend(copies::views(image)?);
        }
        bytes.extend((image.width as u32).to_le_bytes());
        bytes.extend((image.height as u32).to_le_bytes());
        Ok(bytes)
    })
}

/// A part that is being filled.
#[derive(Default)]
struct Open {
    indices: Vec<i32>,
    sizes: Vec<i32>,
    thumbnails: Vec<u8>,
    features: Vec<f32>,
}

impl Open {
    /// What [`pack`] made of the images of a batch.
    fn add(&mut self, packed: &[u8], indices: &[u32], model: Option<&dyn Encoder>, pixels: bool) -> Result<()> {
        if indices.is_empty() {
            return Ok(()); // every image of the batch was unreadable
        }
        let size = model.map_or([0, 0], Encoder::image_size);
        let planes = 3 * size[0] * size[1];
        let views = if pixels { VIEWS * THUMBNAIL } else { 0 };
        let mut inputs = Vec::with_capacity(planes * indices.len());
        for image in packed.chunks_exact(planes + views + 8) {
            inputs.extend_from_slice(&image[..planes]);
            self.thumbnails.extend_from_slice(&image[planes..planes + views]);
            let sides = image[planes + views..].as_chunks::<4>().0;
            self.sizes.extend(sides.iter().map(|side| i32::from_le_bytes(*side)));
        }
        self.indices.extend(indices.iter().map(|&i| i as i32));
        if let Some(model) = model {
            let images = Tensor::from_slice(&inputs, [indices.len(), 3, size[0], size[1]], model.device())?;
            self.features.extend(model.features(&images)?.to_f64()?.into_iter().map(|x| x as f32));
        }
        Ok(())
    }

    /// Whole or not at all.
    fn write(
        self,
        file: &Path,
        set: &Set,
        numbers: std::ops::Range<u32>,
        failures: &BTreeMap<PathBuf, String>,
        dim: Option<usize>,
        pixels: bool,
    ) -> Result<()> {
        let n = self.indices.len();
        let read: HashSet<i32> = self.indices.iter().copied().collect();
        let cause = |i: u32| failures.get(set.folder.path(i as usize)).cloned().unwrap_or_default();
        let skipped: BTreeMap<u32, String> =
            numbers.filter(|i| !read.contains(&(*i as i32))).map(|i| (i, cause(i))).collect();
        let mut dict = StateDict::new();
        dict.insert("indices", Tensor::from_slice(&self.indices, [n], &Device::Cpu)?)?;
        dict.insert("sizes", Tensor::from_slice(&self.sizes, [n, 2], &Device::Cpu)?)?;
        if let Some(dim) = dim {
            dict.insert("features", Tensor::from_slice(&self.features, [n, dim], &Device::Cpu)?)?;
        }
        if pixels {
            let shape = [n, VIEWS, THUMBNAIL];
            dict.insert("thumbnails", Tensor::from_slice(&self.thumbnails, shape, &Device::Cpu)?)?;
        }
        dict.metadata.insert("skipped".into(), serde_json::json!(skipped).to_string());
        safetensors::write(file, &dict)
    }
}

fn read(set: &Set, files: Vec<PathBuf>) -> Result<Parts> {
    let (mut indices, mut sizes, mut skipped) = (Vec::new(), Vec::new(), BTreeMap::new());
    let mut lengths = Vec::with_capacity(files.len());
    for file in &files {
        let dict = safetensors::read(file)?;
        let numbers = dict.require("indices")?.as_slice::<i32>()?;
        lengths.push(numbers.len());
        indices.extend(numbers.iter().map(|&i| i as u32));
        let sides = dict.require("sizes")?.to_vec::<i32>()?;
        sizes.extend(sides.as_chunks::<2>().0.iter().map(|size| size.map(|side| side as u32)));
        let text = dict.metadata.get("skipped").map_or("{}", String::as_str);
        let some: BTreeMap<u32, String> =
            serde_json::from_str(text).map_err(|e| Error::checkpoint(file, format!("`skipped`: {e}")))?;
        skipped.extend(some);
    }
    Ok(Parts { set: set.clone(), files, lengths, indices, sizes, skipped })
}
