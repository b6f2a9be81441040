//! Puts a dictionary into a model's parameters, or says exactly why not.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use super::names::is_decoder;
use super::{StateDict, siglip};
use crate::nn::pos_embed::{Grid, Resample, resample};
use crate::{Error, Param, Result, Tensor};

/// Position tables, the only tensors whose shape may differ.
pub const TABLES: [&str; 3] = ["pos_embed", "decoder_pos_embed", siglip::POSITIONS];

/// How to load.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Patch grid of the file's position tables; a square one if `None`.
    pub file_grid: Option<Grid>,
    /// Patch grid of the model; a square one if `None`.
    pub model_grid: Option<Grid>,
    /// How a table is read between its positions.
    pub resample: Resample,
}

/// What became of every tensor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// File it came from.
    pub origin: PathBuf,
    /// Parameters that were set, in the model's order.
    pub loaded: Vec<String>,
    /// Parameters that the file does not have: they keep their initial values.
    pub missing: Vec<String>,
    /// Tensors of the file that the model does not have.
    pub unexpected: Vec<String>,
    /// Position tables that were resized in two dimensions: name, old grid, new grid.
    pub resized: Vec<(String, Grid, Grid)>,
}

impl LoadReport {
    /// Refuses a file that lacks any parameter of which `needed` is true.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] with the names.
    pub fn require(&self, needed: impl Fn(&str) -> bool) -> Result<()> {
        let missing: Vec<_> = self.missing.iter().map(String::as_str).filter(|n| needed(n)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let whole_decoder = missing.iter().all(|n| is_decoder(n)) && self.loaded.iter().all(|n| !is_decoder(n));
        let hint = if whole_decoder { "; this is an encoder-only file, a full one is needed" } else { "" };
        Err(Error::checkpoint(
            &self.origin,
            format!("{} tensor(s) missing: {}{hint}", missing.len(), listing(&missing)),
        ))
    }
}

/// The first names, and how many more.
fn listing(names: &[impl AsRef<str>]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<_> = names.iter().take(SHOWN).map(AsRef::as_ref).collect();
    let more = names.len().saturating_sub(SHOWN);
    if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} tensors loaded", self.origin.display(), self.loaded.len())?;
        for (name, old, new) in &self.resized {
            write!(f, "; {name} resized from {} x {} to {} x {} patches", old.0, old.1, new.0, new.1)?;
        }
        if !self.missing.is_empty() {
            write!(f, "; {} not in the file, left as initialised: {}", self.missing.len(), listing(&self.missing))?;
        }
        if !self.unexpected.is_empty() {
            write!(f, "; {} not used by the model: {}", self.unexpected.len(), listing(&self.unexpected))?;
        }
        Ok(())
    }
}

/// Sets every parameter that `dict` (with upstream names, see [`to_upstream`](super::to_upstream)) has. Either all of them are
/// set or, on an error, none.
///
/// # Errors
/// [`Error::Checkpoint`] when a shape differs, naming tensor, given and expected shape and what model the file is of. Position
/// tables of another grid are resized instead.
pub fn load_into(params: &mut [&mut Param], dict: &StateDict, options: &LoadOptions) -> Result<LoadReport> {
    let mut report = LoadReport { origin: dict.origin.clone(), ..LoadReport::default() };
    let mut values: BTreeMap<usize, Tensor> = BTreeMap::new();
    for (at, p) in params.iter().enumerate() {
        let Some(tensor) = dict.get(p.name()) else {
            report.missing.push(p.name().to_string());
            continue;
        };
        if !tensor.dtype().is_float() {
            let cause = format!("tensor `{}` has dtype {}, expected a float type", p.name(), tensor.dtype());
            return Err(Error::checkpoint(&dict.origin, cause));
        }
        values.insert(at, fitted(p, tensor, dict, options, &mut report)?);
        report.loaded.push(p.name().to_string());
    }
    let known: BTreeSet<&str> = params.iter().map(|p| p.name()).collect();
    report.unexpected = dict.names().filter(|n| !known.contains(n)).map(String::from).collect();
    for (at, value) in values {
        params[at].set(&value)?;
    }
    Ok(report)
}

fn fitted(
    p: &Param,
    tensor: &Tensor,
    dict: &StateDict,
    options: &LoadOptions,
    report: &mut LoadReport,
) -> Result<Tensor> {
    let (given, expected) = (tensor.shape(), p.master.shape());
    if TABLES.contains(&p.name())
        && let Some((old, new)) = grids(given, expected, options)
    {
        if old != new {
            report.resized.push((p.name().to_string(), old, new));
        }
        let &[.., rows, dim] = &given[..] else { return Ok(tensor.clone()) };
        return resample(&tensor.reshape([1, rows, dim])?, old, new, options.resample)?.reshape(expected.clone());
    }
    if given == expected {
        return Ok(tensor.clone());
    }
    let model = describe(dict).map(|d| format!("; the file looks like {d}")).unwrap_or_default();
    let cause = format!("tensor `{}` has shape {given}, expected {expected}{model}", p.name());
    Err(Error::checkpoint(&dict.origin, cause))
}

/// Old and new grid of a position table `[1, L or L+1, D]` or `[L, D]`, if widths agree and both sizes are those of the grids.
fn grids(given: &[usize], expected: &[usize], options: &LoadOptions) -> Option<(Grid, Grid)> {
    let pair = |class: usize, from: usize, to: usize| {
        let old = grid(from.checked_sub(class)?, options.file_grid)?;
        Some((old, grid(to.checked_sub(class)?, options.model_grid)?))
    };
    let (from, dim, to, width) = match (given, expected) {
        (&[from, dim], &[to, width]) => return if dim == width { pair(0, from, to) } else { None },
        (&[1, from, dim], &[1, to, width]) => (from, dim, to, width),
        _ => return None,
    };
    // With a class row first: 17 rows are a class row and 4 x 4 patches.
    if dim == width { pair(1, from, to).or_else(|| pair(0, from, to)) } else { None }
}

fn grid(patches: usize, stated: Option<Grid>) -> Option<Grid> {
    let side = patches.isqrt();
    let grid = stated.unwrap_or((side, side));
    (patches > 0 && grid.0 * grid.1 == patches).then_some(grid)
}

/// Geometry of the ViT a dictionary holds.
pub fn describe(dict: &StateDict) -> Option<String> {
    let kernel = dict.get("patch_embed.proj.weight")?;
    let [width, channels, patch, _] = kernel.dims("describe", "patch_embed.proj.weight").ok()?;
    let depth = |stack: &str| {
        let blocks = dict.names().filter_map(|n| n.strip_prefix(stack)?.split_once('.')?.0.parse::<usize>().ok());
        blocks.max().map_or(0, |last| last.saturating_add(1))
    };
    let blocks = depth("blocks.");
    let channels = if channels == 3 { String::new() } else { format!(", {channels} channels") };
    let decoder = match dict.get("mask_token") {
        Some(token) => {
            format!(
                ", a decoder of width {} with {} blocks",
                token.shape().last().copied().unwrap_or(0),
                depth("decoder_blocks.")
            )
        }
        None => ", no decoder".into(),
    };
    Some(format!("width {width}, {blocks} blocks, patches of {patch}{channels}{decoder}"))
}
