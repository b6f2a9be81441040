//! Tar shards as webdataset writes them.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use super::{Place, Skipped, Text};
use crate::{Error, Result};

/// What a shard has of one key.
#[derive(Debug, Default)]
pub struct Member {
    pub key: String,
    pub image: Option<Place>,
    pub text: Option<Text>,
}

/// The shards of a folder, sorted by name.
pub fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut shards = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.is_file() && path.extension().is_some_and(|e| e.eq_ignore_ascii_case("tar")) {
            shards.push(path);
        }
    }
    shards.sort_unstable();
    Ok(shards)
}

/// The members of a shard, by key in the order of their first file. Only headers are read. A shard that ends inside a member
/// loses that member's pair, and what would have come behind it.
pub fn read(path: &Path, shard: u32, skipped: &mut Skipped, strict: bool) -> Result<Vec<Member>> {
    let file = File::open(path).map_err(Error::io(path))?;
    let end = file.metadata().map_err(Error::io(path))?.len();
    let mut archive = tar::Archive::new(file);
    let (mut members, mut numbers) = (Vec::<Member>::new(), HashMap::<String, usize>::new());
    let mut torn = None;
    for entry in archive.entries_with_seek().map_err(Error::io(path))? {
        let entry = match entry {
            Ok(entry) => entry,
            Err(e) => {
                skipped.add(path.to_path_buf(), format!("the shard is cut or damaged: {e}"), strict)?;
                break;
            }
        };
        let (at, len) = (entry.raw_file_position(), entry.size());
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let base = name.rfind('/').map_or(0, |slash| slash + 1);
        let Some(dot) = name[base..].find('.').filter(|dot| *dot > 0) else { continue };
        let (key, extension) = (&name[..base + dot], name[base + dot + 1..].to_ascii_lowercase());
        if at.checked_add(len).is_none_or(|member_end| member_end > end) {
            let cause = format!("the shard is cut inside this member: it ends at byte {end}");
            skipped.add(path.join(&name), cause, strict)?;
            torn = Some(key.to_owned());
            break;
        }
        let number = *numbers.entry(key.to_owned()).or_insert_with(|| {
            members.push(Member { key: key.to_owned(), ..Member::default() });
            members.len() - 1
        });
        let (member, place) = (&mut members[number], Place::Member { shard, at, len, name: name.as_str().into() });
        match extension.as_str() {
            "jpg" | "jpeg" | "png" | "webp" => _ = member.image.get_or_insert(place),
            "txt" => member.text = Some(Text::Plain(place)), // also where a .json came first
            "json" => _ = member.text.get_or_insert(Text::Json(place)),
            _ => {}
        }
    }
    // The torn member was counted: the rest of its pair is not a second fault.
    if let Some(number) = torn.and_then(|key| numbers.get(&key).copied()) {
        let member = &mut members[number];
        if member.image.is_none() || member.text.is_none() {
            (member.image, member.text) = (None, None);
        }
    }
    Ok(members)
}
