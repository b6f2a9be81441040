//! Masks as run lengths in JSON files: masklets of SA-V's videos, annotations of SA-1B's pictures.
//!
//! ```text
//! {id}_manual.json, {id}_auto.json   {"masklet": [[{"size": [h, w], "counts": ".."} or null, ..], ..]}
//! sa_N.json                          {"annotations": [{"segmentation": {"size": [h, w], "counts": ".."}}, ..]}
//! ```
//!
//! A list of masklets has an entry for every fourth frame, from frame 0, with a mask for each object. Source: section 7
//! of the data sheet of Ravi et al. 2024; `training/dataset/vos_segment_loader.py`.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, SeqAccess, Visitor};

use super::{fault, stem};
use crate::data::rle::Rle;
use crate::{Error, Result};

/// Frames a second of SA-V's videos, and frames from one list of masks to the next where a file does not say.
const FPS: usize = 24;
const EVERY: usize = 4;

/// Run lengths as they are in the file.
#[derive(Debug, Deserialize)]
struct Runs {
    /// Rows, columns.
    size: [usize; 2],
    counts: Counts,
}

#[derive(Debug)]
enum Counts {
    Text(String),
    List(Vec<usize>),
}

impl<'de> Deserialize<'de> for Counts {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Counts;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("COCO's run lengths: a string or a list of numbers")
            }

            fn visit_str<E>(self, text: &str) -> std::result::Result<Counts, E> {
                Ok(Counts::Text(text.into()))
            }

            fn visit_string<E>(self, text: String) -> std::result::Result<Counts, E> {
                Ok(Counts::Text(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Counts, A::Error> {
                let mut counts = Vec::new();
                while let Some(run) = list.next_element()? {
                    counts.push(run);
                }
                Ok(Counts::List(counts))
            }
        }
        from.deserialize_any(Either)
    }
}

impl Runs {
    fn decode(&self) -> Result<Rle> {
        let [height, width] = self.size;
        match &self.counts {
            Counts::Text(text) => Rle::parse(width, height, text),
            Counts::List(counts) => Rle::new(width, height, counts.clone()),
        }
    }
}

/// A file of SA-V. Other keys are passed over.
#[derive(Deserialize)]
struct Masklets {
    #[serde(alias = "masks")]
    masklet: Vec<Option<Vec<Option<Runs>>>>,
    /// Lists of masks a second.
    #[serde(default)]
    fps: Option<Rate>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Rate {
    One(f64),
    List(Vec<f64>),
}

impl Masklets {
    /// Frames from one list of masks to the next.
    fn step(&self, path: &Path) -> Result<usize> {
        let rate = match &self.fps {
            None => return Ok(EVERY),
            Some(Rate::One(rate)) => *rate,
            Some(Rate::List(rates)) => rates.first().copied().unwrap_or_default(),
        };
        let step = (1..=FPS).find(|step| rate * *step as f64 == FPS as f64);
        step.ok_or_else(|| fault(path, format!("`fps` is {rate}, expected one that divides {FPS}")))
    }
}

/// A file of SA-1B. Other keys are passed over.
#[derive(Deserialize)]
struct Annotations {
    annotations: Vec<Annotation>,
}

#[derive(Deserialize)]
struct Annotation {
    segmentation: Runs,
}

/// Reads piece by piece: of a file of many megabytes only the run lengths are held.
fn parse<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let file = File::open(path).map_err(Error::io(path))?;
    serde_json::from_reader(BufReader::with_capacity(1 << 16, file)).map_err(|e| match e.is_io() {
        true => Error::io(path)(e.into()),
        false => fault(path, e.to_string()),
    })
}

/// A mask that is decoded when it is asked for.
#[derive(Debug)]
struct Entry {
    object: u16,
    runs: Runs,
    /// The file, by number, and what the mask is called there.
    file: usize,
    place: String,
}

/// Masks of a video's or a picture's files.
#[derive(Debug)]
pub(super) struct Listed {
    files: Vec<PathBuf>,
    frames: BTreeMap<usize, Vec<Entry>>,
}

impl Listed {
    /// Masklets of all files of a video, objects counted from 1. Frames are those that every file has a mask of each
    /// object for; others, and lists of frames that are not there, are left out.
    pub(super) fn masklets(files: &[PathBuf], frames: &[PathBuf]) -> Result<Self> {
        let number = |path: &PathBuf| {
            stem(path).parse::<usize>().map_err(|_| fault(path, "expected the frame's number in the video as its name"))
        };
        let numbers: Vec<usize> = frames.iter().map(number).collect::<Result<_>>()?;
        let index: BTreeMap<usize, usize> = numbers.iter().enumerate().map(|(at, &number)| (number, at)).collect();
        let (mut all, mut next): (Option<BTreeMap<usize, Vec<Entry>>>, usize) = (None, 1);
        for (file, path) in files.iter().enumerate() {
            let list: Masklets = parse(path)?;
            let (step, lists) = (list.step(path)?, list.masklet.len());
            let objects = list.masklet.iter().flatten().map(Vec::len).max().unwrap_or(0);
            if objects == 0 {
                continue; // there are such files beside others that have masks
            }
            // Pictures numbered one after the other would get the masks of other frames.
            let (first, last) = (numbers.first().unwrap_or(&0), numbers.last().unwrap_or(&0));
            let in_a_row = numbers.windows(2).all(|pair| pair[1] == pair[0] + 1);
            if step > 1 && lists > 1 && in_a_row && *first <= 1 && numbers.len().abs_diff(lists) <= 1 {
                let cause = format!(
                    "{} frames numbered {first} to {last}, but the masks are those of every {step}th frame: expected \
                     00000, {step:05}, ..",
                    numbers.len()
                );
                return Err(fault(frames[0].parent().unwrap_or(path), cause));
            }
            if next + objects > usize::from(u16::MAX) {
                return Err(fault(path, format!("{objects} objects, expected at most {} in a video", u16::MAX)));
            }
            let mut found = BTreeMap::new();
            for (at, row) in list.masklet.into_iter().enumerate() {
                let row = row.filter(|row| row.len() == objects);
                let row = row.and_then(|row| row.into_iter().collect::<Option<Vec<Runs>>>());
                let (Some(row), Some(&frame)) = (row, index.get(&(at * step))) else { continue };
                let entry = |(o, runs)| {
                    let place = format!("`masklet[{at}][{o}]`");
                    Entry { object: (next + o) as u16, runs, file, place }
                };
                found.insert(frame, row.into_iter().enumerate().map(entry).collect::<Vec<Entry>>());
            }
            next += objects;
            all = Some(match all {
                None => found,
                Some(before) => before
                    .into_iter()
                    .filter_map(|(frame, mut entries)| {
                        entries.extend(found.remove(&frame)?);
                        Some((frame, entries))
                    })
                    .collect(),
            });
        }
        Ok(Self { files: files.to_vec(), frames: all.unwrap_or_default() })
    }

    /// The objects of a picture, counted from 1 in the order of the file, without those that have no pixel or nine
    /// tenths of them.
    pub(super) fn annotations(path: &Path) -> Result<Self> {
        let list: Annotations = parse(path)?;
        if list.annotations.len() > usize::from(u16::MAX) {
            let cause = format!("{} annotations, expected at most {}", list.annotations.len(), u16::MAX);
            return Err(fault(path, cause));
        }
        let mut listed = Self { files: vec![path.to_path_buf()], frames: BTreeMap::new() };
        let mut entries = Vec::new();
        for (at, Annotation { segmentation: runs }) in list.annotations.into_iter().enumerate() {
            let entry = Entry { object: at as u16 + 1, runs, file: 0, place: format!("`annotations[{at}]`") };
            let rle = listed.decode(&entry)?;
            if rle.area() > 0 && 10 * rle.area() < 9 * rle.width() * rle.height() {
                entries.push(entry);
            }
        }
        listed.frames.insert(0, entries);
        Ok(listed)
    }

    fn decode(&self, entry: &Entry) -> Result<Rle> {
        entry.runs.decode().map_err(|e| fault(&self.files[entry.file], format!("{}: {e}", entry.place)))
    }

    /// Frames with masks, in order.
    pub(super) fn annotated(&self) -> Vec<usize> {
        self.frames.keys().copied().collect()
    }

    /// The masks of a frame by object, each decoded when it is come to.
    pub(super) fn of(&self, frame: usize) -> impl Iterator<Item = (u16, impl FnOnce() -> Result<Rle>)> {
        let entries = self.frames.get(&frame).map_or(&[][..], Vec::as_slice);
        entries.iter().map(move |entry| (entry.object, move || self.decode(entry)))
    }
}
