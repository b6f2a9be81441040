//! Features of a folder of images by a frozen encoder.

use std::path::Path;
use std::sync::Arc;

use crate::checkpoint::{StateDict, npy, safetensors};
use crate::data::loader::Options;
use crate::data::{Folder, Loader, Source, transforms};
use crate::recipes::mae::{Classifier, imagenet_norm};
use crate::{Device, Error, Result, Tape, Tensor, Var};

/// One row for each readable image, in the order of the folder.
#[derive(Clone, Debug)]
pub struct Features {
    /// `[N, dim]`, or of all tokens `[N, 1 + patches, dim]`, f32 on the CPU.
    pub values: Tensor,
    /// Class of each row, -1 without class folders.
    pub labels: Vec<i32>,
    /// File of each row, below the folder.
    pub files: Vec<String>,
    /// Files that could not be read, with the cause.
    pub skipped: Vec<String>,
}

impl Features {
    /// Number of classes; an error without labels.
    pub fn classes(&self, path: &Path) -> Result<usize> {
        match self.labels.iter().max() {
            Some(&max) if max >= 0 => Ok(max as usize + 1),
            _ => Err(Error::Dataset {
                path: path.into(),
                cause: "has no class folders, expected one for each class".into(),
            }),
        }
    }
}

/// What is taken of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// What a head would see: the class token or the mean of the patches.
    Pooled,
    /// The class token and the patches in raster order; see [`Classifier::tokens`].
    Tokens,
}

/// Runs every image of a folder through the model: resized, centre cropped, no masking. `each` is called with the number of
/// images done.
pub fn extract(
    model: &Classifier,
    folder: Arc<Folder>,
    batch: usize,
    kind: Kind,
    mut each: impl FnMut(usize),
) -> Result<Features> {
    let trunk = &model.trunk.config;
    let device = model.norm.weight.master.device().clone();
    let norm = imagenet_norm(&device)?;
    let mut loader = Loader::new(folder.clone(), transforms::evaluate(trunk.image)?, Options::evaluation(batch))?;
    let (mut values, mut labels, mut files) = (Vec::new(), Vec::new(), Vec::new());
    for next in &mut loader {
        let next = next?;
        let count = next.labels.len();
        if count == 0 {
            continue; // every image of the batch was unreadable
        }
        let images = Var::constant(Tensor::from_slice(&next.images, trunk.images(count), &device)?);
        let y = match kind {
            Kind::Pooled => model.features(&Tape::no_grad(), &images, Some(&norm), &[])?.value().clone(),
            Kind::Tokens => model.tokens(&images, Some(&norm))?,
        };
        values.extend(y.to_f64()?.into_iter().map(|x| x as f32));
        labels.extend(&next.labels);
        let name = |&i: &u32| {
            folder
                .name(i as usize)
                .strip_prefix(folder.root())
                .map_or_else(|_| folder.name(i as usize).display().to_string(), |p| p.display().to_string())
        };
        files.extend(next.indices.iter().map(name));
        each(labels.len());
    }
    let skipped: Vec<String> =
        loader.failures().into_iter().map(|(path, cause)| format!("{}: {cause}", path.display())).collect();
    if labels.is_empty() {
        return Err(Error::Dataset { path: folder.root().into(), cause: "no readable image".into() });
    }
    let shape = match kind {
        Kind::Pooled => vec![labels.len(), trunk.dim],
        Kind::Tokens => vec![labels.len(), trunk.patches()? + 1, trunk.dim],
    };
    Ok(Features { values: Tensor::from_slice(&values, shape, &Device::Cpu)?, labels, files, skipped })
}

/// Writes `features.safetensors` (features, labels `[N]`, and as metadata `files`, a JSON list), or `features.npy` and
/// `labels.npy`, and `files.txt` with one line for each row.
pub fn write(features: &Features, folder: &Path, as_npy: bool) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let labels = Tensor::from_slice(&features.labels, [features.labels.len()], &Device::Cpu)?;
    if as_npy {
        npy::write(folder.join("features.npy"), &features.values)?;
        npy::write(folder.join("labels.npy"), &labels)?;
    } else {
        let mut dict = StateDict::new();
        dict.insert("features", features.values.clone())?;
        dict.insert("labels", labels)?;
        dict.metadata.insert("files".into(), serde_json::json!(features.files).to_string());
        safetensors::write(folder.join("features.safetensors"), &dict)?;
    }
    let list = folder.join("files.txt");
    std::fs::write(&list, features.files.join("\n") + "\n").map_err(Error::io(&list))
}
