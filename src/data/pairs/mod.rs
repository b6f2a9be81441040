//! Images with captions as data sets: tar shards, tables, folders.
//!
//! | given | layout |
//! |---|---|
//! | `x.tar`, or a folder with `*.tar` | webdataset shards: members of one key (their name up to its first dot) belong together |
//! | `x.tsv`, `x.csv`, `x.jsonl` | a line for each image and caption; paths count from the table's folder |
//! | `x.json` | COCO captions, `images[].{id, file_name}` and `annotations[].{image_id, caption}`; the same paths |
//! | another folder | images with a `.txt` or `.json` of the same name beside them, however deep |
//!
//! A `.txt` is one caption; a `.json` has it under a key, or a list of them. An image with several captions is one sample:
//! training takes one of them, drawn anew in every epoch, evaluation all. Only places are kept in memory, so a shard costs a
//! few dozen bytes a pair: images and the captions of shards and folders are read when they are needed.
//!
//! [`Pairs`] is a [`Source`]: a [`Loader`](super::Loader) reads it, decodes in parallel and can start at any position.
//! Reading is by number, so resuming neither repeats nor skips a pair. What cannot be used is counted and named:
//! [`Pairs::skipped`] when the data set is opened, [`Loader::failures`](super::Loader::failures) later.

mod coco;
mod shard;
mod table;

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::decode;
use super::folder::{Source, images_below};
use super::image::Image;
use super::rng::Stream;
use crate::{Error, Result};

/// Pairs that lie together and stay near each other in a shuffled epoch, so that shards are read in long stretches.
const BLOCK: usize = 512;

/// Blocks that are mixed with each other.
const MIXED: usize = 16;

/// Bytes of a caption's file at most.
const LONGEST_CAPTION: u64 = 1 << 20;

/// Names of skipped pairs that are kept; the rest is only counted.
const NAMED: usize = 1000;

/// Where images and captions are found: the flags of commands that read pairs.
#[derive(Clone, Debug, Default, clap::Args, Serialize, Deserialize)]
pub struct Columns {
    /// Key of the caption in .json and .jsonl files, and the name of a table's column [default: caption; in tables and .jsonl
    /// files also title, text]
    #[arg(long)]
    pub caption: Option<String>,
    /// Key of the image file in .jsonl files, and the name of a table's column [default: the usual ones]
    #[arg(long)]
    pub image_column: Option<String>,
    /// Folder from which the paths of a table or of COCO captions count [default: that of the file]
    #[arg(long, value_name = "FOLDER")]
    pub images: Option<PathBuf>,
}

/// How a data set is read.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where images and captions are found.
    pub columns: Columns,
    /// Whether a pair that cannot be used fails the data set instead of being skipped.
    pub strict: bool,
}

impl Columns {
    fn folder(&self, file: &Path) -> PathBuf {
        self.images.clone().unwrap_or_else(|| file.parent().unwrap_or(Path::new("")).to_path_buf())
    }
}

/// A data set; see the module documentation.
#[derive(Debug)]
pub struct Pairs {
    root: PathBuf,
    shards: Vec<PathBuf>,
    pairs: Vec<Pair>,
    key: String,
    skipped: Skipped,
}

#[derive(Debug)]
struct Pair {
    image: Place,
    text: Text,
}

/// Where bytes are.
#[derive(Clone, Debug)]
enum Place {
    File(PathBuf),
    Member { shard: u32, at: u64, len: u64, name: Box<str> },
}

#[derive(Debug)]
enum Text {
    Here(Vec<String>),
    Plain(Place),
    Json(Place),
}

/// Pairs that were left out when the data set was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// How many.
    pub count: usize,
    /// The first thousand, with the cause.
    pub named: Vec<(PathBuf, String)>,
}

impl Skipped {
    /// Counts a pair, or makes an error of it.
    fn add(&mut self, name: PathBuf, cause: impl Into<String>, strict: bool) -> Result<()> {
        let cause = cause.into();
        if strict {
            return Err(Error::Dataset { path: name, cause });
        }
        tracing::warn!("{}: {cause}", name.display());
        self.count += 1;
        if self.named.len() < NAMED {
            self.named.push((name, cause));
        }
        Ok(())
    }
}

impl Pairs {
    /// Opens shards, a table or a folder; which it is shows in the name and, for a folder, in what is in it.
    ///
    /// # Errors
    /// What cannot be read, a data set without a usable pair; with `strict` the first unusable one.
    pub fn open(path: impl AsRef<Path>, options: &Options) -> Result<Self> {
        let root = path.as_ref();
        let mut found = Self {
            root: root.to_path_buf(),
            shards: Vec::new(),
            pairs: Vec::new(),
            key: options.columns.caption.clone().unwrap_or_else(|| "caption".into()),
            skipped: Skipped::default(),
        };
        let extension = root.extension().unwrap_or_default().to_ascii_lowercase();
        if root.is_dir() {
            let shards = shard::list(root)?;
            if shards.is_empty() { found.add_folder(options)? } else { found.add_shards(shards, options)? }
        } else if extension == "tar" {
            found.add_shards(vec![root.to_path_buf()], options)?;
        } else if let Some(form) = extension.to_str().and_then(table::Form::of) {
            found.root = options.columns.folder(root);
            found.add_table(root, form, options)?;
        } else if extension == "json" {
            found.root = options.columns.folder(root);
            found.add_coco(root, options)?;
        } else {
            std::fs::metadata(root).map_err(Error::io(root))?;
            let cause =
                "expected a folder, or a file named .tar, .tsv, .csv, .jsonl or .json (COCO captions)".to_owned();
            return Err(Error::Dataset { path: root.to_path_buf(), cause });
        }
        if found.pairs.is_empty() {
            let first = found.skipped.named.first().map(|(name, cause)| format!("; {}: {cause}", name.display()));
            let cause = format!("no image with a caption in it{}", first.unwrap_or_default());
            return Err(Error::Dataset { path: root.to_path_buf(), cause });
        }
        Ok(found)
    }

    fn add_shards(&mut self, shards: Vec<PathBuf>, options: &Options) -> Result<()> {
        for (number, path) in (0..).zip(&shards) {
            for member in shard::read(path, number, &mut self.skipped, options.strict)? {
                match (member.image, member.text) {
                    (Some(image), Some(text)) => self.pairs.push(Pair { image, text }),
                    (Some(_), None) => self.skip(path.join(member.key), "has no caption (.txt, .json)", options)?,
                    (None, Some(_)) => {
                        self.skip(path.join(member.key), "has no image (.jpg, .jpeg, .png, .webp)", options)?;
                    }
                    (None, None) => {}
                }
            }
        }
        self.shards = shards;
        Ok(())
    }

    fn add_table(&mut self, path: &Path, form: table::Form, options: &Options) -> Result<()> {
        for row in table::read(path, form, &options.columns)? {
            match row {
                Ok((image, captions)) => {
                    self.pairs.push(Pair { image: Place::File(self.root.join(image)), text: Text::Here(captions) })
                }
                Err((line, cause)) => {
                    let mut name = path.as_os_str().to_owned();
                    name.push(format!(":{line}"));
                    self.skip(name.into(), &cause, options)?;
                }
            }
        }
        Ok(())
    }

    fn add_coco(&mut self, path: &Path, options: &Options) -> Result<()> {
        for row in coco::read(path)? {
            match row {
                Ok((image, captions)) => {
                    self.pairs.push(Pair { image: Place::File(self.root.join(image)), text: Text::Here(captions) })
                }
                Err((name, cause)) => self.skip(path.join(name), &cause, options)?,
            }
        }
        Ok(())
    }

    fn add_folder(&mut self, options: &Options) -> Result<()> {
        for image in images_below(&self.root)? {
            let beside = |extension| Some(image.with_extension(extension)).filter(|path| path.is_file());
            let plain = beside("txt").map(|path| Text::Plain(Place::File(path)));
            match plain.or_else(|| beside("json").map(|path| Text::Json(Place::File(path)))) {
                Some(text) => self.pairs.push(Pair { image: Place::File(image), text }),
                None => self.skip(image, "has no caption (.txt, .json) beside it", options)?,
            }
        }
        Ok(())
    }

    fn skip(&mut self, name: PathBuf, cause: &str, options: &Options) -> Result<()> {
        self.skipped.add(name, cause, options.strict)
    }

    /// Pairs left out when it was opened: an image or a caption was missing, or a shard was cut.
    pub fn skipped(&self) -> &Skipped {
        &self.skipped
    }

    /// What tells this data set from others, wherever it lies: the number of pairs, and a CRC-32C of their names in order.
    /// Contents are not read.
    pub fn identity(&self) -> String {
        let of = |crc, index| {
            let name = self.name(index);
            crc32c::crc32c_append(crc, name.strip_prefix(&self.root).unwrap_or(&name).as_os_str().as_encoded_bytes())
        };
        format!("{} pairs, checksum of their names {:08x}", self.len(), (0..self.len()).fold(0, of))
    }

    fn place_name(&self, place: &Place) -> PathBuf {
        match place {
            Place::File(path) => path.clone(),
            Place::Member { shard, name, .. } => self.shards[*shard as usize].join(&**name),
        }
    }

    fn bytes(&self, place: &Place) -> Result<Vec<u8>> {
        let (shard, at, len) = match place {
            Place::File(path) => return std::fs::read(path).map_err(Error::io(path)),
            Place::Member { shard, at, len, .. } => (&self.shards[*shard as usize], *at, *len),
        };
        let read = || {
            let mut file = std::fs::File::open(shard)?;
            file.seek(SeekFrom::Start(at))?;
            let mut bytes = vec![0; len as usize]; // the shard is as long as that: checked when it was opened
            file.read_exact(&mut bytes)?;
            Ok(bytes)
        };
        read().map_err(Error::io(shard))
    }

    /// A caption's file as text.
    fn text(&self, place: &Place) -> Result<String> {
        let fault = |cause: String| Error::Dataset { path: self.place_name(place), cause };
        let len = match place {
            Place::File(path) => std::fs::metadata(path).map_err(Error::io(path))?.len(),
            Place::Member { len, .. } => *len,
        };
        if len > LONGEST_CAPTION {
            return Err(fault(format!("{len} bytes, expected a caption of at most {LONGEST_CAPTION}")));
        }
        String::from_utf8(self.bytes(place)?).map_err(|_| fault("the caption is not UTF-8".into()))
    }
}

impl Source for Pairs {
    fn len(&self) -> usize {
        self.pairs.len()
    }

    fn label(&self, _: usize) -> i32 {
        -1
    }

    fn name(&self, index: usize) -> PathBuf {
        self.place_name(&self.pairs[index].image)
    }

    fn load(&self, index: usize) -> Result<Arc<Image>> {
        let place = &self.pairs[index].image;
        Ok(Arc::new(decode::decode(&self.bytes(place)?, self.place_name(place))?))
    }

    fn captions(&self, index: usize) -> Result<Vec<String>> {
        let captions = match &self.pairs[index].text {
            Text::Here(captions) => captions.clone(),
            Text::Plain(place) => vec![self.text(place)?],
            Text::Json(place) => table::captions_of(&self.text(place)?, &self.key)
                .map_err(|cause| Error::Dataset { path: self.place_name(place), cause })?,
        };
        let captions: Vec<String> = captions.iter().map(|c| c.trim().to_owned()).filter(|c| !c.is_empty()).collect();
        if captions.is_empty() {
            return Err(Error::Dataset { path: self.name(index), cause: "its caption is empty".into() });
        }
        Ok(captions)
    }

    /// Blocks of neighbours in random order, then all pairs of some blocks mixed with each other: every epoch is a permutation
    /// of all pairs, made from the stream alone, and a shard is still read in stretches.
    fn shuffle(&self, rng: &mut Stream, order: &mut [u32]) {
        let mut blocks: Vec<&[u32]> = order.chunks(BLOCK).collect();
        rng.shuffle(&mut blocks);
        let mut shuffled = blocks.concat();
        shuffled.chunks_mut(BLOCK * MIXED).for_each(|part| rng.shuffle(part));
        order.copy_from_slice(&shuffled);
    }
}

#[cfg(test)]
mod tests;
