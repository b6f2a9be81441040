//! Videos as folders of frames, with the objects of some or all frames as pictures.
//!
//! ```text
//! root/frames/<video>/00000.jpg ..        or JPEGImages, JPEGImages_24fps
//! root/masks/<video>/00000.png ..         or Annotations, Annotations_6fps: a number for each object, 0 for none
//! root/masks/<video>/<object>/00000.png   the same, a picture for each object, which may overlap
//! ```
//!
//! A folder `480p` between them, as DAVIS has it, is gone into. What DAVIS, MOSE and SA-V have, and what `data synth --video` writes. A mask belongs to the frame of the same name.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::binary_mask::BinaryMask;
use super::decode;
use super::folder::Source;
use super::image::Image;
use super::label_map::LabelMap;
use super::rng::Stream;
use crate::{Error, Result};

/// Folders of frames and of masks, by preference.
const FRAMES: [&str; 3] = ["frames", "JPEGImages", "JPEGImages_24fps"];
const MASKS: [&str; 3] = ["masks", "Annotations", "Annotations_6fps"];
/// The folder of DAVIS's usual resolution.
const DAVIS: &str = "480p";
/// Objects of a clip at most: one bit of a byte each.
pub const MAX_OBJECTS: usize = 8;

/// Pictures of objects, by the number of their frame: of all objects, or of one each.
type Masks = BTreeMap<usize, Vec<(Option<u16>, PathBuf)>>;

/// A video.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Video {
    /// Its folder's name.
    pub name: String,
    /// Its frames, in order.
    pub frames: Vec<PathBuf>,
    masks: Masks,
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

fn is_picture(path: &Path) -> bool {
    let end = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    ["jpg", "jpeg", "png", "webp"].contains(&end.as_str())
}

/// Frames of a folder: pictures by their numbers, or by their names where one is no number.
///
/// # Errors
/// When the folder cannot be read or has none.
pub fn frames(folder: &Path) -> Result<Vec<PathBuf>> {
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

impl Videos {
    /// The videos below `root`. `masks`: whether a video without any is refused.
    ///
    /// # Errors
    /// When there is no folder of frames, or none in it.
    pub fn open(root: impl AsRef<Path>, masks: bool) -> Result<Self> {
        let root = root.as_ref();
        let below = |names: &[&str]| names.iter().map(|name| root.join(name)).find(|path| path.is_dir());
        let of_frames = below(&FRAMES)
            .ok_or_else(|| fault(root, format!("no folder of frames: expected one of {}", FRAMES.join(", "))))?;
        let of_masks = below(&MASKS);
        // DAVIS has a folder for each resolution between them.
        let inner = |folder: PathBuf| Some(folder.join(DAVIS)).filter(|inner| inner.is_dir()).unwrap_or(folder);
        let (of_frames, of_masks) = (inner(of_frames), of_masks.map(inner));
        if masks && of_masks.is_none() {
            return Err(fault(root, format!("no folder of masks: expected one of {}", MASKS.join(", "))));
        }
        let mut videos = Vec::new();
        for folder in entries(&of_frames)?.into_iter().filter(|p| p.is_dir()) {
            let frames = frames(&folder)?;
            let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let own = of_masks.as_ref().map(|m| m.join(&name)).filter(|m| m.is_dir());
            let found = own.map_or(Ok(BTreeMap::new()), |own| pictures(&own, &frames))?;
            if masks && found.is_empty() {
                return Err(fault(&folder, "no frame of this video has masks"));
            }
            videos.push(Video { name, frames, masks: found });
        }
        if videos.is_empty() {
            return Err(fault(&of_frames, "no folder of a video in it"));
        }
        Ok(Self { root: root.to_path_buf(), videos })
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

/// Pictures of objects below a folder, by frame.
fn pictures(folder: &Path, frames: &[PathBuf]) -> Result<Masks> {
    let numbers: BTreeMap<String, usize> = frames.iter().enumerate().map(|(i, path)| (stem(path), i)).collect();
    let mut out = Masks::new();
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

impl Video {
    /// Frames with masks.
    pub fn annotated(&self) -> impl DoubleEndedIterator<Item = usize> + '_ {
        self.masks.keys().copied()
    }

    /// A frame.
    ///
    /// # Errors
    /// When it cannot be decoded.
    pub fn frame(&self, at: usize) -> Result<Image> {
        decode::open(&self.frames[at])
    }

    /// The objects of a frame, by number; empty where it has no masks. Objects that have pictures of their own are there also
    /// when they are not seen.
    ///
    /// # Errors
    /// When a picture cannot be decoded.
    pub fn objects(&self, at: usize) -> Result<BTreeMap<u16, BinaryMask>> {
        let mut out = BTreeMap::new();
        for (object, path) in self.masks.get(&at).map_or(&[][..], Vec::as_slice) {
            let LabelMap { width, height, ids } = LabelMap::open(path)?;
            match object {
                Some(object) => {
                    out.insert(*object, BinaryMask::new(width, height, ids.iter().map(|&id| id != 0).collect())?);
                }
                None => {
                    let mut present: Vec<u8> = ids.iter().copied().filter(|&id| id != 0).collect();
                    present.sort_unstable();
                    present.dedup();
                    for id in present {
                        let inside = ids.iter().map(|&x| x == id).collect();
                        out.insert(u16::from(id), BinaryMask::new(width, height, inside)?);
                    }
                }
            }
        }
        Ok(out)
    }
}

/// Clips of videos for training: annotated frames that follow each other, and objects that are seen in the first.
#[derive(Clone, Debug)]
pub struct Clips {
    videos: Arc<Videos>,
    /// Frames of a clip.
    pub frames: usize,
    /// Objects of a clip at most.
    pub objects: usize,
    /// Probability of a clip that runs backwards.
    pub reverse: f64,
}

/// Beginnings that are tried before a video counts as one without an object.
const TRIES: usize = 8;

impl Clips {
    /// Clips of `frames` frames and at most `objects` objects.
    ///
    /// # Errors
    /// When there are more objects than a clip can hold, or every video has fewer annotated frames. Single ones are left out, with
    /// a warning.
    pub fn new(mut videos: Videos, frames: usize, objects: usize, reverse: f64) -> Result<Self> {
        if !(1..=MAX_OBJECTS).contains(&objects) {
            return Err(Error::config("max_objects", objects, format!("1 to {MAX_OBJECTS}")));
        }
        let (all, most) = (videos.videos.len(), videos.videos.iter().map(|v| v.masks.len()).max().unwrap_or(0));
        videos.videos.retain(|v| v.masks.len() >= frames.max(1));
        if videos.videos.is_empty() {
            let cause = format!("at most {most} frames with masks in a video, a clip has {frames}");
            return Err(fault(&videos.root, cause));
        }
        if videos.videos.len() < all {
            tracing::warn!(
                "{} of {all} videos are left out: fewer than {frames} frames with masks",
                all - videos.videos.len()
            );
        }
        Ok(Self { videos: Arc::new(videos), frames, objects, reverse })
    }

    /// What tells this data from another.
    pub fn identity(&self) -> String {
        self.videos.identity()
    }

    /// A clip as one picture: its frames below each other, then for each frame a picture whose bits are objects, the same in all
    /// three channels.
    fn stacked(&self, video: &Video, frames: &[usize], chosen: &[u16]) -> Result<Image> {
        let (mut pixels, mut bits, mut size) = (Vec::new(), Vec::new(), None);
        for &at in frames {
            let image = video.frame(at)?;
            let [w, h] = *size.get_or_insert([image.width, image.height]);
            let wrong = |what: &str, given: [usize; 2]| {
                fault(
                    &video.frames[at],
                    format!("{what} of {} x {}, the first frame has {w} x {h}", given[0], given[1]),
                )
            };
            if [image.width, image.height] != [w, h] {
                return Err(wrong("a frame", [image.width, image.height]));
            }
            pixels.extend_from_slice(&image.data);
            let objects = video.objects(at)?;
            let mut of_pixel = vec![0u8; w * h];
            for (bit, number) in chosen.iter().enumerate() {
                let Some(mask) = objects.get(number) else { continue };
                if [mask.width(), mask.height()] != [w, h] {
                    return Err(wrong("a mask", [mask.width(), mask.height()]));
                }
                of_pixel.iter_mut().zip(mask.pixels()).filter(|(_, inside)| **inside).for_each(|(p, _)| *p |= 1 << bit);
            }
            bits.extend(of_pixel.into_iter().flat_map(|b| [b; 3]));
        }
        pixels.append(&mut bits);
        let [width, height] = size.unwrap_or_default();
        Ok(Image { width, height: 2 * frames.len() * height, data: pixels })
    }
}

impl Source for Clips {
    fn len(&self) -> usize {
        self.videos.videos.len()
    }

    fn label(&self, _index: usize) -> i32 {
        -1
    }

    fn name(&self, index: usize) -> PathBuf {
        self.videos.root.join(&self.videos.videos[index].name)
    }

    fn load(&self, index: usize) -> Result<Arc<Image>> {
        let video = &self.videos.videos[index];
        let frames: Vec<usize> = video.annotated().take(self.frames).collect();
        let seen: Vec<u16> = video.objects(frames[0])?.into_keys().take(self.objects).collect();
        Ok(Arc::new(self.stacked(video, &frames, &seen)?))
    }

    fn sample(&self, index: usize, rng: &mut Stream) -> Result<Arc<Image>> {
        let video = &self.videos.videos[index];
        let annotated: Vec<usize> = video.annotated().collect();
        for _ in 0..TRIES {
            let start = rng.below(annotated.len() - self.frames + 1);
            let mut frames = annotated[start..start + self.frames].to_vec();
            if rng.chance(self.reverse) {
                frames.reverse();
            }
            let first = video.objects(frames[0])?;
            let mut seen: Vec<u16> = first.iter().filter(|(_, mask)| mask.area() > 0).map(|(id, _)| *id).collect();
            if seen.is_empty() {
                continue;
            }
            rng.shuffle(&mut seen);
            seen.truncate(self.objects);
            return Ok(Arc::new(self.stacked(video, &frames, &seen)?));
        }
        Err(fault(&self.name(index), format!("no object in the first frame of {TRIES} clips")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::rng::Purpose;
    use crate::data::synth::{Config, Content, generate};

    fn made(frames: usize) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let content = Content::Clips { frames };
        let config = Config { train: 2, val: 1, size: 24, content, ..Config::default() };
        generate(&config, dir.path().join("clips"), &|_| ()).unwrap();
        dir
    }

    #[test]
    fn videos_and_their_objects() {
        let dir = made(4);
        let videos = Videos::open(dir.path().join("clips/train"), true).unwrap();
        assert_eq!(videos.videos.len(), 2);
        let video = &videos.videos[0];
        assert_eq!((video.frames.len(), video.annotated().count()), (4, 4));
        let map = LabelMap::open(dir.path().join("clips/train/masks/00000/00002.png")).unwrap();
        for (id, mask) in video.objects(2).unwrap() {
            let area = map.ids.iter().filter(|&&x| u16::from(x) == id).count();
            assert_eq!(mask.area(), area);
        }
        assert!(Videos::open(dir.path(), true).unwrap_err().to_string().contains("no folder of frames"));
    }

    #[test]
    fn a_picture_for_each_object_may_overlap() {
        let dir = tempfile::tempdir().unwrap();
        let frame = Image { width: 2, height: 1, data: vec![9; 6] };
        let at = |path: &str| dir.path().join(path);
        for folder in ["JPEGImages/a", "Annotations/a/001", "Annotations/a/007"] {
            fs::create_dir_all(at(folder)).unwrap();
        }
        frame.save_png(at("JPEGImages/a/00000.png")).unwrap();
        for (object, ids) in [("001", vec![1, 1]), ("007", vec![0, 1])] {
            LabelMap { width: 2, height: 1, ids }.save(at(&format!("Annotations/a/{object}/00000.png"))).unwrap();
        }
        let videos = Videos::open(dir.path(), true).unwrap();
        let objects = videos.videos[0].objects(0).unwrap();
        assert_eq!(objects[&1].pixels(), [true, true]);
        assert_eq!(objects[&7].pixels(), [false, true]);
        let clips = Clips::new(videos, 1, 3, 0.0).unwrap();
        let clip = clips.load(0).unwrap();
        assert_eq!((clip.height, &clip.data[6..]), (2, &[1, 1, 1, 3, 3, 3][..]));
    }

    #[test]
    fn clips_depend_on_the_stream_alone() {
        let dir = made(6);
        let clips = Clips::new(Videos::open(dir.path().join("clips/train"), true).unwrap(), 3, 2, 0.5).unwrap();
        let draw = |index| clips.sample(1, &mut Stream::new(3, Purpose::CLIP, 0, index)).unwrap();
        assert_eq!(draw(0), draw(0));
        assert!((1..20).any(|i| draw(i) != draw(0)));
        let clip = draw(0);
        assert_eq!((clip.width, clip.height), (24, 2 * 3 * 24));
        let first: Vec<u8> = clip.data[3 * 3 * 24 * 24..][..3 * 24 * 24].to_vec();
        assert!(first.iter().any(|&bits| bits & 1 != 0), "the first object is seen in the first frame");
        let videos = Videos::open(dir.path().join("clips/train"), true).unwrap();
        assert!(Clips::new(videos.clone(), 7, 2, 0.5).unwrap_err().to_string().contains("at most 6 frames with masks"));
        assert!(Clips::new(videos, 2, 9, 0.5).is_err());
    }
}
