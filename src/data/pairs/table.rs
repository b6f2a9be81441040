//! Tables of images and captions.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

use super::Options;
use crate::{Error, Result};

/// How a table is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Columns between tabs.
    Tsv,
    /// Columns between commas, in quotes where they hold one (RFC 4180).
    Csv,
    /// A JSON object a line.
    Jsonl,
}

impl Form {
    pub fn of(extension: &str) -> Option<Self> {
        match extension {
            "tsv" => Some(Self::Tsv),
            "csv" => Some(Self::Csv),
            "jsonl" => Some(Self::Jsonl),
            _ => None,
        }
    }
}

/// Usual names of the columns beside those of the options.
const IMAGE: [&str; 6] = ["image", "filepath", "file_name", "filename", "file", "path"];
const CAPTION: [&str; 3] = ["caption", "title", "text"];

/// An image and its captions, or the line that is at fault and why.
pub type Row = std::result::Result<(String, Vec<String>), (usize, String)>;

/// All rows; lines of the same image are one, where the first of them stands.
pub fn read(path: &Path, form: Form, options: &Options) -> Result<Vec<Row>> {
    let text = std::fs::read(path).map_err(Error::io(path))?;
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text);
    let lines = match form {
        Form::Csv => records(text),
        Form::Tsv | Form::Jsonl => lines(text),
    };
    let mut columns = None;
    let (mut rows, mut numbers) = (Vec::<Row>::new(), HashMap::<String, usize>::new());
    for (number, line) in lines {
        let Ok(line) = std::str::from_utf8(line) else {
            rows.push(Err((number, "the line is not UTF-8".into())));
            continue;
        };
        if line.trim().is_empty() {
            continue;
        }
        let row = if form == Form::Jsonl {
            object(line, options)
        } else {
            let cells = if form == Form::Tsv { line.split('\t').map(str::to_owned).collect() } else { cells(line) };
            if columns.is_none() {
                let header = header(&cells, options);
                columns = Some(header.unwrap_or((0, 1)));
                if header.is_some() {
                    continue;
                }
                if options.image.is_some() {
                    let cause = format!("line {number}: no columns `{}`, `{}`", options.image(), options.caption);
                    return Err(Error::Dataset { path: path.to_path_buf(), cause });
                }
            }
            let (image, caption) = columns.unwrap_or((0, 1));
            match (cells.get(image), cells.get(caption)) {
                (Some(image), Some(caption)) => Ok((image.clone(), vec![caption.clone()])),
                _ => Err(format!(
                    "{} columns, expected an image in {} and a caption in {}",
                    cells.len(),
                    image + 1,
                    caption + 1
                )),
            }
        };
        match row {
            Err(cause) => rows.push(Err((number, cause))),
            Ok((image, _)) if image.trim().is_empty() => rows.push(Err((number, "names no image".into()))),
            Ok((_, captions)) if captions.iter().all(|c| c.trim().is_empty()) => {
                rows.push(Err((number, "its caption is empty".into())));
            }
            Ok((image, captions)) => match numbers.get(&image) {
                Some(&at) => _ = rows[at].as_mut().map(|(_, more)| more.extend(captions)),
                None => {
                    numbers.insert(image.clone(), rows.len());
                    rows.push(Ok((image, captions)));
                }
            },
        }
    }
    Ok(rows)
}

impl Options {
    fn image(&self) -> &str {
        self.image.as_deref().unwrap_or(IMAGE[0])
    }

    /// The first of these names that is there: the option's, then the usual ones unless the option was set.
    fn find<T>(&self, mut get: impl FnMut(&str) -> Option<T>) -> (Option<T>, Option<T>) {
        let image = match &self.image {
            Some(name) => get(name),
            None => IMAGE.iter().find_map(|name| get(name)),
        };
        let caption = get(&self.caption).or_else(|| CAPTION.iter().find_map(|name| get(name)));
        (image, caption)
    }
}

/// Columns of image and caption if this line names them.
fn header(cells: &[String], options: &Options) -> Option<(usize, usize)> {
    let (image, caption) = options.find(|name| cells.iter().position(|cell| cell.trim() == name));
    Some((image?, caption?))
}

fn object(line: &str, options: &Options) -> std::result::Result<(String, Vec<String>), String> {
    let value: Value = serde_json::from_str(line).map_err(|e| e.to_string())?;
    let (image, caption) = options.find(|name| value.get(name));
    match (image.and_then(Value::as_str), caption) {
        (Some(image), Some(caption)) => Ok((image.to_owned(), strings(caption)?)),
        _ => Err(format!("no `{}` and `{}` in it", options.image(), options.caption)),
    }
}

/// A caption or a list of them.
fn strings(value: &Value) -> std::result::Result<Vec<String>, String> {
    let text =
        |value: &Value| value.as_str().map(str::to_owned).ok_or(format!("the caption is {value}, expected a text"));
    match value {
        Value::Array(list) => list.iter().map(text).collect(),
        one => Ok(vec![text(one)?]),
    }
}

/// The captions under a key of a JSON file.
pub fn captions_of(json: &str, key: &str) -> std::result::Result<Vec<String>, String> {
    let value: Value = serde_json::from_str(json).map_err(|e| e.to_string())?;
    strings(value.get(key).ok_or(format!("no `{key}` in it"))?)
}

fn lines(text: &[u8]) -> Vec<(usize, &[u8])> {
    let trimmed = text.split(|b| *b == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    trimmed.enumerate().map(|(i, line)| (i + 1, line)).collect()
}

/// Lines of a CSV file, where a line's end inside quotes does not count.
fn records(text: &[u8]) -> Vec<(usize, &[u8])> {
    let (mut records, mut start, mut first, mut line, mut quoted) = (Vec::new(), 0, 1, 1, false);
    for (at, byte) in text.iter().chain(std::iter::once(&b'\n')).enumerate() {
        match byte {
            b'"' => quoted = !quoted,
            b'\n' => {
                line += 1;
                if !quoted || at == text.len() {
                    let record = &text[start..at];
                    records.push((first, record.strip_suffix(b"\r").unwrap_or(record)));
                    (start, first) = (at + 1, line);
                }
            }
            _ => {}
        }
    }
    records
}

/// Cells of a CSV record.
fn cells(record: &str) -> Vec<String> {
    let mut cells = vec![String::new()];
    let (mut chars, mut quoted) = (record.chars().peekable(), false);
    while let Some(c) = chars.next() {
        match (c, cells.last_mut()) {
            ('"', Some(cell)) if quoted && chars.next_if_eq(&'"').is_some() => cell.push('"'),
            ('"', _) => quoted = !quoted,
            (',', _) if !quoted => cells.push(String::new()),
            (c, Some(cell)) => cell.push(c),
            (_, None) => {}
        }
    }
    cells
}
