//! Captions as COCO has them: `images[].{id, file_name}` and `annotations[].{image_id, caption}` in one JSON file.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;

use crate::{Error, Result};

#[derive(Deserialize)]
struct File {
    images: Vec<Image>,
    annotations: Vec<Annotation>,
}

#[derive(Deserialize)]
struct Image {
    id: u64,
    file_name: String,
}

#[derive(Deserialize)]
struct Annotation {
    image_id: u64,
    caption: Option<String>,
}

/// An image and all its captions, or what is at fault and why.
pub type Row = std::result::Result<(String, Vec<String>), (String, String)>;

/// All images, in the file's order.
pub fn read(path: &Path) -> Result<Vec<Row>> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let file: File = serde_json::from_slice(&bytes).map_err(|e| Error::Dataset {
        path: path.to_path_buf(),
        cause: format!("not a file of COCO captions (images, annotations with `image_id` and `caption`): {e}"),
    })?;
    let numbers: HashMap<u64, usize> = file.images.iter().enumerate().map(|(at, image)| (image.id, at)).collect();
    let mut captions = vec![Vec::new(); file.images.len()];
    let mut faults = Vec::new();
    for annotation in file.annotations {
        match (numbers.get(&annotation.image_id), annotation.caption) {
            (_, None) => faults.push((format!("image {}", annotation.image_id), "an annotation has no caption".into())),
            (None, _) => {
                faults.push((format!("image {}", annotation.image_id), "has a caption, but is not listed".into()))
            }
            (Some(&at), Some(caption)) if !caption.trim().is_empty() => captions[at].push(caption),
            _ => {}
        }
    }
    let row = |(image, captions): (Image, Vec<String>)| match captions.is_empty() {
        true => Err((image.file_name, "has no caption".into())),
        false => Ok((image.file_name, captions)),
    };
    Ok(file.images.into_iter().zip(captions).map(row).chain(faults.into_iter().map(Err)).collect())
}
