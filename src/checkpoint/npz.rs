//! The `.npz` format of NumPy: a zip archive of `.npy` members, stored or deflated.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use zip::ZipArchive;

use super::{StateDict, npy};
use crate::{Error, Result};

/// Largest array read; a larger one is damage or malice.
const MAX_ARRAY: u64 = 1 << 36;

/// Reads all arrays under their names in the archive, without `.npy`.
///
/// # Errors
/// [`Error::Io`]; [`Error::Checkpoint`] naming the member when it is damaged or of a type that tensors do not have.
pub fn read(path: impl AsRef<Path>) -> Result<StateDict> {
    let path = path.as_ref();
    let bad = |cause: String| Error::checkpoint(path, cause);
    let file = File::open(path).map_err(Error::io(path))?;
    let mut archive =
        ZipArchive::new(BufReader::new(file)).map_err(|e| bad(format!("not a complete zip archive: {e}")))?;
    let mut dict = StateDict::of(path, Default::default());
    for at in 0..archive.len() {
        let mut member = archive.by_index(at).map_err(|e| bad(format!("member {at}: {e}")))?;
        let member_name = member.name().map_err(|e| bad(format!("member {at}: {e}")))?.into_owned();
        let Some(name) = member_name.strip_suffix(".npy") else {
            return Err(bad(format!("member `{member_name}` is no .npy array")));
        };
        // Deflate cannot shrink more than 1032 times: a larger claim is a lie that must not be allocated.
        let size = member.size();
        if size > member.compressed_size().saturating_mul(1032).saturating_add(64).min(MAX_ARRAY) {
            return Err(bad(format!("member `{member_name}` states an impossible size of {size} bytes")));
        }
        let tensor = npy::array(&mut member, size, path, name).map_err(|e| match e {
            Error::Checkpoint { cause, .. } => bad(format!("member `{member_name}`: {cause}")),
            other => other,
        })?;
        // Reading past the end makes the archive compare the checksum.
        member.read(&mut [0]).map_err(|e| bad(format!("member `{member_name}` is damaged: {e}")))?;
        dict.insert(name, tensor)?;
    }
    Ok(dict)
}
