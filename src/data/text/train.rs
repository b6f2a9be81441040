//! Tokenizers from captions.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::replace::{Replace, ReplacePattern};
use tokenizers::normalizers::{Sequence, Strip};
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::{AddedToken, PreTokenizerWrapper, Trainer};

use super::{Settings, canonical};
use crate::{Error, Result};

/// What to train.
#[derive(Clone, Copy, Debug)]
pub struct Training {
    /// Ids at most; fewer if the captions do not have as many pieces.
    pub vocab: usize,
    /// Pairs that occur less often are not merged.
    pub min_count: u64,
}

/// The first ids: padding, end of text, unknown.
const RESERVED: [&str; 3] = ["<pad>", "</s>", "<unk>"];
/// Ids at most: the trainer reserves memory for all of them at once.
const MAX_VOCAB: usize = 1 << 22;

/// Longer words carry no pieces worth having.
const LONGEST_WORD: usize = 128;

/// Trains byte-pair encoding with byte fallback on captions and writes it as `tokenizer.json`; the number of its ids comes back.
///
/// Captions go through `settings` as they will in use, words are what white space leaves. Ids 0, 1 and 2 are `<pad>`, `</s>` and
/// `<unk>`; the 256 bytes follow, then characters and merges, the most frequent pair first. The same captions in any order give
/// the same file, whatever the number of threads.
///
/// # Errors
/// No words, or a vocabulary too small for the reserved ids and the captions' characters.
pub fn train<S: AsRef<str>>(
    captions: impl IntoIterator<Item = S>,
    settings: &Settings,
    training: &Training,
    out: impl AsRef<Path>,
) -> Result<usize> {
    let out = out.as_ref();
    let words = count(captions, settings);
    let characters: BTreeSet<char> = words.keys().flat_map(|word| word.chars()).collect();
    let reserved = reserved();
    let least = reserved.len() + characters.len() + 1;
    if words.is_empty() {
        return Err(Error::value("tokenizer train", "captions", "no words", "captions with at least one word"));
    }
    if !(least..=MAX_VOCAB).contains(&training.vocab) {
        let expected = format!(
            "{least} to {MAX_VOCAB}: {} reserved ids, {} characters and one piece",
            reserved.len(),
            characters.len()
        );
        return Err(Error::config("vocab", training.vocab, expected));
    }
    let fault = |e: tokenizers::Error| Error::tokenizer(out, e.to_string());
    let model = merges(&words, reserved, training).map_err(fault)?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    let blanks = Replace::new(ReplacePattern::Regex(r"\s+".into()), " ").map_err(fault)?;
    let normalizer = Sequence::new(vec![blanks.into(), Strip::new(true, true).into()]);
    tokenizer.with_normalizer(Some(normalizer)).map_err(fault)?;
    tokenizer.with_pre_tokenizer(Some(PreTokenizerWrapper::Metaspace(metaspace())));
    tokenizer.with_decoder(Some(tokenizers::DecoderWrapper::Metaspace(metaspace())));
    let json = tokenizer.to_string(true).map_err(fault)?;
    std::fs::write(out, json).map_err(Error::io(out))?;
    Ok(tokenizer.get_vocab_size(true))
}

/// Words begin with `▁`, which stands for the blank before them.
fn metaspace() -> Metaspace {
    Metaspace::new('▁', PrependScheme::Always, true)
}

/// How often each word occurs.
fn count<S: AsRef<str>>(captions: impl IntoIterator<Item = S>, settings: &Settings) -> BTreeMap<String, u32> {
    let mut words = BTreeMap::new();
    for caption in captions {
        let text = canonical::squeeze(&settings.prepare(caption.as_ref()));
        for word in text.split(' ').filter(|word| !word.is_empty() && word.chars().count() <= LONGEST_WORD) {
            let count = words.entry(format!("▁{word}")).or_insert(0u32);
            *count = count.saturating_add(1);
        }
    }
    words
}

fn reserved() -> Vec<String> {
    let bytes = (0..=255u8).map(|byte| format!("<0x{byte:02X}>"));
    RESERVED.iter().map(|name| (*name).to_owned()).chain(bytes).collect()
}

fn merges(words: &BTreeMap<String, u32>, names: Vec<String>, training: &Training) -> tokenizers::Result<BPE> {
    let mut trainer = BpeTrainer::builder()
        .vocab_size(training.vocab)
        .min_frequency(training.min_count)
        .special_tokens(names.into_iter().map(|name| AddedToken::from(name, true)).collect())
        .show_progress(false)
        .build();
    // The trainer counts by itself, so a word comes as often as it occurs.
    let repeated = words.iter().flat_map(|(word, &count)| std::iter::repeat_n(word, count as usize));
    trainer.feed(repeated, |word| Ok(vec![word.to_owned()]))?;
    let mut model = BPE::builder().unk_token(RESERVED[2].into()).byte_fallback(true).fuse_unk(true).build()?;
    trainer.train(&mut model)?;
    Ok(model)
}
