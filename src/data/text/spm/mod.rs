//! Sentencepiece models (Kudo and Richardson 2018, arXiv 1808.06226): unigram and BPE, read from `.model` files.
//!
//! Ids are those of sentencepiece 0.2: the unigram search keeps its sums in f32 and the first of equal paths, BPE merges the
//! pair of best score, leftmost first, and rules of normalisation are applied longest first. Weights were trained on exactly
//! these ids, which is why the search is written out here: a general library rounds sums and breaks ties otherwise.

mod normalize;
mod prefixes;
mod proto;

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use normalize::{Charsmap, Normalizer};
use prefixes::Prefixes;
use proto::{Kind, Piece, Proto};

/// Which search a model uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Search {
    /// Best sum of scores (Kudo 2018, arXiv 1804.10959).
    Unigram,
    /// Byte-pair encoding: merges by score.
    Bpe,
}

/// A model; see the module documentation.
#[derive(Clone, Debug)]
pub struct SentencePiece {
    search: Search,
    pieces: Vec<Piece>,
    /// Pieces that text can be cut into.
    table: Prefixes,
    /// Pieces that a user defined: never cut.
    user: Prefixes,
    /// The pieces of the 256 bytes, with byte fallback.
    bytes: Option<Box<[u32; 256]>>,
    unknown: u32,
    eos: Option<u32>,
    /// Score of a character that is no piece.
    unknown_score: f32,
    normalizer: Normalizer,
}

impl SentencePiece {
    /// Reads the bytes of a `.model` file; the error says what is wrong with them.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        let proto = Proto::read(bytes)?;
        let search = match proto.model_type {
            1 => Search::Unigram,
            2 => Search::Bpe,
            other => return Err(format!("it is of model type {other}, expected 1 (unigram) or 2 (BPE)")),
        };
        let numbered = || proto.pieces.iter().zip(0u32..);
        let of = |kinds: &'static [Kind]| {
            numbered().filter(|(p, _)| kinds.contains(&p.kind)).map(|(p, id)| (p.text.as_str(), id))
        };
        let unknown = of(&[Kind::Unknown]).next().ok_or("it has no piece for unknown characters")?.1;
        let eos = of(&[Kind::Control]).find(|(text, _)| *text == proto.eos_piece).map(|(_, id)| id);
        let bytes = proto.byte_fallback.then(|| byte_pieces(&proto.pieces)).transpose()?;
        let scores = proto.pieces.iter().filter(|p| p.kind == Kind::Normal).map(|p| p.score);
        let normalizer = Normalizer {
            charsmap: Charsmap::read(&proto.charsmap)?,
            add_dummy_prefix: proto.add_dummy_prefix,
            remove_extra_spaces: proto.remove_extra_spaces,
            escape_spaces: proto.escape_spaces,
            space_as_suffix: proto.space_as_suffix,
        };
        Ok(Self {
            search,
            table: Prefixes::new(of(&[Kind::Normal, Kind::UserDefined, Kind::Unused]))?,
            user: Prefixes::new(of(&[Kind::UserDefined]))?,
            bytes,
            unknown,
            eos,
            unknown_score: scores.fold(f32::MAX, f32::min) - 10.0,
            normalizer,
            pieces: proto.pieces,
        })
    }

    /// Number of pieces.
    pub fn vocab(&self) -> usize {
        self.pieces.len()
    }

    /// The piece that ends a text, if the model has one.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Ids of a text: normalised, cut into pieces; characters that are no piece become their bytes, or one unknown for a
    /// run of them.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let text = self.normalizer.apply(text, &self.user);
        let found = match self.search {
            Search::Unigram => self.unigram(&text),
            Search::Bpe => self.bpe(&text),
        };
        let mut ids = Vec::with_capacity(found.len());
        let mut after_unknown = false;
        for (part, id) in found {
            match &self.bytes {
                Some(bytes) if id == self.unknown => ids.extend(part.bytes().map(|b| bytes[usize::from(b)])),
                _ if id == self.unknown && after_unknown => {}
                _ => ids.push(id),
            }
            after_unknown = id == self.unknown;
        }
        ids
    }

    /// Viterbi search over the places where characters begin.
    fn unigram<'a>(&self, text: &'a str) -> Vec<(&'a str, u32)> {
        #[derive(Clone, Copy)]
        struct Best {
            id: u32,
            score: f32,
            start: Option<usize>,
        }
        let mut ends = vec![Best { id: self.unknown, score: 0.0, start: None }; text.len() + 1];
        for (start, c) in text.char_indices() {
            let score_here = ends[start].score;
            let mut has_single = false;
            let offer = |ends: &mut [Best], len: usize, id: u32, score: f64| {
                let (best, score) = (&mut ends[start + len], score + f64::from(score_here));
                // Compared before it is rounded, as upstream's mixed arithmetic does: it decides between equal paths.
                if best.start.is_none() || score > f64::from(best.score) {
                    *best = Best { id, score: score as f32, start: Some(start) };
                }
            };
            self.table.each(&text.as_bytes()[start..], |len, id| {
                let piece = &self.pieces[id as usize];
                let score = match piece.kind {
                    Kind::Unused => return,
                    Kind::UserDefined => f64::from(len as f32 * f32::MIN_POSITIVE) - 0.1,
                    _ => f64::from(piece.score),
                };
                offer(&mut ends, len, id, score);
                has_single |= len == c.len_utf8();
            });
            if !has_single {
                offer(&mut ends, c.len_utf8(), self.unknown, f64::from(self.unknown_score));
            }
        }
        let mut found = Vec::new();
        let mut end = text.len();
        while let Some(start) = ends[end].start {
            found.push((&text[start..end], ends[end].id));
            end = start;
        }
        found.reverse();
        found
    }

    /// Merges neighbours while one of their unions is a piece.
    fn bpe<'a>(&self, text: &'a str) -> Vec<(&'a str, u32)> {
        let mut symbols = self.symbols(text);
        let mut agenda = BinaryHeap::new();
        // How a piece that may not appear in the result was made.
        let mut halves: HashMap<&str, (&str, &str)> = HashMap::new();
        let mut propose =
            |symbols: &[Symbol], left: Option<usize>, right: Option<usize>, agenda: &mut BinaryHeap<_>| {
                let (Some(left), Some(right)) = (left, right) else { return };
                let (a, b) = (&symbols[left], &symbols[right]);
                let union = &text[a.start..b.end];
                if a.frozen || b.frozen {
                    return;
                }
                let Some(id) = self.table.get(union.as_bytes()) else { return };
                let piece = &self.pieces[id as usize];
                agenda.push(Merge { score: piece.score, left, right, len: union.len() });
                if piece.kind == Kind::Unused {
                    halves.insert(union, (&text[a.start..a.end], &text[b.start..b.end]));
                }
            };
        for right in 1..symbols.len() {
            propose(&symbols, Some(right - 1), Some(right), &mut agenda);
        }
        while let Some(Merge { left, right, len, .. }) = agenda.pop() {
            let (a, b) = (&symbols[left], &symbols[right]);
            // Symbols taken meanwhile are empty, symbols that grew give another length.
            if a.is_empty() || b.is_empty() || b.end - a.start != len {
                continue;
            }
            let (end, next, before) = (b.end, b.next, a.before);
            (symbols[left].end, symbols[left].next) = (end, next);
            symbols[right].start = symbols[right].end;
            if let Some(next) = next {
                symbols[next].before = Some(left);
            }
            propose(&symbols, before, Some(left), &mut agenda);
            propose(&symbols, Some(left), next, &mut agenda);
        }
        let mut found = Vec::new();
        for symbol in symbols.iter().filter(|s| !s.is_empty()) {
            let mut open = vec![&text[symbol.start..symbol.end]];
            while let Some(part) = open.pop() {
                let id = self.table.get(part.as_bytes()).unwrap_or(self.unknown);
                match halves.get(part).filter(|_| self.pieces[id as usize].kind == Kind::Unused) {
                    Some((left, right)) => open.extend([right, left]),
                    None => found.push((part, id)),
                }
            }
        }
        found
    }

    /// The characters of a text, what a user defined in one piece.
    fn symbols(&self, text: &str) -> Vec<Symbol> {
        let mut symbols = Vec::new();
        let mut start = 0;
        while let Some(c) = text[start..].chars().next() {
            let user = self.user.longest(&text.as_bytes()[start..]);
            let end = start + user.map_or(c.len_utf8(), |(len, _)| len);
            let at = symbols.len();
            symbols.push(Symbol {
                start,
                end,
                before: at.checked_sub(1),
                next: (end < text.len()).then_some(at + 1),
                frozen: user.is_some(),
            });
            start = end;
        }
        symbols
    }
}

fn byte_pieces(pieces: &[Piece]) -> Result<Box<[u32; 256]>, String> {
    let named: HashMap<&str, u32> =
        pieces.iter().zip(0..).filter(|(p, _)| p.kind == Kind::Byte).map(|(p, id)| (p.text.as_str(), id)).collect();
    let mut ids = Box::new([0; 256]);
    for (byte, id) in ids.iter_mut().enumerate() {
        let name = format!("<0x{byte:02X}>");
        *id = *named.get(name.as_str()).ok_or(format!("byte fallback is on, but there is no piece `{name}`"))?;
    }
    Ok(ids)
}

/// A part of the text during merging; empty once it was taken into its left neighbour.
struct Symbol {
    start: usize,
    end: usize,
    before: Option<usize>,
    next: Option<usize>,
    frozen: bool,
}

impl Symbol {
    fn is_empty(&self) -> bool {
        self.start == self.end
    }
}

/// A pair that could be merged: best score first, then the leftmost.
struct Merge {
    score: f32,
    left: usize,
    right: usize,
    len: usize,
}

impl Ord for Merge {
    fn cmp(&self, other: &Self) -> Ordering {
        // Scores are finite (checked on reading), and -0 is no worse than 0.
        self.score.partial_cmp(&other.score).unwrap_or(Ordering::Equal).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Merge {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Merge {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Merge {}
