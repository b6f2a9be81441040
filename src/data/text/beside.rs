//! Tokenizers that lie beside the weights they belong to.

use std::path::{Path, PathBuf};

use super::{Settings, Tokenizer};
use crate::{Error, Result};

/// Names under which a tokenizer lies beside weights; the first that is there counts.
const NAMES: [&str; 3] = ["tokenizer.json", "tokenizer.model", "spiece.model"];
/// What happens around it, see [`Settings`].
const SETTINGS: &str = "tokenizer_settings.json";

impl Tokenizer {
    /// Writes the tokenizer and its settings into a folder of weights, in place of any other that lies there.
    ///
    /// # Errors
    /// Files that cannot be written or removed.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        let folder = folder.as_ref();
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let write = |name: &str, bytes: &[u8]| {
            let path = folder.join(name);
            std::fs::write(&path, bytes).map_err(Error::io(&path))
        };
        let own = if self.is_json() { NAMES[0] } else { NAMES[1] };
        write(own, &self.bytes)?;
        for name in NAMES.iter().filter(|name| **name != own) {
            let path = folder.join(name);
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io(&path)(e)),
                _ => {}
            }
        }
        let settings =
            serde_json::to_vec_pretty(&self.settings).map_err(|e| Error::tokenizer(folder, e.to_string()))?;
        write(SETTINGS, &settings)
    }

    /// The tokenizer that lies in the folder of weights (which may be given by one of its files), or the one in `file`. Its
    /// settings are those stored there, else `usual`.
    ///
    /// # Errors
    /// No tokenizer, or one that cannot be read.
    pub fn beside(weights: impl AsRef<Path>, file: Option<&Path>, usual: Settings) -> Result<Self> {
        let weights = weights.as_ref();
        let folder = if weights.is_dir() { weights } else { weights.parent().unwrap_or(Path::new("")) };
        let found = || NAMES.iter().map(|name| folder.join(name)).find(|path| path.is_file());
        let file: PathBuf = file.map(Path::to_path_buf).or_else(found).ok_or_else(|| {
            let cause = format!("none beside the weights ({}); give one with --tokenizer", NAMES.join(", "));
            Error::tokenizer(folder, cause)
        })?;
        let stored = folder.join(SETTINGS);
        let settings = match std::fs::read(&stored) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| Error::tokenizer(&stored, e.to_string()))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => usual,
            Err(e) => return Err(Error::io(&stored)(e)),
        };
        Self::open(file, settings)
    }
}
