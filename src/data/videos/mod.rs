//! Videos as folders of frames, with the objects of some or all frames.
//!
//! ```text
//! root/frames/<video>/00000.jpg ..        or JPEGImages, JPEGImages_24fps
//! root/masks/<video>/00000.png ..         or Annotations, Annotations_6fps: a number for each object, 0 for none
//! root/masks/<video>/<object>/00000.png   the same, a picture for each object, which may overlap
//!
//! root/<video>_manual.json, <video>_auto.json   masks of SA-V's training videos, frames in root/<video>/00000.jpg ..
//! root/sa_1.jpg, sa_1.json                      SA-1B: a picture is a video of one frame
//! ```
//!
//! A folder `480p` between them, as DAVIS has it, is gone into. What DAVIS, MOSE and SA-V's other sets have, and what
//! `data synth --video` writes. A mask belongs to the frame of the same name. JSON files may also be in
//! folders below the root, or in that of the masks; frames of SA-V also in that of the frames. The layout is seen from
//! what is there.

mod clips;
mod listed;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

pub use clips::Clips;
use listed::Listed;

use super::binary_mask::BinaryMask;
use super::decode;
use super::image::Image;
use super::label_map::LabelMap;
use crate::{Error, Result};

/// Folders of frames and of masks, by preference.
const FRAMES: [&str; 3] = ["frames", "JPEGImages", "JPEGImages_24fps"];
const MASKS: [&str; 3] = ["masks", "Annotations", "Annotations_6fps"];
/// The folder of DAVIS's usual resolution.
const DAVIS: &str = "480p";
/// Ends of the names of SA-V's files, without `.json`.
const MASKLETS: [&str; 2] = ["_manual", "_auto"];
/// Videos that are left out and named one by one.
const NAMED: usize = 8;
/// Objects of a clip at most: what an image of SA-1B is trained with.
pub const MAX_OBJECTS: usize = 64;

/// Pictures of objects, by the number of their frame: of all objects, or of one each.
type Pictures = BTreeMap<usize, Vec<(Option<u16>, PathBuf)>>;

/// Where a video's masks are.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Pictures(Pictures),
    /// SA-V's files.
    Masklets(Vec<PathBuf>),
    /// SA-1B's file.
    Annotations(PathBuf),
}

/// A video.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Video {
    /// Its folder's name, or a picture's.
    pub name: String,
    /// Its frames, in order.
    pub frames: Vec<PathBuf>,
    place: Place,
}

/// Videos below a folder.
#[derive(Clone, Debug)]
pub struct Videos {
    root: PathBuf,
    /// In the order of their names.
    pub videos: Vec<Video>,
}

fn fault(path: &Path, cause: impl Into<String>) -> Error {
    Error::Dataset { path: path.to_path_buf(), cause: cause.into() }
}

/// Entries of a folder, sorted.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = fs::read_dir(folder).map_err(Error::io(folder))?;
    let mut all: Vec<PathBuf> =
        read.map(|entry| entry.map(|e| e.path())).collect::<std::io::Result<_>>().map_err(Error::io(folder))?;
    all.sort();
    Ok(all)
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn ends_in(path: &Path, ends: &[&str]) -> bool {
    let end = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    ends.contains(&end.as_str())
}

fn is_picture(path: &Path) -> bool {
    ends_in(path, &["jpg", "jpeg", "png", "webp"])
}

/// Frames of a folder: pictures by their numbers, or by their names where one is no number.
///
/// # Errors
/// When the folder cannot be read or has none; of a video file, what makes frames of it.
pub fn frames(folder: &Path) -> Result<Vec<PathBuf>> {
    if folder.is_file() {
        let make = format!("mkdir frames && ffmpeg -i {} -q:v 2 -start_number 0 frames/%05d.jpg", folder.display());
        return Err(fault(folder, format!("is a file, expected a folder of frames: `{make}` makes one of a video")));
    }
    let mut all: Vec<PathBuf> = entries(folder)?.into_iter().filter(|p| is_picture(p)).collect();
    let number = |path: &PathBuf| stem(path).parse::<u64>().ok();
    if all.iter().all(|path| number(path).is_some()) {
        all.sort_by_key(number);
    }
    if all.is_empty() {
        return Err(fault(folder, "no frame in it: expected JPEG, PNG or WebP files"));
    }
    Ok(all)
}

/// The first of some folders that is there.
fn below(root: &Path, names: &[&str]) -> Option<PathBuf> {
    names.iter().map(|name| root.join(name)).find(|path| path.is_dir())
}

impl Videos {
    /// The videos below `root`, and the pictures of SA-1B, whatever the layout. Those without frames or without masks
    /// are counted, named and left out; `strict`: the first is an error.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(root: impl AsRef<Path>, strict: bool) -> Result<Self> {
        let root = root.as_ref();
        let (frames, masks) = (below(root, &FRAMES), below(root, &MASKS));
        let mut found = with_lists(root, frames.as_deref(), masks.as_deref())?;
        // Beside folders of frames and masks a JSON file may be anything, unless it has the masks of a video.
        let masklets = |video: &Result<Video>| matches!(video, Ok(Video { place: Place::Masklets(_), .. }));
        if found.is_empty() || (frames.is_some() && masks.is_some() && !found.iter().any(masklets)) {
            match with_pictures(root, frames, masks) {
                Ok(videos) if found.is_empty() || videos.iter().any(Result::is_ok) => found = videos,
                Err(error) if found.is_empty() => return Err(error),
                _ => {}
            }
        }
        let (mut videos, mut left_out) = (Vec::new(), Vec::new());
        for video in found {
            match video {
                Ok(video) => videos.push(video),
                Err(error) => left_out.push(error),
            }
        }
        if left_out.is_empty() || !(strict || videos.is_empty()) {
            left_out.iter().take(NAMED).for_each(|error| tracing::warn!("{error}"));
            if !left_out.is_empty() {
                let all = videos.len() + left_out.len();
                tracing::warn!("{} of {all} videos are left out: no frames or no masks", left_out.len());
            }
            return Ok(Self { root: root.to_path_buf(), videos });
        }
        Err(left_out.swap_remove(0))
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What tells this data from another: the names of videos and their numbers of frames.
    pub fn identity(&self) -> String {
        let frames: usize = self.videos.iter().map(|v| v.frames.len()).sum();
        let names = self
            .videos
            .iter()
            .fold(0, |crc, v| crc32c::crc32c_append(crc, format!("{}\0{}\0", v.name, v.frames.len()).as_bytes()));
        format!("{} videos, {frames} frames, names {names:08x}", self.videos.len())
    }
}

/// Videos whose masks are pictures.
fn with_pictures(root: &Path, frames: Option<PathBuf>, masks: Option<PathBuf>) -> Result<Vec<Result<Video>>> {
    let nothing = |what: &str, names: [&str; 3]| {
        let lists = "<video>_manual.json of SA-V or sa_1.jpg with sa_1.json of SA-1B";
        fault(root, format!("no folder of {what}: expected one of {}; or {lists}", names.join(", ")))
    };
    // DAVIS has a folder for each resolution between them.
    let inner = |folder: PathBuf| Some(folder.join(DAVIS)).filter(|inner| inner.is_dir()).unwrap_or(folder);
    let of_frames = inner(frames.ok_or_else(|| nothing("frames", FRAMES))?);
    let of_masks = inner(masks.ok_or_else(|| nothing("masks", MASKS))?);
    let folders: Vec<PathBuf> = entries(&of_frames)?.into_iter().filter(|p| p.is_dir()).collect();
    if folders.is_empty() {
        return Err(fault(&of_frames, "no folder of a video in it"));
    }
    let video = |folder: PathBuf| {
        let (frames, name) = (self::frames(&folder)?, file_name(&folder));
        let own = Some(of_masks.join(&name)).filter(|m| m.is_dir());
        let found = own.map_or(Ok(Pictures::new()), |own| pictures(&own, &frames))?;
        if found.is_empty() {
            return Err(fault(&folder, "no frame of this video has masks"));
        }
        Ok(Video { name, frames, place: Place::Pictures(found) })
    };
    Ok(folders.into_iter().map(video).collect())
}

/// Pictures of objects below a folder, by frame.
fn pictures(folder: &Path, frames: &[PathBuf]) -> Result<Pictures> {
    let numbers: BTreeMap<String, usize> = frames.iter().enumerate().map(|(i, path)| (stem(path), i)).collect();
    let mut out = Pictures::new();
    let mut add = |object: Option<u16>, path: PathBuf| {
        if let Some(&frame) = numbers.get(&stem(&path)) {
            out.entry(frame).or_default().push((object, path));
        }
    };
    for path in entries(folder)? {
        if path.is_dir() {
            let name = stem(&path);
            let object = name.parse().map_err(|_| fault(&path, "expected an object's number as its name"))?;
            entries(&path)?.into_iter().filter(|p| is_picture(p)).for_each(|p| add(Some(object), p));
        } else if is_picture(&path) {
            add(None, path);
        }
    }
    Ok(out)
}

/// Videos and pictures whose masks are in JSON files: in the root, in the folder of masks, or, where neither has one,
/// in the root's other folders.
fn with_lists(root: &Path, frames: Option<&Path>, masks: Option<&Path>) -> Result<Vec<Result<Video>>> {
    let mut found = BTreeMap::new();
    let inside = entries(root)?;
    lists_of(&inside, root, frames, &mut found);
    if let Some(masks) = masks {
        lists_of(&entries(masks)?, root, frames, &mut found);
    }
    if found.is_empty() {
        let known = |folder: &PathBuf| FRAMES.iter().chain(&MASKS).any(|name| folder.ends_with(name));
        for folder in inside.into_iter().filter(|p| p.is_dir() && !known(p)) {
            lists_of(&entries(&folder)?, root, frames, &mut found);
        }
    }
    Ok(found.into_values().collect())
}

/// Those of one folder, by name.
fn lists_of(inside: &[PathBuf], root: &Path, frames: Option<&Path>, found: &mut BTreeMap<PathBuf, Result<Video>>) {
    let pictures: BTreeMap<String, &PathBuf> = inside.iter().filter(|p| is_picture(p)).map(|p| (stem(p), p)).collect();
    let mut masklets: BTreeMap<PathBuf, Vec<PathBuf>> = BTreeMap::new();
    for list in inside.iter().filter(|p| ends_in(p, &["json"])) {
        let name = stem(list);
        if let Some(id) = MASKLETS.iter().find_map(|end| name.strip_suffix(end)) {
            masklets.entry(list.with_file_name(id)).or_default().push(list.clone());
        } else if let Some(&picture) = pictures.get(&name) {
            let place = Place::Annotations(list.clone());
            found.insert(list.with_extension(""), Ok(Video { name, frames: vec![picture.clone()], place }));
        } else if name.starts_with("sa_") {
            found.insert(list.with_extension(""), Err(fault(list, format!("no picture {name}.jpg beside it"))));
        }
    }
    for (beside, mut files) in masklets {
        files.reverse(); // manual ones first
        let video = with_masklets(&beside, files, root, frames);
        found.insert(beside, video);
    }
}

/// A video of SA-V: its frames are beside its files, or in the folder of frames.
fn with_masklets(beside: &Path, files: Vec<PathBuf>, root: &Path, frames: Option<&Path>) -> Result<Video> {
    let name = file_name(beside);
    let within = beside.parent().filter(|folder| *folder != root).and_then(Path::file_name);
    let elsewhere = frames.into_iter().flat_map(|all| {
        let deeper = within.map(|within| all.join(within).join(&name));
        [Some(all.join(&name)), deeper].into_iter().flatten()
    });
    let folder = std::iter::once(beside.to_path_buf()).chain(elsewhere).find(|folder| folder.is_dir());
    let folder = folder.ok_or_else(|| {
        let expected = format!("{name}/00000.jpg, 00004.jpg, .. of {name}.mp4, beside it or in {}", FRAMES.join(", "));
        fault(&files[0], format!("no folder of this video's frames: expected {expected}"))
    })?;
    Ok(Video { name, frames: self::frames(&folder)?, place: Place::Masklets(files) })
}

impl Video {
    /// Frames with masks, at most: lists of run lengths are not read for this.
    fn annotated_at_most(&self) -> usize {
        match &self.place {
            Place::Pictures(pictures) => pictures.len(),
            Place::Masklets(_) | Place::Annotations(_) => self.frames.len(),
        }
    }

    /// Its masks; they are decoded when they are asked for.
    ///
    /// # Errors
    /// When a list of run lengths cannot be read.
    pub fn masks(&self) -> Result<Masks<'_>> {
        let listed = match &self.place {
            Place::Pictures(pictures) => {
                let annotated = pictures.keys().copied().collect();
                return Ok(Masks { annotated, from: From::Pictures(pictures) });
            }
            Place::Masklets(files) => Listed::masklets(files, &self.frames)?,
            Place::Annotations(file) => Listed::annotations(file)?,
        };
        Ok(Masks { annotated: listed.annotated(), from: From::Listed(listed) })
    }

    /// A frame.
    ///
    /// # Errors
    /// When it cannot be decoded.
    pub fn frame(&self, at: usize) -> Result<Image> {
        decode::open(&self.frames[at])
    }
}

/// Masks of a video.
#[derive(Debug)]
pub struct Masks<'a> {
    annotated: Vec<usize>,
    from: From<'a>,
}

#[derive(Debug)]
enum From<'a> {
    Pictures(&'a Pictures),
    Listed(Listed),
}

impl Masks<'_> {
    /// Frames with masks, in order.
    pub fn annotated(&self) -> &[usize] {
        &self.annotated
    }

    /// Hands out the objects of a frame that are `wanted` by number, one after the other, also those that are not seen
    /// in it but have a mask of their own.
    ///
    /// # Errors
    /// When a mask cannot be decoded, and what `take` fails with.
    pub fn each(
        &self,
        at: usize,
        wanted: impl Fn(u16) -> bool,
        mut take: impl FnMut(u16, BinaryMask) -> Result<()>,
    ) -> Result<()> {
        let pictures = match &self.from {
            From::Pictures(pictures) => pictures.get(&at).map_or(&[][..], Vec::as_slice),
            From::Listed(listed) => {
                for (object, mask) in listed.of(at).filter(|(object, _)| wanted(*object)) {
                    take(object, mask()?.decode())?;
                }
                return Ok(());
            }
        };
        for (object, path) in pictures.iter().filter(|(object, _)| object.is_none_or(&wanted)) {
            let LabelMap { width, height, ids } = LabelMap::open(path)?;
            match object {
                Some(object) => {
                    take(*object, BinaryMask::new(width, height, ids.iter().map(|&id| id != 0).collect())?)?;
                }
                None => {
                    let mut there = [false; 256];
                    ids.iter().for_each(|&id| there[usize::from(id)] = true);
                    for id in (1..=u8::MAX).filter(|&id| there[usize::from(id)] && wanted(id.into())) {
                        let inside = ids.iter().map(|&x| x == id).collect();
                        take(id.into(), BinaryMask::new(width, height, inside)?)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The objects of a frame, by number; empty where it has no masks. As [`each`](Self::each).
    ///
    /// # Errors
    /// When a mask cannot be decoded.
    pub fn objects(&self, at: usize) -> Result<BTreeMap<u16, BinaryMask>> {
        let mut out = BTreeMap::new();
        self.each(
            at,
            |_| true,
            |object, mask| {
                out.insert(object, mask);
                Ok(())
            },
        )?;
        Ok(out)
    }

    /// The objects that are seen in a frame.
    ///
    /// # Errors
    /// When a mask cannot be decoded.
    pub fn seen(&self, at: usize) -> Result<Vec<u16>> {
        let mut seen = Vec::new();
        if let From::Listed(listed) = &self.from {
            for (object, mask) in listed.of(at) {
                if mask()?.area() > 0 {
                    seen.push(object);
                }
            }
            return Ok(seen);
        }
        self.each(
            at,
            |_| true,
            |object, mask| {
                if mask.area() > 0 {
                    seen.push(object);
                }
                Ok(())
            },
        )?;
        seen.sort_unstable();
        seen.dedup();
        Ok(seen)
    }
}
