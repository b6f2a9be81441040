//! A pool of generated pictures with planted copies, evaluation images that are copies of some of it, and curated images of two
//! of its eight classes: what curation is measured on.
//!
//! ```text
//! out/pool/000000.png ..       four fifths are originals (synth's labelled pictures), the rest copies of some of them
//! out/evaluation/000000.png .. half copies of originals of the pool, half new pictures
//! out/curated/000000.png ..    new pictures of the classes circle and ring, say: the first and the last
//! out/truth.tsv                set, file, class, original (file in the pool, or of new pictures the file itself), how
//! ```
//!
//! Copies take turns: `exact` (the same bytes), `resized` (by 0.5 to 0.75, bicubic), `recompressed` (a JPEG file of quality 50
//! to 95), `cropped` (5 % less on one side).

use std::fs;
use std::path::Path;

use rayon::prelude::*;

use super::image::{Image, Rect};
use super::resize::{Filter, resize};
use super::rng::{Purpose, Stream};
use super::synth::{self, Split};
use crate::{Error, Result};

/// How large it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args)]
pub struct Sizes {
    /// Images of the pool, a fifth of them copies
    #[arg(long, default_value_t = 5000)]
    pub images: usize,
    /// Evaluation images, half of them copies of images of the pool
    #[arg(long, default_value_t = 100)]
    pub evaluation: usize,
    /// Curated images
    #[arg(long, default_value_t = 100)]
    pub curated: usize,
    /// Image side in pixels
    #[arg(long, default_value_t = 64)]
    pub size: usize,
    /// One seed, one data set
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// An image of the data set: a line of truth.tsv.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planted {
    /// `pool`, `evaluation` or `curated`.
    pub set: String,
    /// File below the folder of the set.
    pub file: String,
    /// Class of the picture.
    pub class: String,
    /// What it was made from: a file of the pool, or itself.
    pub original: String,
    /// `original` in the pool, `new` elsewhere, or the kind of copy.
    pub how: String,
}

const KINDS: [&str; 4] = ["exact", "resized", "recompressed", "cropped"];
/// Streams of the copies; synth uses the numbers below.
const COPIES: u64 = 64;

/// Writes the data set into `out`, which must be empty or not exist. `progress` hears, from several threads, of each image.
///
/// # Errors
/// Sizes that cannot be used; [`Error::Io`].
pub fn generate(sizes: &Sizes, out: impl AsRef<Path>, progress: &(dyn Fn() + Sync)) -> Result<Vec<Planted>> {
    let out = out.as_ref();
    let config = synth::Config {
        seed: sizes.seed,
        train: sizes.images,
        val: sizes.evaluation + 8 * sizes.curated,
        size: sizes.size,
        ..synth::Config::default()
    };
    config.check()?;
    if sizes.images < 10 {
        return Err(Error::config("images", sizes.images, "at least 10"));
    }
    let sets = ["pool", "evaluation", "curated"];
    for set in sets {
        let folder = out.join(set);
        fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
    }
    if fs::read_dir(out).map_err(Error::io(out))?.count() > sets.len()
        || fs::read_dir(out.join("pool")).map_err(Error::io(out))?.next().is_some()
    {
        let cause = "the folder is not empty, and a data set must not be mixed with other files".to_owned();
        return Err(Error::Dataset { path: out.to_path_buf(), cause });
    }
    let originals = sizes.images - sizes.images / 5;
    let name = |index: usize| format!("{index:06}.png");
    let class = |label: usize| config.kinds()[label].name().to_owned();
    let save = |set: &str, file: &str, bytes: &[u8]| {
        let path = out.join(set).join(file);
        fs::write(&path, bytes).map_err(Error::io(&path))?;
        progress();
        Ok(())
    };
    let new = |set: &'static str, index: usize, split: Split, picture: usize, how: &str| {
        let (scene, label) = config.picture(split, picture);
        let file = name(index);
        save(set, &file, &scene.image.to_png()?)?;
        Ok(Planted { set: set.into(), file: file.clone(), class: class(label), original: file, how: how.into() })
    };
    let copy = |set: &'static str, index: usize, number: u64, kind: usize| {
        let mut rng = Stream::new(sizes.seed, Purpose::SYNTH, COPIES, number);
        let original = rng.below(originals);
        let (scene, label) = config.picture(Split::Train, original);
        let (bytes, end) = altered(&scene.image, KINDS[kind], &mut rng)?;
        let file = format!("{index:06}.{end}");
        save(set, &file, &bytes)?;
        let (original, how) = (name(original), KINDS[kind].into());
        Ok(Planted { set: set.into(), file, class: class(label), original, how })
    };
    let pool = |i: usize| match i < originals {
        true => new("pool", i, Split::Train, i, "original"),
        false => copy("pool", i, i as u64, i % KINDS.len()),
    };
    let evaluation = |i: usize| match i % 2 {
        0 => new("evaluation", i, Split::Val, i, "new"),
        _ => copy("evaluation", i, (sizes.images + i) as u64, i / 2 % KINDS.len()),
    };
    // Labels take turns: pictures of the first and of the last class, behind those of the evaluation set.
    let first = sizes.evaluation.next_multiple_of(8);
    let curated = |i: usize| new("curated", i, Split::Val, first + i / 2 * 8 + i % 2 * 7, "new");
    let each = |count: usize, one: &(dyn Fn(usize) -> Result<Planted> + Sync)| {
        (0..count).into_par_iter().map(one).collect::<Result<Vec<Planted>>>()
    };
    let all =
        [each(sizes.images, &pool)?, each(sizes.evaluation, &evaluation)?, each(sizes.curated, &curated)?].concat();
    let line = |p: &Planted| format!("{}\t{}\t{}\t{}\t{}\n", p.set, p.file, p.class, p.original, p.how);
    let path = out.join("truth.tsv");
    fs::write(&path, all.iter().map(line).collect::<String>()).map_err(Error::io(&path))?;
    Ok(all)
}

/// The bytes of a copy of an image, and the end of its file's name.
fn altered(image: &Image, kind: &str, rng: &mut Stream) -> Result<(Vec<u8>, &'static str)> {
    let Rect { width, height, .. } = image.rect();
    match kind {
        "resized" => {
            let factor = rng.uniform(0.5, 0.75);
            let side = |length: usize| ((length as f64 * factor).round() as usize).max(1);
            let small = resize(image, image.rect(), side(width), side(height), Filter::Bicubic)?;
            Ok((small.to_png()?, "png"))
        }
        "recompressed" => {
            let mut bytes = Vec::new();
            let quality = 50 + rng.below(46) as u8;
            let mut encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, quality);
            encoder
                .encode(&image.data, width as u32, height as u32, image::ExtendedColorType::Rgb8)
                .map_err(|e| Error::Image { path: "jpeg".into(), cause: e.to_string() })?;
            Ok((bytes, "jpg"))
        }
        "cropped" => {
            let strip = |length: usize| ((length as f64 * 0.05).round() as usize).clamp(1, length - 1);
            let (mut rect, side) = (image.rect(), rng.below(4));
            if side < 2 {
                rect.width -= strip(width);
                rect.left = side * strip(width);
            } else {
                rect.height -= strip(height);
                rect.top = (side - 2) * strip(height);
            }
            Ok((image.crop(rect)?.to_png()?, "png"))
        }
        _ => Ok((image.to_png()?, "png")),
    }
}

/// Reads a truth.tsv.
///
/// # Errors
/// When a line has not five columns; [`Error::Io`].
pub fn read(path: &Path) -> Result<Vec<Planted>> {
    let text = fs::read_to_string(path).map_err(Error::io(path))?;
    let line = |(number, line): (usize, &str)| {
        let columns: Vec<String> = line.split('\t').map(str::to_owned).collect();
        let [set, file, class, original, how] = <[String; 5]>::try_from(columns).map_err(|columns| {
            let cause = format!("line {} has {} columns, expected 5", number + 1, columns.len());
            Error::Dataset { path: path.into(), cause }
        })?;
        Ok(Planted { set, file, class, original, how })
    };
    text.lines().enumerate().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::decode;

    #[test]
    fn copies_are_what_they_are_called() {
        let place = tempfile::tempdir().unwrap();
        let sizes = Sizes { images: 100, evaluation: 9, curated: 6, size: 32, seed: 3 };
        let all = generate(&sizes, place.path().join("set"), &|| ()).unwrap();
        assert_eq!(read(&place.path().join("set/truth.tsv")).unwrap(), all);
        let of = |set: &str, how: &str| all.iter().filter(|p| p.set == set && p.how == how).collect::<Vec<_>>();
        assert_eq!(of("pool", "original").len(), 80);
        assert_eq!((of("evaluation", "new").len(), of("curated", "new").len()), (5, 6));
        let open = |set: &str, file: &str| decode::open(place.path().join("set").join(set).join(file)).unwrap();
        for kind in KINDS {
            assert_eq!((of("pool", kind).len(), of("evaluation", kind).len()), (5, 1), "{kind}");
            for p in of("pool", kind) {
                let (copy, original) = (open("pool", &p.file), open("pool", &p.original));
                let (w, h) = (copy.width, copy.height);
                assert!(match kind {
                    "exact" => copy == original,
                    "resized" => (16..=24).contains(&w) && w == h,
                    "recompressed" => p.file.ends_with(".jpg") && (w, h) == (32, 32) && copy != original,
                    _ => (w, h) == (30, 32) || (w, h) == (32, 30),
                });
            }
        }
        let classes: std::collections::BTreeSet<_> = of("curated", "new").iter().map(|p| p.class.clone()).collect();
        assert_eq!(classes.len(), 2);
        let again = generate(&sizes, place.path().join("set"), &|| ()).unwrap_err().to_string();
        assert!(again.ends_with("the folder is not empty, and a data set must not be mixed with other files"));
        let few = generate(&Sizes { images: 9, ..sizes }, place.path().join("few"), &|| ()).unwrap_err().to_string();
        assert_eq!(few, "config: `images` is 9, expected at least 10");
    }
}
