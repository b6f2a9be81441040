//! `ocellus eval retrieval`: captions and images of an image-text model, or images alone.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ocellus::data::{Folder, Source, pairs};
use ocellus::eval::Kind;
use ocellus::eval::instances::{GroundTruth, Precision, Protocol, by_class, common_labels, mean_average_precision};
use ocellus::recipes::mae::Pool;
use ocellus::recipes::mae::config::parse_size;
use ocellus::recipes::siglip::load::is_siglip;
use ocellus::recipes::{Encoder, encoder};
use ocellus::train::Progress;
use ocellus::{Error, Result};

use super::{Machine, eval, siglip};

/// Flags of `eval retrieval`.
#[derive(clap::Args)]
pub struct Flags {
    #[command(flatten)]
    model: siglip::Model,
    /// With an image-text model: tar shards, .tsv, .csv, .jsonl, COCO captions .json, a folder
    pairs: Option<PathBuf>,
    #[command(flatten)]
    columns: pairs::Columns,
    #[command(flatten)]
    images: Images,
}

/// Flags of retrieval by images alone.
#[derive(clap::Args)]
struct Images {
    /// With an encoder of images: class folders of queries; an image of the same class is a match
    #[arg(long, value_name = "FOLDER")]
    queries: Option<PathBuf>,
    /// Images that are ranked [default: the queries, where none finds itself]
    #[arg(long, value_name = "FOLDER")]
    database: Option<PathBuf>,
    /// What each query should find instead of its class, as revisited Oxford and Paris have it: .json with imlist, qimlist
    /// and gnd of easy, hard, junk and bbx
    #[arg(long, value_name = "FILE")]
    ground_truth: Option<PathBuf>,
    /// Feature: class token or mean of the patches [default: cls, for a fine-tuned file its own]
    #[arg(long, value_enum)]
    pool: Option<Pool>,
    /// Image side in pixels, or height x width as in 64x32; the position table is resized [default: the weights']
    #[arg(long, value_parser = parse_size)]
    image_size: Option<[usize; 2]>,
}

impl Images {
    /// The first that is given.
    fn given(&self) -> Option<&'static str> {
        first_given(&[
            ("queries", self.queries.is_some()),
            ("database", self.database.is_some()),
            ("ground_truth", self.ground_truth.is_some()),
            ("pool", self.pool.is_some()),
            ("image_size", self.image_size.is_some()),
        ])
    }
}

impl Flags {
    /// The first that is given of those for image-text models.
    fn of_texts(&self) -> Option<&'static str> {
        let pairs::Columns { caption, image_column, images } = &self.columns;
        let columns =
            [("caption", caption.is_some()), ("image_column", image_column.is_some()), ("images", images.is_some())];
        first_given(&[&self.model.of_texts()[..], &columns].concat())
    }
}

fn first_given(flags: &[(&'static str, bool)]) -> Option<&'static str> {
    flags.iter().find(|(_, given)| *given).map(|(key, _)| *key)
}

/// By the kind of model.
pub fn retrieval(flags: &Flags, machine: &Machine) -> Result<()> {
    let model = flags.model.path();
    match (&flags.pairs, is_siglip(model)?) {
        (Some(pairs), true) => match flags.images.given() {
            Some(key) => Err(Error::config(key, "given", "not given: an image-text model looks for captions")),
            None => siglip::retrieval(&flags.model, &siglip::PairsFlags::new(pairs, &flags.columns), machine),
        },
        (None, true) => {
            Err(Error::config("pairs", "missing", "image-text pairs, as the model is one of images and texts"))
        }
        (Some(_), false) => {
            let cause = "an encoder of images without texts, expected --queries and no pairs";
            Err(Error::checkpoint(model, cause))
        }
        (None, false) => match (flags.of_texts(), &flags.images.queries) {
            (Some(key), _) => {
                let expected = "not given: the model has no texts, only image-text models use it";
                Err(Error::config(key, "given", expected))
            }
            (None, Some(queries)) => images(model, queries, flags, machine),
            (None, None) => Err(Error::config("queries", "missing", "a folder of images, as the model has no texts")),
        },
    }
}

fn report(what: &str, found: &Precision) {
    let without = match found.without {
        0 => String::new(),
        n => format!(", {n} more have nothing to find"),
    };
    say!(
        "{what}: mAP {:.2} %, nearest right {:.2} %, {} queries{without}",
        100.0 * found.mean,
        100.0 * found.first,
        found.queries
    );
}

fn images(model: &Path, queries: &Path, flags: &Flags, machine: &Machine) -> Result<()> {
    let (images, batch) = (&flags.images, flags.model.batch_size());
    let device = machine.device()?;
    let load = || encoder::load(model, &device, machine.dtype(&device)?, images.pool, images.image_size);
    if let Some(truth) = &images.ground_truth {
        let truth = GroundTruth::open(truth)?;
        let (listed, database) =
            (truth.queries(queries)?, truth.database(images.database.as_deref().unwrap_or(queries))?);
        let model = load()?;
        let listed_features = |listed: ocellus::eval::instances::Listed| {
            let mut progress =
                Progress::new("features", listed.len().div_ceil(batch.max(1)) as u64, 0, batch as f64, "images");
            let found = listed.features(model.as_ref(), batch, |_| progress.step(""))?;
            progress.finish();
            eval::warn_of(&found.0.skipped);
            Ok::<_, Error>(found)
        };
        let ((queries, of_query), (database, of_image)) = (listed_features(listed)?, listed_features(database)?);
        say!("{} images in the database", of_image.len());
        for (name, protocol) in [("easy", Protocol::Easy), ("medium", Protocol::Medium), ("hard", Protocol::Hard)] {
            let wanted = truth.wanted(protocol, &of_query, &of_image);
            if wanted.iter().any(|w| !w.positive.is_empty()) {
                report(name, &mean_average_precision(&queries.values, &database.values, &wanted)?);
            } else {
                say!("{name}: no query has anything to find");
            }
        }
        return Ok(());
    }
    let open = |path| Ok::<_, Error>(Arc::new(Folder::labelled(path)?));
    let (folder, others) = (open(queries)?, images.database.as_deref().map(open).transpose()?);
    let model: Box<dyn Encoder> = load()?;
    let features = |folder: &Arc<Folder>| eval::features(model.as_ref(), folder.clone(), batch, Kind::Pooled);
    let found = features(&folder)?;
    let precision = match &others {
        None => {
            let wanted = by_class(&found.labels, &found.labels, true);
            say!("{} images, each against all others", found.labels.len());
            mean_average_precision(&found.values, &found.values, &wanted)?
        }
        Some(database) => {
            let ranked = features(database)?;
            let labels = common_labels(&found.labels, &folder, database);
            say!("{} images in the database", ranked.labels.len());
            mean_average_precision(&found.values, &ranked.values, &by_class(&labels, &ranked.labels, false))?
        }
    };
    report("retrieval", &precision);
    Ok(())
}
