//! Tables of images and captions.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

use super::Columns;
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

/// Usual names of the columns.
const IMAGE: [&str; 6] = ["image", "filepath", "file_name", "filename", "file", "path"];
const CAPTION: [&str; 3] = ["caption", "title", "text"];

/// An image and its captions, or the line that is at fault and why.
pub type Row = std::result::Result<(String, Vec<String>), (usize, String)>;

/// All rows; lines of the same image are one, where the first of them stands. A table whose first line has none of the usual
/// names, and of which none was asked for, has no header: an image and a caption in each line.
///
/// # Errors
/// A file that cannot be read, a table without a column that was asked for, or with a name for one of the two alone.
pub fn read(path: &Path, form: Form, names: &Columns) -> Result<Vec<Row>> {
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
            object(line, names)
        } else {
            let cells = match form {
                Form::Csv => cells(line),
                _ => Ok(line.split('\t').map(str::to_owned).collect()),
            };
            let cells = match cells {
                Ok(cells) => cells,
                Err(cause) => {
                    rows.push(Err((number, cause)));
                    continue;
                }
            };
            if columns.is_none() {
                let header = header(&cells, names).map_err(|cause| {
                    let cause = format!("line {number}: {cause}");
                    Error::Dataset { path: path.to_path_buf(), cause }
                })?;
                columns = Some(header.unwrap_or((0, 1)));
                if header.is_some() {
                    continue;
                }
                let how = "names no columns: images are taken from the first, captions from the second";
                tracing::info!("{}: line {number} {how}", path.display());
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

impl Columns {
    /// What has the name that was asked for, or else the first of the usual ones that is there: image and caption.
    fn find<T>(&self, get: impl Fn(&str) -> Option<T>) -> (Option<T>, Option<T>) {
        let first = |asked: &Option<String>, usual: &[&str]| match asked {
            Some(name) => get(name),
            None => usual.iter().find_map(|name| get(name)),
        };
        (first(&self.image_column, &IMAGE), first(&self.caption, &CAPTION))
    }

    /// The names looked for, where an image or a caption was not found.
    fn missing(&self, image: bool, caption: bool) -> String {
        let names = |asked: &Option<String>, usual: &[&str], flag| match asked {
            Some(name) => format!("no `{name}`"),
            None => format!("none of `{}` ({flag} gives another name)", usual.join("`, `")),
        };
        let image = (!image).then(|| names(&self.image_column, &IMAGE, "--image-column"));
        let caption = (!caption).then(|| names(&self.caption, &CAPTION, "--caption"));
        [image, caption].into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

/// Columns of image and caption if this line names them; an error if it should, or names one of the two.
fn header(cells: &[String], names: &Columns) -> std::result::Result<Option<(usize, usize)>, String> {
    match names.find(|name| cells.iter().position(|cell| cell.trim() == name)) {
        (Some(image), Some(caption)) => Ok(Some((image, caption))),
        (None, None) if names.image_column.is_none() && names.caption.is_none() => Ok(None),
        (image, caption) => Err(format!("{} among its columns", names.missing(image.is_some(), caption.is_some()))),
    }
}

fn object(line: &str, names: &Columns) -> std::result::Result<(String, Vec<String>), String> {
    let value: Value = serde_json::from_str(line).map_err(|e| e.to_string())?;
    let (image, caption) = names.find(|name| value.get(name));
    match (image.and_then(Value::as_str), caption) {
        (Some(image), Some(caption)) => Ok((image.to_owned(), strings(caption)?)),
        (image, caption) => Err(format!("{} in it", names.missing(image.is_some(), caption.is_some()))),
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

/// Records of a CSV file: a line's end inside quotes does not count. Of a quote that nothing closes, the line alone.
fn records(text: &[u8]) -> Vec<(usize, &[u8])> {
    let (mut records, mut start, mut line) = (Vec::new(), 0, 1);
    while start < text.len() {
        let rest = &text[start..];
        let end_of_line = || rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
        let record = &rest[..end_of_record(rest).unwrap_or_else(end_of_line)];
        records.push((line, record.strip_suffix(b"\r").unwrap_or(record)));
        line += 1 + record.iter().filter(|b| **b == b'\n').count();
        start += record.len() + 1;
    }
    records
}

/// Length of the first record; `None` if its last quote is not closed. A quote opens at the start of a cell only.
fn end_of_record(text: &[u8]) -> Option<usize> {
    let (mut quoted, mut at_start, mut bytes) = (false, true, text.iter().enumerate().peekable());
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' if quoted => quoted = bytes.next_if(|(_, next)| **next == b'"').is_some(),
            _ if quoted => {}
            b'\n' => return Some(at),
            b'"' if at_start => (quoted, at_start) = (true, false),
            other => at_start = *other == b',',
        }
    }
    (!quoted).then_some(text.len())
}

/// Cells of a CSV record.
fn cells(record: &str) -> std::result::Result<Vec<String>, String> {
    let (mut cells, mut cell) = (Vec::new(), String::new());
    let (mut chars, mut quoted, mut at_start) = (record.chars().peekable(), false, true);
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.next_if_eq(&'"').is_some() => cell.push('"'),
            '"' if quoted => quoted = false,
            '"' if at_start => (quoted, at_start) = (true, false),
            ',' if !quoted => {
                cells.push(std::mem::take(&mut cell));
                at_start = true;
            }
            c => {
                cell.push(c);
                at_start = false;
            }
        }
    }
    if quoted {
        return Err("a quote is not closed".into());
    }
    cells.push(cell);
    Ok(cells)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_open_at_the_start_of_a_cell_and_are_closed() {
        let text = b"a.jpg,a 5\" nail\nb.jpg,\"two\nlines, \"\"quoted\"\"\"\nc.jpg,\"open\nd.jpg,last";
        let found: Vec<(usize, String)> =
            records(text).into_iter().map(|(n, r)| (n, String::from_utf8_lossy(r).into_owned())).collect();
        let numbers: Vec<usize> = found.iter().map(|(n, _)| *n).collect();
        assert_eq!(numbers, [1, 2, 4, 5]);
        let cells: Vec<_> = found.iter().map(|(_, record)| cells(record)).collect();
        assert_eq!(cells[0], Ok(vec!["a.jpg".to_string(), "a 5\" nail".into()]));
        assert_eq!(cells[1], Ok(vec!["b.jpg".to_string(), "two\nlines, \"quoted\"".into()]));
        assert_eq!(cells[2], Err("a quote is not closed".into()));
        assert_eq!(cells[3], Ok(vec!["d.jpg".to_string(), "last".into()]));
    }
}
