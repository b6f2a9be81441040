//! Captioned pictures as files: tar shards for training and retrieval, class folders for zero-shot classification.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use rayon::prelude::*;
use serde::Serialize;

use super::pairs::{Attributes, Captioned, Class, Combination, TEMPLATES};
use super::{Config, create, json, write};
use crate::data::rng::{Purpose, Stream};
use crate::{Error, Result};

/// Pairs in a shard.
const SHARD: usize = 1000;

/// A part of the data set; the number addresses its random streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Shards of seen combinations, with short captions.
    Train = 4,
    /// Shards of held-out combinations, all different as long as there are enough.
    Val = 5,
    /// Class folders of held-out combinations.
    Unseen = 6,
    /// Class folders of seen combinations in new pictures.
    Seen = 7,
}

/// The `.json` of a pair.
#[derive(Serialize)]
struct Line<'a> {
    caption: &'a [String],
    #[serde(flatten)]
    attributes: Attributes,
}

/// Number of shapes that a configuration uses.
fn shapes(config: &Config) -> usize {
    config.kinds().len()
}

/// The classes of a part.
fn classes(config: &Config, part: Part) -> Vec<Class> {
    Class::all(shapes(config)).filter(|class| class.is_held_out() == (part == Part::Unseen)).collect()
}

/// Picture number `index` of a part: it depends on the seed, the part and the index only.
pub fn pair(config: &Config, part: Part, index: usize) -> Captioned {
    let mut rng = Stream::new(config.seed, Purpose::SYNTH, part as u64, index as u64);
    let combination = match part {
        Part::Train => Combination::seen(&mut rng, shapes(config)),
        Part::Val => {
            let mut all = Combination::all_held_out(shapes(config));
            Stream::new(config.seed, Purpose::SYNTH, part as u64, u64::MAX).shuffle(&mut all);
            all[index % all.len()]
        }
        Part::Unseen | Part::Seen => {
            let classes = classes(config, part);
            classes[index % classes.len()].one(&mut rng)
        }
    };
    combination.draw(&mut rng, config.size, f64::from(config.turn), part == Part::Train)
}

/// Writes all parts and returns the names of all classes.
pub fn generate(config: &Config, out: &Path, progress: &(dyn Fn(u64) + Sync)) -> Result<Vec<String>> {
    shards(config, Part::Train, config.train, &out.join("train"), progress)?;
    if config.val > 0 {
        shards(config, Part::Val, config.val, &out.join("val"), progress)?;
        folders(config, Part::Unseen, config.val, &out.join("unseen"), progress)?;
        folders(config, Part::Seen, config.val, &out.join("seen"), progress)?;
    }
    let names: Vec<String> = Class::all(shapes(config)).map(Class::name).collect();
    write(&out.join("classes.txt"), &(names.join("\n") + "\n"))?;
    write(&out.join("templates.txt"), &(TEMPLATES.join("\n") + "\n"))?;
    Ok(names)
}

fn shards(config: &Config, part: Part, count: usize, folder: &Path, progress: &(dyn Fn(u64) + Sync)) -> Result<()> {
    create(folder)?;
    for first in (0..count).step_by(SHARD) {
        let path = folder.join(format!("{:05}.tar", first / SHARD));
        let encode = |index: usize| {
            let made = pair(config, part, index);
            let line = json(&Line { caption: &made.captions, attributes: made.attributes })?;
            progress(1);
            Ok((index, made.image.to_png()?, line))
        };
        let pairs: Vec<_> = (first..count.min(first + SHARD)).into_par_iter().map(encode).collect::<Result<_>>()?;
        let pack = || {
            let mut tar = tar::Builder::new(BufWriter::new(File::create(&path)?));
            for (index, png, line) in &pairs {
                for (extension, bytes) in [("png", png.as_slice()), ("json", line.as_bytes())] {
                    let mut header = tar::Header::new_gnu();
                    header.set_size(bytes.len() as u64);
                    header.set_mode(0o644);
                    tar.append_data(&mut header, format!("{index:06}.{extension}"), bytes)?;
                }
            }
            tar.into_inner()?.flush()
        };
        pack().map_err(Error::io(&path))?;
    }
    Ok(())
}

fn folders(config: &Config, part: Part, count: usize, folder: &Path, progress: &(dyn Fn(u64) + Sync)) -> Result<()> {
    let classes = classes(config, part);
    for class in classes.iter().take(count) {
        create(&folder.join(class.name()))?;
    }
    let one = |index: usize| {
        let class = classes[index % classes.len()].name();
        progress(1);
        pair(config, part, index).image.save_png(folder.join(class).join(format!("{index:06}.png")))
    };
    (0..count).into_par_iter().try_for_each(one)
}
