//! Replacing a file at once: other processes, and this one after a crash, see the old contents or the new ones.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use crate::{Error, Result};

/// End of the names of temporary siblings; a killed process may leave one.
pub const TEMPORARY: &str = ".tmp";

/// Writes `path` through a temporary sibling: write, flush to the disk, rename, flush the folder.
///
/// # Errors
/// [`Error::Io`] names `path`; whatever stood there before still stands there, and the temporary file is gone.
pub fn write(path: impl AsRef<Path>, contents: impl FnOnce(&mut BufWriter<&mut File>) -> io::Result<()>) -> Result<()> {
    let path = path.as_ref();
    replace(path, contents).map_err(Error::io(path))
}

fn replace(path: &Path, contents: impl FnOnce(&mut BufWriter<&mut File>) -> io::Result<()>) -> io::Result<()> {
    let folder = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a file name"))?;
    let mut builder = tempfile::Builder::new();
    let prefix = format!(".{}.", name.to_string_lossy());
    builder.prefix(&prefix).suffix(TEMPORARY);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666)); // less the umask, like any new file
    }
    let mut file = builder.tempfile_in(folder)?; // removed when dropped
    let mut writer = BufWriter::with_capacity(1 << 20, file.as_file_mut());
    contents(&mut writer)?;
    writer.flush()?;
    drop(writer);
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    #[cfg(unix)]
    File::open(folder)?.sync_all()?; // the rename itself
    Ok(())
}

/// Removes temporary siblings that killed processes left in `folder` for files whose names start with `stem`.
///
/// # Errors
/// [`Error::Io`] names the folder or the file.
pub fn clean(folder: &Path, stem: &str) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with(&format!(".{stem}")) && name.ends_with(TEMPORARY) {
            std::fs::remove_file(&path).map_err(Error::io(&path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_keeps_the_old_file_and_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        write(&path, |w| w.write_all(b"old")).unwrap();
        let failed = write(&path, |w| {
            w.write_all(&vec![1; 3 << 20])?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        });
        assert!(matches!(failed, Err(Error::Io { path: p, .. }) if p == path));
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        write(&path, |w| w.write_all(b"new")).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn an_unwritable_place_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("missing/weights");
        let message = write(&path, |w| w.write_all(b"x")).unwrap_err().to_string();
        assert!(message.contains("missing/weights"), "{message}");
        assert!(write("/", |w| w.write_all(b"x")).is_err());
    }

    #[test]
    fn cleaning_takes_only_its_own_left_overs() {
        let folder = tempfile::tempdir().unwrap();
        for name in [".step-1.abc.tmp", ".other.abc.tmp", "step-1", ".step-1"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        clean(folder.path(), "step-").unwrap();
        let mut left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".other.abc.tmp", ".step-1", "step-1"]);
    }

    #[cfg(unix)]
    #[test]
    fn files_are_readable_by_others_as_the_umask_allows() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let (ours, plain) = (folder.path().join("a"), folder.path().join("b"));
        write(&ours, |w| w.write_all(b"x")).unwrap();
        std::fs::write(&plain, b"x").unwrap();
        let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&plain));
    }
}
