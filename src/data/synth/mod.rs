//! Generated data sets: labelled pictures with captions, clips with masks, or images with several captions each.
//!
//! Pictures: the class is the shape of the largest thing in the picture; its colour, pattern, size, place and
//! angle, the ground and the pieces around it are drawn independently of the class. Comparing raw pixels therefore
//! says almost nothing about the class, while it is plain to the eye. Layout, beside `captions.tsv` (file, tab,
//! caption) and `captions.jsonl` (file, label, caption, attributes):
//!
//! ```text
//! out/train/<class>/000000.png   out/val/<class>/000000.png
//! ```
//!
//! The same pictures with masks, see [`Content::Masks`]: `out/<split>/images/<class>/000000.png`, and as indexed PNG the class
//! of each pixel in `out/<split>/masks/<class>/000000.png`, 0 for none, else the label plus 1.
//!
//! Clips: `frames` pictures each, in `out/<split>/frames/<clip>/00000.png`; object numbers as indexed PNG in
//! `out/<split>/masks/<clip>/00000.png`; one line per clip in `out/<split>/clips.jsonl`.
//!
//! Images with captions, see [`Content::Pairs`]: tar shards and class folders
//!
//! ```text
//! out/train/00000.tar              seen combinations of colour and shape: 000000.png, 000000.json (captions, attributes)
//! out/val/00000.tar                held-out ones, for retrieval
//! out/unseen/<class>/000000.png    held-out ones, a single thing each, for zero-shot classification
//! out/seen/<class>/000000.png      the same of seen ones, in new pictures
//! out/classes.txt                  all classes, seen or not: size, colour, shape
//! out/templates.txt                prompts for them
//! ```
//!
//! Picture i of a split depends on the seed, the split and i only, so a longer data set begins with the shorter one.

mod paint;
mod pairs;
mod scene;
mod shape;
mod shards;
mod video;

use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

pub use pairs::{Attributes, Captioned, held_out};
pub use scene::{Description, Scene};
pub use shape::Kind;
pub use shards::{Part, pair};
pub use video::{Clip, Object};

use super::image::Image;
use super::rng::{Purpose, Stream};
use crate::{Error, Result};

/// What a data set is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Cluttered pictures in class folders, a caption for each.
    Pictures,
    /// Those pictures with the class of each pixel: the shape that is the picture's class where it can be seen.
    Masks,
    /// Moving things with masks, `frames` pictures in a clip.
    Clips {
        /// Pictures in a clip.
        frames: usize,
    },
    /// Clear pictures with several captions each. A quarter of the pairs of colour and shape are kept out of training
    /// ([`held_out`]); validation consists of them. Besides `train` and `val` pairs there are `val` pictures in class folders
    /// of held-out and as many of seen combinations.
    Pairs,
}

/// What to generate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Decides everything.
    pub seed: u64,
    /// Pictures (or clips) for training.
    pub train: usize,
    /// Pictures (or clips) for validation.
    pub val: usize,
    /// Side of a picture in pixels.
    pub size: usize,
    /// Number of shapes, 2 to 12: the classes of labelled pictures.
    pub classes: usize,
    /// Largest angle in degrees by which the shape of a picture is turned to either side, up to 180.
    pub turn: u32,
    /// What it is made of.
    pub content: Content,
}

impl Default for Config {
    fn default() -> Self {
        Self { seed: 0, train: 4000, val: 1000, size: 64, classes: 8, turn: 30, content: Content::Pictures }
    }
}

impl Config {
    /// The usual data set of images with captions.
    pub fn pairs() -> Self {
        Self { train: 20_000, size: 32, classes: 6, turn: 12, content: Content::Pairs, ..Self::default() }
    }
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Folder of the data set.
    pub root: PathBuf,
    /// Pictures, all frames counted.
    pub images: u64,
    /// Class names, by label.
    pub classes: Vec<String>,
}

/// One of the two parts of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// For training.
    Train,
    /// For validation.
    Val,
}

impl Split {
    fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Val => "val",
        }
    }

    fn number(self) -> u64 {
        match self {
            Self::Train => 0,
            Self::Val => 1,
        }
    }
}

impl Config {
    /// An error that names the first value that cannot be used.
    pub fn check(&self) -> Result<()> {
        let kinds = Kind::ALL.len();
        if !(2..=kinds).contains(&self.classes) {
            return Err(Error::config("classes", self.classes, format!("2 to {kinds}")));
        }
        if !(16..=2048).contains(&self.size) {
            return Err(Error::config("size", self.size, "16 to 2048 pixels"));
        }
        if self.train == 0 {
            return Err(Error::config("train", self.train, "at least 1"));
        }
        if self.turn > 180 {
            return Err(Error::config("turn", self.turn, "0 to 180 degrees"));
        }
        for (key, given) in [("train", self.train), ("val", self.val)] {
            if given > 10_000_000 {
                return Err(Error::config(key, given, "at most 10000000"));
            }
        }
        match self.content {
            Content::Clips { frames } if !(1..=10_000).contains(&frames) => {
                Err(Error::config("frames", frames, "1 to 10000"))
            }
            _ => Ok(()),
        }
    }

    /// How often `progress` of [`generate`] is called: pictures, or clips.
    pub fn pictures(&self) -> u64 {
        let folders = if self.content == Content::Pairs { 2 * self.val } else { 0 };
        (self.train + self.val + folders) as u64
    }

    /// The shapes used, by label.
    pub fn kinds(&self) -> &'static [Kind] {
        &Kind::ALL[..self.classes.min(Kind::ALL.len())]
    }

    /// Labelled picture number `index` of a split and its label; labels take turns.
    pub fn picture(&self, split: Split, index: usize) -> (Scene, usize) {
        let label = index % self.kinds().len().max(1);
        let mut rng = Stream::new(self.seed, Purpose::SYNTH, split.number(), index as u64);
        (scene::draw(&mut rng, self.kinds()[label], self.size, f64::from(self.turn)), label)
    }

    /// Clip number `index` of a split.
    pub fn clip(&self, split: Split, index: usize, frames: usize) -> Clip {
        let mut rng = Stream::new(self.seed, Purpose::SYNTH, 2 + split.number(), index as u64);
        video::draw(&mut rng, self.kinds(), self.size, frames)
    }
}

/// Writes the data set into `out`, which must be empty or not exist. `progress` hears, from several threads, how
/// many pictures (or clips) were finished each time.
pub fn generate(config: &Config, out: impl AsRef<Path>, progress: &(dyn Fn(u64) + Sync)) -> Result<Report> {
    config.check()?;
    let out = out.as_ref();
    fs::create_dir_all(out).map_err(Error::io(out))?;
    if fs::read_dir(out).map_err(Error::io(out))?.next().is_some() {
        let cause = "the folder is not empty, and a data set must not be mixed with other files".to_owned();
        return Err(Error::Dataset { path: out.to_path_buf(), cause });
    }
    let mut report = Report { root: out.to_path_buf(), images: 0, classes: Vec::new() };
    if config.content == Content::Pairs {
        report.classes = shards::generate(config, out, progress)?;
        report.images = config.pictures();
        return Ok(report);
    }
    report.classes = config.kinds().iter().map(|kind| kind.name().to_owned()).collect();
    let (mut tsv, mut jsonl) = (String::new(), String::new());
    for (split, count) in [(Split::Train, config.train), (Split::Val, config.val)] {
        if count == 0 {
            continue;
        }
        if let Content::Clips { frames } = config.content {
            clips(config, split, count, frames, out, progress)?;
            report.images += (count * frames) as u64;
        } else {
            for line in pictures(config, split, count, out, progress)? {
                tsv.push_str(&format!("{}\t{}\n", line.file, line.caption));
                jsonl.push_str(&json(&line)?);
            }
            report.images += count as u64;
        }
    }
    if matches!(config.content, Content::Pictures | Content::Masks) {
        write(&out.join("captions.tsv"), &tsv)?;
        write(&out.join("captions.jsonl"), &jsonl)?;
    }
    Ok(report)
}

/// A line of `captions.jsonl`.
#[derive(serde::Serialize)]
struct Line {
    file: String,
    label: usize,
    caption: String,
    #[serde(flatten)]
    description: Description,
}

fn pictures(
    config: &Config,
    split: Split,
    count: usize,
    out: &Path,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Vec<Line>> {
    let masks = config.content == Content::Masks;
    let split_name = split.name();
    let (images, maps) = match masks {
        true => (format!("{split_name}/images"), format!("{split_name}/masks")),
        false => (split_name.to_owned(), String::new()),
    };
    for kind in config.kinds().iter().take(count) {
        create(&out.join(&images).join(kind.name()))?;
        if masks {
            create(&out.join(&maps).join(kind.name()))?;
        }
    }
    let one = |index: usize| {
        let (scene, label) = config.picture(split, index);
        let name = format!("{}/{index:06}.png", config.kinds()[label].name());
        let file = format!("{images}/{name}");
        scene.image.save_png(out.join(&file))?;
        if masks {
            let mut mask = scene.mask;
            mask.ids.iter_mut().for_each(|id| *id *= label as u8 + 1);
            mask.save(out.join(&maps).join(&name))?;
        }
        progress(1);
        Ok(Line { file, label, caption: scene.caption, description: scene.description })
    };
    (0..count).into_par_iter().map(one).collect()
}

fn clips(
    config: &Config,
    split: Split,
    count: usize,
    frames: usize,
    out: &Path,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<()> {
    let root = out.join(split.name());
    let one = |index: usize| {
        let clip = config.clip(split, index, frames);
        let name = format!("{index:05}");
        let (pictures, masks) = (root.join("frames").join(&name), root.join("masks").join(&name));
        create(&pictures)?;
        create(&masks)?;
        for (t, (frame, mask)) in clip.frames.iter().zip(&clip.masks).enumerate() {
            frame.save_png(pictures.join(format!("{t:05}.png")))?;
            mask.save(masks.join(format!("{t:05}.png")))?;
        }
        progress(1);
        let size = config.size;
        let content = serde_json::json!({
            "clip": name, "frames": frames, "size": size, "caption": clip.caption, "objects": clip.objects,
        });
        json(&content)
    };
    let lines: Vec<String> = (0..count).into_par_iter().map(one).collect::<Result<_>>()?;
    write(&root.join("clips.jsonl"), &lines.concat())
}

/// The first pictures of the training split, for a contact sheet.
pub fn samples(config: &Config, count: usize) -> Result<Vec<Image>> {
    config.check()?;
    let one = |index| match config.content {
        Content::Pairs => pair(config, Part::Train, index).image,
        _ => config.picture(Split::Train, index).0.image,
    };
    Ok((0..count).into_par_iter().map(one).collect())
}

/// A line of JSON.
fn json(value: &impl serde::Serialize) -> Result<String> {
    Ok(serde_json::to_string(value).map_err(|e| Error::Training(format!("synth: {e}")))? + "\n")
}

fn create(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(Error::io(folder))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(Error::io(path))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::data::Pairs;
    use crate::data::folder::{Folder, Source};
    use crate::data::label_map::LabelMap;

    fn small() -> Config {
        Config { seed: 4, train: 20, val: 9, size: 24, classes: 8, turn: 30, content: Content::Pictures }
    }

    #[test]
    fn pictures_form_class_folders_with_captions() {
        let dir = tempfile::tempdir().unwrap();
        let done = AtomicU64::new(0);
        let out = dir.path().join("set");
        let report = generate(&small(), &out, &|n| _ = done.fetch_add(n, Ordering::Relaxed)).unwrap();
        assert_eq!((report.images, done.into_inner(), report.classes.len()), (29, 29, 8));
        let folder = Folder::open(out.join("train")).unwrap();
        assert_eq!((folder.len(), folder.classes().len()), (20, 8));
        assert_eq!(folder.load(0).unwrap().width, 24);
        let tsv = fs::read_to_string(out.join("captions.tsv")).unwrap();
        assert_eq!(tsv.lines().count(), 29);
        for line in tsv.lines() {
            let (file, caption) = line.split_once('\t').unwrap();
            let class = file.split('/').nth(1).unwrap();
            assert!(caption.contains(class) && out.join(file).is_file(), "{line}");
        }
        let first: serde_json::Value =
            serde_json::from_str(fs::read_to_string(out.join("captions.jsonl")).unwrap().lines().next().unwrap())
                .unwrap();
        assert_eq!((first["label"].as_u64(), first["shape"].as_str()), (Some(0), Some("circle")));

        let error = generate(&small(), &out, &|_| ()).unwrap_err();
        assert!(error.to_string().contains("not empty"), "{error}");
    }

    #[test]
    fn masks_lie_beside_the_same_pictures() {
        let dir = tempfile::tempdir().unwrap();
        let (plain, masked) = (dir.path().join("plain"), dir.path().join("masked"));
        generate(&small(), &plain, &|_| ()).unwrap();
        let report = generate(&Config { content: Content::Masks, ..small() }, &masked, &|_| ()).unwrap();
        assert_eq!(report.images, 29);
        let folder = Folder::open(masked.join("train/images")).unwrap();
        assert_eq!((folder.len(), folder.classes().len()), (20, 8));
        for index in 0..folder.len() {
            let name = folder.path(index).strip_prefix(masked.join("train/images")).unwrap();
            let same = fs::read(plain.join("train").join(name)).unwrap();
            assert!(fs::read(folder.path(index)).unwrap() == same, "{}", name.display());
            let mask = LabelMap::open(masked.join("train/masks").join(name)).unwrap();
            let kind = Kind::ALL.iter().position(|kind| name.starts_with(kind.name())).unwrap() as u8;
            let of_class = mask.ids.iter().filter(|id| **id == kind + 1).count();
            assert!(of_class > 20 && mask.ids.iter().all(|id| [0, kind + 1].contains(id)), "{}", name.display());
        }
        let tsv = fs::read_to_string(masked.join("captions.tsv")).unwrap();
        assert!(tsv.lines().all(|line| masked.join(line.split('\t').next().unwrap()).is_file()), "{tsv}");
    }

    #[test]
    fn pairs_form_shards_and_class_folders() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { seed: 3, train: 1100, val: 50, size: 16, ..Config::pairs() };
        let done = AtomicU64::new(0);
        let report = generate(&config, dir.path(), &|n| _ = done.fetch_add(n, Ordering::Relaxed)).unwrap();
        assert_eq!((report.images, done.into_inner(), report.classes.len()), (1250, 1250, 96));
        let open = |part: &str| Pairs::open(dir.path().join(part), &Default::default()).unwrap();
        let (train, val) = (open("train"), open("val"));
        assert_eq!((train.len(), val.len(), train.skipped().count), (1100, 50, 0));
        assert_eq!((train.captions(1099).unwrap().len(), val.captions(7).unwrap().len()), (3, 2));
        assert_eq!(train.load(1099).unwrap().width, 16);

        let text = |file: &str| fs::read_to_string(dir.path().join(file)).unwrap();
        let classes: Vec<String> = text("classes.txt").lines().map(str::to_owned).collect();
        assert!(classes == report.classes && classes.contains(&"large red circle".into()));
        assert!(text("templates.txt").lines().all(|line| line.contains("{}")));
        let (unseen, seen) =
            (Folder::open(dir.path().join("unseen")).unwrap(), Folder::open(dir.path().join("seen")).unwrap());
        assert_eq!((unseen.len(), unseen.classes().len(), seen.len(), seen.classes().len()), (50, 24, 50, 50));
        assert!(unseen.classes().iter().all(|class| classes.contains(class) && !seen.classes().contains(class)));
        // No caption of training names a colour and a shape that are held out.
        for index in 0..train.len() {
            let caption = train.captions(index).unwrap().concat();
            for class in unseen.classes() {
                let words: Vec<&str> = class.split(' ').collect();
                assert!(!(caption.contains(words[1]) && caption.contains(words[2])), "{caption}");
            }
        }
    }

    #[test]
    fn threads_do_not_change_the_files() {
        let bytes = |threads: usize| {
            let dir = tempfile::tempdir().unwrap();
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| generate(&small(), dir.path().join("a"), &|_| ())).unwrap();
            let pairs = Config { content: Content::Pairs, ..small() };
            pool.install(|| generate(&pairs, dir.path().join("b"), &|_| ())).unwrap();
            let folder = Folder::open(dir.path().join("a/train")).unwrap();
            let mut all: Vec<Vec<u8>> = (0..folder.len()).map(|i| fs::read(folder.path(i)).unwrap()).collect();
            let files =
                ["a/captions.jsonl", "b/train/00000.tar", "b/val/00000.tar", "b/unseen/small green circle/000000.png"];
            all.extend(files.map(|file| fs::read(dir.path().join(file)).unwrap()));
            all
        };
        let one = bytes(1);
        assert!(one == bytes(2) && one == bytes(4));
    }

    #[test]
    fn clips_have_a_mask_for_every_frame() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { train: 2, val: 1, content: Content::Clips { frames: 3 }, ..small() };
        let report = generate(&config, dir.path(), &|_| ()).unwrap();
        assert_eq!(report.images, 9);
        for (split, clip) in [("train", "00001"), ("val", "00000")] {
            for t in 0..3 {
                let part = |kind: &str| dir.path().join(split).join(kind).join(clip).join(format!("{t:05}.png"));
                assert_eq!(crate::data::decode::open(part("frames")).unwrap().width, 24);
                let mask = LabelMap::open(part("masks")).unwrap();
                assert!(mask.ids.contains(&1) || mask.ids.contains(&2));
            }
        }
        let lines = fs::read_to_string(dir.path().join("train/clips.jsonl")).unwrap();
        assert_eq!(lines.lines().count(), 2);
        assert!(lines.contains("\"objects\""));
    }

    #[test]
    fn unusable_configurations_are_errors() {
        for config in [
            Config { classes: 1, ..small() },
            Config { classes: 13, ..small() },
            Config { size: 8, ..small() },
            Config { train: 0, ..small() },
            Config { turn: 181, ..small() },
            Config { val: usize::MAX, ..small() },
            Config { content: Content::Clips { frames: 0 }, ..small() },
        ] {
            assert!(matches!(config.check(), Err(Error::Config { .. })), "{config:?}");
        }
        assert_eq!(samples(&small(), 3).unwrap().len(), 3);
    }
}
