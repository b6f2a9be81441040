//! Named host tensors in order.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use crate::{Device, Error, Param, Result, Tensor};

/// Named tensors on [`Device::Cpu`] in the order of their insertion, with text metadata. The exchange form of all checkpoints.
#[derive(Clone, Debug)]
pub struct StateDict {
    entries: Vec<(String, Tensor)>,
    index: HashMap<String, usize>,
    /// Free text by key, kept by safetensors files.
    pub metadata: BTreeMap<String, String>,
    /// File it was read from, for messages; `(memory)` for one that was built here.
    pub origin: PathBuf,
}

impl Default for StateDict {
    fn default() -> Self {
        Self::new()
    }
}

impl StateDict {
    /// An empty dictionary.
    pub fn new() -> Self {
        Self { entries: vec![], index: HashMap::new(), metadata: BTreeMap::new(), origin: "(memory)".into() }
    }

    /// An empty dictionary of a file.
    pub fn of(origin: impl Into<PathBuf>, metadata: BTreeMap<String, String>) -> Self {
        Self { origin: origin.into(), metadata, ..Self::new() }
    }

    /// The master values of parameters under their names. Parameters on the CPU share their storage with the dictionary, so it
    /// has to be dropped before the next optimizer step.
    ///
    /// # Errors
    /// When two parameters have one name.
    pub fn from_params<'a>(params: impl IntoIterator<Item = &'a Param>) -> Result<Self> {
        let mut dict = Self::new();
        for p in params {
            dict.insert(p.name(), p.master.clone())?;
        }
        Ok(dict)
    }

    /// Appends a tensor, copied to the host if it is elsewhere.
    ///
    /// # Errors
    /// When the name is taken.
    pub fn insert(&mut self, name: impl Into<String>, tensor: Tensor) -> Result<()> {
        let name = name.into();
        if self.index.contains_key(&name) {
            return Err(Error::checkpoint(&self.origin, format!("tensor `{name}` occurs twice")));
        }
        let tensor = tensor.to_device(&Device::Cpu)?;
        self.index.insert(name.clone(), self.entries.len());
        self.entries.push((name, tensor));
        Ok(())
    }

    /// A tensor by name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.index.get(name).map(|&at| &self.entries[at].1)
    }

    /// A tensor that must be there.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] with the name.
    pub fn require(&self, name: &str) -> Result<&Tensor> {
        self.get(name).ok_or_else(|| Error::checkpoint(&self.origin, format!("tensor `{name}` is missing")))
    }

    /// Whether a tensor of this name exists.
    pub fn contains(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    /// Names and tensors in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Tensor)> {
        self.entries.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// Names in order.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.entries.iter().map(|(name, _)| name.as_str())
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Size of all tensors in bytes.
    pub fn bytes(&self) -> usize {
        self.entries.iter().map(|(_, t)| t.bytes()).sum()
    }

    /// Appends the tensors of another dictionary, each name with `prefix` in front. Metadata is not taken over.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn extend(&mut self, prefix: &str, other: &Self) -> Result<()> {
        other.iter().try_for_each(|(name, tensor)| self.insert(format!("{prefix}{name}"), tensor.clone()))
    }

    /// The tensors whose names start with `prefix`, without it. Metadata is not taken over, the origin is.
    pub fn strip_prefix(&self, prefix: &str) -> Self {
        let mut part = Self { origin: self.origin.clone(), ..Self::new() };
        for (name, tensor) in self.iter() {
            if let Some(rest) = name.strip_prefix(prefix) {
                part.index.insert(rest.to_string(), part.entries.len());
                part.entries.push((rest.to_string(), tensor.clone()));
            }
        }
        part
    }

    /// The bytes of a tensor of this dictionary, little-endian.
    pub(super) fn bytes_of(tensor: &Tensor) -> Result<&[u8]> {
        tensor
            .storage()
            .host()
            .ok_or_else(|| Error::argument("state_dict", "tensor", "device", tensor.device().name(), "cpu"))
    }
}
