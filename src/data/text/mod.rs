//! Captions to token ids.
//!
//! A [`Tokenizer`] is read from a sentencepiece `.model` file, where ids are exactly sentencepiece's ([`SentencePiece`]), or
//! from a `tokenizer.json` of Hugging Face; [`train`] makes one from captions. [`Settings`] say what happens before and after:
//! lower case, punctuation, end of text, length. They belong to the weights, so a run stores them.

mod beside;
mod canonical;
mod spm;
mod train;

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub use canonical::canonicalize;
pub use spm::SentencePiece;
pub use train::{Training, train};

use crate::{Error, Result};

/// What becomes of the end-of-text id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Eos {
    /// Stands at the end of every text, cut ones too.
    Sticky,
    /// Stands at the end of texts that are not cut.
    Yes,
    /// Is not used.
    None,
}

/// Lower-casing before the text is cut into pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Lower {
    /// A to Z only, as big_vision trained.
    Ascii,
    /// All of Unicode, as Hugging Face and open_clip have it.
    Unicode,
    /// As written.
    None,
}

/// Punctuation before the text is cut into pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Punctuation {
    /// As written, as big_vision trained.
    Keep,
    /// ASCII punctuation is removed and white space squeezed, as Hugging Face has it.
    Strip,
}

/// From text to ids of a fixed length. Unknown keys are errors when it is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Ids of a text, L: longer texts are cut, shorter ones padded at the end.
    pub max_len: usize,
    /// End of text.
    pub eos: Eos,
    /// Id that fills short texts up.
    pub pad: u32,
    /// Lower-casing.
    pub lower: Lower,
    /// Punctuation.
    pub punctuation: Punctuation,
}

impl Settings {
    /// As the released English SigLIP weights were trained: padded with the end-of-text id, which is 1.
    pub fn siglip() -> Self {
        Self { max_len: 64, eos: Eos::Sticky, pad: 1, lower: Lower::Ascii, punctuation: Punctuation::Keep }
    }

    /// As Hugging Face's tokenizer of these weights has it: Unicode lower case, no punctuation.
    pub fn siglip_hf() -> Self {
        Self { lower: Lower::Unicode, punctuation: Punctuation::Strip, ..Self::siglip() }
    }

    /// As SigLIP 2 was trained: padded with 0.
    pub fn siglip2() -> Self {
        Self { pad: 0, ..Self::siglip() }
    }

    /// The text that is cut into pieces.
    pub fn prepare(&self, text: &str) -> String {
        let text = match self.punctuation {
            Punctuation::Keep => text.to_owned(),
            Punctuation::Strip => canonical::squeeze(&canonical::strip_punctuation(text)),
        };
        match self.lower {
            Lower::Ascii => text.to_ascii_lowercase(),
            Lower::Unicode => text.to_lowercase(),
            Lower::None => text,
        }
    }
}

#[derive(Clone, Debug)]
enum Model {
    SentencePiece(Box<SentencePiece>),
    Json(Box<tokenizers::Tokenizer>),
}

/// Captions to ids; see the module documentation.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    path: PathBuf,
    /// The file, to be [saved](Tokenizer::save) beside weights.
    bytes: Vec<u8>,
    model: Model,
    eos: u32,
    settings: Settings,
}

/// Names of the end-of-text piece in `tokenizer.json` files, the first that is there counts.
const EOS_NAMES: [&str; 3] = ["</s>", "<eos>", "<|endoftext|>"];

impl Tokenizer {
    /// Reads a sentencepiece `.model` or a `tokenizer.json`; what it is shows in its bytes.
    ///
    /// # Errors
    /// A file that cannot be read or is neither, and settings that do not fit it.
    pub fn open(path: impl AsRef<Path>, settings: Settings) -> Result<Self> {
        let path = path.as_ref();
        Self::from_bytes(&std::fs::read(path).map_err(Error::io(path))?, path, settings)
    }

    /// The same from the bytes of a file; `path` is used in errors only.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_bytes(bytes: &[u8], path: impl AsRef<Path>, settings: Settings) -> Result<Self> {
        let path = path.as_ref();
        let fault = |cause: String| Error::tokenizer(path, cause);
        let (model, eos) = if bytes.trim_ascii_start().starts_with(b"{") {
            let mut json = tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| fault(e.to_string()))?;
            // Length is this type's business, whatever the file was saved with.
            json.with_padding(None);
            json.with_truncation(None).map_err(|e| fault(e.to_string()))?;
            let eos = EOS_NAMES.iter().find_map(|name| json.token_to_id(name));
            (Model::Json(Box::new(json)), eos)
        } else {
            let model = SentencePiece::read(bytes).map_err(fault)?;
            let eos = model.eos();
            (Model::SentencePiece(Box::new(model)), eos)
        };
        if settings.max_len == 0 {
            return Err(Error::config("max_len", 0, "at least 1"));
        }
        let eos = match eos {
            Some(eos) => eos,
            None if settings.eos == Eos::None => 0,
            None => return Err(fault("it has no end-of-text piece; use eos = \"none\"".into())),
        };
        let tokenizer = Self { path: path.to_path_buf(), bytes: bytes.to_vec(), model, eos, settings };
        if tokenizer.settings.pad as usize >= tokenizer.vocab() {
            let expected = format!("below {}, the tokenizer's vocabulary", tokenizer.vocab());
            return Err(Error::config("pad", tokenizer.settings.pad, expected));
        }
        Ok(tokenizer)
    }

    /// Number of ids.
    pub fn vocab(&self) -> usize {
        match &self.model {
            Model::SentencePiece(model) => model.vocab(),
            // Ids may have gaps: what counts is the largest.
            Model::Json(model) => model.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1),
        }
    }

    /// An error unless the tokenizer has as many ids as a model has embeddings.
    ///
    /// # Errors
    /// When the numbers differ.
    pub fn check_vocab(&self, embeddings: usize) -> Result<()> {
        if self.vocab() == embeddings {
            return Ok(());
        }
        let cause = format!("it has {} ids, the model has embeddings for {embeddings}", self.vocab());
        Err(Error::tokenizer(&self.path, cause))
    }

    fn is_json(&self) -> bool {
        matches!(self.model, Model::Json(_))
    }

    /// The end-of-text id; `None` if the settings do without.
    pub fn eos(&self) -> Option<u32> {
        (self.settings.eos != Eos::None).then_some(self.eos)
    }

    /// What a run stores.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Ids of a text as the model cuts it, of any length: neither the settings nor the end of text play a part.
    ///
    /// # Errors
    /// When a `tokenizer.json` cannot express the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match &self.model {
            Model::SentencePiece(model) => Ok(model.encode(text)),
            Model::Json(model) => {
                let encoding =
                    model.encode_fast(text, false).map_err(|e| Error::tokenizer(&self.path, e.to_string()))?;
                Ok(encoding.get_ids().to_vec())
            }
        }
    }

    /// The `max_len` ids that a text tower takes.
    ///
    /// # Errors
    /// As [`encode`](Self::encode). Long texts are cut, not refused.
    pub fn tokens(&self, text: &str) -> Result<Vec<i32>> {
        let Settings { max_len, eos, pad, .. } = self.settings;
        let mut ids = self.encode(&self.settings.prepare(text))?;
        match eos {
            Eos::Sticky => {
                ids.truncate(max_len - 1);
                ids.push(self.eos);
            }
            Eos::Yes => ids.push(self.eos),
            Eos::None => {}
        }
        ids.resize(max_len, pad);
        Ok(ids.into_iter().map(|id| id as i32).collect())
    }

    /// Ids of many texts, `[N, max_len]` row by row, in parallel.
    ///
    /// # Errors
    /// As [`tokens`](Self::tokens).
    pub fn batch<S: AsRef<str> + Sync>(&self, texts: &[S]) -> Result<Vec<i32>> {
        let rows = texts.par_iter().map(|text| self.tokens(text.as_ref())).collect::<Result<Vec<_>>>()?;
        Ok(rows.concat())
    }
}

/// Captions of a text file, one a line.
///
/// # Errors
/// A file that cannot be read; a line that is not UTF-8 is named.
pub fn read_lines(path: impl AsRef<Path>) -> Result<Vec<String>> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let line = |(number, line): (usize, &[u8])| {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        String::from_utf8(line.to_vec())
            .map_err(|_| Error::Dataset { path: path.into(), cause: format!("line {} is not UTF-8", number + 1) })
    };
    bytes.split(|b| *b == b'\n').enumerate().map(line).collect()
}

#[cfg(test)]
mod tests;
