//! Strings with numbers, found by what a text begins with.

/// Sorted strings. Searching narrows the range of those that share the bytes seen so far, so it needs no memory of its own.
#[derive(Clone, Debug, Default)]
pub struct Prefixes(Vec<(Box<[u8]>, u32)>);

impl Prefixes {
    /// The first string that occurs twice is the error.
    pub fn new<'a>(entries: impl IntoIterator<Item = (&'a str, u32)>) -> Result<Self, String> {
        let mut sorted: Vec<(Box<[u8]>, u32)> =
            entries.into_iter().map(|(text, id)| (text.as_bytes().into(), id)).collect();
        sorted.sort_unstable();
        match sorted.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            None => Ok(Self(sorted)),
            Some(pair) => Err(format!("piece `{}` occurs twice", String::from_utf8_lossy(&pair[0].0))),
        }
    }

    /// Calls `each` with length and number of every entry that `text` begins with, shortest first.
    pub fn each(&self, text: &[u8], mut each: impl FnMut(usize, u32)) {
        let mut range = &self.0[..];
        for (at, &byte) in text.iter().enumerate() {
            // Entries that end here sort first, so from the first one with this byte on all have one.
            let from = range.partition_point(|(entry, _)| entry.get(at).is_none_or(|&b| b < byte));
            range = &range[from..];
            range = &range[..range.partition_point(|(entry, _)| entry[at] == byte)];
            match range.first() {
                None => break,
                Some((entry, id)) if entry.len() == at + 1 => each(at + 1, *id),
                Some(_) => {}
            }
        }
    }

    /// The longest entry that `text` begins with.
    pub fn longest(&self, text: &[u8]) -> Option<(usize, u32)> {
        let mut found = None;
        self.each(text, |len, id| found = Some((len, id)));
        found
    }

    /// Number of this string.
    pub fn get(&self, text: &[u8]) -> Option<u32> {
        self.0.binary_search_by(|(entry, _)| (**entry).cmp(text)).ok().map(|at| self.0[at].1)
    }
}
