//! Features of a folder of images by a frozen encoder.

use std::path::Path;
use std::sync::Arc;

use crate::checkpoint::{StateDict, npy, safetensors};
use crate::data::loader::Options;
use crate::data::{Folder, Image, Loader, Source, Stream, transforms};
use crate::recipes::Encoder;
use crate::{Device, Error, Result, Tensor};

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
    /// The class token and the patches in raster order; see [`Encoder::layers`].
    Tokens,
}

/// Runs every image of a folder through the model: resized, centre cropped, no masking. `each` is called with the number of
/// images done.
pub fn extract(
    model: &dyn Encoder,
    folder: Arc<Folder>,
    batch: usize,
    kind: Kind,
    each: impl FnMut(usize),
) -> Result<Features> {
    let (size, [rows, columns], dim) = (model.image_size(), model.grid(), model.dim());
    let forward = |images: Tensor| match kind {
        Kind::Pooled => model.features(&images),
        Kind::Tokens => Ok(model.layers(&images, 1)?.swap_remove(0)),
    };
    let row = match kind {
        Kind::Pooled => vec![dim],
        Kind::Tokens => vec![rows * columns + 1, dim],
    };
    let root = folder.root().to_path_buf();
    let transform = transforms::evaluate(size)?;
    Ok(collect(folder, &root, transform, batch, model.device(), size, &row, forward, each)?.0)
}

/// What `forward` makes of the images of a data set, and the number of each row's image. `transform` gives planes of `size`
/// (height, width) as `forward` gets them, `[B, 3, H, W]`; it makes one `row` of values of each image. `root` is taken off the
/// names of files. `each` is called with the number of images done.
pub(super) fn collect(
    source: Arc<dyn Source>,
    root: &Path,
    transform: impl Fn(&Image, &mut Stream) -> Result<Vec<u8>> + Send + Sync + 'static,
    batch: usize,
    device: &Device,
    size: [usize; 2],
    row: &[usize],
    forward: impl Fn(Tensor) -> Result<Tensor>,
    mut each: impl FnMut(usize),
) -> Result<(Features, Vec<usize>)> {
    let mut loader = Loader::new(source.clone(), transform, Options::evaluation(batch))?;
    let (mut values, mut labels, mut indices) = (Vec::new(), Vec::new(), Vec::new());
    for next in &mut loader {
        let next = next?;
        let count = next.labels.len();
        if count == 0 {
            continue; // every image of the batch was unreadable
        }
        let images = Tensor::from_slice(&next.images, [count, 3, size[0], size[1]], device)?;
        values.extend(forward(images)?.to_f64()?.into_iter().map(|x| x as f32));
        labels.extend(&next.labels);
        indices.extend(next.indices.iter().map(|&i| i as usize));
        each(labels.len());
    }
    let skipped: Vec<String> =
        loader.failures().into_iter().map(|(path, cause)| format!("{}: {cause}", path.display())).collect();
    if labels.is_empty() {
        return Err(Error::Dataset { path: root.into(), cause: "no readable image".into() });
    }
    let name = |&i: &usize| {
        let name = source.name(i);
        name.strip_prefix(root).unwrap_or(&name).display().to_string()
    };
    let files = indices.iter().map(name).collect();
    let values = Tensor::from_slice(&values, [&[labels.len()], row].concat(), &Device::Cpu)?;
    Ok((Features { values, labels, files, skipped }, indices))
}

/// Writes `features.safetensors` (features, labels `[N]`, and as metadata `files`, a JSON list), or `features.npy` and
/// `labels.npy`, and `files.txt` with one line for each row.
pub fn write(features: &Features, folder: &Path, as_npy: bool) -> Result<()> {
    let labels = Tensor::from_slice(&features.labels, [features.labels.len()], &Device::Cpu)?;
    store(folder, &[("features", &features.values), ("labels", &labels)], "files", &features.files, as_npy)
}

/// Writes embeddings of texts `[N, d]` in the same way, without labels; the texts, one a line, are `texts.txt`.
pub fn write_texts(values: &Tensor, texts: &[String], folder: &Path, as_npy: bool) -> Result<()> {
    store(folder, &[("features", values)], "texts", texts, as_npy)
}

/// Tensors, and the name of each row.
fn store(folder: &Path, tensors: &[(&str, &Tensor)], what: &str, names: &[String], as_npy: bool) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    if as_npy {
        for (name, tensor) in tensors {
            npy::write(folder.join(format!("{name}.npy")), tensor)?;
        }
    } else {
        let mut dict = StateDict::new();
        for (name, tensor) in tensors {
            dict.insert(*name, (*tensor).clone())?;
        }
        dict.metadata.insert(what.into(), serde_json::json!(names).to_string());
        safetensors::write(folder.join("features.safetensors"), &dict)?;
    }
    let list = folder.join(format!("{what}.txt"));
    std::fs::write(&list, names.join("\n") + "\n").map_err(Error::io(&list))
}
