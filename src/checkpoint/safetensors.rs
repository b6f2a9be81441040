//! The safetensors format: 8 bytes of header length, a JSON header, the tensors' bytes without gaps.
//!
//! Files are read with ordinary reads straight into the tensors' storage: one copy, and a file that shrinks meanwhile is an
//! error, where a memory map would end the process.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

use serde_json::{Map, Value};

use super::atomic;
use super::state_dict::StateDict;
use super::stored::Stored;
use crate::{DType, Error, Result};

/// Longest header read, as in the reference implementation.
const MAX_HEADER: u64 = 100_000_000;
const METADATA: &str = "__metadata__";

/// One tensor of a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Name.
    pub name: String,
    /// dtype as the file spells it: `F32`, `I64`, ...
    pub dtype: String,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    begin: u64,
    end: u64,
}

/// What a file says of itself.
#[derive(Clone, Debug, Default)]
pub struct Header {
    /// Tensors in the order of their bytes.
    pub entries: Vec<Entry>,
    /// Free text by key.
    pub metadata: std::collections::BTreeMap<String, String>,
    data_start: u64,
}

/// Reads and checks the header alone: the tensors lie one after the other up to the end of the file, and each has the bytes its
/// shape needs.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read, [`Error::Checkpoint`] saying what is wrong with it.
pub fn read_header(path: impl AsRef<Path>) -> Result<Header> {
    let path = path.as_ref();
    open(path).map(|(header, _)| header)
}

fn open(path: &Path) -> Result<(Header, File)> {
    let mut file = File::open(path).map_err(Error::io(path))?;
    let length = file.metadata().map_err(Error::io(path))?.len();
    let bad = |cause: String| Error::checkpoint(path, cause);
    if length < 8 {
        return Err(bad(format!("truncated: {length} bytes, a safetensors file has at least 8")));
    }
    let mut size = [0; 8];
    file.read_exact(&mut size).map_err(Error::io(path))?;
    let size = u64::from_le_bytes(size);
    if size > MAX_HEADER {
        return Err(bad(format!("not a safetensors file: its header would have {size} bytes")));
    }
    if size > length - 8 {
        return Err(bad(format!("truncated: the header has {size} bytes, the file {} after its length", length - 8)));
    }
    let mut text = vec![0; size as usize];
    file.read_exact(&mut text).map_err(Error::io(path))?;
    let header = parse(&text, length).map_err(bad)?;
    Ok((header, file))
}

fn parse(text: &[u8], length: u64) -> std::result::Result<Header, String> {
    let json: Map<String, Value> = serde_json::from_slice(text)
        .map_err(|e| format!("not a safetensors file: its header is not a JSON object ({e})"))?;
    let mut header = Header { data_start: 8 + text.len() as u64, ..Header::default() };
    for (name, value) in json {
        if name == METADATA {
            header.metadata = serde_json::from_value(value).map_err(|e| format!("metadata is not text by key: {e}"))?;
            continue;
        }
        header.entries.push(entry(&name, &value).ok_or_else(|| {
            format!("tensor `{name}` is described as {value}, expected dtype, shape and data_offsets")
        })?);
    }
    header.entries.sort_by(|a, b| (a.begin, a.end, &a.name).cmp(&(b.begin, b.end, &b.name)));
    let mut at = 0;
    for e in &header.entries {
        if e.begin != at || e.end < e.begin {
            let fault = if e.begin < at { "overlaps the one before" } else { "leaves a gap" };
            return Err(format!(
                "tensor `{}` has offsets [{}, {}], expected a start of {at}: it {fault}",
                e.name, e.begin, e.end
            ));
        }
        // A dtype that cannot be read may still stand in a file whose other tensors are wanted.
        if let Some(stored) = Stored::parse(&e.dtype) {
            let needed = stored
                .bytes(&e.shape)
                .ok_or_else(|| format!("tensor `{}` of shape {:?} is too large", e.name, e.shape))?;
            if e.end - e.begin != needed as u64 {
                let given = e.end - e.begin;
                return Err(format!(
                    "tensor `{}` has {given} bytes, its shape {:?} of {} needs {needed}",
                    e.name, e.shape, e.dtype
                ));
            }
        }
        at = e.end;
    }
    let data = length - header.data_start;
    match data.cmp(&at) {
        std::cmp::Ordering::Less => Err(format!("truncated: {data} bytes of tensors, the header promises {at}")),
        std::cmp::Ordering::Greater => Err(format!("{} bytes after the last tensor", data - at)),
        std::cmp::Ordering::Equal => Ok(header),
    }
}

fn entry(name: &str, value: &Value) -> Option<Entry> {
    let shape = value.get("shape")?.as_array()?;
    let shape = shape.iter().map(|d| usize::try_from(d.as_u64()?).ok()).collect::<Option<_>>()?;
    let [begin, end] = value.get("data_offsets")?.as_array()?.as_slice() else { return None };
    let dtype = value.get("dtype")?.as_str()?.to_string();
    Some(Entry { name: name.into(), dtype, shape, begin: begin.as_u64()?, end: end.as_u64()? })
}

/// Reads a file whole. Integers other than i32 and u8 become i32, booleans u8.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read, [`Error::Checkpoint`] saying what is wrong with it.
pub fn read(path: impl AsRef<Path>) -> Result<StateDict> {
    let path = path.as_ref();
    let (header, file) = open(path)?;
    let mut dict = StateDict::of(path, header.metadata.clone());
    read_entries(&header, file, &mut dict, path, |_| true)?;
    Ok(dict)
}

fn read_entries(
    header: &Header,
    file: File,
    dict: &mut StateDict,
    path: &Path,
    wanted: impl Fn(&str) -> bool,
) -> Result<()> {
    let mut file = BufReader::new(file); // for the many small tensors; large reads pass through
    file.seek(SeekFrom::Start(header.data_start)).map_err(Error::io(path))?;
    for e in &header.entries {
        if !wanted(&e.name) {
            file.seek_relative((e.end - e.begin) as i64).map_err(Error::io(path))?;
            continue;
        }
        let stored = Stored::parse(&e.dtype).ok_or_else(|| {
            let known = "F64, F32, F16, BF16, integers and BOOL";
            Error::checkpoint(path, format!("tensor `{}` has dtype {}, expected one of {known}", e.name, e.dtype))
        })?;
        let tensor = stored.read(&e.shape, &mut file).map_err(|fault| fault.of(path, &e.name))?;
        dict.insert(e.name.clone(), tensor)?;
    }
    Ok(())
}

/// Reads the shards that a `*.safetensors.index.json` lists, from the folder it is in.
///
/// # Errors
/// As [`read`]; also when a shard lacks a tensor that the index places there.
pub fn read_sharded(index: impl AsRef<Path>) -> Result<StateDict> {
    let index = index.as_ref();
    let bad = |cause: String| Error::checkpoint(index, cause);
    let text = std::fs::read(index).map_err(Error::io(index))?;
    let json: Value = serde_json::from_slice(&text).map_err(|e| bad(format!("not JSON: {e}")))?;
    let map = json.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| bad("no `weight_map`: not the index of a sharded checkpoint".into()))?;
    let mut dict = StateDict::of(index, Default::default());
    let mut shards = std::collections::BTreeMap::<&str, Vec<&str>>::new();
    for (name, shard) in map {
        let shard = shard.as_str().filter(|s| is_plain_name(s));
        let shard =
            shard.ok_or_else(|| bad(format!("tensor `{name}` has no file name in this folder as its shard")))?;
        shards.entry(shard).or_default().push(name);
    }
    for (shard, names) in shards {
        let path = index.with_file_name(shard);
        let (header, file) = open(&path)?;
        if let Some(missing) = names.iter().find(|n| header.entries.iter().all(|e| e.name != **n)) {
            return Err(Error::checkpoint(
                &path,
                format!("tensor `{missing}` is missing, which the index places here"),
            ));
        }
        let names: std::collections::HashSet<&str> = names.into_iter().collect();
        read_entries(&header, file, &mut dict, &path, |n| names.contains(n))?;
        dict.metadata.extend(header.metadata);
    }
    Ok(dict)
}

/// An index must not reach outside its folder.
fn is_plain_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(std::path::Component::Normal(_)), None))
}

/// Writes a file atomically. Equal dictionaries give equal bytes.
///
/// # Errors
/// [`Error::Io`]; what was at `path` before then still is.
pub fn write(path: impl AsRef<Path>, dict: &StateDict) -> Result<()> {
    let path = path.as_ref();
    let order = order(dict)?;
    let header = header_text(&order, dict).map_err(|cause| Error::checkpoint(path, cause))?;
    atomic::write(path, |w| write_to(w, &header, &order))
}

type Ordered<'a> = Vec<(&'a str, &'a crate::Tensor, &'a [u8])>;

/// Tensors as they follow in the file: wide elements first, so that all of them are aligned; otherwise as in the dictionary.
pub(super) fn order(dict: &StateDict) -> Result<Ordered<'_>> {
    let mut all = dict.iter().map(|(n, t)| Ok((n, t, StateDict::bytes_of(t)?))).collect::<Result<Ordered>>()?;
    all.sort_by_key(|(_, t, _)| std::cmp::Reverse(t.dtype().size()));
    Ok(all)
}

fn header_text(order: &Ordered, dict: &StateDict) -> std::result::Result<Vec<u8>, String> {
    let mut text = String::from("{");
    if !dict.metadata.is_empty() {
        let metadata = serde_json::to_string(&dict.metadata).map_err(|e| e.to_string())?;
        text += &format!("\"{METADATA}\":{metadata}");
    }
    let mut at = 0;
    for (name, tensor, bytes) in order {
        if *name == METADATA {
            return Err(format!("a tensor cannot be named `{METADATA}`"));
        }
        let dtype = match tensor.dtype() {
            DType::F32 => "F32",
            DType::BF16 => "BF16",
            DType::F16 => "F16",
            DType::F64 => "F64",
            DType::I32 => "I32",
            DType::U8 => "U8",
        };
        let comma = if text.len() > 1 { "," } else { "" };
        let (name, end) = (Value::from(*name), at + bytes.len());
        text += &format!(
            "{comma}{name}:{{\"dtype\":\"{dtype}\",\"shape\":{:?},\"data_offsets\":[{at},{end}]}}",
            tensor.shape()
        );
        at = end;
    }
    text.push('}');
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len())); // keeps the data 8-byte aligned
    Ok(text.into_bytes())
}

fn write_to(w: &mut impl Write, header: &[u8], order: &Ordered) -> io::Result<()> {
    w.write_all(&(header.len() as u64).to_le_bytes())?;
    w.write_all(header)?;
    order.iter().try_for_each(|(_, _, bytes)| w.write_all(bytes))
}

#[cfg(test)]
pub(super) fn to_bytes(dict: &StateDict) -> Vec<u8> {
    let order = order(dict).unwrap();
    let mut bytes = vec![];
    write_to(&mut bytes, &header_text(&order, dict).unwrap(), &order).unwrap();
    bytes
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_an_io_error() {
        let mut dict = StateDict::new();
        dict.insert("x", crate::Tensor::zeros([1 << 20], DType::F32, &crate::Device::Cpu).unwrap()).unwrap();
        let order = order(&dict).unwrap();
        let mut full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let fault = write_to(&mut full, &header_text(&order, &dict).unwrap(), &order).unwrap_err();
        assert_eq!(fault.kind(), io::ErrorKind::StorageFull);
    }
}
