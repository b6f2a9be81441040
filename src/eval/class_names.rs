//! Names of classes and prompt templates from text files, one a line.

use std::collections::HashMap;
use std::path::Path;

use crate::data::Folder;
use crate::data::text::read_lines;
use crate::{Error, Result};

/// The names among which zero-shot classification chooses, and the right one for each class folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassNames {
    /// Candidates: there may be more than folders.
    pub names: Vec<String>,
    /// Number of the right candidate for each class of the folder.
    pub of_folder: Vec<i32>,
}

impl ClassNames {
    /// The names of the class folders, or those of a file, whose lines are
    ///
    /// - `folder<TAB>name`, or just `name` where the folder is called so; names without a folder are further candidates; or
    /// - where no line names a folder, as many names as there are folders, in the order of these.
    ///
    /// # Errors
    /// A folder without classes, an empty file, a class folder without a name, or one with two.
    pub fn new(folder: &Folder, file: Option<&Path>) -> Result<Self> {
        let classes = folder.classes();
        if classes.is_empty() {
            let cause = "has no class folders, expected one for each class".to_owned();
            return Err(Error::Dataset { path: folder.root().into(), cause });
        }
        let in_order = (0..).take(classes.len()).collect();
        let Some(path) = file else { return Ok(Self { names: classes.to_vec(), of_folder: in_order }) };
        let fault = |cause: String| Error::Dataset { path: path.to_path_buf(), cause };
        let lines = lines(path, "class names")?;
        let entries: Vec<(&str, &str)> =
            lines.iter().map(|line| line.split_once('\t').unwrap_or((line, line))).collect();
        let names = entries.iter().map(|(_, name)| (*name).to_owned()).collect();
        let mut numbers = HashMap::new();
        for (number, (key, _)) in (0..).zip(&entries) {
            let twice = numbers.insert(key.trim(), number).is_some();
            if twice && classes.iter().any(|class| class == key.trim()) {
                return Err(fault(format!("the class folder `{}` is in it twice", key.trim())));
            }
        }
        let of_folder: Vec<Option<i32>> = classes.iter().map(|class| numbers.get(class.as_str()).copied()).collect();
        if of_folder.iter().all(Option::is_none) && entries.len() == classes.len() {
            return Ok(Self { names, of_folder: in_order });
        }
        let named = |(class, number): (&String, Option<i32>)| {
            let cause = || format!("no name for the class folder `{class}` among {} lines", entries.len());
            number.ok_or_else(|| fault(cause()))
        };
        let of_folder = classes.iter().zip(of_folder).map(named).collect::<Result<_>>()?;
        Ok(Self { names, of_folder })
    }
}

/// Templates of a file, `{}` for the class name.
///
/// # Errors
/// An empty file, or a line without `{}`.
pub fn templates(path: &Path) -> Result<Vec<String>> {
    let lines = lines(path, "templates")?;
    match lines.iter().find(|line| !line.contains("{}")) {
        None => Ok(lines),
        Some(line) => {
            let cause = format!("the template `{line}` has no `{{}}` where the class name goes");
            Err(Error::Dataset { path: path.to_path_buf(), cause })
        }
    }
}

/// Lines that are not blank, at least one.
fn lines(path: &Path, what: &str) -> Result<Vec<String>> {
    let mut lines = read_lines(path)?;
    lines.retain(|line| !line.trim().is_empty());
    if lines.is_empty() {
        return Err(Error::Dataset {
            path: path.to_path_buf(),
            cause: format!("no {what} in it, expected one a line"),
        });
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Image, Source};

    #[test]
    fn names_belong_to_folders() {
        let place = tempfile::tempdir().unwrap();
        for class in ["n01", "n02", "n03"] {
            std::fs::create_dir_all(place.path().join("data").join(class)).unwrap();
            Image::filled(2, 2, [0; 3]).save_png(place.path().join("data").join(class).join("0.png")).unwrap();
        }
        let folder = Folder::open(place.path().join("data")).unwrap();
        let path = place.path().join("names.txt");
        let names = |text: &str| {
            std::fs::write(&path, text).unwrap();
            ClassNames::new(&folder, Some(&path))
        };
        let made = |names: &[&str], of_folder: &[i32]| ClassNames {
            names: names.iter().map(|n| (*n).to_owned()).collect(),
            of_folder: of_folder.to_vec(),
        };
        assert_eq!(ClassNames::new(&folder, None).unwrap(), made(&["n01", "n02", "n03"], &[0, 1, 2]));
        assert_eq!(names("tench, x\nshark\n\nray\n").unwrap(), made(&["tench, x", "shark", "ray"], &[0, 1, 2]));
        assert_eq!(names("crane\ncrane\nray").unwrap().names, ["crane", "crane", "ray"]);
        assert_eq!(
            names("n03\tray\nn01\ttench\nother\r\nn02").unwrap(),
            made(&["ray", "tench", "other", "n02"], &[1, 3, 0])
        );
        for (text, part) in [
            ("", "no class names in it"),
            ("\n \n", "no class names in it"),
            ("a\nb", "no name for the class folder `n01` among 2 lines"),
            ("n01\na\nb", "no name for the class folder `n02`"),
            ("n01\nn01\tb\nn02\nn03", "`n01` is in it twice"),
        ] {
            let error = names(text).unwrap_err().to_string();
            assert!(error.contains("names.txt") && error.contains(part), "{text:?}: {error}");
        }
        std::fs::write(&path, "a {}\n\na photo\n").unwrap();
        assert!(templates(&path).unwrap_err().to_string().contains("`a photo` has no `{}`"));
        std::fs::write(&path, "a {}\n\n{} b\n").unwrap();
        assert_eq!(templates(&path).unwrap(), ["a {}", "{} b"]);
        std::fs::write(&path, b"a {}\n\xff{}").unwrap();
        assert!(templates(&path).unwrap_err().to_string().contains("line 2 is not UTF-8"));
        let flat = Folder::unlabelled(place.path().join("data")).unwrap();
        assert!(flat.len() == 3 && ClassNames::new(&flat, None).unwrap_err().to_string().contains("no class folders"));
    }
}
