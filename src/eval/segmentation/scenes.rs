//! Images with a label for every pixel.
//!
//! ```text
//! root/images/a/0.jpg   root/masks/a/0.png     any folders below, the same on both sides
//! root/frames/a/0.png   root/masks/a/0.png     the same of clips
//! ```
//!
//! Masks are indexed or gray PNG of as many pixels as their image; 255 is no label.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;

use super::confusion::IGNORED;
use crate::data::label_map::LabelMap;
use crate::data::{Folder, Image, Source, decode};
use crate::{Error, Result};

/// A folder of images and masks.
#[derive(Clone, Debug)]
pub struct Scenes {
    root: PathBuf,
    scenes: Vec<Scene>,
    foreground: bool,
    classes: usize,
}

#[derive(Clone, Debug)]
struct Scene {
    image: PathBuf,
    mask: PathBuf,
    /// Width and height of the mask.
    size: [usize; 2],
}

impl Scenes {
    /// Reads all masks once; images whose mask cannot be used are named and left out. `foreground`: labels other than 0 and
    /// [`IGNORED`] are one class, 1, as for masks that number the things in a picture. `each` hears, from several threads, after
    /// each mask how many there are.
    ///
    /// # Errors
    /// Another layout, no usable mask, or masks without any label.
    pub fn open(root: &Path, foreground: bool, each: &(dyn Fn(u64) + Sync)) -> Result<Self> {
        let fault = |cause: String| Error::Dataset { path: root.into(), cause };
        let images = ["images", "frames"].map(|name| root.join(name)).into_iter().find(|path| path.is_dir());
        let (Some(images), masks) = (images, root.join("masks")) else {
            return Err(fault("no folder `images` or `frames` in it, expected one beside `masks`".into()));
        };
        if !masks.is_dir() {
            return Err(fault("no folder `masks` in it".into()));
        }
        let folder = Folder::unlabelled(&images)?;
        let read = |index: usize| {
            let image = folder.path(index).to_path_buf();
            let below = image.strip_prefix(&images).unwrap_or(&image);
            let mask = masks.join(below).with_extension("png");
            let map = LabelMap::open(&mask);
            each(folder.len() as u64);
            let map = map?;
            let largest = map.ids.iter().copied().filter(|id| *id != IGNORED).max();
            Ok((Scene { image, mask, size: [map.width, map.height] }, largest))
        };
        let found: Vec<Result<(Scene, Option<u8>)>> = (0..folder.len()).into_par_iter().map(read).collect();
        let (mut scenes, mut largest) = (Vec::new(), None);
        for scene in found {
            match scene {
                Ok((scene, label)) => {
                    scenes.push(scene);
                    largest = largest.max(label);
                }
                Err(e) => tracing::warn!("left out: {e}"),
            }
        }
        let Some(largest) = largest else { return Err(fault("no mask with a label".into())) };
        let classes = if foreground { 2 } else { usize::from(largest) + 1 };
        Ok(Self { root: root.into(), scenes, foreground, classes })
    }

    /// The folder that was opened.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Classes: the largest label and all below it.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Mask of an image below the folder of masks.
    pub fn mask_name(&self, index: usize) -> PathBuf {
        let mask = &self.scenes[index].mask;
        mask.strip_prefix(self.root.join("masks")).unwrap_or(mask).to_path_buf()
    }

    /// Labels of an image.
    ///
    /// # Errors
    /// A mask that has become unreadable.
    pub fn map(&self, index: usize) -> Result<LabelMap> {
        let mut map = LabelMap::open(&self.scenes[index].mask)?;
        if self.foreground {
            map.ids.iter_mut().filter(|id| **id != IGNORED).for_each(|id| *id = (*id).min(1));
        }
        Ok(map)
    }
}

impl Source for Scenes {
    fn len(&self) -> usize {
        self.scenes.len()
    }

    fn label(&self, _: usize) -> i32 {
        -1
    }

    fn name(&self, index: usize) -> PathBuf {
        self.scenes[index].image.clone()
    }

    fn load(&self, index: usize) -> Result<Arc<Image>> {
        let Scene { image: path, mask, size } = &self.scenes[index];
        let image = decode::open(path)?;
        if *size != [image.width, image.height] {
            let [width, height] = *size;
            let cause =
                format!("{} x {} pixels, its mask {width} x {height}: {}", image.width, image.height, mask.display());
            return Err(Error::Image { path: path.clone(), cause });
        }
        Ok(Arc::new(image))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_go_with_the_masks_of_their_names() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        let text = |foreground| Scenes::open(place.path(), foreground, &|_| ()).unwrap_err().to_string();
        assert!(text(false).ends_with("no folder `images` or `frames` in it, expected one beside `masks`"));
        std::fs::create_dir_all(at("images/a")).unwrap();
        assert!(text(false).ends_with("no folder `masks` in it"));
        std::fs::create_dir_all(at("masks/a")).unwrap();
        let picture = |name: &str, width: usize| Image::filled(width, 1, [5; 3]).save_png(at(name)).unwrap();
        for name in ["images/0.png", "images/a/1.png", "images/lost.png"] {
            picture(name, 3);
        }
        let mask =
            |name: &str, ids: [u8; 3]| LabelMap { width: 3, height: 1, ids: ids.to_vec() }.save(at(name)).unwrap();
        mask("masks/0.png", [255; 3]);
        mask("masks/a/1.png", [255; 3]);
        assert!(text(false).ends_with("no mask with a label"));
        mask("masks/a/1.png", [0, 6, 255]);
        let scenes = Scenes::open(place.path(), false, &|_| ()).unwrap();
        assert_eq!((scenes.len(), scenes.classes(), scenes.mask_name(1)), (2, 7, PathBuf::from("a/1.png")));
        assert_eq!(scenes.map(1).unwrap().ids, [0, 6, 255]);
        let scenes = Scenes::open(place.path(), true, &|_| ()).unwrap();
        assert_eq!((scenes.classes(), scenes.map(1).unwrap().ids), (2, vec![0, 1, 255]));
        picture("images/0.png", 4);
        let text = scenes.load(0).unwrap_err().to_string();
        assert!(text.contains("4 x 1 pixels, its mask 3 x 1: ") && scenes.load(1).is_ok(), "{text}");
    }
}
