//! Instance retrieval: a database of images ranked by cosine similarity to each query.
//!
//! The average precision of a query is the area under its curve of precision over recall, by trapezoids: the positive found as
//! the j-th (from 0) at rank r adds `(p(j, r) + p(j + 1, r + 1)) / 2` over the number of positives, `p(j, r) = j / r` and
//! `p(0, 0) = 1`. Images that are to be ignored are taken out of the ranking. Equal similarities rank by number. Source:
//! Philbin et al. 2007; Radenović et al. 2018, arXiv 1803.11285, section 4.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use serde::Deserialize;

use super::features::collect;
use super::{Features, rows};
use crate::data::{Folder, Image, Rect, Source, decode, transforms};
use crate::recipes::Encoder;
use crate::{Error, Result, Tensor};

/// Rows of the database that a query should find, and those that do not count.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wanted {
    /// To be found.
    pub positive: Vec<usize>,
    /// Taken out of the ranking.
    pub ignored: Vec<usize>,
}

/// How well queries found what they should.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Precision {
    /// Mean of the average precisions.
    pub mean: f64,
    /// Share of the queries whose nearest image is a positive.
    pub first: f64,
    /// Queries that counted.
    pub queries: usize,
    /// Queries without positives, which do not.
    pub without: usize,
}

/// Mean average precision of `queries: [M, d]` on `database: [N, d]`; `wanted` says what each query should find.
///
/// # Errors
/// Widths that differ, another number of `wanted`, a row beyond the database, a feature that is not finite, or no query with
/// a positive.
pub fn mean_average_precision(queries: &Tensor, database: &Tensor, wanted: &[Wanted]) -> Result<Precision> {
    let op = "retrieval";
    let ([m, dim], [n, width]) = (queries.dims(op, "queries")?, database.dims(op, "database")?);
    if width != dim || m != wanted.len() {
        let expected = format!("[{}, {width}]", wanted.len());
        return Err(Error::shape(op, "queries", queries.shape(), expected));
    }
    if let Some(row) = wanted.iter().flat_map(|w| w.positive.iter().chain(&w.ignored)).find(|row| **row >= n) {
        return Err(Error::value(op, "wanted", row, format!("rows of the database, below {n}")));
    }
    let (queries, database) = (rows::unit(queries)?, rows::unit(database)?);
    let mut found = Vec::with_capacity(m);
    rows::products(&queries, &database, |block| {
        let wanted = &wanted[found.len()..];
        let of = |(row, wanted): (&[f32], &Wanted)| ranks(row, wanted);
        found.par_extend(block.par_chunks_exact(n).zip(wanted).map(of));
    })?;
    let counted: Vec<&Vec<usize>> = found.iter().filter(|ranks| !ranks.is_empty()).collect();
    if counted.is_empty() {
        return Err(Error::value(op, "wanted", "no query with a positive", "at least one"));
    }
    let count = counted.len() as f64;
    Ok(Precision {
        mean: counted.iter().map(|ranks| average_precision(ranks)).sum::<f64>() / count,
        first: counted.iter().filter(|ranks| ranks[0] == 0).count() as f64 / count,
        queries: counted.len(),
        without: m - counted.len(),
    })
}

/// Ranks, from 0, of the positives among what is not ignored, in rising order.
fn ranks(similarity: &[f32], wanted: &Wanted) -> Vec<usize> {
    let nearer = |a: usize, b: usize| similarity[b].total_cmp(&similarity[a]).then(a.cmp(&b));
    let mut positive = wanted.positive.clone();
    positive.sort_unstable_by(|&a, &b| nearer(a, b));
    positive.dedup();
    let mut apart = vec![false; similarity.len()];
    positive.iter().chain(&wanted.ignored).for_each(|&at| apart[at] = true);
    // Negatives by the number of positives before them.
    let mut negatives = vec![0; positive.len() + 1];
    for at in (0..similarity.len()).filter(|&at| !apart[at]) {
        negatives[positive.partition_point(|&p| nearer(p, at).is_lt())] += 1;
    }
    let mut before = 0;
    let mut rank = |at: usize| {
        before += negatives[at];
        before + at
    };
    (0..positive.len()).map(&mut rank).collect()
}

/// The area of the module documentation, of positives at `ranks`.
fn average_precision(ranks: &[usize]) -> f64 {
    let precision = |found: usize, seen: usize| if seen == 0 { 1.0 } else { found as f64 / seen as f64 };
    let area = |(j, &r): (usize, &usize)| (precision(j, r) + precision(j + 1, r + 1)) / 2.0;
    ranks.iter().enumerate().map(area).sum::<f64>() / ranks.len() as f64
}

/// What queries should find where an image of the same class is a match. Labels of both number the same classes; -1 has none.
/// `same`: queries and database are the same rows, and a query is not to find itself.
pub fn by_class(queries: &[i32], database: &[i32], same: bool) -> Vec<Wanted> {
    let of = |(row, label): (usize, &i32)| {
        let own = same.then_some(row);
        let matches = |at: &usize| *label >= 0 && database[*at] == *label && own != Some(*at);
        Wanted { positive: (0..database.len()).filter(matches).collect(), ignored: own.into_iter().collect() }
    };
    queries.iter().enumerate().map(of).collect()
}

/// Labels of `queries` by the numbers that their classes have in `database`; -1 for a class that it lacks.
pub fn common_labels(labels: &[i32], queries: &Folder, database: &Folder) -> Vec<i32> {
    let number = |label: &i32| {
        let name = usize::try_from(*label).ok().and_then(|label| queries.classes().get(label));
        name.and_then(|name| database.classes().iter().position(|class| class == name)).map_or(-1, |at| at as i32)
    };
    labels.iter().map(number).collect()
}

/// Ground truth as that of the revisited Oxford and Paris buildings, their pickled `gnd_*.pkl` as JSON: names of images
/// without or with the ending of their files, and for each query rows of `imlist`.
#[derive(Clone, Debug, Deserialize)]
pub struct GroundTruth {
    /// Images of the database.
    pub imlist: Vec<String>,
    /// Queries.
    pub qimlist: Vec<String>,
    /// What each query should find.
    pub gnd: Vec<Query>,
}

/// One query of a [`GroundTruth`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Query {
    /// Left, top, right and bottom of the part of the query that is searched for, in pixels; all of it without.
    pub bbx: Option<[f64; 4]>,
    /// Images that show it well.
    pub easy: Vec<usize>,
    /// Images that show it badly.
    pub hard: Vec<usize>,
    /// Images that show too little of it to count.
    pub junk: Vec<usize>,
}

/// Which of the lists of a [`Query`] are to be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The easy ones; hard ones are ignored.
    Easy,
    /// Easy and hard ones.
    Medium,
    /// The hard ones; easy ones are ignored.
    Hard,
}

impl GroundTruth {
    /// Reads a `.json` file.
    ///
    /// # Errors
    /// What cannot be read, lists of different lengths, or a row beyond `imlist`.
    pub fn open(path: &Path) -> Result<Self> {
        let fault = |cause: String| Error::Dataset { path: path.into(), cause };
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let truth: Self = serde_json::from_slice(&bytes).map_err(|e| fault(format!("no ground truth: {e}")))?;
        if truth.gnd.len() != truth.qimlist.len() {
            let (lists, names) = (truth.gnd.len(), truth.qimlist.len());
            return Err(fault(format!("`gnd` has {lists} entries, expected one for each of the {names} of `qimlist`")));
        }
        let rows = |q: &Query| [&q.easy[..], &q.hard, &q.junk].concat();
        if let Some(row) = truth.gnd.iter().flat_map(rows).find(|row| *row >= truth.imlist.len()) {
            return Err(fault(format!(
                "`gnd` names image {row}, expected below {}, those of `imlist`",
                truth.imlist.len()
            )));
        }
        Ok(truth)
    }

    /// What the queries `of_query` should find among the images `of_image`: numbers in the lists, which lack what could not
    /// be read.
    pub fn wanted(&self, protocol: Protocol, of_query: &[usize], of_image: &[usize]) -> Vec<Wanted> {
        let mut row_of = vec![None; self.imlist.len()];
        of_image.iter().enumerate().for_each(|(row, &image)| row_of[image] = Some(row));
        let rows =
            |lists: &[&Vec<usize>]| lists.iter().flat_map(|list| list.iter().filter_map(|&i| row_of[i])).collect();
        let of = |&query: &usize| {
            let Query { easy, hard, junk, .. } = &self.gnd[query];
            match protocol {
                Protocol::Easy => Wanted { positive: rows(&[easy]), ignored: rows(&[junk, hard]) },
                Protocol::Medium => Wanted { positive: rows(&[easy, hard]), ignored: rows(&[junk]) },
                Protocol::Hard => Wanted { positive: rows(&[hard]), ignored: rows(&[junk, easy]) },
            }
        };
        of_query.iter().map(of).collect()
    }

    /// The images of the database, in `folder`.
    ///
    /// # Errors
    /// A name without a file.
    pub fn database(&self, folder: &Path) -> Result<Listed> {
        Listed::new(folder, &self.imlist, vec![None; self.imlist.len()])
    }

    /// The queries, in `folder`, cut to what is searched for.
    ///
    /// # Errors
    /// A name without a file.
    pub fn queries(&self, folder: &Path) -> Result<Listed> {
        Listed::new(folder, &self.qimlist, self.gnd.iter().map(|query| query.bbx).collect())
    }
}

/// Images of a list of names, or parts of them.
#[derive(Clone, Debug)]
pub struct Listed {
    root: PathBuf,
    files: Vec<PathBuf>,
    parts: Vec<Option<[f64; 4]>>,
}

impl Listed {
    fn new(root: &Path, names: &[String], parts: Vec<Option<[f64; 4]>>) -> Result<Self> {
        let file = |name: &String| {
            let endings = ["", ".jpg", ".jpeg", ".png", ".webp", ".JPG"];
            let found = endings.iter().map(|ending| root.join(format!("{name}{ending}"))).find(|path| path.is_file());
            let cause = || format!("no image `{name}` in it (.jpg, .jpeg, .png, .webp)");
            found.ok_or_else(|| Error::Dataset { path: root.into(), cause: cause() })
        };
        let files = names.iter().map(file).collect::<Result<_>>()?;
        Ok(Self { root: root.into(), files, parts })
    }

    /// Features of all that can be read, and the number of each row's image in the list. `each` is called with the number of
    /// images done.
    ///
    /// # Errors
    /// No readable image.
    pub fn features(
        self,
        model: &dyn Encoder,
        batch: usize,
        each: impl FnMut(usize),
    ) -> Result<(Features, Vec<usize>)> {
        let (root, size) = (self.root.clone(), model.image_size());
        let forward = |images: Tensor| model.features(&images);
        let transform = transforms::evaluate(size)?;
        collect(Arc::new(self), &root, transform, batch, model.device(), size, &[model.dim()], forward, each)
    }
}

impl Source for Listed {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn label(&self, _: usize) -> i32 {
        -1
    }

    fn name(&self, index: usize) -> PathBuf {
        self.files[index].clone()
    }

    fn load(&self, index: usize) -> Result<Arc<Image>> {
        let image = decode::open(&self.files[index])?;
        let Some(part) = self.parts[index] else { return Ok(Arc::new(image)) };
        let inside = |v: f64, side: usize| v.clamp(0.0, side as f64);
        let [left, top] =
            [inside(part[0].floor(), image.width), inside(part[1].floor(), image.height)].map(|v| v as usize);
        let [right, bottom] =
            [inside(part[2].ceil(), image.width), inside(part[3].ceil(), image.height)].map(|v| v as usize);
        let rect = Rect { left, top, width: right.saturating_sub(left), height: bottom.saturating_sub(top) };
        Ok(Arc::new(image.crop(rect)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    fn angles(angles: &[f32]) -> Tensor {
        let rows: Vec<f32> = angles.iter().flat_map(|a| [a.cos(), a.sin()]).collect();
        Tensor::from_slice(&rows, [angles.len(), 2], &Device::Cpu).unwrap()
    }

    fn wanted(positive: &[usize], ignored: &[usize]) -> Wanted {
        Wanted { positive: positive.to_vec(), ignored: ignored.to_vec() }
    }

    #[test]
    fn precision_is_the_area_by_trapezoids() {
        assert_eq!(average_precision(&[0, 1, 2]), 1.0);
        // Found second: recall 0 to 1, precision from 0/1 to 1/2.
        assert_eq!(average_precision(&[1]), 0.25);
        // Ranks 0 and 2: (1 + 1)/2 and (1/2 + 2/3)/2.
        assert_eq!(average_precision(&[0, 2]), (1.0 + (0.5 + 2.0 / 3.0) / 2.0) / 2.0);
    }

    #[test]
    fn what_is_ignored_is_not_in_the_ranking() {
        // By nearness to angle 0 the database is in order.
        let database = angles(&[0.1, 0.2, 0.3, 0.4, 0.5]);
        let query = angles(&[0.0]);
        let mean = |w: Wanted| mean_average_precision(&query, &database, &[w]).unwrap();
        assert_eq!(mean(wanted(&[1, 3], &[])).mean, ((0.0 + 0.5) / 2.0 + (1.0 / 3.0 + 0.5) / 2.0) / 2.0);
        assert_eq!(mean(wanted(&[3, 1, 1], &[0])).mean, (1.0 + (0.5 + 2.0 / 3.0) / 2.0) / 2.0);
        assert_eq!(mean(wanted(&[1, 3], &[0, 2])).mean, 1.0);
        // The position of what comes after the last positive plays no part.
        assert_eq!(mean(wanted(&[0], &[])), Precision { mean: 1.0, first: 1.0, queries: 1, without: 0 });
    }

    #[test]
    fn classes_match_and_a_query_does_not_find_itself() {
        // Two near each other of class 0, one of class 0 behind the only one of class 1.
        let (rows, labels) = (angles(&[0.0, 0.1, 0.3, 0.5]), [0, 0, 1, 0]);
        let wanted = by_class(&labels, &labels, true);
        assert_eq!(wanted[0], super::tests::wanted(&[1, 3], &[0]));
        let found = mean_average_precision(&rows, &rows, &wanted).unwrap();
        // Ranks: of 0: {0, 2}; of 1: {0, 2}; of 3: {1, 2}. The query of class 1 has nothing to find.
        let late = (0.25 + (0.5 + 2.0 / 3.0) / 2.0) / 2.0;
        let early = (1.0 + (0.5 + 2.0 / 3.0) / 2.0) / 2.0;
        assert!((found.mean - (2.0 * early + late) / 3.0).abs() < 1e-12);
        assert_eq!((found.first, found.queries, found.without), (2.0 / 3.0, 3, 1));
        // Longer features rank alike.
        let longer: Vec<f32> = rows.as_slice::<f32>().unwrap().iter().map(|v| v * 8.0).collect();
        let longer = Tensor::from_slice(&longer, [4, 2], &Device::Cpu).unwrap();
        assert_eq!(mean_average_precision(&longer, &rows, &wanted).unwrap(), found);
        assert_eq!(by_class(&[1, -1], &labels, false), [super::tests::wanted(&[2], &[]), Wanted::default()]);
    }

    fn truth(text: &str) -> Result<GroundTruth> {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("truth.json");
        std::fs::write(&path, text).unwrap();
        GroundTruth::open(&path)
    }

    #[test]
    fn protocols_take_lists_of_the_ground_truth() {
        let text = r#"{"imlist": ["a", "b", "c", "d"], "qimlist": ["q"],
            "gnd": [{"bbx": [1.5, 0, 3, 2], "easy": [2], "hard": [0], "junk": [3]}]}"#;
        let truth = truth(text).unwrap();
        // Image 1 could not be read: rows 0, 1, 2 are images 0, 2, 3.
        let of = |protocol| truth.wanted(protocol, &[0], &[0, 2, 3]).remove(0);
        assert_eq!(of(Protocol::Easy), wanted(&[1], &[2, 0]));
        assert_eq!(of(Protocol::Medium), wanted(&[1, 0], &[2]));
        assert_eq!(of(Protocol::Hard), wanted(&[0], &[2, 1]));
        let place = tempfile::tempdir().unwrap();
        let missing = truth.database(place.path()).unwrap_err().to_string();
        assert!(missing.ends_with(": no image `a` in it (.jpg, .jpeg, .png, .webp)"), "{missing}");
        Image::new(4, 2, (0..24).collect()).unwrap().save_png(place.path().join("q.png")).unwrap();
        let part = truth.queries(place.path()).unwrap().load(0).unwrap();
        assert_eq!((part.width, part.height, part.pixel(0, 0)), (2, 2, [3, 4, 5]));
    }

    #[test]
    fn what_is_unusable_is_named() {
        let x = angles(&[0.0, 1.0]);
        let text = |rows: &Tensor, w: &[Wanted]| mean_average_precision(rows, &x, w).unwrap_err().to_string();
        assert_eq!(
            text(&x, &[wanted(&[2], &[]), wanted(&[], &[])]),
            "retrieval: `wanted` has value 2, expected rows of the database, below 2"
        );
        assert_eq!(text(&x, &[wanted(&[1], &[])]), "retrieval: `queries` has shape [2, 2], expected [1, 2]");
        assert_eq!(
            text(&x, &[Wanted::default(), Wanted::default()]),
            "retrieval: `wanted` has value no query with a positive, expected at least one"
        );
        let fault = |text: &str| truth(text).unwrap_err().to_string();
        let beyond = fault(r#"{"imlist": ["a"], "qimlist": ["q"], "gnd": [{"easy": [1]}]}"#);
        assert!(beyond.ends_with("`gnd` names image 1, expected below 1, those of `imlist`"), "{beyond}");
        let few = fault(r#"{"imlist": [], "qimlist": ["q"], "gnd": []}"#);
        assert!(few.ends_with("`gnd` has 0 entries, expected one for each of the 1 of `qimlist`"), "{few}");
        assert!(fault("[").contains("no ground truth"));
    }
}
