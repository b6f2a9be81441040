//! Image folders as data sets.
//!
//! Labelled: every subfolder of the root is a class; classes are numbered in the order of their names (bytes, as
//! `sort` with the C locale), and all images below a subfolder, however deep, belong to it. Images directly in the
//! root are then not used. Unlabelled: all images below the root. An image is a file whose name ends in `.jpg`,
//! `.jpeg`, `.png` or `.webp` in any case; names that begin with a dot are passed over.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use super::decode;
use super::image::Image;
use super::rng::Stream;
use crate::{Error, Result};

/// What a loader reads from: samples by number.
pub trait Source: Send + Sync {
    /// Number of samples.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Class of a sample, -1 if it has none.
    fn label(&self, index: usize) -> i32;

    /// How messages call a sample: its file.
    fn name(&self, index: usize) -> PathBuf;

    /// The decoded image.
    fn load(&self, index: usize) -> Result<Arc<Image>>;

    /// What a loader takes of a sample: the image, or a part of it that `rng` decides.
    ///
    /// # Errors
    /// When it cannot be read.
    fn sample(&self, index: usize, _rng: &mut Stream) -> Result<Arc<Image>> {
        self.load(index)
    }

    /// How messages call what [`sample`](Self::sample) takes with these numbers, where that cannot be used: its file.
    fn sample_name(&self, index: usize, _rng: &mut Stream) -> PathBuf {
        self.name(index)
    }

    /// Captions of a sample; none in a data set without.
    ///
    /// # Errors
    /// When they cannot be read.
    fn captions(&self, _index: usize) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// Puts the samples of an epoch into random order.
    fn shuffle(&self, rng: &mut Stream, order: &mut [u32]) {
        rng.shuffle(order);
    }
}

/// An image folder; see the module documentation.
#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
    classes: Vec<String>,
    samples: Vec<(PathBuf, i32)>,
    cache: Option<Cache>,
}

impl Folder {
    /// Labelled if the root has subfolders with images and no image of its own, else unlabelled.
    pub fn open(root: impl AsRef<Path>) -> Result<Self> {
        let root = root.as_ref();
        let (folders, files) = list(root)?;
        if files.is_empty() && !folders.is_empty() { Self::labelled(root) } else { Self::unlabelled(root) }
    }

    /// One class for each subfolder; a class without images is an error.
    pub fn labelled(root: impl AsRef<Path>) -> Result<Self> {
        let root = root.as_ref();
        let (mut folders, _) = list(root)?;
        folders.sort_by(|a, b| a.file_name().cmp(&b.file_name()));
        let (mut classes, mut samples) = (Vec::new(), Vec::new());
        for (folder, label) in folders.iter().zip(0..) {
            let files = images_below(folder)?;
            if files.is_empty() {
                return Err(Error::Dataset {
                    path: folder.clone(),
                    cause: "this class has no images (.jpg, .jpeg, .png, .webp)".to_owned(),
                });
            }
            classes.push(folder.file_name().map(OsStr::to_string_lossy).unwrap_or_default().into_owned());
            samples.extend(files.into_iter().map(|file| (file, label)));
        }
        if samples.is_empty() {
            let cause = "no class folders, expected one subfolder with images for each class".to_owned();
            return Err(Error::Dataset { path: root.to_path_buf(), cause });
        }
        Ok(Self { root: root.to_path_buf(), classes, samples, cache: None })
    }

    /// All images below the root, without labels.
    pub fn unlabelled(root: impl AsRef<Path>) -> Result<Self> {
        let root = root.as_ref();
        let samples: Vec<_> = images_below(root)?.into_iter().map(|file| (file, -1)).collect();
        if samples.is_empty() {
            let cause = "no images (.jpg, .jpeg, .png, .webp) in it or below".to_owned();
            return Err(Error::Dataset { path: root.to_path_buf(), cause });
        }
        Ok(Self { root: root.to_path_buf(), classes: Vec::new(), samples, cache: None })
    }

    /// Keeps decoded images in memory, up to `bytes` in all. For small data sets, which are read again in every epoch.
    #[must_use]
    pub fn with_cache(mut self, bytes: usize) -> Self {
        self.cache = Some(Cache::new(self.samples.len(), bytes));
        self
    }

    /// What tells this data set from others, wherever its folder lies: the number of images, and a CRC-32C of their
    /// names and labels in order. Contents are not read.
    pub fn identity(&self) -> String {
        let of = |crc, (file, label): &(PathBuf, i32)| {
            let name = file.strip_prefix(&self.root).unwrap_or(file).as_os_str().as_encoded_bytes();
            crc32c::crc32c_append(crc32c::crc32c_append(crc, name), &label.to_le_bytes())
        };
        format!("{} images, checksum of their names {:08x}", self.samples.len(), self.samples.iter().fold(0, of))
    }

    /// The folder that was opened.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Class names by label; empty if unlabelled.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// File of a sample.
    pub fn path(&self, index: usize) -> &Path {
        &self.samples[index].0
    }
}

impl Source for Folder {
    fn len(&self) -> usize {
        self.samples.len()
    }

    fn label(&self, index: usize) -> i32 {
        self.samples[index].1
    }

    fn name(&self, index: usize) -> PathBuf {
        self.samples[index].0.clone()
    }

    fn load(&self, index: usize) -> Result<Arc<Image>> {
        if let Some(image) = self.cache.as_ref().and_then(|cache| cache.slots[index].get()) {
            return Ok(image.clone());
        }
        let image = Arc::new(decode::open(&self.samples[index].0)?);
        if let Some(cache) = &self.cache {
            cache.keep(index, &image);
        }
        Ok(image)
    }
}

/// Decoded images, first come first kept until the budget is used up. What is returned never depends on it.
#[derive(Debug)]
struct Cache {
    free: AtomicUsize,
    slots: Vec<OnceLock<Arc<Image>>>,
}

impl Cache {
    fn new(samples: usize, bytes: usize) -> Self {
        Self { free: AtomicUsize::new(bytes), slots: (0..samples).map(|_| OnceLock::new()).collect() }
    }

    fn keep(&self, index: usize, image: &Arc<Image>) {
        let size = image.data.len();
        let reserved = self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| free.checked_sub(size));
        if reserved.is_ok() && self.slots[index].set(image.clone()).is_err() {
            self.free.fetch_add(size, Ordering::Relaxed); // another thread kept the same image meanwhile
        }
    }
}

/// Subfolders and image files of a folder, unsorted.
fn list(folder: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let (mut folders, mut files) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")) {
            continue;
        }
        // Follows links. A link to nowhere counts as a file: reading it will say what is wrong.
        if path.is_dir() {
            folders.push(path);
        } else if is_image(&path) {
            files.push(path);
        }
    }
    Ok((folders, files))
}

fn is_image(path: &Path) -> bool {
    let known = |extension: &OsStr| ["jpg", "jpeg", "png", "webp"].iter().any(|e| extension.eq_ignore_ascii_case(e));
    path.extension().is_some_and(known)
}

/// All images in a folder and below, sorted by folder and then by name.
pub(super) fn images_below(root: &Path) -> Result<Vec<PathBuf>> {
    let mut seen = std::collections::HashSet::new();
    let mut open = vec![root.to_path_buf()];
    let mut folders = Vec::new();
    while let Some(folder) = open.pop() {
        // A link may lead back to a folder above: each real folder counts once.
        if !seen.insert(folder.canonicalize().map_err(Error::io(&folder))?) {
            continue;
        }
        let (mut below, mut files) = list(&folder)?;
        below.sort_unstable_by(|a, b| b.cmp(a)); // the first name is taken first
        files.sort_unstable();
        open.append(&mut below);
        folders.push((folder, files));
    }
    folders.sort_by(|a, b| a.0.as_os_str().cmp(b.0.as_os_str()));
    Ok(folders.into_iter().flat_map(|(_, files)| files).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::fixtures::noise;

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            noise(2, 2).save_png(&path).unwrap();
        }
        dir
    }

    fn names(folder: &Folder) -> Vec<(String, i32)> {
        let relative = |i| folder.path(i).strip_prefix(folder.root()).unwrap().to_str().unwrap().to_owned();
        (0..folder.len()).map(|i| (relative(i), folder.label(i))).collect()
    }

    #[test]
    fn classes_are_sorted_subfolders() {
        let dir = tree(&[
            "b/2.png",
            "b/1.PNG",
            "a/z/1.png",
            "a/1.png",
            "B/x.Jpeg",
            "b/note.txt",
            ".hidden/1.png",
            "b/.1.png",
        ]);
        let folder = Folder::open(&dir).unwrap();
        assert_eq!(folder.classes(), ["B", "a", "b"]);
        let expected = [("B/x.Jpeg", 0), ("a/1.png", 1), ("a/z/1.png", 1), ("b/1.PNG", 2), ("b/2.png", 2)];
        assert_eq!(names(&folder), expected.map(|(n, l)| (n.to_owned(), l)));
        assert_eq!(*folder.load(4).unwrap(), noise(2, 2));
        let moved = tree(&["b/2.png", "b/1.PNG", "a/z/1.png", "a/1.png", "B/x.Jpeg"]);
        assert_eq!(Folder::open(&moved).unwrap().identity(), folder.identity());
        std::fs::rename(moved.path().join("b/2.png"), moved.path().join("a/2.png")).unwrap();
        let changed = Folder::open(&moved).unwrap().identity();
        assert!(changed.starts_with("5 images") && changed != folder.identity(), "{changed}");
    }

    #[test]
    fn without_class_folders_there_are_no_labels() {
        let dir = tree(&["2.png", "1.png", "more/0.webp"]);
        let folder = Folder::open(&dir).unwrap();
        assert_eq!(names(&folder), ["1.png", "2.png", "more/0.webp"].map(|n| (n.to_owned(), -1)));
        assert!(folder.classes().is_empty());
        assert_eq!(Folder::labelled(&dir).unwrap().classes(), ["more"]);
    }

    #[test]
    fn faults_are_named() {
        let dir = tree(&[]);
        let text = |r: Result<Folder>| r.unwrap_err().to_string();
        assert!(text(Folder::open(&dir)).ends_with("no images (.jpg, .jpeg, .png, .webp) in it or below"));
        assert!(text(Folder::labelled(&dir)).contains("no class folders"));
        assert!(text(Folder::open(dir.path().join("missing"))).contains("missing"));
        let file = tree(&["a.png"]);
        assert!(text(Folder::open(file.path().join("a.png"))).contains("a.png"));
        let dir = tree(&["a/1.png"]);
        std::fs::create_dir(dir.path().join("b")).unwrap();
        assert!(text(Folder::open(&dir)).contains("/b: this class has no images"));
    }

    #[cfg(unix)]
    #[test]
    fn a_link_in_a_circle_ends() {
        let dir = tree(&["a/1.png"]);
        std::os::unix::fs::symlink(dir.path(), dir.path().join("a/up")).unwrap();
        assert_eq!(Folder::unlabelled(&dir).unwrap().len(), 1);
    }

    #[test]
    fn the_cache_keeps_within_its_budget() {
        let dir = tree(&["1.png", "2.png", "3.png"]);
        let folder = Folder::open(&dir).unwrap().with_cache(30); // two images of 12 bytes fit
        for i in [0, 1, 2, 0] {
            folder.load(i).unwrap();
        }
        for i in 0..3 {
            std::fs::remove_file(folder.path(i)).unwrap();
        }
        assert!(folder.load(0).is_ok() && folder.load(1).is_ok());
        assert!(folder.load(2).is_err());
    }
}
