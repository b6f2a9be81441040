//! PyTorch archives (`.pth`, `.pt`, `.bin`): a zip file with a pickle and one member per storage.
//!
//! Pickles are programs; this reader runs none. It knows the opcodes and the few functions that describe tensors and containers,
//! and keeps everything else as an inert [`Object`]. Contents of tensors are read when asked for, so a training file whose
//! optimizer state is twice the model costs no more than the model.

mod calls;
mod machine;
mod value;

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use zip::ZipArchive;
use zip::result::ZipError;

pub use value::{Object, TensorRef, Value};

use super::StateDict;
use crate::{Error, Result, Tensor};

/// Longest pickle read: those of the largest training files have a few megabytes.
const MAX_PICKLE: u64 = 32 << 20;
/// Keys under which training programs keep the weights, in the order they are looked for.
pub const MODEL_KEYS: [&str; 5] = ["model", "model_state", "model_state_dict", "state_dict", "teacher"];
/// The first bytes of files written before PyTorch 1.6: a pickled number.
const OLD_MAGIC: [u8; 14] = [0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// An open archive.
pub struct PthFile {
    path: PathBuf,
    archive: RefCell<ZipArchive<BufReader<File>>>,
    folder: String,
    root: Value,
}

impl PthFile {
    /// Opens an archive and reads everything except the contents of tensors.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Checkpoint`] for damaged files, and for the formats before PyTorch 1.6 with how to convert them.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bad = |cause: String| Error::checkpoint(path, cause);
        let mut start = vec![];
        let mut file = File::open(path).map_err(Error::io(path))?;
        file.by_ref().take(512).read_to_end(&mut start).map_err(Error::io(path))?;
        if let Some(cause) = refuse(&start) {
            return Err(bad(cause));
        }
        let archive =
            ZipArchive::new(BufReader::new(file)).map_err(|e| bad(format!("not a complete zip archive: {e}")))?;
        let pickles: Vec<String> = archive
            .file_names()
            .flatten()
            .filter(|n| *n == "data.pkl" || n.strip_suffix("/data.pkl").is_some_and(|folder| !folder.contains('/')))
            .map(std::borrow::Cow::into_owned)
            .collect();
        let [pickle] = pickles.as_slice() else {
            return Err(bad(format!("a zip archive with {} members `*/data.pkl`, expected one", pickles.len())));
        };
        let folder = pickle.strip_suffix("data.pkl").unwrap_or_default().to_string();
        let mut this = Self { path: path.into(), archive: RefCell::new(archive), folder, root: Value::None };
        if this.archive.borrow().index_for_name(&format!("{}byteorder", this.folder)).is_some() {
            let order = this.member("byteorder", 16)?;
            if order != b"little" {
                let order = String::from_utf8_lossy(&order).into_owned();
                let advice = "save it again on a little-endian machine";
                return Err(bad(format!("byte order `{order}`, expected little; {advice}")));
            }
        }
        let bytes = this.member("data.pkl", MAX_PICKLE)?;
        this.root = machine::read(&bytes).map_err(|cause| bad(format!("data.pkl: {cause}")))?;
        Ok(this)
    }

    /// What was saved.
    pub fn root(&self) -> &Value {
        &self.root
    }

    /// Reads a member of at most `limit` bytes to its end, where its checksum is compared.
    fn member(&self, name: &str, limit: u64) -> Result<Vec<u8>> {
        self.with_member(name, |size, member| {
            if size > limit {
                return Err(Error::checkpoint(
                    &self.path,
                    format!("member `{name}` has {size} bytes, expected at most {limit}"),
                ));
            }
            let mut bytes = vec![];
            member.read_to_end(&mut bytes).map_err(self.damaged(name))?;
            Ok(bytes)
        })
    }

    fn with_member<R>(&self, name: &str, f: impl FnOnce(u64, &mut dyn Read) -> Result<R>) -> Result<R> {
        let mut archive = self.archive.borrow_mut();
        let mut member = archive.by_name(&format!("{}{name}", self.folder)).map_err(|e| match e {
            ZipError::FileNotFound => Error::checkpoint(&self.path, format!("member `{name}` is missing")),
            other => Error::checkpoint(&self.path, format!("member `{name}`: {other}")),
        })?;
        // Deflate cannot shrink more than 1032 times: a larger claim is a lie that must not be allocated.
        let size = member.size();
        if size > member.compressed_size().saturating_mul(1032).saturating_add(64) {
            return Err(Error::checkpoint(
                &self.path,
                format!("member `{name}` states an impossible size of {size} bytes"),
            ));
        }
        f(size, &mut member)
    }

    fn damaged(&self, name: &str) -> impl Fn(std::io::Error) -> Error {
        move |e| Error::checkpoint(&self.path, format!("member `{name}` is damaged: {e}"))
    }

    /// Reads a tensor.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when its storage is missing, truncated or damaged.
    pub fn tensor(&self, tensor: &TensorRef) -> Result<Tensor> {
        self.read_tensor(tensor, None)
    }

    fn read_tensor(&self, t: &TensorRef, shared: Option<&mut HashMap<String, Rc<Vec<u8>>>>) -> Result<Tensor> {
        let name = format!("data/{}", t.storage);
        let fault = |e: super::stored::ReadError| e.of(&self.path, &name);
        if let (true, None) = (t.is_whole(), &shared) {
            return self.with_storage(t, |mut member| {
                let tensor = t.stored.read(&t.shape, &mut member).map_err(fault)?;
                // Reading past the end makes the archive compare the checksum.
                member.read(&mut [0]).map_err(self.damaged(&name))?;
                Ok(tensor)
            });
        }
        let read = || {
            self.with_storage(t, |member| {
                let mut bytes = vec![];
                member.read_to_end(&mut bytes).map_err(self.damaged(&name))?;
                Ok(Rc::new(bytes))
            })
        };
        let bytes = match shared {
            Some(cache) => match cache.get(&t.storage) {
                Some(bytes) => bytes.clone(),
                None => cache.entry(t.storage.clone()).or_insert(read()?).clone(),
            },
            None => read()?,
        };
        // Two tensors may disagree on the length of one storage.
        if bytes.len() != t.length * t.stored.size() {
            return Err(self.wrong_length(t, bytes.len() as u64));
        }
        t.stored.read(&t.shape, &mut t.gather(&bytes).as_slice()).map_err(fault)
    }

    fn with_storage<R>(&self, t: &TensorRef, f: impl FnOnce(&mut dyn Read) -> Result<R>) -> Result<R> {
        self.with_member(&format!("data/{}", t.storage), |size, member| {
            if t.length.checked_mul(t.stored.size()) != usize::try_from(size).ok() {
                return Err(self.wrong_length(t, size));
            }
            f(member)
        })
    }

    fn wrong_length(&self, t: &TensorRef, size: u64) -> Error {
        let cause =
            format!("storage {} has {size} bytes, expected {} elements of {}", t.storage, t.length, t.stored.size());
        Error::checkpoint(&self.path, cause)
    }

    /// The weights: the dictionary under `key`, or, without one, under the first of [`MODEL_KEYS`] that is there, or else what
    /// was saved itself.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when there is no such dictionary of tensors, or one of them cannot be read.
    pub fn state_dict(&self, key: Option<&str>) -> Result<StateDict> {
        let bad = |cause: String| Error::checkpoint(&self.path, cause);
        let (place, value) = match key {
            Some(key) => {
                let found = self.root.get(key).ok_or_else(|| bad(format!("no `{key}`: {}", self.contents())))?;
                (format!("`{key}`"), found)
            }
            None => match MODEL_KEYS.iter().find_map(|k| Some((k, self.root.get(k)?))) {
                Some((key, found)) => (format!("`{key}`"), found),
                None => ("the file".to_string(), &self.root),
            },
        };
        let Value::Dict(items) = value else {
            let module = matches!(value, Value::Object(o) if o.state.get("_parameters").is_some());
            let hint = if module { ": a whole module was saved; save its state_dict() instead" } else { "" };
            return Err(bad(format!("{place} is {}, expected a dictionary of tensors{hint}", value.kind())));
        };
        let mut tensors = vec![];
        for (name, value) in items {
            match (name, value) {
                (Value::Str(name), Value::Tensor(t)) => tensors.push((name, t)),
                (Value::Str(name), other) => {
                    return Err(bad(format!("`{name}` is {}, expected a tensor", other.kind())));
                }
                (other, _) => return Err(bad(format!("{place} has {} as a name, expected text", other.kind()))),
            }
        }
        let mut uses = HashMap::<&str, usize>::new();
        tensors.iter().for_each(|(_, t)| *uses.entry(&t.storage).or_default() += 1);
        let mut shared = HashMap::new(); // storages that several tensors look into are read once
        let mut dict = StateDict::of(&self.path, Default::default());
        for (name, t) in &tensors {
            let several = uses.get(t.storage.as_str()).is_some_and(|n| *n > 1);
            dict.insert(name.as_str(), self.read_tensor(t, several.then_some(&mut shared))?)?;
        }
        Ok(dict)
    }

    /// What there is instead, for messages.
    fn contents(&self) -> String {
        match &self.root {
            Value::Dict(items) => {
                let names: Vec<_> =
                    items.iter().filter_map(|(k, _)| k.text()).take(8).map(|k| format!("`{k}`")).collect();
                format!("the file has {}", if names.is_empty() { "nothing by name".into() } else { names.join(", ") })
            }
            other => format!("the file is {}", other.kind()),
        }
    }
}

/// Reads the weights of a file, see [`PthFile::state_dict`].
///
/// # Errors
/// As [`PthFile::open`] and [`PthFile::state_dict`].
pub fn read(path: impl AsRef<Path>) -> Result<StateDict> {
    PthFile::open(path)?.state_dict(None)
}

/// Why a file with this beginning is not an archive of today.
fn refuse(start: &[u8]) -> Option<String> {
    const CONVERT: &str =
        "convert it once in Python: torch.save(torch.load(path, map_location='cpu', weights_only=False), path)";
    if start.starts_with(b"PK\x03\x04") {
        None
    } else if start.starts_with(&OLD_MAGIC) {
        Some(format!("the format of PyTorch before 1.6 (a pickle without a zip archive); {CONVERT}"))
    } else if start.get(257..262) == Some(b"ustar") {
        Some(format!("the format of PyTorch 0.1 (a tar archive); {CONVERT}"))
    } else if start.is_empty() {
        Some("truncated: an empty file".into())
    } else {
        Some("not a PyTorch archive: neither a zip file nor one of the older formats".into())
    }
}
