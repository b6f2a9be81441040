//! A result beside the truth about a planted pool ([`planted`]).

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::{self, Write as _};
use std::path::Path;

use serde::Serialize;

use super::report::{Reason, Report};
use crate::Result;
use crate::data::planted::{self, Planted};

/// Precision and recall of a curation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Score {
    /// Of the images dropped as duplicates, those that are planted copies.
    pub duplicate_precision: f64,
    /// Of the planted copies without a copy among the evaluation images, those dropped as duplicates.
    pub duplicate_recall: f64,
    /// The same by the kind of copy.
    pub recall_by_kind: BTreeMap<String, f64>,
    /// Of the images dropped for an evaluation image, those that are, or are a copy of, one's original.
    pub evaluation_precision: Option<f64>,
    /// Of these, those that were dropped for it.
    pub evaluation_recall: Option<f64>,
    /// Of the images retrieved, those of the classes of the curated images.
    pub retrieval_precision: Option<f64>,
    /// Of the images of these classes that were left, those retrieved.
    pub retrieval_recall: Option<f64>,
    /// Share of these classes among the images that were left: the precision of retrieval by chance.
    pub retrieval_chance: Option<f64>,
}

/// Compares a report with a file of [`planted::generate`].
///
/// # Errors
/// When the file cannot be read.
pub fn score(report: &Report, truth: &Path) -> Result<Score> {
    let all = planted::read(truth)?;
    let of = |set: &'static str| all.iter().filter(move |p| p.set == set);
    let seen: BTreeSet<&str> = of("evaluation").filter(|p| p.how != "new").map(|p| p.original.as_str()).collect();
    let pool: Vec<&Planted> = of("pool").collect();
    let mut for_evaluation: HashSet<&str> = HashSet::new();
    let mut copies: HashSet<&str> = HashSet::new();
    let mut kinds: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for p in &pool {
        if seen.contains(p.original.as_str()) {
            for_evaluation.insert(&p.file);
        } else if p.how != "original" {
            copies.insert(&p.file);
            kinds.entry(p.how.clone()).or_default().push(&p.file);
        }
    }
    let dropped = |reason: Reason| -> HashSet<&str> {
        report.losses.iter().filter(|d| d.reason == reason).map(|d| d.file.as_str()).collect()
    };
    let (duplicates, evaluation) = (dropped(Reason::Duplicate), dropped(Reason::Evaluation));
    let share = |of: &HashSet<&str>, among: &HashSet<&str>| {
        if of.is_empty() { 1.0 } else { of.intersection(among).count() as f64 / of.len() as f64 }
    };
    let by_kind = |(kind, files): (String, Vec<&str>)| (kind, share(&files.into_iter().collect(), &duplicates));
    let classes: HashSet<&str> = of("curated").map(|p| p.class.as_str()).collect();
    let kept: HashSet<&str> = report.files.iter().map(String::as_str).collect();
    let left: Vec<&Planted> = pool
        .iter()
        .filter(|p| !duplicates.contains(p.file.as_str()) && !evaluation.contains(p.file.as_str()))
        .copied()
        .collect();
    let wanted: HashSet<&str> =
        left.iter().filter(|p| classes.contains(p.class.as_str())).map(|p| p.file.as_str()).collect();
    let retrieval = |value: f64| (report.missing.is_some() || report.clusters.is_some()).then_some(value);
    Ok(Score {
        duplicate_precision: share(&duplicates, &copies),
        duplicate_recall: share(&copies, &duplicates),
        recall_by_kind: kinds.into_iter().map(by_kind).collect(),
        evaluation_precision: (!seen.is_empty()).then(|| share(&evaluation, &for_evaluation)),
        evaluation_recall: (!seen.is_empty()).then(|| share(&for_evaluation, &evaluation)),
        retrieval_precision: retrieval(share(&kept, &wanted)),
        retrieval_recall: retrieval(share(&wanted, &kept)),
        retrieval_chance: retrieval(wanted.len() as f64 / left.len().max(1) as f64),
    })
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |value: f64| format!("{:.2} %", 100.0 * value);
        let mut text = format!(
            "planted copies: precision {}, recall {}",
            percent(self.duplicate_precision),
            percent(self.duplicate_recall)
        );
        for (kind, recall) in &self.recall_by_kind {
            write!(text, "; {kind} {}", percent(*recall))?;
        }
        if let (Some(precision), Some(recall)) = (self.evaluation_precision, self.evaluation_recall) {
            write!(text, "\nevaluation images: precision {}, recall {}", percent(precision), percent(recall))?;
        }
        if let (Some(precision), Some(recall), Some(chance)) =
            (self.retrieval_precision, self.retrieval_recall, self.retrieval_chance)
        {
            let [precision, recall, chance] = [precision, recall, chance].map(percent);
            write!(text, "\nretrieval by class: precision {precision} (chance {chance}), recall {recall}")?;
        }
        f.write_str(&text)
    }
}
