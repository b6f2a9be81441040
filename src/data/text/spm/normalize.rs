//! Text normalisation as the model file states it: rules of replacement, spaces to `▁`.

use super::prefixes::Prefixes;

/// What stands for a space inside pieces.
pub const SPACE: &str = "▁";

/// Rules `text -> replacement`, the longest that fits at a place first: a double array ([Darts-clone] layout) whose values
/// are offsets of NUL-terminated replacements.
///
/// [Darts-clone]: https://github.com/s-yata/darts-clone
#[derive(Clone, Debug, Default)]
pub struct Charsmap {
    units: Vec<u32>,
    replacements: Vec<u8>,
}

impl Charsmap {
    /// From the file's bytes: length of the array in bytes, the array, the replacements.
    pub fn read(blob: &[u8]) -> Result<Self, String> {
        if blob.is_empty() {
            return Ok(Self::default());
        }
        let cut = || "its table of normalisation rules ends early".to_owned();
        let (len, rest) = blob.split_first_chunk().ok_or_else(cut)?;
        let (array, replacements) = rest.split_at_checked(u32::from_le_bytes(*len) as usize).ok_or_else(cut)?;
        let (units, tail) = array.as_chunks();
        if !tail.is_empty() || std::str::from_utf8(replacements).is_err() {
            return Err("its table of normalisation rules is damaged".into());
        }
        let units = units.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
        Ok(Self { units, replacements: replacements.to_vec() })
    }

    /// Bytes consumed and the replacement of the longest rule that fits the beginning of `text`.
    fn longest(&self, text: &str) -> Option<(usize, &str)> {
        let offset = |unit: u32| ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize;
        let mut at = offset(*self.units.first()?);
        let mut found = None;
        for (i, &byte) in text.as_bytes().iter().enumerate() {
            at ^= usize::from(byte);
            let Some(&unit) = self.units.get(at) else { break };
            if unit & ((1 << 31) | 0xff) != u32::from(byte) {
                break;
            }
            at ^= offset(unit);
            if unit >> 8 & 1 == 1 {
                found = self.units.get(at).map(|value| (i + 1, (value & 0x7fff_ffff) as usize));
            }
        }
        let (len, start) = found?;
        let rest = self.replacements.get(start..)?;
        let end = rest.iter().position(|&b| b == 0).unwrap_or(rest.len());
        // A damaged table may point into the middle of a character: such a rule is passed over.
        text.is_char_boundary(len).then_some(())?;
        Some((len, std::str::from_utf8(&rest[..end]).ok()?))
    }
}

/// All of it, with the options that say where spaces go.
#[derive(Clone, Debug)]
pub struct Normalizer {
    pub charsmap: Charsmap,
    pub add_dummy_prefix: bool,
    pub remove_extra_spaces: bool,
    pub escape_spaces: bool,
    pub space_as_suffix: bool,
}

impl Normalizer {
    /// `user` are pieces that pass unchanged.
    pub fn apply(&self, text: &str, user: &Prefixes) -> String {
        let mut rest = text;
        if self.remove_extra_spaces {
            while let (" ", len) = self.step(rest, user) {
                rest = &rest[len..];
            }
        }
        if rest.is_empty() {
            return String::new();
        }
        let space = if self.escape_spaces { SPACE } else { " " };
        let mut out = String::with_capacity(text.len() * 3 / 2);
        if self.add_dummy_prefix && !self.space_as_suffix {
            out.push_str(space);
        }
        let mut after_space = self.remove_extra_spaces;
        while !rest.is_empty() {
            let (mut part, len) = self.step(rest, user);
            if after_space {
                part = part.trim_start_matches(' ');
            }
            if !part.is_empty() {
                part.split_inclusive(' ').for_each(|word| match word.strip_suffix(' ') {
                    Some(word) => out.extend([word, space]),
                    None => out.push_str(word),
                });
                after_space = part.ends_with(' ') && self.remove_extra_spaces;
            }
            rest = &rest[len..];
        }
        if self.remove_extra_spaces {
            out.truncate(out.trim_end_matches(space).len());
        }
        if self.add_dummy_prefix && self.space_as_suffix {
            out.push_str(space);
        }
        out
    }

    /// The next unit of `text` after normalisation, and how many bytes of `text` it stands for.
    fn step<'a>(&'a self, text: &'a str, user: &Prefixes) -> (&'a str, usize) {
        if let Some((len, _)) = user.longest(text.as_bytes()) {
            return (&text[..len], len);
        }
        if let Some((len, replacement)) = self.charsmap.longest(text) {
            return (replacement, len);
        }
        let len = text.chars().next().map_or(0, char::len_utf8);
        (&text[..len], len)
    }
}
